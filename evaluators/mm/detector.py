# SPDX-License-Identifier: Apache-2.0
"""Faster and Mask R-CNN (Ren et al. 2015, He et al. 2017) on our backbones, as mmdet builds them.

Either C4, or with a feature pyramid (Lin et al. 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from evaluators.mm import ops
from evaluators.mm.backbone import Pyramid, Res5, Stages, Trunk, any_size, check_loaded, freeze, given, has_c4, size_divisor
from suite.backbone import Backbone
from suite.errors import UsageError

if TYPE_CHECKING:
    from evaluators.detection import DetectionConfig

FINEST = 4
"""Smallest stride of a pyramid level; finer stages cost much and help little."""


def rcnn(backbone: Backbone, classes: int, cfg: DetectionConfig, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Build the detector on a copy of the backbone and check that every tensor of the weights is in it.

    Args:
        backbone: with the weights to evaluate.
        classes: object classes, background not counted.
        cfg: architecture and sizes.
        mean: RGB mean of pictures scaled to 0..1.
        std: RGB standard deviation of pictures scaled to 0..1.

    Returns:
        An mmdet `FasterRCNN`, or `MaskRCNN` if `cfg.masks`, whose heads are newly initialised from torch's current seed.

    Raises:
        UsageError: `c4` for a network that is not ResNet-like, or a network without a pyramid's levels.
        JobError: mmdet does not import, or the weights are not in the model.
    """
    ops.load("mmdet.models")
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    body = any_size(backbone)
    freeze(body, cfg.frozen_stages)
    adapters, described = parts(body, classes, cfg)
    divisor = size_divisor(body)
    preprocessor = {
        "type": "DetDataPreprocessor", "bgr_to_rgb": True, "pad_size_divisor": divisor if divisor > 1 else 32,
        "mean": [255 * m for m in mean], "std": [255 * s for s in std], "pad_mask": cfg.masks,
    }  # fmt: skip
    kind = "MaskRCNN" if cfg.masks else "FasterRCNN"
    config = {"type": kind, "_scope_": "mmdet", "data_preprocessor": preprocessor, "backbone": given(adapters[0])}
    config |= {name: ConfigDict(part) for name, part in described.items()}
    model = MODELS.build(config)
    model.init_weights()
    check_loaded(backbone.net.state_dict(), *adapters)
    return model


