# SPDX-License-Identifier: Apache-2.0
"""Names of feature layers: what they are pooled to, and which ones the protocols evaluate."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from suite.backbone import Backbone
from suite.errors import UsageError

LAYER = re.compile(
    r"pooled|stage(?P<stage>\d+)(?:@(?:(?P<grid>[1-9]\d*)|k(?P<kernel>[1-9]\d*)s(?P<stride>[1-9]\d*)p(?P<padding>\d+)))?"
)
GRIDS = (12, 6, 4, 3, 2)
"""Side of the adaptive pooling per stage of a five-stage network, so that each gives about 9000 features."""
MAX_WIDTH = 9216
RESNET50 = ((64, 256, 512, 1024, 2048), (2, 4, 8, 16, 32))
"""Channels and strides of the networks that the published poolings are meant for."""
PUBLISHED = ("stage1@k10s10p4", "stage2@k16s8p0", "stage3@k13s5p0", "stage4@k8s3p0", "stage5@k6s1p0")


class Layer(NamedTuple):
    """A parsed layer name."""

    stage: int | None
    "Index of the stage; None: the pooled vector."
    grid: int = 1
    "Side of the adaptive average pooling."
    window: tuple[int, int, int] | None = None
    "Kernel, stride and padding of an `AvgPool2d` instead."


def parse_layer(name: str, stages: int) -> Layer:
    """Read `pooled`, `stage3` (its average), `stage3@4` (adaptive 4×4 grid) or `stage1@k10s10p4` (`AvgPool2d(10, 10, 4)`).

    Raises:
        UsageError: not a layer name, or a stage that the network does not have.
    """
    match = LAYER.fullmatch(name)
    if match is None:
        raise UsageError(f"unknown layer {name!r} (valid: pooled, stage1 to stage{stages}, stageN@GRID, stageN@kKsSpP)")
    if match["stage"] is None:
        return Layer(None)
    if not 1 <= int(match["stage"]) <= stages:
        raise UsageError(f"layer {name!r}: this network has stages 1 to {stages}")
    stage = int(match["stage"]) - 1
    if match["kernel"] is None:
        return Layer(stage, grid=int(match["grid"] or 1))
    kernel, stride, padding = (int(match[part]) for part in ("kernel", "stride", "padding"))
    if 2 * padding > kernel:
        raise UsageError(f"layer {name!r}: the padding may be at most half the kernel")
    return Layer(stage, window=(kernel, stride, padding))


def pool(name: str, pooled: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """One layer's features of a batch.

    Args:
        name: layer.
        pooled: N×dim, what the backbone returns.
        maps: N×C×H×W per stage, all of them (`Backbone.pooled_and_stages`).

    Returns:
        N×d, channels first: all positions of channel 0, then of channel 1 …

    Raises:
        UsageError: not a layer of this network, or a window larger than the stage's padded map.
    """
    layer = parse_layer(name, len(maps))
    if layer.stage is None:
        return pooled
    x = maps[layer.stage]
    if layer.window is None:
        return F.adaptive_avg_pool2d(x, layer.grid).flatten(1)
    kernel, stride, padding = layer.window
    if kernel > min(x.shape[-2:]) + 2 * padding:
        height, width = x.shape[-2:]
        raise UsageError(f"layer {name!r}: a window of {kernel} does not fit the {height}×{width} map; use stageN@GRID")
    return F.avg_pool2d(x, kernel, stride, padding).flatten(1)


def five_layers(backbone: Backbone, size: int) -> list[str]:
    """Layers of the VOC07 SVM and of the multi-head linear protocol, each of about 9000 features.

    A network shaped like ResNet-50, at 224 pixels, has the poolings of Goyal et al. 2019 (arXiv 1905.01235): 9216, 9216, 8192,
    9216 and 8192 features. Other stage networks: the last five stages or fewer, pooled adaptively to the grids 12, 6, 4, 3, 2
    (counted from the last stage), clipped to the map's own side and to 9216 features. Vision transformers: four evenly spaced
    blocks averaged over their tokens, and the pooled vector.

    Args:
        backbone: the network.
        size: side of its input pictures in pixels.
    """
    depth = len(backbone.stage_dims)
    if backbone.is_vit:
        blocks = sorted({math.ceil(depth * part / 4) for part in range(1, 5)})
        return [*(f"stage{block}" for block in blocks), "pooled"]
    if (tuple(backbone.stage_dims), tuple(backbone.strides), size) == (*RESNET50, 224):
        return list(PUBLISHED)
    names = []
    for stage in range(max(0, depth - 5), depth):
        side = min(GRIDS[stage - depth], math.isqrt(MAX_WIDTH // backbone.stage_dims[stage]))
        side = min(side, -(-size // backbone.strides[stage]))
        names.append(f"stage{stage + 1}@{side}" if side > 1 else f"stage{stage + 1}")
    return names
