# SPDX-License-Identifier: Apache-2.0
"""Exploring Simple Siamese Representation Learning (SimSiam).

Xinlei Chen, Kaiming He. CVPR 2021. https://arxiv.org/abs/2011.10566

A predictor maps one view's projection to the other view's, through which no gradient flows; that alone, without
negatives, large batches or a momentum encoder, keeps the representation from collapsing.

Run: suite run --algo simsiam --preset resnet50_8xb32-coslr-100e_in1k --data-root imagenet=DIR
Expected: ImageNet linear 68.3 (official, batch 256, 100 epochs); MMSelfSup reports 68.28 (100 epochs) and 69.84 (200).
Differs: the official code gives the last projection layer a frozen bias, which the batch norm behind it removes: left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from suite.backbone import Backbone
from suite.method import Batch, Method, TrainSet
from suite.nn.heads import mlp
from suite.presets import CIFAR, DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe, Rule
from suite.views import ColorJitter, GaussianBlur, Grayscale, HorizontalFlip, Normalize, RandomResizedCrop, View


@dataclass(frozen=True, kw_only=True)
class SimSiamConfig(Config):
    """Settings of SimSiam; the defaults are the paper's, the batch norm is over the global batch."""

    dim: PositiveInt = 2048
    "Width of the projection z, hidden layers included, and of the prediction p."
    layers: PositiveInt = 3
    "Depth of the projection."
    hidden: PositiveInt = 512
    "Hidden width of the predictor."
    sync_bn: bool = True
    crop_min: float = 0.2
    blur: float = 0.5
    "Probability of Gaussian blur."
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """D(p, stopgrad(z)) = -p/‖p‖·z/‖z‖, mean over the batch (SimSiam, eq. 1).

    Args:
        p: N×d predictions.
        z: N×d projections of the other view; no gradient flows back through them.
    """
    return -F.cosine_similarity(p.float(), z.detach().float(), dim=1).mean()


class SimSiam(Method):
    """p = h(z), z = f(x): each view's prediction against the other view's projection."""

    def __init__(self, config: SimSiamConfig, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        widths = (backbone.dim, *[config.dim] * config.layers)
        self.projector = mlp(widths, last_bias=False, last_norm="plain")
        self.h = mlp((config.dim, config.hidden, config.dim))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 4."""
        x1, x2 = batch.views
        z1, z2 = self.projector(self.backbone(x1)), self.projector(self.backbone(x2))  # N×d
        p1, p2 = self.h(z1), self.h(z2)  # N×d
        return {"loss": (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2, "features": z1}


def views(config: SimSiamConfig) -> Sequence[View]:
    """Two views by one augmentation, MoCo v2's (appendix A)."""
    view = View(
        (
            RandomResizedCrop(config.size, scale=(config.crop_min, 1.0)),
            ColorJitter(*config.jitter, p=0.8),
            Grayscale(0.2),
            GaussianBlur((0.1, 2.0), config.blur),
            HorizontalFlip(config.flip),
            Normalize(),
        )
    )
    return (view, view)


CONSTANT_PREDICTOR = (Rule(pattern=r"^h\.", fixed_lr=True),)
"""The predictor's rate does not decay (section 4.2)."""


def _sgd(lr: float, weight_decay: float = 1e-4, **changes: Any) -> Optim:
    return Optim(lr=lr, weight_decay=weight_decay, rules=CONSTANT_PREDICTOR, **changes)


RESNET50: dict[str, Any] = {"arch_options": {"zero_init_last": True}, "optim": _sgd(0.05, every="epoch"), "workers": 8}

RECIPE = Recipe(
    name="simsiam",
    title="SimSiam",
    paper=Paper(
        title="Exploring Simple Siamese Representation Learning",
        authors="Xinlei Chen, Kaiming He",
        venue="CVPR 2021",
        url="https://arxiv.org/abs/2011.10566",
        summary="A predictor maps the projection of one view to that of another, through which no gradient flows. Without "
        "negatives, large batches or a momentum encoder, this alone keeps the representation from collapsing.",
    ),
    method=SimSiam,
    views=views,
    presets={
        "resnet50_8xb32-coslr-100e_in1k": SimSiamConfig(**RESNET50, epochs=100),
        "resnet50_8xb32-coslr-200e_in1k": SimSiamConfig(**RESNET50, epochs=200),
        # Appendix D of the paper, but for its 800 epochs.
        "resnet18_1xb512-coslr-200e_cifar10": SimSiamConfig(
            **CIFAR, optim=_sgd(0.06, 5e-4, every="epoch"), layers=2, blur=0.0
        ),
        "photos": SimSiamConfig(**PHOTOS, optim=_sgd(0.05)),
        "digits": SimSiamConfig(
            **DIGITS, batch=128, epochs=25, optim=_sgd(0.1), precision="bf16", dim=256, layers=2, hidden=64, flip=0.0,
            blur=0.0, crop_min=0.5, jitter=(0.8, 0.8, 0.8, 0.5),
        ),
        "tiny": SimSiamConfig(**TINY, optim=_sgd(0.05), dim=32, layers=2, hidden=16, flip=0.0),
    },
    reference={
        "resnet50_8xb32-coslr-100e_in1k": (
            Published("linear/top1", 68.3, "github.com/facebookresearch/simsiam README", "batch 256"),
            Published("linear/top1", 68.28, "MMSelfSup 0.x configs/selfsup/simsiam/README.md"),
        ),
        "resnet50_8xb32-coslr-200e_in1k": (
            Published("linear/top1", 70.0, "SimSiam paper, table 4"),
            Published("linear/top1", 69.84, "MMSelfSup 0.x configs/selfsup/simsiam/README.md"),
        ),
        "resnet18_1xb512-coslr-200e_cifar10": (
            Published("knn/top1.k200", 76.4, "lightly docs/source/getting_started/benchmarks.rst", "best epoch on test"),
        ),
    },
    batch_dependent="batch norm statistics are those of the micro-batch of all processes, so accumulation means fewer samples",
)  # fmt: skip
