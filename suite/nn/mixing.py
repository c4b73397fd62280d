# SPDX-License-Identifier: Apache-2.0
"""Mixup and CutMix: training on pairs of pictures and the matching blend of their labels.

mixup: Beyond Empirical Risk Minimization. Hongyi Zhang, Moustapha Cisse, Yann N. Dauphin, David Lopez-Paz. ICLR 2018.
https://arxiv.org/abs/1710.09412 (equation 1)
CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features. Sangdoo Yun et al. ICCV 2019.
https://arxiv.org/abs/1905.04899 (equations 1 and 2)

One draw serves a whole batch, whose pictures are paired with the batch in reverse order; a batch gets one of the two, as in
the fine-tuning recipes of DeiT, BEiT, MAE, CAE and SimMIM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Mix:
    """How one batch is mixed: own share of picture and label, and for CutMix the box that comes from the partner."""

    own: float
    "Share of the own picture, lambda in the papers."
    box: tuple[int, int, int, int] | None = None
    "(top, bottom, left, right) in pixels, ends excluded; None: mixup."

    def images(self, images: Tensor) -> Tensor:
        """Mixed pictures, N×3×H×W; the input stays as it is."""
        partner = images.flip(0)
        if self.box is None:
            return torch.lerp(partner, images, self.own)
        top, bottom, left, right = self.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = partner[:, :, top:bottom, left:right]
        return mixed

    def targets(self, targets: Tensor) -> Tensor:
        """Mixed label distributions, N×C."""
        return torch.lerp(targets.flip(0), targets, self.own)


@dataclass(frozen=True)
class Mixing:
    """Which mixing a batch gets. Random numbers come from torch's own generator, which the training loop seeds every step.

    Attributes:
        mixup: alpha of mixup's Beta(alpha, alpha); 0: no mixup.
        cutmix: alpha of CutMix's Beta(alpha, alpha); 0: no CutMix.
        prob: share of the batches that are mixed at all.
        switch: share of CutMix among the mixed batches where both are on.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    prob: float = 1.0
    switch: float = 0.5

    @property
    def on(self) -> bool:
        """Whether anything is mixed."""
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0)

    def draw(self, height: int, width: int) -> Mix:
        """The mixing of one batch of height×width pictures."""
        chance, kind, row, column = torch.rand(4).tolist()
        if not self.on or chance >= self.prob:
            return Mix(1.0)
        cut = self.cutmix > 0 and (self.mixup == 0 or kind < self.switch)
        own = _beta(self.cutmix if cut else self.mixup)
        return cut_mix(own, height, width, row, column) if cut else Mix(own)


def cut_mix(own: float, height: int, width: int, row: float, column: float) -> Mix:
    """A box of area fraction 1 - own, cut at the border, and the share of the own picture that really remains.

    Args:
        own: share drawn from the Beta distribution.
        height: of the pictures, in pixels.
        width: of the pictures, in pixels.
        row: the box's centre, uniform in [0, 1).
        column: likewise.
    """
    side = math.sqrt(1 - own)
    edges = []
    for pixels, place in ((height, row), (width, column)):
        length, centre = int(pixels * side), int(pixels * place)
        start = centre - length // 2
        edges += [max(0, start), min(pixels, start + length)]
    top, bottom, left, right = edges
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def soft_targets(label: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """Class indices to smoothed distributions: N -> N×C, `smoothing` spread evenly over all classes (Szegedy et al. 2016)."""
    return F.one_hot(label, classes).float() * (1 - smoothing) + smoothing / classes


def _beta(alpha: float) -> float:
    """One number from Beta(alpha, alpha)."""
    return torch.distributions.Beta(alpha, alpha).sample().item()
