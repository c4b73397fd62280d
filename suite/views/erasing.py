# SPDX-License-Identifier: Apache-2.0
"""Random erasing with noise, as the fine-tuning recipes of vision transformers have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from suite.draws import Draws
from suite.views.geometry import RandomErasing
from suite.views.op import Op, Params, on_rows


@dataclass(frozen=True)
class NoiseErasing(Op):
    """Replace a random box by standard normal noise, with probability p; comes after `Normalize`.

    Random Erasing Data Augmentation (Zhong et al., 2017, https://arxiv.org/abs/1708.04896) with the values of timm's mode
    `pixel`, which DeiT, BEiT, MAE, CAE and SimMIM use.
    """

    p: float = 0.25
    scale: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    mirrors: ClassVar[bool] = False

    def draw(self, draws: Draws, sizes: Tensor) -> Params:
        """Keys: on, N bool; box, N×4; key, N int64, from which the noise of a picture follows."""
        box = RandomErasing(self.p, self.scale, self.ratio).draw(draws, sizes)
        return {**box, "key": draws.fold("noise").key}

    def update(self, images: Tensor, params: Params) -> Tensor:
        """Fills the boxes of the chosen samples."""
        return on_rows(images, params, self._erase)

    def _erase(self, images: Tensor, params: Params) -> Tensor:
        box, key = params["box"].to(images.device), params["key"].to(images.device)
        top, left, tall, wide = box[:, :, None].unbind(1)  # N×1 each
        y, x = (torch.arange(side, device=images.device) for side in images.shape[2:])
        down, across = (y >= top) & (y < top + tall), (x >= left) & (x < left + wide)  # N×H, N×W
        n, row, column = (down[:, :, None] & across[:, None]).nonzero().unbind(1)  # as many as pixels in all boxes
        pixel = key[n] + row * images.shape[3] + column
        images[n, :, row, column] = Draws(0, 0, pixel).normal("value", images.shape[1])
        return images
