# SPDX-License-Identifier: Apache-2.0
"""A Simple Framework for Contrastive Learning of Visual Representations (SimCLR).

Ting Chen, Simon Kornblith, Mohammad Norouzi, Geoffrey Hinton. ICML 2020. https://arxiv.org/abs/2002.05709

Two views of an image must find each other among all other views in the batch.

Run: suite run --algo simclr --preset resnet50_16xb256-coslr-200e_in1k --data-root imagenet=DIR
Expected: ImageNet linear 66.66 (MMSelfSup, batch 4096, 200 epochs), 69.3 in the paper (1000 epochs).
Differs: gradients of the gathered embeddings are summed over processes (MMSelfSup keeps the local slice only); every
batch norm, the shortcut's too, is left out of weight decay and LARS adaptation (MMSelfSup 0.x misses the shortcut's), and
LARS keeps the learning rate out of its momentum buffer, as the official code of BYOL does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from suite.backbone import Backbone
from suite.method import Batch, Method, TrainSet
from suite.nn.contrast import nt_xent
from suite.nn.heads import mlp
from suite.optim import NORM_AND_BIAS
from suite.presets import CIFAR, DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe, Rule
from suite.views import ColorJitter, GaussianBlur, Grayscale, HorizontalFlip, Normalize, RandomResizedCrop, View


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig(Config):
    """Settings of SimCLR; the defaults are the paper's, the batch norm is over the global batch."""

    dim: PositiveInt = 128
    hidden: PositiveInt = 2048
    temperature: PositiveFloat = 0.1
    sync_bn: bool = True
    crop_min: float = 0.08
    blur: float = 0.5
    "Probability of Gaussian blur."
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)


class SimCLR(Method):
    """z = g(f(x)); NT-Xent between the two views."""

    def __init__(self, config: SimCLRConfig, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        self.tau = config.temperature
        self.g = mlp((backbone.dim, config.hidden, config.dim), last_norm="affine", last_bias=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 1, averaged over all 2N views of the global batch."""
        x1, x2 = batch.views
        z1 = self.g(self.backbone(x1))  # N×d
        z2 = self.g(self.backbone(x2))  # N×d
        return {"loss": nt_xent(z1, z2, self.tau), "features": z1}


def views(config: SimCLRConfig) -> Sequence[View]:
    """Two views by one augmentation (appendix A)."""
    view = View(
        (
            RandomResizedCrop(config.size, scale=(config.crop_min, 1.0)),
            HorizontalFlip(config.flip),
            ColorJitter(*config.jitter, p=0.8),
            Grayscale(0.2),
            GaussianBlur((0.1, 2.0), config.blur),
            Normalize(),
        )
    )
    return (view, view)


EXCLUDED = (Rule(pattern=NORM_AND_BIAS, weight_decay=0.0, adapt=False),)


def _lars(lr: float, shift: bool = False) -> Optim:
    """MMSelfSup's schedule: a cosine that moves once per epoch, in 0.x under the warm-up, in 1.x after it."""
    return Optim(
        name="lars", lr=lr, weight_decay=1e-6, warmup=10, warmup_ratio=1e-4, every="epoch", shift=shift, rules=EXCLUDED
    )


RESNET50: dict[str, Any] = {"arch": "resnet50", "arch_options": {"zero_init_last": True}, "workers": 8}

RECIPE = Recipe(
    name="simclr",
    title="SimCLR",
    paper=Paper(
        title="A Simple Framework for Contrastive Learning of Visual Representations",
        authors="Ting Chen, Simon Kornblith, Mohammad Norouzi, Geoffrey Hinton",
        venue="ICML 2020",
        url="https://arxiv.org/abs/2002.05709",
        summary="Two views of an image must find each other among all other views in the batch. Strong colour "
        "distortion, a projection head that is thrown away afterwards, and large batches make it work.",
    ),
    method=SimCLR,
    views=views,
    presets={
        "resnet50_8xb32-coslr-200e_in1k": SimCLRConfig(**RESNET50, batch=256, optim=_lars(0.3)),
        "resnet50_8xb64-coslr-200e_in1k": SimCLRConfig(**RESNET50, batch=512, optim=_lars(0.6)),
        "resnet50_16xb256-coslr-200e_in1k": SimCLRConfig(**RESNET50, batch=4096, optim=_lars(4.8)),
        "resnet50_16xb256-coslr-800e_in1k": SimCLRConfig(**RESNET50, batch=4096, epochs=800, optim=_lars(4.8, shift=True)),
        "resnet18_1xb512-coslr-200e_cifar10": SimCLRConfig(
            **CIFAR, optim=Optim(lr=0.12, weight_decay=5e-4, warmup=10), temperature=0.5, hidden=512, blur=0.0,
            jitter=(0.4, 0.4, 0.4, 0.1),
        ),
        "photos": SimCLRConfig(**PHOTOS, optim=Optim(lr=0.12, weight_decay=1e-4), temperature=0.2, hidden=512),
        "digits": SimCLRConfig(
            **DIGITS, batch=256, epochs=25, optim=Optim(lr=0.4, weight_decay=1e-4, warmup=1), precision="bf16",
            temperature=0.2, hidden=128, dim=64, flip=0.0, blur=0.0, crop_min=0.5, jitter=(0.8, 0.8, 0.8, 0.5),
        ),
        "tiny": SimCLRConfig(**TINY, optim=Optim(lr=0.02), temperature=0.5, hidden=32, dim=16, flip=0.0),
    },
    reference={
        "resnet50_8xb32-coslr-200e_in1k": (
            Published("linear/top1", 62.56, "MMSelfSup 0.x configs/selfsup/simclr/README.md"),
        ),
        "resnet50_16xb256-coslr-200e_in1k": (
            Published("linear/top1", 66.66, "MMSelfSup 0.x configs/selfsup/simclr/README.md"),
        ),
        "resnet50_16xb256-coslr-800e_in1k": (
            Published("linear/top1", 69.2, "MMSelfSup 1.x docs/en/model_zoo.md"),
        ),
    },
    batch_dependent="negatives come from the micro-batch of all processes, so accumulation means fewer of them",
)  # fmt: skip
