# SPDX-License-Identifier: Apache-2.0
"""Augmentations of whole batches, each sample with its own random parameters, on CPU and GPU alike.

An operation first draws its parameters, one row per sample, then applies them. Crops and resizes are separable linear
maps and run as two batched matrix products; the rest is element-wise. Results agree with torchvision's per-image functions on
float images. Where TF32 matrix products are allowed, they keep about 10 bits, a quarter of a grey level.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from suite.draws import Draws
from suite.errors import UsageError, unknown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)
"ITU-R BT.601 weights, as Pillow's; they sum to 1 (torchvision's 0.2989 does not)."
Params = dict[str, Tensor]
TRIES = 10
"Boxes that RandomResizedCrop and RandomErasing propose before they give up, as torchvision does."


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


class Op:
    """One operation of a view. `draw` is cheap and looks at no pixel; `apply` looks at no random number."""

    mirrors: ClassVar[bool] = True
    "Whether mirroring before or after makes no difference."

    def draw(self, draws: Draws, sizes: Tensor) -> Params:
        """The parameters of every sample, each tensor N×...; `sizes` is N×2 of (height, width)."""
        return {}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """Batch N×3×H×W, uint8 or float in [0, 1], to float32; `images` is left alone."""
        return self.update(to_float(images), params)

    def update(self, images: Tensor, params: Params) -> Tensor:
        """The same on a float batch that may be overwritten."""
        raise NotImplementedError


def _on_rows(images: Tensor, params: Params, function: Callable[[Tensor, Params], Tensor]) -> Tensor:
    """Overwrite the samples that `params["on"]` chooses by `function` of them and their parameters."""
    rows = params["on"].nonzero().squeeze(1)
    if len(rows) == 0:
        return images
    if len(rows) == len(images):
        return function(images, params)
    chosen = {name: value[rows] for name, value in params.items()}
    rows = rows.to(images.device, non_blocking=True)
    return images.index_copy_(0, rows, function(images.index_select(0, rows), chosen))


def _chosen(draws: Draws, p: float) -> Tensor:
    return draws.uniform("on")[:, 0] < p  # N


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, 1)  # N×1×H×W each
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _proposals(u: Tensor, sizes: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Sides (a, b) of boxes of uniform area fraction and log-uniform b/a, from u N×2·TRIES: two N×TRIES."""
    area = sizes.prod(1, keepdim=True) * _between(u[:, :TRIES], *scale)
    aspect = _between(u[:, TRIES:], math.log(ratio[0]), math.log(ratio[1])).exp()
    return (area / aspect).sqrt().round(), (area * aspect).sqrt().round()


def _first(fits: Tensor) -> Tensor:
    """Column of the first true element of every row: N×1."""
    return (fits * torch.arange(fits.shape[1], 0, -1, device=fits.device)).argmax(1, keepdim=True)


