# SPDX-License-Identifier: Apache-2.0
"""Constants of the detection and segmentation presets against the published configs, as data, and mmdet's and mmseg's."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from evaluators import detection, segmentation
from evaluators.mm import backbone as adapters
from evaluators.mm import detector, ops, schedule, segmenter
from suite import config as configs
from tests.mm_samples import network

TABLE = Path(__file__).with_name("protocols_mm.csv")
OWN = {"seed", "workers", "split", "fraction", "accumulate"}
"""Settings that no publication has."""
PRESETS = {**detection.PRESETS, **segmentation.PRESETS}


def rows() -> list[dict[str, str]]:
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("preset", sorted({row["preset"] for row in rows()}))
def test_constants_are_the_published_ones(preset: str) -> None:
    cfg = PRESETS[preset]
    published = {row["key"]: json.loads(row["value"]) for row in rows() if row["preset"] == preset}
    ours = configs.to_dict(cfg)
    assert {key: ours[key] for key in published} == published
    unused = {"lists"} if not ours.get("lists") else set()
    if ours.get("architecture") == "c4":
        unused |= {"channels", "fc_channels", "box_convs", "norm"}
    if ours.get("masks") is False:
        unused |= {"mask_convs", "mask_channels"}
    if ours.get("architecture") == "fpn":
        unused |= {"extra_norm"}
    assert ours.keys() - published.keys() <= OWN | unused, "a setting that decides the result is not in the table"


def test_every_published_preset_is_in_the_table_with_a_source() -> None:
    named = {*detection.PRESETS, *segmentation.PRESETS} - {"default"}
    assert {row["preset"] for row in rows()} == named
    assert all(row["source"].endswith(".py") for row in rows())


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted keys; tuples as lists."""
    if isinstance(config, dict):
        return {key: value for name, part in config.items() for key, value in flat(part, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): list(config) if isinstance(config, (list, tuple)) else config}


def shipped(package: str, file: str) -> dict[str, Any]:
    """The model of a config file that mmdet or mmseg ships."""
    from mmengine.config import Config

    (module,) = ops.load(package)
    return Config.fromfile(Path(module.__file__ or "").parent / ".mim" / "configs" / "_base_" / "models" / file).model.to_dict()


DROPPED = ("backbone", "data_preprocessor", "shared_head", "init_cfg", "loss_weight", "type", "debug", "norm_cfg", "style")


@pytest.mark.parametrize(
    ("preset", "file", "expected"),
    [
        # the published C4 for VOC does not train anchors that leave the picture, mmdet's own does
        ("voc0712_c4_24k", "faster-rcnn_r50-caffe-c4.py", {"train_cfg.rpn.allowed_border": 0}),
        ("coco_c4_1x", "mask-rcnn_r50-caffe-c4.py", {}),
        ("coco_fpn_1x", "mask-rcnn_r50_fpn.py", {}),
    ],
)  # fmt: skip
def test_what_the_settings_do_not_say_is_mmdets(preset: str, file: str, expected: dict[str, Any]) -> None:
    cfg = detection.PRESETS[preset]
    net = network("resnet50", layers=[1, 1, 1, 1], channels=[64, 128, 256, 512])  # the widths of a ResNet-50
    _, described = detector.parts(adapters.copy_of(net), 80, cfg)
    ours = {key: value for key, value in flat(described).items() if not any(part in key.split(".") for part in DROPPED)}
    theirs = {k: v for k, v in flat(shipped("mmdet", file)).items() if not any(part in k.split(".") for part in DROPPED)}
    theirs |= expected
    missing = {k: v for k, v in theirs.items() if ours.get(k, "absent") != v and v is not None}
    assert not missing
    extra = ours.keys() - theirs.keys()
    assert all("bbox_head" in key or key.endswith("finest_scale") for key in extra), extra
    if cfg.architecture == "fpn":
        head = described["roi_head"]["bbox_head"]
        assert (head["num_shared_convs"], head["num_shared_fcs"], head["conv_out_channels"]) == (4, 1, 256)
        assert described["neck"]["norm_cfg"] == head["norm_cfg"] == described["roi_head"]["mask_head"]["norm_cfg"]


