# SPDX-License-Identifier: Apache-2.0
"""Barlow Twins: Self-Supervised Learning via Redundancy Reduction.

Jure Zbontar, Li Jing, Ishan Misra, Yann LeCun, Stéphane Deny. ICML 2021. https://arxiv.org/abs/2103.03230

The cross-correlation matrix between the embeddings of two views shall be the identity: each component the same in both
views, different components uncorrelated.

Run: suite run --algo barlowtwins --preset resnet50_8xb256-coslr-300e_in1k --data-root imagenet=DIR
Expected: ImageNet linear 71.66 (MMSelfSup, 300 epochs), 73.5 (official, 1000 epochs).
Differs: the statistics of the loss are those of the global batch, as in the official code (MMSelfSup 0.x takes each
device's own); the rate of biases and norms ends at the same fraction of its peak as all others, as in the official code
(MMSelfSup gives every group the same floor); linear layers start at the framework's default, as in the official code
(MMSelfSup draws them by Kaiming's rule); LARS keeps the learning rate out of its momentum buffer, as the official code does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from suite.backbone import Backbone
from suite.method import Batch, Method, TrainSet
from suite.nn.gather import all_sum, world_size
from suite.nn.heads import mlp
from suite.optim import NORM_AND_BIAS
from suite.presets import CIFAR, DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe, Rule
from suite.views import ColorJitter, GaussianBlur, Grayscale, HorizontalFlip, Normalize, RandomResizedCrop, Solarize, View


@dataclass(frozen=True, kw_only=True)
class BarlowTwinsConfig(Config):
    """Settings of Barlow Twins; the defaults are the paper's, the batch norm is over the global batch."""

    dim: PositiveInt = 8192
    "Width of every layer of the projector."
    layers: PositiveInt = 3
    redundancy: NonNegativeFloat = 0.0051
    "lambda, the weight of the off-diagonal terms."
    sync_bn: bool = True
    crop_min: float = 0.08
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    blur: tuple[float, float] = (1.0, 0.1)
    "Probability of Gaussian blur in the first and the second view."
    solarize: tuple[float, float] = (0.0, 0.2)
    "Probability of solarisation in the first and the second view."


def cross_correlation(z1: Tensor, z2: Tensor) -> Tensor:
    """C_ij = sum_b z1_bi z2_bj / N over the global batch (Barlow Twins, eq. 2).

    Args:
        z1: N×d embeddings of the first views on this process, of mean 0 and variance 1 along the global batch.
        z2: N×d embeddings of the second views, likewise.

    Returns:
        d×d, the same on every process.
    """
    return all_sum(z1.T @ z2) / (len(z1) * world_size())


def redundancy_loss(c: Tensor, weight: float) -> Tensor:
    """sum_i (1 - C_ii)² + lambda·sum_i sum_{j≠i} C_ij² (Barlow Twins, eq. 1).

    Args:
        c: d×d cross-correlation.
        weight: lambda.
    """
    squares = (c - torch.eye(len(c), device=c.device)).square()
    return weight * squares.sum() + (1 - weight) * squares.diagonal().sum()


