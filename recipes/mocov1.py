# SPDX-License-Identifier: Apache-2.0
"""Momentum Contrast for Unsupervised Visual Representation Learning (MoCo v1).

Kaiming He, Haoqi Fan, Yuxin Wu, Saining Xie, Ross Girshick. CVPR 2020. https://arxiv.org/abs/1911.05722

Contrastive learning is a dictionary look-up: a query must match its key in a queue of encoded images that is far larger
than a batch, and stays consistent because the key encoder moves slowly.

Run: suite run --algo mocov1 --preset resnet50_8xb32-steplr-200e_in1k --data-root imagenet=DIR
Expected: ImageNet linear 60.6 (paper, 200 epochs); the official repository's own run reached 60.8.
Differs: the key encoder is copied after initialisation (MMSelfSup's copy missed the re-initialised query encoder);
grayscale weighs the colours by luma (MMSelfSup 1.x equally); 16-bit runs scale the loss dynamically (MMSelfSup 0.x by
512). `resnet18_1xb512-coslr-200e_cifar10` has the settings of the official CIFAR-10 demo, whose batch norm is split in 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from suite.backbone import Backbone
from suite.method import Batch, Method, Progress, TrainSet
from suite.nn.contrast import info_nce
from suite.nn.ema import EMA
from suite.nn.gather import gather_detached, permutation, shuffled, unshuffled, world_size
from suite.nn.queue import Queue
from suite.presets import CIFAR, DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe
from suite.views import ColorJitter, Grayscale, HorizontalFlip, Normalize, RandomResizedCrop, View


@dataclass(frozen=True, kw_only=True)
class MoCoV1Config(Config):
    """Settings of MoCo v1; the defaults are the paper's."""

    dim: PositiveInt = 128
    queue: PositiveInt = 65536
    "K, the number of negatives."
    m: NonNegativeFloat = 0.999
    "Momentum of the key encoder."
    temperature: PositiveFloat = 0.07
    crop_min: float = 0.2
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.4)
    jitter_p: float = 1.0


class MoCoV1(Method):
    """q against one positive key and K negatives; theta_k <- m theta_k + (1 - m) theta_q."""

    def __init__(self, config: MoCoV1Config, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        self.m, self.tau = config.m, config.temperature
        self.fc = nn.Linear(backbone.dim, config.dim)
        self.f_k = EMA(self.f_q)
        self.queue = Queue(config.queue, config.dim)

    @property
    def f_q(self) -> nn.Module:
        """The query encoder: backbone and one linear layer."""
        return nn.Sequential(self.backbone, self.fc)

    def on_step_start(self, progress: Progress) -> None:
        """Eq. 2, before the keys are computed."""
        self.f_k.update(self.f_q, self.m)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Algorithm 1 and eq. 1."""
        x_q, x_k = batch.views
        q = F.normalize(self.fc(self.backbone(x_q)).float(), dim=1)  # N×d
        k = self.keys(x_k)  # N×d
        negatives = self.queue.keys.clone()  # K×d, as they were before this batch
        self.queue.push(gather_detached(k))
        return {"loss": info_nce(q, k, negatives, self.tau), "features": q}

    @torch.no_grad()
    def keys(self, x: Tensor) -> Tensor:
        """Keys from the momentum encoder, batch norm seeing a shuffled batch (section 3.3)."""
        if world_size() == 1:
            return F.normalize(self.f_k(x).float(), dim=1)
        order = permutation(len(x) * world_size(), x.device)
        k = F.normalize(self.f_k(shuffled(x, order)).float(), dim=1)
        return unshuffled(k, order)


def views(config: MoCoV1Config) -> Sequence[View]:
    """Two views by one augmentation (section 3.3, "Technical details")."""
    view = View(
        (
            RandomResizedCrop(config.size, scale=(config.crop_min, 1.0)),
            Grayscale(0.2),
            ColorJitter(*config.jitter, p=config.jitter_p),
            HorizontalFlip(config.flip),
            Normalize(),
        )
    )
    return (view, view)


RESNET50: dict[str, Any] = {
    "arch_options": {"zero_init_last": False},
    "optim": Optim(lr=0.03, weight_decay=1e-4, schedule="step", milestones=(120, 160)),
    "workers": 8,
}

RECIPE = Recipe(
    name="mocov1",
    title="MoCo v1",
    paper=Paper(
        title="Momentum Contrast for Unsupervised Visual Representation Learning",
        authors="Kaiming He, Haoqi Fan, Yuxin Wu, Saining Xie, Ross Girshick",
        venue="CVPR 2020",
        url="https://arxiv.org/abs/1911.05722",
        summary="Contrastive learning as a dictionary look-up: a query must match its key in a queue of encoded images "
        "that is far larger than a batch. The keys stay consistent because their encoder is a slowly moving average of the "
        "query encoder.",
    ),
    method=MoCoV1,
    views=views,
    presets={
        "resnet50_8xb32-steplr-200e_in1k": MoCoV1Config(**RESNET50),
        "resnet50_8xb32-fp16-steplr-200e_in1k": MoCoV1Config(**RESNET50, precision="16"),
        "resnet18_1xb512-coslr-200e_cifar10": MoCoV1Config(
            **CIFAR, optim=Optim(lr=0.06, weight_decay=5e-4, every="epoch"), queue=4096, m=0.99, temperature=0.1,
            crop_min=0.08, jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8,
        ),
        "photos": MoCoV1Config(**PHOTOS, optim=Optim(lr=0.06, weight_decay=1e-4), queue=1024, m=0.99, temperature=0.1),
        "digits": MoCoV1Config(
            **DIGITS, batch=128, epochs=25, optim=Optim(lr=0.2, weight_decay=1e-4, warmup=1), precision="bf16",
            queue=1024, m=0.95, temperature=0.2, dim=64, flip=0.0, crop_min=0.5, jitter=(0.8, 0.8, 0.8, 0.5), jitter_p=0.8,
        ),
        "tiny": MoCoV1Config(**TINY, optim=Optim(lr=0.003), queue=64, dim=16, m=0.9, temperature=0.2, flip=0.0),
    },
    reference={
        "resnet50_8xb32-steplr-200e_in1k": (
            Published("linear/top1", 60.6, "arXiv 1911.05722, table 1"),
            Published("linear/top1", 60.8, "github.com/facebookresearch/moco README", "the repository's own run"),
            Published("linear/top1", 60.75, "ModelTC/United-Perception, self-supervised benchmark"),
        ),
        "resnet18_1xb512-coslr-200e_cifar10": (
            Published(
                "knn/top1", 82.6, "facebookresearch/moco colab/moco_cifar10_demo.ipynb",
                "k=200, on the 128-d output of the head; batch norm split in 8",
            ),
        ),
    },
    batch_dependent="batch norm statistics are per device (shuffled across processes)",
)  # fmt: skip
