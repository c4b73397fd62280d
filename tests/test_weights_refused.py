# SPDX-License-Identifier: Apache-2.0
"""Weights that do not fit completely are refused in one line: missing keys, wrong prefixes, other architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from suite import weights
from suite.errors import UsageError
from tests.checkpoint_samples import HEAD, VIT, features, networks, other, pictures, randomised, under


@pytest.fixture(scope="module")
def nets() -> dict[str, nn.Module]:
    return networks()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return pictures()


def test_a_missing_key_is_refused_and_named(nets: Any, tmp_path: Path) -> None:
    state = under("module.encoder_q.", nets["resnet"].state_dict())
    del state["module.encoder_q.layer3.0.conv2.weight"]
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    with pytest.raises(UsageError) as caught:
        weights.load_backbone(tmp_path / "a.pth")
    message = str(caught.value)
    assert "1 missing (first: layer3.0.conv2.weight)" in message and "\n" not in message
    assert "closest prefix: 'module.encoder_q.'" in message


def test_a_wrong_prefix_names_the_closest(nets: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": under("module.encoder_q.", nets["resnet"].state_dict())}, tmp_path / "a.pth")
    with pytest.raises(
        UsageError,
        match=r"closest prefix: .module.encoder_q.. \((\d+) of \1 tensors\); pass --",
    ):
        weights.load_backbone(tmp_path / "a.pth", prefix="backbone.")


def test_the_prefix_chooses(nets: Any, images: Tensor, tmp_path: Path) -> None:
    state = dict(nets["resnet"].state_dict())
    both = {"state_dict": {**under("module.encoder_q.", state), **under("module.encoder_k.", other(state))}}
    torch.save(both, tmp_path / "a.pth")
    first, coverage = weights.load_backbone(tmp_path / "a.pth")
    assert any("'module.encoder_k.'" in note for note in coverage.notes)
    second, _ = weights.load_backbone(tmp_path / "a.pth", prefix="encoder_k")
    assert first.sha256() != second.sha256()
    assert torch.equal(second.net.state_dict()["conv1.weight"], state["conv1.weight"] + 1)


def test_unlisted_prefixes_load_when_there_is_one_and_are_asked_for_when_two(nets: Any, tmp_path: Path) -> None:
    state = dict(nets["resnet"].state_dict())
    torch.save(under("my_net.", state), tmp_path / "a.pth")
    assert weights.load_backbone(tmp_path / "a.pth")[1].prefix == "my_net."
    torch.save({**under("my_net.", state), **under("your_net.", other(state))}, tmp_path / "b.pth")
    with pytest.raises(UsageError, match=r"several backbones: 'my_net\.', 'your_net\.'; choose one with --prefix"):
        weights.load_backbone(tmp_path / "b.pth")
    assert weights.load_backbone(tmp_path / "b.pth", prefix="your_net.")[1].complete


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet34", r"missing \(first: layer1\.2\.conv1\.weight\).*look like resnet18"),
        ("resnet50", "look like resnet18"),
        ("resnet10t", "look like resnet18"),
        ("vit_tiny_patch16_224", "holds no tensors named like|look like resnet18"),
        ("resnet19", "did you mean"),
    ],
)
def test_another_architecture_is_refused(arch: str, message: str, tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "a.pth")
    with pytest.raises(UsageError, match=message) as caught:
        weights.load_backbone(tmp_path / "a.pth", arch=arch)
    assert "\n" not in str(caught.value)


def test_left_over_blocks_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model(VIT[0], num_classes=0, img_size=32, depth=3).state_dict(), tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"12 left over \(first: blocks\.2\.norm1\.weight\)"):
        weights.load_backbone(tmp_path / "a.pth", arch=VIT[0], options=VIT[1])


def test_parts_that_change_the_function_are_not_dropped(tmp_path: Path) -> None:
    net = timm.create_model(VIT[0], num_classes=0, reg_tokens=2, no_embed_class=True, **VIT[1])
    torch.save(net.state_dict(), tmp_path / "a.pth")
    with pytest.raises(UsageError, match="cannot infer"):
        weights.load_backbone(tmp_path / "a.pth")
    with pytest.raises(UsageError, match="reg_token"):
        weights.load_backbone(tmp_path / "a.pth", arch=VIT[0], options={**VIT[1], "no_embed_class": True})


def test_hostile_names_and_shapes_build_nothing_large(nets: Any, tmp_path: Path) -> None:
    state = dict(nets["vit"].state_dict())
    torch.save({**state, "blocks.99999999.norm1.weight": HEAD}, tmp_path / "a.pth")
    with pytest.raises(UsageError, match="cannot infer"):
        weights.load_backbone(tmp_path / "a.pth")
    meta = {k: t.to("meta") for k, t in state.items()}
    torch.save(meta, tmp_path / "b.pth")
    with pytest.raises(UsageError, match="no named tensors"):
        weights.load_backbone(tmp_path / "b.pth")


def test_an_unknown_network_is_asked_for_and_then_loads(images: Tensor, tmp_path: Path) -> None:
    net = randomised(timm.create_model("test_efficientnet", num_classes=0))
    torch.save(under("backbone.", net.state_dict()), tmp_path / "a.pth")
    with pytest.raises(UsageError, match="cannot infer the architecture of .*pass --arch NAME"):
        weights.load_backbone(tmp_path / "a.pth")
    assert weights.inspect(tmp_path / "a.pth").coverage is None
    backbone, coverage = weights.load_backbone(tmp_path / "a.pth", arch="test_efficientnet")
    assert coverage.prefix == "backbone." and torch.equal(features(backbone, images), features(net, images))
