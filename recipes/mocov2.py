# SPDX-License-Identifier: Apache-2.0
"""Improved Baselines with Momentum Contrastive Learning (MoCo v2).

Xinlei Chen, Haoqi Fan, Ross Girshick, Kaiming He. Technical report, 2020. https://arxiv.org/abs/2003.04297

A query must find its own key, another view of the same image, among a queue of keys from earlier batches; the keys come
from a slowly moving average of the query encoder.

Run: suite run --algo mocov2 --preset resnet50_8xb32-coslr-200e_in1k --data-root imagenet=DIR
Expected: ImageNet linear 67.5 ± 0.1 (official, 5 trials, 200 epochs, 53 h on 8 V100); MMSelfSup reports 67.58.
Differs: the key encoder is copied after initialisation (MMSelfSup's copy missed the re-initialised query encoder). The
presets `digits` and `photos` last minutes instead of days and put batch norm into the head (`head_norm`).
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
from suite.nn.heads import mlp
from suite.nn.queue import Queue
from suite.presets import CIFAR, DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe
from suite.views import ColorJitter, GaussianBlur, Grayscale, HorizontalFlip, Normalize, RandomResizedCrop, View


@dataclass(frozen=True, kw_only=True)
class MoCoV2Config(Config):
    """Settings of MoCo v2; the defaults are the paper's."""

    dim: PositiveInt = 128
    hidden: PositiveInt = 2048
    queue: PositiveInt = 65536
    "K, the number of negatives."
    m: NonNegativeFloat = 0.999
    "Momentum of the key encoder."
    temperature: PositiveFloat = 0.2
    crop_min: float = 0.2
    blur: float = 0.5
    "Probability of Gaussian blur."
    head_norm: bool = False
    "Batch norm in the head: not in the paper, quicker to train where a run lasts a minute."
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)


class MoCoV2(Method):
    """q against one positive key and K negatives; theta_k <- m theta_k + (1 - m) theta_q."""

    def __init__(self, config: MoCoV2Config, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        self.m, self.tau = config.m, config.temperature
        self.projector = mlp((backbone.dim, config.hidden, config.dim), norm=config.head_norm, bias=True)
        self.f_k = EMA(self.f_q)
        self.queue = Queue(config.queue, config.dim)

    @property
    def f_q(self) -> nn.Module:
        """The query encoder: backbone and projection."""
        return nn.Sequential(self.backbone, self.projector)

    def on_step_start(self, progress: Progress) -> None:
        """Eq. 2 of MoCo, before the keys are computed."""
        self.f_k.update(self.f_q, self.m)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 1 of MoCo with the MLP head of v2."""
        x_q, x_k = batch.views
        q = F.normalize(self.projector(self.backbone(x_q)).float(), dim=1)  # N×d
        k = self.keys(x_k)  # N×d
        negatives = self.queue.keys.clone()  # K×d, as they were before this batch
        self.queue.push(gather_detached(k))
        return {"loss": info_nce(q, k, negatives, self.tau), "features": q}

    @torch.no_grad()
    def keys(self, x: Tensor) -> Tensor:
        """Keys from the momentum encoder, batch norm seeing a shuffled batch (section 3.3 of MoCo)."""
        if world_size() == 1:
            return F.normalize(self.f_k(x).float(), dim=1)
        order = permutation(len(x) * world_size(), x.device)
        k = F.normalize(self.f_k(shuffled(x, order)).float(), dim=1)
        return unshuffled(k, order)


def views(config: MoCoV2Config) -> Sequence[View]:
    """Two views by one augmentation (section 3: MoCo's plus blur and SimCLR's stronger colour)."""
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


RESNET50: dict[str, Any] = {
    "arch_options": {"zero_init_last": False},
    "optim": Optim(lr=0.03, weight_decay=1e-4, every="epoch"),
    "workers": 8,
}

RECIPE = Recipe(
    name="mocov2",
    title="MoCo v2",
    paper=Paper(
        title="Improved Baselines with Momentum Contrastive Learning",
        authors="Xinlei Chen, Haoqi Fan, Ross Girshick, Kaiming He",
        venue="Technical report, 2020",
        url="https://arxiv.org/abs/2003.04297",
        summary="A query must find its own key, another view of the same image, among a queue of keys from earlier "
        "batches. The keys come from a slowly moving average of the query encoder. Version 2 adds an MLP head, blur and "
        "a cosine schedule to MoCo.",
    ),
    method=MoCoV2,
    views=views,
    presets={
        "resnet50_8xb32-coslr-200e_in1k": MoCoV2Config(**RESNET50),
        "resnet50_8xb32-coslr-800e_in1k": MoCoV2Config(**RESNET50, epochs=800),
        "resnet18_1xb512-coslr-200e_cifar10": MoCoV2Config(
            **CIFAR, optim=Optim(lr=0.06, weight_decay=5e-4, every="epoch"), queue=4096, m=0.99, temperature=0.1,
            hidden=512, blur=0.0,
        ),
        "photos": MoCoV2Config(
            **PHOTOS, optim=Optim(lr=0.06, weight_decay=1e-4), queue=1024, m=0.99, hidden=512, head_norm=True
        ),
        "digits": MoCoV2Config(
            **DIGITS, batch=128, epochs=25, optim=Optim(lr=0.2, weight_decay=1e-4, warmup=1), precision="bf16",
            queue=1024, m=0.95, hidden=128, dim=64, head_norm=True, flip=0.0, blur=0.0, crop_min=0.5,
            jitter=(0.8, 0.8, 0.8, 0.5),
        ),
        "tiny": MoCoV2Config(**TINY, optim=Optim(lr=0.05), queue=64, hidden=32, dim=16, m=0.9, flip=0.0),
    },
    reference={
        "resnet50_8xb32-coslr-200e_in1k": (
            Published("linear/top1", 67.5, "github.com/facebookresearch/moco README", "mean of 5 trials, std 0.1"),
            Published("linear/top1", 67.58, "MMSelfSup 0.x configs/selfsup/mocov2/README.md"),
        ),
        "resnet50_8xb32-coslr-800e_in1k": (
            Published("linear/top1", 71.1, "github.com/facebookresearch/moco README"),
        ),
    },
    batch_dependent="batch norm statistics are per device (shuffled across processes)",
)  # fmt: skip
