# SPDX-License-Identifier: Apache-2.0
"""RandAugment: a few random operations per picture, all of one strength.

RandAugment: Practical Automated Data Augmentation with a Reduced Search Space. Ekin D. Cubuk, Barret Zoph, Jonathon Shlens,
Quoc V. Le. NeurIPS 2020. https://arxiv.org/abs/1909.13719
The variant `rand-m9-mstd0.5-inc1` of timm, with which DeiT, BEiT, MAE, CAE and SimMIM fine-tune: noise on the strength, every
operation skipped with probability 1/2, and strength that always means more change.

The arithmetic is Pillow's, on 8-bit levels after every operation. Pictures of a batch that get the same operation go through
it together; which ones do is known on the CPU, so that nothing waits for an accelerator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from suite.draws import Draws
from suite.errors import unknown
from suite.views.colour import IMAGENET_MEAN
from suite.views.op import Op, Params

OPERATIONS = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast",
    "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY",
)  # fmt: skip
"""In timm's order."""
TOP = 10.0
"""The largest strength; arguments are fractions of it."""


@dataclass(frozen=True)
class RandAugment(Op):
    """`layers` operations one after the other, drawn with replacement from OPERATIONS.

    Attributes:
        layers: operations per picture.
        magnitude: mean strength, 0 to 10.
        std: of the strength's normal noise; the sum is cut to 0 to 10.
        p: probability that a layer does anything.
        fill: what moves in from outside the picture, per channel in [0, 1].
        interpolation: `bilinear` or `bicubic`, of the operations that move pixels.
    """

    layers: int = 2
    magnitude: float = 9.0
    std: float = 0.5
    p: float = 0.5
    fill: tuple[float, ...] = IMAGENET_MEAN
    interpolation: str = "bicubic"
    mirrors: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse an interpolation that there is not."""
        if self.interpolation not in TAPS:
            raise unknown("interpolation", self.interpolation, TAPS)

    def draw(self, draws: Draws, sizes: Tensor) -> Params:
        """Keys, one column per layer: on, N×L bool; operation, N×L int64; magnitude, N×L; sign, N×L of -1 and 1."""
        u = draws.uniform("choice", 3 * self.layers).view(-1, self.layers, 3)  # N×L×3
        noise = draws.normal("magnitude", self.layers) * self.std
        return {
            "on": u[..., 0] < self.p,
            "operation": (u[..., 1].to(torch.float64) * len(OPERATIONS)).to(torch.int64),
            "magnitude": (self.magnitude + noise).clamp(0, TOP),
            "sign": torch.where(u[..., 2] < 0.5, -1.0, 1.0),
        }

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Applies the drawn operations; values become multiples of 1/255."""
        levels = images.mul_(255).round_()
        for layer in range(self.layers):
            on, operation = params["on"][:, layer], params["operation"][:, layer]
            kind = torch.where(on, operation, len(OPERATIONS))
            order = torch.argsort(kind, stable=True)
            counts = torch.bincount(kind, minlength=len(OPERATIONS) + 1).tolist()
            strength = torch.stack([params["magnitude"][:, layer], params["sign"][:, layer]])[:, order]  # 2×N
            rows, strength = (value.to(levels.device, non_blocking=True) for value in (order, strength))
            start = 0
            for name, count in zip(OPERATIONS, counts[:-1], strict=True):
                chosen, (magnitude, sign) = rows[start : start + count], strength[:, start : start + count]
                start += count
                if count:
                    changed = self.operate(levels.index_select(0, chosen), name, argument(name, magnitude, sign))
                    levels.index_copy_(0, chosen, changed)
        return levels.div_(255)

    def operate(self, levels: Tensor, name: str, value: Tensor) -> Tensor:
        """One operation on pictures M×3×H×W of whole levels 0 to 255, each with its own argument from `argument`, M."""
        if name in TABLES:
            return look_up(levels, TABLES[name](levels, value))
        if name == "Color":
            return blend(gray(levels), levels, value)
        if name == "Sharpness":
            return blend(smooth(levels), levels, value)
        fill = (levels.new_tensor(self.fill) * 255).round()
        return move(levels, matrices(name, value, levels.shape[2], levels.shape[3]), fill, self.interpolation)