def parts(backbone: Backbone, classes: int, cfg: DetectionConfig) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The adapters that hold the backbone, and everything else of the detector as mmdet describes it.

    Raises:
        UsageError: as for `rcnn`.
    """
    adapters, heads = (_c4 if cfg.architecture == "c4" else _fpn)(backbone, classes, cfg)
    return adapters, heads | _assignment(cfg)


def _c4(backbone: Backbone, classes: int, cfg: DetectionConfig) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not has_c4(backbone):
        raise UsageError(f"architecture='c4' needs a ResNet-like network, not {backbone.arch!r}; use architecture='fpn'")
    trunk, res5 = Trunk(backbone), Res5(backbone, cfg.extra_norm)
    box_head = {"type": "BBoxHead", "with_avg_pool": True, "in_channels": res5.dim, **_box_head(classes, cfg.roi_side)}
    roi_head = {
        "type": "StandardRoIHead",
        "shared_head": given(res5),
        "bbox_roi_extractor": _extractor(cfg.roi_side * res5.stride, trunk.dim, [trunk.stride]),
        "bbox_head": box_head,
    }
    if cfg.masks:  # on the same features as the boxes
        roi_head["mask_head"] = _mask_head(res5.dim, classes, cfg)
    rpn_head = _rpn_head(trunk.dim, trunk.dim, cfg.anchor_scales, [trunk.stride])
    return (trunk, res5), {"rpn_head": rpn_head, "roi_head": roi_head}


def _fpn(backbone: Backbone, classes: int, cfg: DetectionConfig) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if backbone.is_vit:
        levels: Stages = Pyramid(backbone)
    else:
        chosen = [i for i, stride in enumerate(backbone.strides) if stride >= FINEST]
        if not chosen:
            raise UsageError(f"architecture {backbone.arch!r} has no stage of stride {FINEST} or more for a pyramid")
        levels = Stages(backbone, chosen)
    strides = [*levels.strides, 2 * levels.strides[-1]]
    width, finest = cfg.channels, {"finest_scale": 14 * levels.strides[0]}
    neck = {"type": "FPN", "in_channels": levels.dims, "out_channels": width, "num_outs": len(strides), **_norm(cfg)}
    box_head = {"type": "Shared2FCBBoxHead", "in_channels": width, "fc_out_channels": cfg.fc_channels}
    if cfg.box_convs:
        box_head |= {"type": "ConvFCBBoxHead", "num_shared_convs": cfg.box_convs, "num_shared_fcs": 1}
        box_head |= {"conv_out_channels": width, **_norm(cfg)}
    roi_head = {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": _extractor(cfg.roi_side, width, levels.strides) | finest,
        "bbox_head": box_head | _box_head(classes, cfg.roi_side),
    }
    if cfg.masks:
        roi_head["mask_roi_extractor"] = _extractor(2 * cfg.roi_side, width, levels.strides) | finest
        roi_head["mask_head"] = _mask_head(width, classes, cfg)
    rpn_head = _rpn_head(width, width, cfg.anchor_scales, strides)
    return (levels,), {"neck": neck, "rpn_head": rpn_head, "roi_head": roi_head}


def _norm(cfg: DetectionConfig) -> dict[str, Any]:
    return {"norm_cfg": {"type": "BN"}} if cfg.norm else {}


def _extractor(side: int, channels: int, strides: Sequence[int]) -> dict[str, Any]:
    align = {"type": "RoIAlign", "output_size": side, "sampling_ratio": 0}
    return {"type": "SingleRoIExtractor", "roi_layer": align, "out_channels": channels, "featmap_strides": list(strides)}


def _mask_head(inputs: int, classes: int, cfg: DetectionConfig) -> dict[str, Any]:
    """Convolutions, one upsampling by two, one mask per class (He et al. 2017, figure 4)."""
    return {
        "type": "FCNMaskHead", "num_convs": cfg.mask_convs, "in_channels": inputs, "conv_out_channels": cfg.mask_channels,
        "num_classes": classes, "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True}, **_norm(cfg),
    }  # fmt: skip


def _rpn_head(inputs: int, channels: int, scales: Sequence[float], strides: Sequence[int]) -> dict[str, Any]:
    anchors = {"type": "AnchorGenerator", "scales": list(scales), "ratios": [0.5, 1.0, 2.0], "strides": list(strides)}
    return {
        "type": "RPNHead",
        "in_channels": inputs,
        "feat_channels": channels,
        "anchor_generator": anchors,
        "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [1.0] * 4},
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True},
        "loss_bbox": {"type": "L1Loss"},
    }


def _box_head(classes: int, side: int) -> dict[str, Any]:
    return {
        "roi_feat_size": side,
        "num_classes": classes,
        "bbox_coder": {
            "type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [0.1, 0.1, 0.2, 0.2],
        },
        "reg_class_agnostic": False,
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False},
        "loss_bbox": {"type": "L1Loss"},
    }  # fmt: skip


def _assignment(cfg: DetectionConfig) -> dict[str, Any]:
    """Matching of anchors and proposals to boxes, sampling, suppression: mmdet's figures for these networks."""
    c4 = cfg.architecture == "c4"
    anchors = {
        "assigner": _assigner(0.7, 0.3, 0.3, low_quality=True),
        "sampler": _sampler(cfg.rpn_samples, 0.5, add_boxes=False),
        "allowed_border": 0 if c4 else -1,  # c4: anchors that leave the picture are not trained
        "pos_weight": -1,
        "debug": False,
    }
    regions = {
        "assigner": _assigner(0.5, 0.5, 0.5, low_quality=cfg.masks and not c4),
        "sampler": _sampler(cfg.rcnn_samples, 0.25, add_boxes=True),
        "pos_weight": -1,
        "debug": False,
    }
    found = {"score_thr": 0.05, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": cfg.max_detections}
    if cfg.masks:
        regions["mask_size"] = (2 if c4 else 4) * cfg.roi_side
        found["mask_thr_binary"] = 0.5
    training = {"rpn": anchors, "rpn_proposal": _proposals(cfg.rpn_pre_nms, cfg.rpn_proposals), "rcnn": regions}
    return {"train_cfg": training, "test_cfg": {"rpn": _proposals(cfg.test_pre_nms, cfg.test_proposals), "rcnn": found}}


def _assigner(positive: float, negative: float, least: float, low_quality: bool) -> dict[str, Any]:
    return {
        "type": "MaxIoUAssigner", "pos_iou_thr": positive, "neg_iou_thr": negative, "min_pos_iou": least,
        "match_low_quality": low_quality, "ignore_iof_thr": -1,
    }  # fmt: skip


def _sampler(number: int, positive: float, add_boxes: bool) -> dict[str, Any]:
    return {
        "type": "RandomSampler", "num": number, "pos_fraction": positive, "neg_pos_ub": -1,
        "add_gt_as_proposals": add_boxes,
    }  # fmt: skip


def _proposals(before: int, after: int) -> dict[str, Any]:
    nms = {"type": "nms", "iou_threshold": 0.7}
    return {"nms_pre": before, "max_per_img": after, "nms": nms, "min_bbox_size": 0}
