# SPDX-License-Identifier: Apache-2.0
"""What a detector finds in a picture, whatever the layout of the annotations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""Overlaps from which a detection counts, 0.5 to 0.95."""


@dataclass(frozen=True)
class Found:
    """The detections in one picture, in its own pixels."""

    boxes: np.ndarray
    "float32 N×4, x1 y1 x2 y2."
    classes: np.ndarray
    "int64 N."
    scores: np.ndarray
    "float32 N."
    masks: Sequence[dict[str, Any]] = ()
    "COCO run lengths, N or none."


Score: TypeAlias = Callable[[Sequence[Found]], tuple[dict[str, float], dict[str, np.ndarray]]]
"""From the detections of every picture to metrics in percent and the arrays of "detection" predictions."""


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes: N×4, M×4 -> N×M."""
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    other = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(other - corner, 0, None), axis=2)
    area_a, area_b = (np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b))
    return shared / np.maximum(area_a[:, None] + area_b[None] - shared, 1e-6)
