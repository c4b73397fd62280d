# SPDX-License-Identifier: Apache-2.0
"""What an operation is: it draws its parameters, one row per sample, then applies them."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from suite.draws import Draws
from suite.views.resample import to_float

Params = dict[str, Tensor]


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
        raise NotImplementedError(f"{type(self).__name__} defines neither update nor apply")


def on_rows(images: Tensor, params: Params, function: Callable[[Tensor, Params], Tensor]) -> Tensor:
    """Overwrite the samples that `params["on"]` chooses by `function` of them and their parameters."""
    rows = params["on"].nonzero().squeeze(1)
    if len(rows) == 0:
        return images
    if len(rows) == len(images):
        return function(images, params)
    chosen = {name: value[rows] for name, value in params.items()}
    rows = rows.to(images.device, non_blocking=True)
    return images.index_copy_(0, rows, function(images.index_select(0, rows), chosen))


def chosen(draws: Draws, p: float) -> Tensor:
    """Which samples an operation with probability p touches: N bool."""
    return draws.uniform("on")[:, 0] < p  # N


def between(u: Tensor, low: float, high: float) -> Tensor:
    """Uniform numbers from [0, 1) stretched to [low, high)."""
    return low + (high - low) * u
