# SPDX-License-Identifier: Apache-2.0
"""Our backbones inside OpenMMLab models: the weights are in them, whole, and train."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from evaluators.mm import backbone as adapters
from evaluators.mm import detector, runner, segmenter
from suite.backbone import Backbone
from suite.errors import JobError, UsageError
from tests.mm_samples import (
    BOTTLENECK,
    MEAN,
    QUICK,
    SEGMENT,
    SMALL,
    STD,
    SWIN,
    VIT,
    detection_batch,
    network,
    one_thread,
    segmentation_batch,
    trains_everything,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize(
    ("arch", "stem", "options", "architecture"),
    [
        ("resnet18", "imagenet", SMALL, "c4"),
        ("resnet18", "cifar", SMALL, "c4"),
        ("resnet18", "cifar", SMALL, "fpn"),
        ("resnet50d", "imagenet", BOTTLENECK, "c4"),
        ("convnext_atto", "imagenet", {}, "fpn"),
        ("test_efficientnet", "imagenet", {}, "fpn"),
        ("regnety_002", "imagenet", {}, "fpn"),
        ("resnest14d", "imagenet", {}, "c4"),
        ("swin_tiny_patch4_window7_224", "imagenet", SWIN, "fpn"),
        ("vit_tiny_patch16_224", "imagenet", VIT, "fpn"),
    ],
)
def test_detector_holds_the_weights_and_trains_all_of_them(
    arch: str, stem: str, options: dict[str, Any], architecture: Any, tmp_path: Path
) -> None:
    net = Backbone(arch, options, stem)
    digest = net.save(tmp_path / "backbone.safetensors")
    loaded = Backbone.load(tmp_path / "backbone.safetensors")
    cfg = dataclasses.replace(QUICK, architecture=architecture, masks=True, norm=True, box_convs=1, mask_channels=8)
    model = detector.rcnn(loaded, 3, cfg, MEAN, STD)
    assert trains_everything(model, detection_batch(96, 128, masks=True))
    assert loaded.sha256() == digest, "building or training the detector changed the backbone it was given"


@pytest.mark.parametrize(
    ("arch", "stem", "options", "side"),
    [
        ("resnet18", "imagenet", SMALL, 8),
        ("resnet18", "cifar", SMALL, 8),
        ("vit_tiny_patch16_224", "imagenet", VIT, 6),
        ("test_convnext", "imagenet", {}, 8),
        ("test_efficientnet", "imagenet", {}, 8),
        ("regnety_002", "imagenet", {}, 8),
    ],
)
def test_segmenter_holds_the_weights_at_output_stride_8(arch: str, stem: str, options: dict[str, Any], side: int) -> None:
    net = Backbone(arch, options, stem)
    size = 96 if arch.startswith("vit") else 64
    cfg = dataclasses.replace(SEGMENT, auxiliary=0.4, concat=True, crop=size)
    model = segmenter.fcn(net, 4, cfg, MEAN, STD)
    maps = model.backbone(torch.zeros(1, 3, size, size))
    assert [tuple(m.shape[2:]) for m in maps][-1] == (side, side)
    assert trains_everything(model, segmentation_batch(size))


def test_small_stem_is_dilated_to_the_stride_asked_for() -> None:
    net = network("resnet18", "cifar")
    assert adapters.dilated(net, 4).strides == (1, 1, 2, 4, 4)
    assert adapters.dilated(network(), 8).strides == (2, 4, 8, 8, 8)
    with pytest.raises(UsageError, match="output_stride"):
        adapters.dilated(network(), 2)


def test_c4_trunk_and_head_are_the_network() -> None:
    net = network("resnet18", "cifar").eval()
    copy = adapters.copy_of(net).eval()
    trunk, res5 = adapters.Trunk(copy).eval(), adapters.Res5(copy, extra_norm=False).eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(res5(trunk(x)[0]), net.stages(x, [4])[0])
    assert (trunk.stride, res5.stride, res5.dim) == (4, 2, 32)


def test_a_lost_or_changed_tensor_is_named() -> None:
    net = network()
    levels = adapters.Stages(adapters.copy_of(net), [3, 4])
    adapters.check_loaded(net.net.state_dict(), levels)
    with torch.no_grad():
        levels.body.net.layer3[0].conv1.weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(JobError, match="layer3.0.conv1.weight"):
        adapters.check_loaded(net.net.state_dict(), levels)
    trunk = adapters.Trunk(adapters.copy_of(net))
    with pytest.raises(JobError, match="lacks 'layer4"):
        adapters.check_loaded(net.net.state_dict(), trunk)


def test_frozen_stages_keep_weights_and_statistics() -> None:
    cfg = dataclasses.replace(QUICK, architecture="c4", frozen_stages=2)
    net = network("resnet18", "cifar")
    model = detector.rcnn(net, 3, cfg, MEAN, STD)
    data = model.train().data_preprocessor(detection_batch(64, 64), training=True)
    runner.total_loss(model.loss(data["inputs"], data["data_samples"])).backward()
    state = net.net.state_dict()
    for name, tensor in model.backbone.state_dict().items():
        if name.startswith(("conv1", "bn1", "layer1")):
            assert torch.equal(tensor, state[name]), name
    grads = {name.split(".")[0] for name, p in model.backbone.named_parameters() if p.grad is not None}
    assert grads == {"layer2", "layer3"}


def test_c4_of_a_transformer_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="c4.*fpn"):
        detector.rcnn(Backbone("vit_tiny_patch16_224", VIT), 3, dataclasses.replace(QUICK, architecture="c4"), MEAN, STD)


@pytest.mark.parametrize(
    ("arch", "dims", "strides"),
    [
        ("test_convnext", None, [4, 8, 16, 32]),
        ("test_efficientnet", None, [4, 8, 16, 32]),
        ("regnety_002", None, [4, 8, 16, 32]),
        ("resnet18", [8, 16, 24, 32], [4, 8, 16, 32]),
    ],
)
def test_pyramid_levels_of_any_cnn(arch: str, dims: list[int] | None, strides: list[int]) -> None:
    net = network(arch)
    (levels,), described = detector.parts(adapters.copy_of(net), 3, dataclasses.replace(QUICK, frozen_stages=0))
    assert levels.strides == strides and described["neck"]["in_channels"] == levels.dims == (dims or levels.dims)
    maps = levels(torch.zeros(1, 3, 96, 160))
    assert [tuple(m.shape[1:]) for m in maps] == [(d, 96 // s, 160 // s) for d, s in zip(levels.dims, strides, strict=True)]
