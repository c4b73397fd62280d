# SPDX-License-Identifier: Apache-2.0
"""Augmentations of whole batches, each sample with its own random parameters, on CPU and GPU alike.

An operation first draws its parameters, one row per sample, then applies them. Crops and resizes are separable linear
maps and run as two batched matrix products; the rest is element-wise. Results agree with torchvision's per-image functions on
float images. Where TF32 matrix products are allowed, they keep about 10 bits, a quarter of a grey level.
"""

from __future__ import annotations

from suite.views.colour import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LUMA,
    SATURATION,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    Lighting,
    Normalize,
    Solarize,
)
from suite.views.erasing import NoiseErasing
from suite.views.geometry import (
    TRIES,
    CenterCrop,
    Geometric,
    HorizontalFlip,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    Resize,
    Rotate,
    Warp,
)
from suite.views.op import Op, Params
from suite.views.randaugment import RandAugment
from suite.views.resample import KERNELS, crop_pil, resample, to_float
from suite.views.view import View, multi_crop

__all__ = [
    "BRIGHTNESS",
    "CONTRAST",
    "CenterCrop",
    "ColorJitter",
    "GaussianBlur",
    "Geometric",
    "Grayscale",
    "HUE",
    "HorizontalFlip",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "KERNELS",
    "LUMA",
    "Lighting",
    "NoiseErasing",
    "Normalize",
    "Op",
    "Params",
    "RandAugment",
    "RandomCrop",
    "RandomErasing",
    "RandomResizedCrop",
    "Resize",
    "Rotate",
    "SATURATION",
    "Solarize",
    "TRIES",
    "View",
    "Warp",
    "crop_pil",
    "multi_crop",
    "resample",
    "to_float",
]