def argument(name: str, magnitude: Tensor, sign: Tensor) -> Tensor:
    """What a strength of 0 to 10 means for an operation, in timm's "increasing" ranges."""
    part = magnitude / TOP
    if name == "Rotate":
        return sign * part * 30  # degrees counter-clockwise
    if name == "Posterize":
        return 4 - (part * 4).floor()  # bits kept
    if name == "Solarize":
        return 256 - (part * 256).floor().clamp_max(256)  # level from which to invert
    if name == "SolarizeAdd":
        return (part * 110).floor().clamp_max(128)  # added to levels below 128
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        return (1 + sign * part * 0.9).clamp_min(0.1)  # 1 changes nothing
    if name in ("ShearX", "ShearY"):
        return sign * part * 0.3
    return sign * part * 0.45  # TranslateX, TranslateY: of the side


def look_up(levels: Tensor, table: Tensor) -> Tensor:
    """Replace every level by its entry: M×C×H×W and M×C×256 (or M×1×256)."""
    index = levels.flatten(2).to(torch.int64)  # M×C×P
    return table.expand(-1, levels.shape[1], -1).gather(2, index).view_as(levels)


def _ramp(levels: Tensor) -> Tensor:
    return torch.arange(256.0, device=levels.device)


def _invert(levels: Tensor, value: Tensor) -> Tensor:
    return (255 - _ramp(levels)).expand(len(levels), 1, 256)


def _posterize(levels: Tensor, bits: Tensor) -> Tensor:
    step = torch.exp2(8 - bits)[:, None, None]
    return (_ramp(levels) / step).floor() * step


def _solarize(levels: Tensor, threshold: Tensor) -> Tensor:
    ramp = _ramp(levels)
    return torch.where(ramp < threshold[:, None, None], ramp, 255 - ramp)


def _solarize_add(levels: Tensor, added: Tensor) -> Tensor:
    ramp = _ramp(levels)
    return torch.where(ramp < 128, (ramp + added[:, None, None]).clamp_max(255), ramp)


def _brightness(levels: Tensor, factor: Tensor) -> Tensor:
    return _stretch(_ramp(levels), torch.zeros_like(factor), factor)


def _contrast(levels: Tensor, factor: Tensor) -> Tensor:
    return _stretch(_ramp(levels), (gray(levels).mean((1, 2, 3)) + 0.5).floor(), factor)


def _stretch(ramp: Tensor, centre: Tensor, factor: Tensor) -> Tensor:
    """Levels blended with a constant level per picture: M×1×256."""
    centre, factor = centre[:, None, None], factor[:, None, None]
    return (centre + factor * (ramp - centre)).clamp(0, 255).floor()


def _auto_contrast(levels: Tensor, value: Tensor) -> Tensor:
    low, high = levels.amin((2, 3)).unsqueeze(2), levels.amax((2, 3)).unsqueeze(2)  # M×C×1
    ramp = _ramp(levels)
    stretched = ((ramp - low) * (255 / (high - low))).clamp(0, 255)
    # A whole number may come out as one ulp less, which must not cost a level.
    return torch.where(high > low, (stretched + 1e-4).floor(), ramp)


def _equalize(levels: Tensor, value: Tensor) -> Tensor:
    """Pillow's: level to the number of pixels below it, in steps of 1/255 of all but the brightest level's pixels."""
    m, c = levels.shape[:2]
    index = levels.flatten(2).to(torch.int64)
    count = torch.zeros(m, c, 256, dtype=torch.int64, device=levels.device)
    count.scatter_add_(2, index, torch.ones_like(index))
    brightest = count.gather(2, index.amax(2, keepdim=True))  # M×C×1
    step = (index.shape[2] - brightest) // 255
    table = (step // 2 + count.cumsum(2) - count) // step.clamp_min(1)
    return torch.where(step > 0, table.clamp_max(255).to(levels.dtype), _ramp(levels))


TABLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Contrast": _contrast,
    "Brightness": _brightness,
}
"""Operations that map levels to levels: a function from pictures M×C×H×W and arguments M to tables M×C×256 or M×1×256."""


