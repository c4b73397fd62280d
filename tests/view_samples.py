# SPDX-License-Identifier: Apache-2.0
"""Pictures, draws and comparisons that the tests of views share."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode

from suite import views as V
from suite.draws import Draws

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
SIZES = torch.tensor([[32, 40]])


def pictures(n: int = 24, height: int = 32, width: int = 40, device: str = "cpu") -> Tensor:
    """Smooth random pictures with some exact greys, blacks and whites: N×3×H×W uint8."""
    generator = torch.Generator().manual_seed(n + height)
    coarse = torch.rand(n, 3, 7, 7, generator=generator) * 1.4 - 0.2
    noise = torch.rand(n, 3, height, width, generator=generator) * 0.2
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear") + noise - 0.1
    smooth[0] = smooth[0, :1]
    return (smooth.clamp(0, 1) * 255).round().to(torch.uint8).to(device)


def draws(n: int, seed: int = 0, device: str = "cpu") -> Draws:
    return Draws(seed, 3, torch.arange(n, device=device))


def drawn(op: V.Op, n: int, seed: int = 0, size: Tensor = SIZES) -> V.Params:
    return op.draw(draws(n, seed), size.expand(n, 2))


def each(images: Tensor, params: V.Params, function) -> Tensor:
    """Apply `function(image, its parameters)` to the float images one by one where `on`."""
    images = images.cpu().float() / 255
    rows = [
        function(image, {k: v[i] for k, v in params.items()}) if params.get("on", torch.ones(len(images)))[i] else image
        for i, image in enumerate(images)
    ]
    return torch.stack(rows)


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.dtype == torch.float32
    assert got.shape == want.shape
    assert (got.cpu() - want).abs().max() <= tolerance
