# SPDX-License-Identifier: Apache-2.0
"""Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere.

Tongzhou Wang, Phillip Isola. ICML 2020. https://arxiv.org/abs/2005.10242

Two views of an image lie close together on the sphere, and all images spread over it.

Run: suite run --algo theirs
Differs from the paper: settings for the embedded data only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from suite.backbone import Backbone
from suite.method import Batch, Method, TrainSet
from suite.nn.heads import mlp
from suite.presets import DIGITS, TINY
from suite.spec import Config, Optim, Paper, Recipe
from suite.views import ColorJitter, Grayscale, Normalize, RandomResizedCrop, View


@dataclass(frozen=True, kw_only=True)
class TheirsConfig(Config):
    """Settings of the method."""

    dim: PositiveInt = 64
    hidden: PositiveInt = 128
    t: PositiveFloat = 2.0
    "Temperature of the uniformity term."
    uniformity: NonNegativeFloat = 1.0
    "Weight of the uniformity term."


class Theirs(Method):
    """Equations 2 and 3 of the paper, alpha = 2."""

    def __init__(self, config: TheirsConfig, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        self.t, self.weight = config.t, config.uniformity
        self.g = mlp((backbone.dim, config.hidden, config.dim))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Alignment of the two views, and the mean uniformity of each."""
        x, y = (F.normalize(self.g(self.backbone(view)).float(), dim=1) for view in batch.views)  # N×d
        alignment = (x - y).square().sum(1).mean()
        uniformity = (self._uniformity(x) + self._uniformity(y)) / 2
        return {"loss": alignment + self.weight * uniformity, "alignment": alignment, "uniformity": uniformity}

    def _uniformity(self, x: Tensor) -> Tensor:
        """Logarithm of the mean Gaussian potential over all pairs of the batch."""
        return torch.pdist(x).square().mul(-self.t).exp().mean().log()


def views(config: TheirsConfig) -> Sequence[View]:
    """Two views by one augmentation."""
    crop = RandomResizedCrop(config.size, scale=(0.5, 1.0))
    view = View((crop, ColorJitter(0.8, 0.8, 0.8, 0.5, p=0.8), Grayscale(0.2), Normalize()))
    return (view, view)


RECIPE = Recipe(
    name="theirs",
    title="Alignment and uniformity",
    paper=Paper(
        title="Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere",
        authors="Tongzhou Wang, Phillip Isola",
        venue="ICML 2020",
        url="https://arxiv.org/abs/2005.10242",
        summary="Two views of an image lie close together on the sphere, and all images spread over it.",
    ),
    method=Theirs,
    views=views,
    presets={
        "digits": TheirsConfig(
            **DIGITS, batch=256, epochs=25, optim=Optim(lr=0.4, weight_decay=1e-4, warmup=1), precision="bf16"
        ),
        "tiny": TheirsConfig(**TINY, optim=Optim(lr=0.05), hidden=32, dim=16),
    },
    batch_dependent="pairs come from the micro-batch of one process",
)