class Geometric(Op):
    """An operation that reads a box of every image and resizes it."""

    mirrors: ClassVar[bool] = False
    fixed: ClassVar[bool] = False
    "Whether an image that has the right size already stays as it is."
    size: int
    interpolation: str = "bilinear"

    def boxes(self, draws: Draws, sizes: Tensor) -> Tensor:
        """(top, left, height, width) of every sample in whole pixels, N×4 int64; `sizes` is N×2 of (height, width)."""
        raise NotImplementedError

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the result for an image of that size."""
        return self.size, self.size

    def draw(self, draws: Draws, sizes: Tensor) -> Params:
        """The boxes."""
        return {"boxes": self.boxes(draws, sizes.to(draws.key.device))}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """N×3×H×W to N×3×S×S."""
        return self.update(images, params)

    def update(self, images: Tensor, params: Params) -> Tensor:
        """As `apply`; nothing is overwritten."""
        shape = self.shape(images.shape[2], images.shape[3])
        if self.fixed and shape == tuple(images.shape[2:]) and "flip" not in params:
            return to_float(images)
        resized = resample(images, params["boxes"], shape, self.interpolation, params.get("flip"))
        return resized if self.interpolation == "bilinear" else resized.clamp_(0, 1)

    def crop(self, image: Image.Image, draws: Draws) -> Image.Image:
        """The same on one picture of any size with Pillow; `draws` holds one sample."""
        size = torch.tensor([[image.height, image.width]])
        box = self.boxes(draws, size.to(draws.key.device))[0]
        return Image.fromarray(crop_pil(image, box, self.shape(image.height, image.width), self.interpolation))


@dataclass(frozen=True)
class RandomResizedCrop(Geometric):
    """A box of random area and shape, resized to size×size (Szegedy et al., 2015; parameters as torchvision's)."""

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"

    def boxes(self, draws: Draws, sizes: Tensor) -> Tensor:
        """The first of ten proposals that fits; else the largest central box of admissible shape."""
        u = draws.uniform("box", 2 * TRIES + 2).to(torch.float64)
        limits = sizes.to(torch.float64)
        tall, wide = limits[:, :1], limits[:, 1:]  # N×1
        h, w = _proposals(u[:, : 2 * TRIES], limits, self.scale, self.ratio)
        fits = (h > 0) & (w > 0) & (h <= tall) & (w <= wide)
        h = torch.cat([h, torch.minimum(tall, (wide / self.ratio[0]).round())], 1)  # N×(TRIES+1)
        w = torch.cat([w, torch.minimum(wide, (tall * self.ratio[1]).round())], 1)
        first = _first(F.pad(fits, (0, 1), value=True))
        h, w = h.gather(1, first), w.gather(1, first)  # N×1
        central = torch.cat([(tall - h) / 2, (wide - w) / 2], 1).floor()  # N×2
        random = (u[:, 2 * TRIES :] * (limits - torch.cat([h, w], 1) + 1)).floor()
        corner = torch.where(first == TRIES, central, random)
        return torch.cat([corner, h, w], 1).to(torch.int64)


@dataclass(frozen=True)
class RandomCrop(Geometric):
    """A size×size box at a uniform place of the image, which is first padded with black on all sides."""

    size: int
    padding: int = 0

    def boxes(self, draws: Draws, sizes: Tensor) -> Tensor:
        """Raises UsageError where the padded image is smaller than the box."""
        room = sizes + 2 * self.padding - self.size + 1  # N×2
        if (room < 1).any():
            raise UsageError(f"RandomCrop({self.size}) needs images of {self.size - 2 * self.padding} pixels at least")
        corner = (draws.uniform("box", 2).to(torch.float64) * room).floor().to(torch.int64) - self.padding
        return torch.cat([corner, torch.full_like(sizes, self.size)], 1)


@dataclass(frozen=True)
class CenterCrop(Geometric):
    """The central size×size box; smaller images are padded with black."""

    fixed: ClassVar[bool] = True
    size: int

    def boxes(self, draws: Draws, sizes: Tensor) -> Tensor:
        """Rounded as torchvision does: to even when cropping, towards the corner when padding."""
        spare = (sizes - self.size).to(torch.float64) / 2
        corner = torch.where(spare < 0, spare.ceil(), spare.round()).to(torch.int64)
        return torch.cat([corner, torch.full_like(sizes, self.size)], 1)


@dataclass(frozen=True)
class Warp(Geometric):
    """The whole image resized to size×size; the aspect ratio is not kept."""

    fixed: ClassVar[bool] = True
    size: int
    interpolation: str = "bilinear"

    def boxes(self, draws: Draws, sizes: Tensor) -> Tensor:
        """The whole of every image."""
        return torch.cat([torch.zeros_like(sizes), sizes], 1)


@dataclass(frozen=True)
class Resize(Warp):
    """The whole image resized so that its shorter side has `size` pixels; the aspect ratio is kept."""

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """The longer side is rounded down, as torchvision does."""
        if height <= width:
            return self.size, self.size * width // height
        return self.size * height // width, self.size


@dataclass(frozen=True)
class HorizontalFlip(Op):
    """Mirror with probability p."""

    p: float = 0.5

    def draw(self, draws: Draws, sizes: Tensor) -> Params:
        """Keys: on, N bool."""
        return {"on": _chosen(draws, self.p)}

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Mirrors the chosen samples."""
        return _on_rows(images, params, lambda x, _: x.flip(3))


BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class ColorJitter(Op):
    """Brightness, contrast, saturation and hue by random factors in random order, as torchvision's ColorJitter."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    p: float = 1.0

    def draw(self, draws: Draws, sizes: Tensor) -> Params:
        """Keys: on, N bool; factor, N×4 (b, c, s, h); order, N×4, the sub-operation of each turn."""
        u = draws.uniform("factor", 5)
        spread = (self.brightness, self.contrast, self.saturation)
        factors = [_between(u[:, i], max(0.0, 1 - v), 1 + v) for i, v in enumerate(spread)]
        factors.append(_between(u[:, 3], -self.hue, self.hue))
        orders = torch.tensor(list(itertools.permutations(range(4))), device=u.device)  # 24×4
        order = orders[(u[:, 4].to(torch.float64) * len(orders)).to(torch.int64)]
        return {"on": _chosen(draws, self.p), "factor": torch.stack(factors, 1), "order": order}

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Jitters the chosen samples, clamping to [0, 1] after every sub-operation."""
        return _on_rows(images, params, self._jitter)

    def _jitter(self, images: Tensor, params: Params) -> Tensor:
        """All but hue are x -> scale·x + pull·gray(x) + push·mean(gray(x)), so one product does a turn for every sample."""
        order, device = params["order"], images.device
        factor = params["factor"].gather(1, order)  # N×4, by turn
        scale = torch.where(order == HUE, 1.0, factor)
        pull = torch.where(order == SATURATION, 1 - factor, 0.0)
        push = torch.where(order == CONTRAST, 1 - factor, 0.0).to(device)
        luma = torch.tensor(LUMA, device=factor.device)
        mix = scale[..., None, None] * torch.eye(3, device=factor.device) + pull[..., None, None] * luma  # N×4×3×3
        mix, luma, factor = mix.to(device), luma.to(device), factor.to(device)
        pixels = images.flatten(2)  # N×3×HW
        for turn in range(4):
            mean = (pixels.mean(2) @ luma * push[:, turn])[:, None, None]  # N×1×1
            pixels = torch.baddbmm(mean, mix[:, turn], pixels).clamp_(0, 1)
            rows = (order[:, turn] == HUE).nonzero().squeeze(1).to(device)
            if self.hue and len(rows):
                turned = _rotate_hue(pixels.index_select(0, rows), factor[rows, turn])
                pixels.index_copy_(0, rows, turned)
        return pixels.view_as(images)


def _rotate_hue(pixels: Tensor, shift: Tensor) -> Tensor:
    """Rotate the HSV hue of N×3×P pixels by `shift` (N, in turns), value and saturation unchanged.

    With hue h in sixths of a turn, channel c is V - C·clamp(min(k, 4 - k), 0, 1) where k = (h + 5, 3, 1) mod 6. Masks are
    floats blended by lerp, which is exact for 0 and 1 and many times faster on CPU than torch.where.
    """
    red, green, blue = pixels.split(1, 1)  # N×1×P each
    value = pixels.amax(1, keepdim=True)
    chroma = value - pixels.amin(1, keepdim=True)
    is_red = torch.eq(red, value, out=torch.empty_like(value))
    is_green = torch.eq(green, value, out=torch.empty_like(value))
    sixths = torch.lerp((red - green).add_(chroma, alpha=4), (blue - red).add_(chroma, alpha=2), is_green)
    sixths = torch.lerp(sixths, green - blue, is_red).div_(chroma.clamp_min(1e-12))
    k = sixths.add_(6 * shift[:, None, None]) + torch.tensor([5.0, 3.0, 1.0], device=pixels.device)[:, None]  # N×3×P
    k.sub_((k / 6).floor_(), alpha=6)
    return value - torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma)


@dataclass(frozen=True)
class Grayscale(Op):
    """Luma in all three channels with probability p."""

    p: float = 0.2

    def draw(self, draws: Draws, sizes: Tensor) -> Params:
        """Keys: on, N bool."""
        return {"on": _chosen(draws, self.p)}

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Takes the colour from the chosen samples."""
        return _on_rows(images, params, lambda x, _: _gray(x).repeat(1, 3, 1, 1))


@dataclass(frozen=True)
class GaussianBlur(Op):
    """A Gaussian of random width in pixels, with probability p; borders reflect.

    The kernel is cut at ceil(3·sigma[1]) pixels from its centre, at most the image's side less one. SimCLR and its successors
    blur with Pillow, whose three box filters approximate this Gaussian.
    """

    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 0.5

    def draw(self, draws: Draws, sizes: Tensor) -> Params:
        """Keys: on, N bool; sigma, N."""
        return {"on": _chosen(draws, self.p), "sigma": _between(draws.uniform("sigma")[:, 0], *self.sigma)}

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Blurs the chosen samples."""
        return _on_rows(images, params, self._blur)

    def _blur(self, images: Tensor, params: Params) -> Tensor:
        n, c, height, width = images.shape
        sigma = params["sigma"].to(images.device, non_blocking=True)
        reach = math.ceil(3 * self.sigma[1])
        y, x = min(reach, height - 1), min(reach, width - 1)
        # Every channel of every sample is a group of its own, so that each is blurred by its own sigma.
        padded = F.pad(images, (x, x, y, y), mode="reflect").view(1, n * c, height + 2 * y, width + 2 * x)
        down, across = (_gaussian(sigma, r).repeat_interleave(c, 0) for r in (y, x))  # NC×(2r+1)
        rows = F.conv2d(padded, across[:, None, None], groups=n * c)
        return F.conv2d(rows, down[:, None, :, None], groups=n * c).view(n, c, height, width)


def _gaussian(sigma: Tensor, radius: int) -> Tensor:
    """Normalised taps of a Gaussian cut off at `radius` pixels: N×(2·radius+1)."""
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    taps = torch.exp(-0.5 * (offset / sigma[:, None]).square())
    return taps / taps.sum(1, keepdim=True)


@dataclass(frozen=True)
class Solarize(Op):
    """Invert values from `threshold` on, with probability p."""

    threshold: float = 128 / 255
    p: float = 0.2

    def draw(self, draws: Draws, sizes: Tensor) -> Params:
        """Keys: on, N bool."""
        return {"on": _chosen(draws, self.p)}

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Solarises the chosen samples."""
        return _on_rows(images, params, lambda x, _: torch.where(x >= self.threshold, 1 - x, x))


@dataclass(frozen=True)
class Rotate(Op):
    """Rotate about the centre by a uniform angle in [-degrees, degrees]; nearest pixel, black corners, as torchvision's."""

    degrees: float
    mirrors: ClassVar[bool] = False

    def draw(self, draws: Draws, sizes: Tensor) -> Params:
        """Keys: angle, N, degrees counter-clockwise."""
        return {"angle": _between(draws.uniform("angle")[:, 0], -self.degrees, self.degrees)}

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Rotates every sample."""
        n, _, h, w = images.shape
        angle = params["angle"].to(images.device, non_blocking=True).deg2rad()
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        # Grid coordinates are in half sides, so that mixing the axes brings in the aspect ratio.
        theta = torch.stack([cos, -sin * h / w, zero, sin * w / h, cos, zero], 1).view(n, 2, 3)
        grid = F.affine_grid(theta, [n, 1, h, w], align_corners=False)
        return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


@dataclass(frozen=True)
class Lighting(Op):
    """AlexNet's colour noise along the principal components of ImageNet's pixels (Krizhevsky et al., 2012, section 4.1)."""

    std: float = 0.1
    values: ClassVar[tuple[float, ...]] = (0.2175, 0.0188, 0.0045)
    vectors: ClassVar[tuple[tuple[float, ...], ...]] = (
        (-0.5675, 0.7192, 0.4009),
        (-0.5808, -0.0045, -0.8140),
        (-0.5836, -0.6948, 0.4203),
    )

    def draw(self, draws: Draws, sizes: Tensor) -> Params:
        """Keys: alpha, N×3."""
        return {"alpha": draws.normal("alpha", 3) * self.std}

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Adds one colour to every sample; the result is not clamped."""
        alpha = params["alpha"].to(images.device, non_blocking=True)
        colour = (alpha * alpha.new_tensor(self.values)) @ alpha.new_tensor(self.vectors).T  # N×3
        return images.add_(colour[:, :, None, None])


@dataclass(frozen=True)
class RandomErasing(Op):
    """Fill a random box with a constant, with probability p (Zhong et al., 2017; parameters as torchvision's)."""

    p: float = 0.25
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: float = 0.0
    mirrors: ClassVar[bool] = False

    def draw(self, draws: Draws, sizes: Tensor) -> Params:
        """Keys: on, N bool; box, N×4. A sample none of whose proposals fits is left alone."""
        u = draws.uniform("box", 2 * TRIES + 2).to(torch.float64)
        limits = sizes.to(u)
        w, h = _proposals(u[:, : 2 * TRIES], limits, self.scale, self.ratio)
        fits = (h < limits[:, :1]) & (w < limits[:, 1:])
        first = _first(fits)
        sides = torch.cat([h.gather(1, first), w.gather(1, first)], 1)  # N×2
        corner = (u[:, 2 * TRIES :] * (limits - sides + 1)).floor()
        return {"on": _chosen(draws, self.p) & fits.any(1), "box": torch.cat([corner, sides], 1).to(torch.int64)}

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Fills the boxes of the chosen samples."""
        return _on_rows(images, params, self._erase)

    def _erase(self, images: Tensor, params: Params) -> Tensor:
        top, left, tall, wide = params["box"].to(images.device)[:, :, None].unbind(1)  # N×1 each
        y, x = (torch.arange(side, device=images.device) for side in images.shape[2:])
        down, across = (y >= top) & (y < top + tall), (x >= left) & (x < left + wide)  # N×H, N×W
        return images.masked_fill_((down[:, :, None] & across[:, None])[:, None], self.value)


@dataclass(frozen=True)
class Normalize(Op):
    """(x - mean) / std by channel."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Normalises every sample."""
        mean, std = images.new_tensor(self.mean)[:, None, None], images.new_tensor(self.std)[:, None, None]
        return torch.addcmul(-mean / std, images, 1 / std)


@dataclass(frozen=True)
class View:
    """A chain of operations: what a method sees of an image.

    Geometric operations at the start may run elsewhere: `crop` does them with Pillow on one picture, `rest` does what remains,
    and with the same draws both together equal the whole view up to the rounding of pixels.
    """

    ops: tuple[Op, ...]

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """N×3×H×W uint8 (or float in [0, 1]) to N×3×S×S float32."""
        return self._run(images, draws, 0)

    def rest(self, images: Tensor, draws: Draws) -> Tensor:
        """The operations after the leading geometric ones, on N×3×S×S uint8."""
        return self._run(images, draws, self._leading)

    def crop(self, image: Image.Image, draws: Draws) -> np.ndarray:
        """The leading geometric operations on one picture of any size: S×S×3 uint8; `draws` holds one sample."""
        for i, op in enumerate(self.ops[: self._leading]):
            assert isinstance(op, Geometric)
            image = op.crop(image, self._draws(draws, i))
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))

    @property
    def first(self) -> Geometric | None:
        """The geometric operation at the start, if there is one; it draws from the view's own draws."""
        op = self.ops[0] if self.ops else None
        return op if isinstance(op, Geometric) else None

    @property
    def size(self) -> int | None:
        """Side of the square result; None where it depends on the image."""
        geometric = [op for op in self.ops if isinstance(op, Geometric)]
        return None if not geometric or isinstance(geometric[-1], Resize) else geometric[-1].size

    @property
    def _leading(self) -> int:
        """How many geometric operations stand at the start."""
        return sum(1 for _ in itertools.takewhile(lambda op: isinstance(op, Geometric), self.ops))

    def _draws(self, draws: Draws, i: int) -> Draws:
        """Each operation has draws of its own; the first has the view's, so that `first.boxes(draws, ...)` agrees."""
        return draws.fold(f"{i}:{type(self.ops[i]).__name__}") if i else draws

    def _run(self, images: Tensor, draws: Draws, start: int) -> Tensor:
        if len(draws) != len(images):
            raise ValueError(f"{len(images)} images with draws for {len(draws)}")
        last = self._leading - 1
        flips = self._flips() if start <= last else []
        images = images if start <= last else to_float(images)
        with torch.autocast(images.device.type, enabled=False):
            for i in range(start, len(self.ops)):
                if i in flips:
                    continue
                sizes = torch.tensor([images.shape[2:]], device=draws.key.device).expand(len(images), 2)
                params = self.ops[i].draw(self._draws(draws, i), sizes)
                if i == last and flips:
                    on = torch.stack([self.ops[j].draw(self._draws(draws, j), sizes)["on"] for j in flips])
                    params["flip"] = on.sum(0) % 2 == 1
                images = self.ops[i].update(images, params)
        return images

    def _flips(self) -> list[int]:
        """Flips that can move into the last leading crop for free: nothing between minds mirroring."""
        after = itertools.takewhile(lambda i: self.ops[i].mirrors, range(self._leading, len(self.ops)))
        return [i for i in after if isinstance(self.ops[i], HorizontalFlip)]


def multi_crop(
    *ops: Op,
    sizes: Sequence[int] = (224, 96),
    numbers: Sequence[int] = (2, 6),
    scales: Sequence[tuple[float, float]] = ((0.14, 1.0), (0.05, 0.14)),
    interpolation: str = "bilinear",
) -> tuple[View, ...]:
    """Multi-crop (Caron et al., SwAV, 2020, section 3.3): `numbers[i]` views of side `sizes[i]` with area in `scales[i]`.

    Args:
        ops: what follows the crop, the same for all.
        sizes: side of each kind of crop.
        numbers: how many of each kind.
        scales: range of the area fraction of each kind.
        interpolation: of all crops.
    """
    crops = zip(sizes, numbers, scales, strict=True)
    return tuple(
        View((RandomResizedCrop(size, scale, interpolation=interpolation), *ops))
        for size, number, scale in crops
        for _ in range(number)
    )