class BarlowTwins(Method):
    """Z = projector(f(Y)), normalised along the batch; their cross-correlation against the identity."""

    def __init__(self, config: BarlowTwinsConfig, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        self.weight = config.redundancy
        self.projector = mlp((backbone.dim, *[config.dim] * config.layers), last_bias=False)
        self.norm = nn.BatchNorm1d(config.dim, affine=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Algorithm 1."""
        y1, y2 = batch.views
        z1, z2 = self.projector(self.backbone(y1)), self.projector(self.backbone(y2))  # N×d
        with torch.autocast(z1.device.type, enabled=False):
            c = cross_correlation(self.norm(z1.float()), self.norm(z2.float()))  # d×d
            return {"loss": redundancy_loss(c, self.weight), "features": z1}


def views(config: BarlowTwinsConfig) -> Sequence[View]:
    """Two views by BYOL's two augmentations (section 2.2)."""

    def view(blur: float, solarize: float) -> View:
        return View(
            (
                RandomResizedCrop(config.size, scale=(config.crop_min, 1.0), interpolation="bicubic"),
                HorizontalFlip(config.flip),
                ColorJitter(*config.jitter, p=0.8),
                Grayscale(0.2),
                GaussianBlur((0.1, 2.0), blur),
                Solarize(p=solarize),
                Normalize(),
            )
        )

    return tuple(view(*chances) for chances in zip(config.blur, config.solarize, strict=True))


BIAS_AND_NORM = (Rule(pattern=NORM_AND_BIAS, lr_mult=0.024, weight_decay=0.0, adapt=False),)


def _resnet50(epochs: int) -> BarlowTwinsConfig:
    """A preset of the model zoo: batch 2048, whose cosine runs under the warm-up."""
    return BarlowTwinsConfig(
        arch_options={"zero_init_last": True}, batch=2048, epochs=epochs, workers=8,
        optim=Optim(
            name="lars", lr=1.6, weight_decay=1e-6, warmup=10, warmup_ratio=1.6e-4, min_lr=0.0016, shift=False,
            rules=BIAS_AND_NORM,
        ),
    )  # fmt: skip


RECIPE = Recipe(
    name="barlowtwins",
    title="Barlow Twins",
    paper=Paper(
        title="Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
        authors="Jure Zbontar, Li Jing, Ishan Misra, Yann LeCun, Stéphane Deny",
        venue="ICML 2021",
        url="https://arxiv.org/abs/2103.03230",
        summary="The cross-correlation matrix between the embeddings of two views of the same images is driven to the "
        "identity: every component agrees between the views, and no two components say the same.",
    ),
    method=BarlowTwins,
    views=views,
    presets={
        "resnet50_8xb32-accum8-coslr-100e_in1k": _resnet50(100),
        "resnet50_8xb256-coslr-300e_in1k": _resnet50(300),
        "resnet50_8xb256-coslr-1000e_in1k": _resnet50(1000),
        # lightly's CIFAR-10 benchmark.
        "resnet18_1xb512-coslr-200e_cifar10": BarlowTwinsConfig(
            **CIFAR, optim=Optim(lr=0.24, weight_decay=5e-4, every="epoch"), dim=2048, layers=2, redundancy=0.005,
            blur=(0.0, 0.0), solarize=(0.0, 0.0), jitter=(0.4, 0.4, 0.4, 0.1),
        ),
        "photos": BarlowTwinsConfig(**PHOTOS, optim=Optim(lr=0.06, weight_decay=1e-4, warmup=2), dim=2048, layers=2),
        "digits": BarlowTwinsConfig(
            **DIGITS, batch=128, epochs=25, optim=Optim(lr=0.1, weight_decay=1e-4, warmup=1), precision="bf16",
            dim=256, layers=2, flip=0.0, blur=(0.0, 0.0), solarize=(0.0, 0.0), crop_min=0.5,
            jitter=(0.8, 0.8, 0.8, 0.5),
        ),
        "tiny": BarlowTwinsConfig(**TINY, optim=Optim(lr=0.0001), dim=32, layers=2, flip=0.0),
    },
    reference={
        "resnet50_8xb256-coslr-300e_in1k": (
            Published("linear/top1", 71.66, "MMSelfSup 0.x configs/selfsup/barlowtwins/README.md"),
            Published("linear/top1", 71.8, "MMSelfSup 1.x configs/selfsup/barlowtwins/metafile.yml"),
        ),
        "resnet50_8xb256-coslr-1000e_in1k": (
            Published("linear/top1", 73.5, "github.com/facebookresearch/barlowtwins README"),
            Published("linear/top1", 73.2, "Barlow Twins paper, table 1"),
        ),
        "resnet18_1xb512-coslr-200e_cifar10": (
            Published("knn/top1.k200", 81.9, "lightly docs/source/getting_started/benchmarks.rst", "best epoch on test"),
        ),
    },
    batch_dependent="the correlation is that of the micro-batch of all processes, so accumulation means fewer samples in it",
)  # fmt: skip
