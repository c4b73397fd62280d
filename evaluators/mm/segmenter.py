# SPDX-License-Identifier: Apache-2.0
"""A fully convolutional segmenter (Long et al. 2015) on our backbones, as mmseg builds it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluators.mm import ops
from evaluators.mm.backbone import Stages, any_size, check_loaded, dilated, freeze, given, size_divisor
from suite.backbone import Backbone

if TYPE_CHECKING:
    from evaluators.segmentation import SegmentationConfig

IGNORE = 255
"""Label of pixels that count for nothing."""


def fcn(backbone: Backbone, classes: int, cfg: SegmentationConfig, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Build the segmenter on a copy of the backbone and check that every tensor of the weights is in it.

    The head sees the last stage, an auxiliary one the stage before; the last stages are dilated instead of strided
    until the output has `cfg.stride` input pixels per pixel.

    Args:
        backbone: with the weights to evaluate.
        classes: classes, background counted.
        cfg: sizes of the heads.
        mean: RGB mean of pictures scaled to 0..1.
        std: RGB standard deviation of pictures scaled to 0..1.

    Returns:
        An mmseg `EncoderDecoder` whose heads are newly initialised from torch's current seed.

    Raises:
        UsageError: the architecture cannot be dilated.
        JobError: mmseg does not import, or the weights are not in the model.
    """
    ops.load("mmseg.models")
    from mmengine.config import ConfigDict
    from mmseg.registry import MODELS

    dilate = not backbone.is_vit and backbone.strides[-1] > cfg.stride
    body = dilated(backbone, cfg.stride) if dilate else any_size(backbone)
    freeze(body, cfg.frozen_stages)
    stages = Stages(body, [-2, -1])
    preprocessor = {
        "type": "SegDataPreProcessor", "bgr_to_rgb": True, "pad_val": 0, "seg_pad_val": IGNORE,
        "mean": [255 * m for m in mean], "std": [255 * s for s in std],
        "size": (cfg.crop, cfg.crop), "test_cfg": {"size_divisor": size_divisor(backbone)},
    }  # fmt: skip
    heads = {"decode_head": _head(stages.dims[1], 1, classes, cfg.channels, cfg.convs, cfg.concat, 1.0, cfg)}
    if cfg.auxiliary:
        width = max(cfg.channels // 2, 1)
        heads["auxiliary_head"] = _head(stages.dims[0], 0, classes, width, 1, False, cfg.auxiliary, cfg)
    slide = {"mode": "slide", "crop_size": (cfg.crop, cfg.crop), "stride": (cfg.slide, cfg.slide)}
    test = slide if cfg.slide else {"mode": "whole"}
    config = {"type": "EncoderDecoder", "_scope_": "mmseg", "data_preprocessor": preprocessor, "backbone": given(stages)}
    config |= {"train_cfg": ConfigDict(), "test_cfg": ConfigDict(test)}
    config |= {name: ConfigDict(head) for name, head in heads.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # mmseg's own deprecations
        model = MODELS.build(config)
    model.init_weights()
    check_loaded(backbone.net.state_dict(), stages)
    return model


def _head(
    inputs: int, index: int, classes: int, channels: int, convs: int, concat: bool, weight: float, cfg: SegmentationConfig
) -> dict[str, Any]:
    return {
        "type": "FCNHead",
        "in_channels": inputs,
        "in_index": index,
        "channels": channels,
        "num_convs": convs,
        "concat_input": concat,
        "dropout_ratio": cfg.dropout,
        "num_classes": classes,
        "norm_cfg": {"type": "BN"},
        "align_corners": cfg.align_corners,
        "ignore_index": IGNORE,
        "loss_decode": _loss(cfg.background_weight, classes, weight),
    }


def _loss(background: float, classes: int, weight: float) -> dict[str, Any]:
    if background == 1:
        return {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": weight}
    return given(WeightedLoss(background, classes, weight))


class WeightedLoss(nn.Module):
    """Cross entropy with another weight on class 0; mmseg's own fails on ignored pixels when classes have weights.

    Args:
        background: weight of class 0, the others have 1.
        classes: number of classes.
        weight: factor on the loss.
    """

    loss_name = "loss_ce"

    def __init__(self, background: float, classes: int, weight: float) -> None:
        super().__init__()
        self.factor = weight
        self.register_buffer("weights", torch.tensor([background] + [1.0] * (classes - 1)), persistent=False)

    def forward(self, logits: Tensor, label: Tensor, weight: None = None, ignore_index: int = IGNORE) -> Tensor:
        """N×C×H×W logits and N×H×W labels -> the mean over pixels by weight."""
        loss = functional.cross_entropy(logits.float(), label, self.get_buffer("weights"), ignore_index=ignore_index)
        return self.factor * loss
