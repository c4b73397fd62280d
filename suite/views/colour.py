# SPDX-License-Identifier: Apache-2.0
"""Operations that change values where they are."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from suite.draws import Draws
from suite.views.op import Op, Params, between, chosen, on_rows

IMAGENET_MEAN = (0.485, 0.456, 0.406)


IMAGENET_STD = (0.229, 0.224, 0.225)


LUMA = (0.299, 0.587, 0.114)
"ITU-R BT.601 weights, as Pillow's; they sum to 1 (torchvision's 0.2989 does not)."


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, 1)  # N×1×H×W each
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


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
        factors = [between(u[:, i], max(0.0, 1 - v), 1 + v) for i, v in enumerate(spread)]
        factors.append(between(u[:, 3], -self.hue, self.hue))
        orders = torch.tensor(list(itertools.permutations(range(4))), device=u.device)  # 24×4
        order = orders[(u[:, 4].to(torch.float64) * len(orders)).to(torch.int64)]
        return {"on": chosen(draws, self.p), "factor": torch.stack(factors, 1), "order": order}

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Jitters the chosen samples, clamping to [0, 1] after every sub-operation."""
        return on_rows(images, params, self._jitter)

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
        return {"on": chosen(draws, self.p)}

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Takes the colour from the chosen samples."""
        return on_rows(images, params, lambda x, _: _gray(x).repeat(1, 3, 1, 1))


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
        return {"on": chosen(draws, self.p), "sigma": between(draws.uniform("sigma")[:, 0], *self.sigma)}

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Blurs the chosen samples."""
        return on_rows(images, params, self._blur)

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
        return {"on": chosen(draws, self.p)}

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Solarises the chosen samples."""
        return on_rows(images, params, lambda x, _: torch.where(x >= self.threshold, 1 - x, x))


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
class Normalize(Op):
    """(x - mean) / std by channel."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Normalises every sample."""
        mean, std = images.new_tensor(self.mean)[:, None, None], images.new_tensor(self.std)[:, None, None]
        return torch.addcmul(-mean / std, images, 1 / std)