def gray(levels: Tensor) -> Tensor:
    """Luma of every pixel in Pillow's fixed-point arithmetic, M×1×H×W."""
    red, green, blue = levels.split(1, 1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) / 65536).floor()


def smooth(levels: Tensor) -> Tensor:
    """Pillow's SMOOTH filter: 3×3 with a weight of 5 in the middle; the border stays."""
    kernel = torch.ones(3, 3, device=levels.device)
    kernel[1, 1] = 5
    inner = F.conv2d(levels.flatten(0, 1)[:, None], kernel[None, None])  # MC×1×(H-2)×(W-2), whole numbers
    smoothed = levels.clone()
    smoothed[:, :, 1:-1, 1:-1] = (inner / 13 + 0.5).floor().view_as(smoothed[:, :, 1:-1, 1:-1])
    return smoothed


def blend(start: Tensor, end: Tensor, factor: Tensor) -> Tensor:
    """The levels start + factor·(end - start), cut to whole levels; a factor above 1 goes beyond `end`."""
    return (start + factor[:, None, None, None] * (end - start)).clamp(0, 255).floor()


def matrices(name: str, value: Tensor, height: int, width: int) -> Tensor:
    """Where the pixels of the result come from: affine maps of (x, y) in pixels, M×2×3."""
    one, zero = torch.ones_like(value), torch.zeros_like(value)
    if name == "Rotate":
        angle, x, y = value.to(torch.float64).deg2rad(), width / 2, height / 2
        cos, sin = angle.cos(), angle.sin()
        rows = [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y]
    elif name == "ShearX":
        rows = [one, value, zero, zero, one, zero]
    elif name == "ShearY":
        rows = [one, zero, zero, value, one, zero]
    elif name == "TranslateX":
        rows = [one, zero, value * width, zero, one, zero]
    else:
        rows = [one, zero, zero, zero, one, value * height]
    return torch.stack(rows, 1).view(-1, 2, 3).to(torch.float32)


def _linear_taps(t: Tensor) -> list[tuple[int, Tensor]]:
    return [(0, 1 - t), (1, t)]


def _cubic_taps(t: Tensor) -> list[tuple[int, Tensor]]:
    """The kernel of Pillow's affine transforms: Keys' cubic with a = -1, where resizing has -1/2."""
    before, after = t * (1 - t).square(), (1 - t) * t.square()
    middle = (t - 2) * t.square() + 1
    return [(-1, -before), (0, middle), (1, 1 - middle + before + after), (2, -after)]


TAPS: dict[str, Callable[[Tensor], list[tuple[int, Tensor]]]] = {"bilinear": _linear_taps, "bicubic": _cubic_taps}
"""Interpolation to a function from the fraction of a pixel to (offset, weight) of the pixels that count."""


def move(levels: Tensor, matrix: Tensor, fill: Tensor, interpolation: str) -> Tensor:
    """Pictures M×C×H×W read through affine maps M×2×3, as Pillow's `transform`; `fill` (C) where they lead outside."""
    m, c, height, width = levels.shape
    line, column = (torch.arange(side, device=levels.device) + 0.5 for side in (height, width))
    maps = matrix.permute(1, 2, 0)[..., None, None]  # 2×3×M×1×1
    # No matrix product: where TF32 is allowed it would be off by a tenth of a pixel.
    x, y = ((a * column + b * line[:, None] + shift).flatten(1) for a, b, shift in maps)  # M×P, in pixels of the original
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    left, top = (x - 0.5).floor(), (y - 0.5).floor()
    flat, moved = levels.flatten(2), torch.zeros_like(levels).flatten(2)  # M×C×P
    for down, height_weight in TAPS[interpolation](y - 0.5 - top):
        row = (top + down).clamp(0, height - 1) * width
        for right, width_weight in TAPS[interpolation](x - 0.5 - left):
            index = (row + (left + right).clamp(0, width - 1)).to(torch.int64)
            read = flat.gather(2, index[:, None].expand(m, c, -1))
            moved.addcmul_(read, (height_weight * width_weight)[:, None])
    moved = (moved + 1e-3).clamp_(0, 255).floor_()
    return torch.where(inside[:, None], moved, fill[:, None]).view_as(levels)
