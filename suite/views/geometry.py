# SPDX-License-Identifier: Apache-2.0
"""Operations that move or remove pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from suite.draws import Draws
from suite.errors import UsageError
from suite.views.op import Op, Params, between, chosen, on_rows
from suite.views.resample import crop_pil, resample, to_float

TRIES = 10
"Boxes that RandomResizedCrop and RandomErasing propose before they give up, as torchvision does."


def _proposals(u: Tensor, sizes: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Sides (a, b) of boxes of uniform area fraction and log-uniform b/a, from u N×2·TRIES: two N×TRIES."""
    area = sizes.prod(1, keepdim=True) * between(u[:, :TRIES], *scale)
    aspect = between(u[:, TRIES:], math.log(ratio[0]), math.log(ratio[1])).exp()
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
        raise NotImplementedError(f"{type(self).__name__} defines no boxes")

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
        return {"on": chosen(draws, self.p)}

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Mirrors the chosen samples."""
        return on_rows(images, params, lambda x, _: x.flip(3))


@dataclass(frozen=True)
class Rotate(Op):
    """Rotate about the centre by a uniform angle in [-degrees, degrees]; nearest pixel, black corners, as torchvision's."""

    degrees: float
    mirrors: ClassVar[bool] = False

    def draw(self, draws: Draws, sizes: Tensor) -> Params:
        """Keys: angle, N, degrees counter-clockwise."""
        return {"angle": between(draws.uniform("angle")[:, 0], -self.degrees, self.degrees)}

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
        return {"on": chosen(draws, self.p) & fits.any(1), "box": torch.cat([corner, sides], 1).to(torch.int64)}

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Fills the boxes of the chosen samples."""
        return on_rows(images, params, self._erase)

    def _erase(self, images: Tensor, params: Params) -> Tensor:
        top, left, tall, wide = params["box"].to(images.device)[:, :, None].unbind(1)  # N×1 each
        y, x = (torch.arange(side, device=images.device) for side in images.shape[2:])
        down, across = (y >= top) & (y < top + tall), (x >= left) & (x < left + wide)  # N×H, N×W
        return images.masked_fill_((down[:, :, None] & across[:, None])[:, None], self.value)