@pytest.mark.parametrize("preset", ["voc12aug_fcn_20k", "cityscapes_fcn_40k"])
def test_segmentation_heads_are_mmsegs(preset: str) -> None:
    cfg = segmentation.PRESETS[preset]
    theirs = shipped("mmseg", "fcn_r50-d8.py")
    net = network("resnet50", layers=[1, 1, 1, 1], channels=[64, 128, 256, 512])
    model = segmenter.fcn(net, 19, cfg, (0.5,) * 3, (0.5,) * 3)
    assert model.backbone.strides == [8, 8]
    for ours, want in ((model.decode_head, theirs["decode_head"]), (model.auxiliary_head, theirs["auxiliary_head"])):
        for key in ("in_channels", "channels", "num_convs", "concat_input", "dropout_ratio", "num_classes"):
            assert getattr(ours, key) == want[key], key
        assert ours.align_corners == cfg.align_corners and ours.loss_decode.loss_weight == want["loss_decode"]["loss_weight"]
    stages = [model.backbone.body.net.get_submodule(f"layer{i}")[0].conv2 for i in (1, 2, 3, 4)]
    assert [(conv.dilation[0], conv.stride[0]) for conv in stages] == [(1, 1), (1, 2), (1, 1), (2, 1)]  # contracted
    slide = model.test_cfg.mode == "slide"
    assert slide == (cfg.slide > 0) and (not slide or model.test_cfg.stride == (513, 513))


def test_a_fraction_shortens_iterations_milestones_and_warm_up_together() -> None:
    whole = detection.PRESETS["voc0712_c4_24k"]
    cfg = schedule.scaled(dataclasses.replace(whole, fraction=0.01))
    assert (cfg.iterations, cfg.milestones, cfg.warmup, cfg.fraction) == (240, (180, 220), 1, 1.0)
    rate = schedule.step_rate(cfg.milestones, 0.1, cfg.warmup, cfg.warmup_ratio)
    long = schedule.step_rate(whole.milestones, 0.1, whole.warmup, whole.warmup_ratio)
    assert [rate(i) for i in (1, 179, 180, 219, 220)] == [long(100 * i) for i in (1, 179, 180, 219, 220)]
    least = schedule.scaled(dataclasses.replace(whole, fraction=1e-9))
    assert (least.iterations, least.milestones, least.warmup) == (1, (1, 1), 1)
    assert schedule.scaled(dataclasses.replace(whole, fraction=0.1, warmup=0)).warmup == 0
    poly = schedule.scaled(dataclasses.replace(segmentation.PRESETS["voc12aug_fcn_20k"], fraction=0.05))
    assert poly.iterations == 1000
    assert schedule.scaled(whole) == whole


def test_a_fraction_is_another_result_and_says_what_it_is_a_part_of() -> None:
    whole = detection.PRESETS["coco_fpn_1x"]
    part = configs.override(whole, ["fraction=0.01", "batch=4"])
    assert configs.digest(part) != configs.digest(whole) != configs.digest(dataclasses.replace(whole, fraction=0.5))
    text = schedule.describe(part, detection.PRESETS)
    assert text == "0.01 of the published schedule: 880 of 87,960 iterations, batch 4 in place of 16"
    assert schedule.describe(dataclasses.replace(detection.PRESETS["default"], fraction=0.5), detection.PRESETS) == (
        "0.5 of the default schedule: 40 of 80 iterations"
    )
    by_hand = dataclasses.replace(whole, fraction=0.1, iterations=500)
    assert schedule.describe(by_hand, detection.PRESETS) == "0.1 of a schedule set by hand: 50 of 500 iterations"
    seg = dataclasses.replace(segmentation.PRESETS["cityscapes_fcn_40k"], fraction=0.1)
    assert schedule.describe(seg, segmentation.PRESETS) == "0.1 of the published schedule: 4,000 of 40,000 iterations"


@pytest.mark.parametrize("value", ["0", "-1", "none"])
def test_a_fraction_is_positive(value: str) -> None:
    from suite.errors import UsageError

    with pytest.raises(UsageError, match="fraction"):
        configs.override(detection.PRESETS["default"], [f"fraction={value}"])


def test_rates_follow_mmengines_schedulers() -> None:
    import torch
    from mmengine.optim import MultiStepLR, PolyLR

    # mmengine reaches the floor in the last iteration, mmcv's hook of the published runs would have in the one after it
    weight = torch.nn.Parameter(torch.zeros(1))
    for scheduler, rate in (
        (lambda o: PolyLR(o, eta_min=1e-4, power=0.9, begin=0, end=51, by_epoch=False), schedule.poly_rate(50, 0.9, 1e-2)),
        (lambda o: MultiStepLR(o, milestones=[30, 40], gamma=0.1, by_epoch=False), schedule.step_rate((30, 40), 0.1, 0, 1.0)),
    ):
        optimizer = torch.optim.SGD([weight], lr=0.01)
        steps, theirs = scheduler(optimizer), []
        for _ in range(50):
            theirs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            steps.step()
        np.testing.assert_allclose([0.01 * rate(i) for i in range(50)], theirs, rtol=1e-9)
