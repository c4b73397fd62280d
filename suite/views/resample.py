# SPDX-License-Identifier: Apache-2.0
"""Anti-aliased cropping and resizing: whole batches as two matrix products, one picture with Pillow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from suite.errors import unknown


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp_min_(0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2 (1981, eq. 4); both pieces vanish at the ends of their range, so clamping selects them."""
    x = x.abs()
    near, far = x.clamp(max=1), x.clamp(1, 2)
    return (1.5 * near - 2.5) * near.square() + 1 - 0.5 * (((far - 5) * far + 8) * far - 4)


def _lanczos(x: Tensor) -> Tensor:
    x = x.clamp(-3, 3)
    return torch.sinc(x) * torch.sinc(x / 3)


KERNELS: dict[str, tuple[Callable[[Tensor], Tensor], Image.Resampling]] = {
    "bilinear": (_triangle, Image.Resampling.BILINEAR),
    "bicubic": (_cubic, Image.Resampling.BICUBIC),
    "lanczos": (_lanczos, Image.Resampling.LANCZOS),
}


def to_float(images: Tensor) -> Tensor:
    """A fresh float32 copy; uint8 is scaled to [0, 1]."""
    scaled = images.to(torch.float32, copy=True)
    return scaled.div_(255) if images.dtype == torch.uint8 else scaled


def _kernel(interpolation: str) -> tuple[Callable[[Tensor], Tensor], Image.Resampling]:
    if interpolation not in KERNELS:
        raise unknown("interpolation", interpolation, KERNELS)
    return KERNELS[interpolation]


def _filters(start: Tensor, length: Tensor, pixels: int, out: int, interpolation: str, flip: Tensor | None = None) -> Tensor:
    """Rows of weights that read `out` values from the stretch [start, start + length) of `pixels` pixels: N×out×pixels."""
    scale = (length / out)[:, None]  # N×1
    centre = start[:, None] + scale * (torch.arange(out, device=start.device) + 0.5)  # N×out
    if flip is not None:
        centre = torch.where(flip[:, None], centre.flip(1), centre)
    pixel = torch.arange(pixels, device=start.device) + 0.5  # pixels
    distance = (pixel - centre[:, :, None]) / scale.clamp_min(1)[:, :, None]  # N×out×pixels
    inside = (pixel > start[:, None]) & (pixel < (start + length)[:, None])  # N×pixels
    weight = _kernel(interpolation)[0](distance) * inside[:, None].to(torch.float32)
    return weight / weight.sum(2, keepdim=True).clamp_min(1e-6)


def _separable(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """The product down @ image @ acrossᵀ for every channel: N×C×H×W, N×P×H, N×Q×W -> N×C×P×Q."""
    n, c, h, w = images.shape
    rows = torch.bmm(images.reshape(n, c * h, w), across.transpose(1, 2)).view(n * c, h, -1)  # NC×H×Q
    return torch.bmm(down.repeat_interleave(c, 0), rows).view(n, c, down.shape[1], across.shape[1])


def resample(
    images: Tensor,
    boxes: Tensor,
    size: int | tuple[int, int],
    interpolation: str = "bilinear",
    flip: Tensor | None = None,
) -> Tensor:
    """Crop every image to its own box, then resize with anti-aliasing, as torchvision's `resized_crop(antialias=True)`.

    Args:
        images: N×C×H×W, uint8 (scaled to [0, 1]) or float32.
        boxes: N×4 of (top, left, height, width) in pixels; parts outside the image are black.
        size: side, or (height, width), of the result.
        interpolation: bilinear, bicubic or lanczos; the last two can leave the range of the input.
        flip: samples to mirror afterwards, N bool.

    Returns:
        N×C×size×size, float32.

    Raises:
        UsageError: an unknown interpolation.
    """
    height, width = (size, size) if isinstance(size, int) else size
    boxes = boxes.to(images.device, torch.float32, non_blocking=True)
    flip = None if flip is None else flip.to(images.device, non_blocking=True)
    top, left, tall, wide = boxes.unbind(1)
    down = _filters(top, tall, images.shape[2], height, interpolation)
    across = _filters(left, wide, images.shape[3], width, interpolation, flip)
    if images.dtype == torch.uint8:
        down = down / 255
    return _separable(images.to(torch.float32), down, across)


def crop_pil(image: Image.Image, box: Tensor | Sequence[int], size: int | tuple[int, int], interpolation: str) -> np.ndarray:
    """What `resample` does, on one picture of any size with Pillow: H×W×3 uint8.

    Cropping comes before resizing: `resize(box=...)` would let pixels from outside the box into its border.
    """
    top, left, height, width = (int(v) for v in box)
    out = (size, size) if isinstance(size, int) else size
    picture = image if image.mode == "RGB" else image.convert("RGB")
    picture = picture.crop((left, top, left + width, top + height))
    return np.array(picture.resize((out[1], out[0]), _kernel(interpolation)[1]))
