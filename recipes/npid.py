# SPDX-License-Identifier: Apache-2.0
"""Unsupervised Feature Learning via Non-Parametric Instance Discrimination (NPID, also InstDisc).

Zhirong Wu, Yuanjun Xiong, Stella X. Yu, Dahua Lin. CVPR 2018. https://arxiv.org/abs/1805.01978

Every image is a class of its own: a feature must be most similar to what a memory bank remembers of the same image.

Run: suite run --algo npid --preset resnet50_8xb32-steplr-200e_in1k --data-root imagenet=DIR
Expected: ImageNet linear 57.97 (MMSelfSup 0.x README; its model zoo says 58.97), 58.3 (1.x); 54.99 with the paper's NCE.
Differs: MMSelfSup's presets take a softmax over 65536 drawn negatives instead of the paper's noise-contrastive estimation,
which `loss="nce"` is, and no proximal term. Its constant Z comes from the negatives of the first batch as in eq. 8 (the
official code counts the positive too). The memory starts with unit vectors (official: a little longer ones).
The CIFAR preset takes the official rate with batch 512 and a cosine (official: 128, steps), so no figure stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from suite.backbone import Backbone
from suite.method import Batch, Method, Progress, TrainSet
from suite.nn.bank import MemoryBank, draw_negatives
from suite.nn.gather import all_sum, gather_detached, rank, world_size
from suite.presets import CIFAR, DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe
from suite.views import ColorJitter, Grayscale, HorizontalFlip, Normalize, RandomResizedCrop, View


@dataclass(frozen=True, kw_only=True)
class NPIDConfig(Config):
    """Settings of instance discrimination; the defaults are those of the ResNet-50 preset."""

    dim: PositiveInt = 128
    negatives: NonNegativeInt = 65536
    "m, drawn per image; 0: all other images, which is eq. 2 without sampling."
    ensure_negatives: bool = False
    "Never draw the image itself."
    loss: Literal["softmax", "nce"] = "softmax"
    "nce: the paper's noise-contrastive estimation."
    proximal: NonNegativeFloat = 0.0
    "Lambda of the proximal regularisation (section 3.3)."
    temperature: PositiveFloat = 0.07
    momentum: NonNegativeFloat = 0.5
    "Share of the old entry when the memory is updated."
    sync_bn: bool = True
    crop_min: float = 0.2
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.4)


class NPID(Method):
    """f_i against its own memory v_i and that of other images; v_i follows f_i after the step."""

    z: Tensor

    def __init__(self, config: NPIDConfig, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        self.settings, self.seed = config, data.seed
        self.fc = nn.Linear(backbone.dim, config.dim)
        self.bank = MemoryBank(len(data), config.dim, config.momentum)
        self.register_buffer("z", torch.zeros(()))
        self.generator: torch.Generator | None = None
        self.seen: list[tuple[Tensor, Tensor]] = []

    def on_step_start(self, progress: Progress) -> None:
        """Negatives are drawn for the global batch from one stream that all processes share."""
        device = self.bank.features.device
        self.generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + progress.step)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 2, its sampled form, or eq. 7; the memory is as it was before this step."""
        i = batch.index
        f = F.normalize(self.fc(self.backbone(batch.views[0])).float(), dim=1)  # N×d
        self.seen.append((gather_detached(i), gather_detached(f)))
        v = self.bank.lookup(i)  # N×d
        if self.settings.negatives == 0:
            loss = softmax_over_all(f, self.bank.features, i, self.settings.temperature)
        else:
            positive = (f * v).sum(1, keepdim=True) / self.settings.temperature  # N×1
            negative = self.bank.scores(f, self.draw(i)) / self.settings.temperature  # N×m
            loss = self.nce(positive, negative) if self.settings.loss == "nce" else sampled_softmax(positive, negative)
        return {"loss": loss + self.settings.proximal * (f - v).square().sum(1).mean(), "features": f}

    def draw(self, i: Tensor) -> Tensor:
        """Negatives N×m of this process's images."""
        own, m = gather_detached(i), self.settings.negatives
        drawn = draw_negatives(own, len(self.bank), m, exclude_own=self.settings.ensure_negatives, generator=self.generator)
        return drawn.view(world_size(), len(i), m)[rank()]

    def nce(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Noise-contrastive estimation with the constant Z that the first batch gives (section 3.2)."""
        estimate = all_sum(negative.detach().exp().mean()) / world_size() * len(self.bank)
        self.z.copy_(torch.where(self.z > 0, self.z, estimate))
        return noise_contrastive(positive, negative, self.z.log(), len(self.bank))

    def after_step(self, progress: Progress) -> None:
        """v_i <- normalise(momentum·v_i + (1 - momentum)·f_i) on every process for the global batch."""
        for index, features in self.seen:
            self.bank.update(index, features)
        self.seen.clear()


def softmax_over_all(f: Tensor, memory: Tensor, i: Tensor, tau: float) -> Tensor:
    """-log P(i|f_i) with P of eq. 2: f N×d against all entries n×d."""
    with torch.autocast(f.device.type, enabled=False):
        return F.cross_entropy(f @ memory.T / tau, i)


def sampled_softmax(positive: Tensor, negative: Tensor) -> Tensor:
    """The same with drawn images alone in the denominator: logits N×1 and N×m."""
    logits = torch.cat([positive, negative], 1)  # N×(1+m)
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def noise_contrastive(positive: Tensor, negative: Tensor, log_z: Tensor, n: int) -> Tensor:
    """Eq. 6 and 7: -log h(i, f) - sum over the negatives of log(1 - h(j, f)).

    Args:
        positive: N×1 logits v_i·f_i / tau.
        negative: N×m logits v_j·f_i / tau.
        log_z: logarithm of the normalising constant Z.
        n: number of images; noise has probability 1/n.
    """
    # h = P / (P + m/n) with P = exp(logit) / Z is the sigmoid of log P - log(m/n).
    offset = log_z + math.log(negative.shape[1] / n)
    return -(F.logsigmoid(positive - offset).sum(1) + F.logsigmoid(offset - negative).sum(1)).mean()


def views(config: NPIDConfig) -> Sequence[View]:
    """One view by the augmentation of the official code."""
    return (
        View(
            (
                RandomResizedCrop(config.size, scale=(config.crop_min, 1.0)),
                Grayscale(0.2),
                ColorJitter(*config.jitter, p=1.0),
                HorizontalFlip(config.flip),
                Normalize(),
            )
        ),
    )


RESNET50: dict[str, Any] = {
    "arch_options": {"zero_init_last": False},
    "optim": Optim(lr=0.03, weight_decay=1e-4, schedule="step", milestones=(120, 160)),
    "workers": 8,
}

RECIPE = Recipe(
    name="npid",
    title="NPID",
    paper=Paper(
        title="Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
        authors="Zhirong Wu, Yuanjun Xiong, Stella X. Yu, Dahua Lin",
        venue="CVPR 2018",
        url="https://arxiv.org/abs/1805.01978",
        summary="Every image is a class of its own. A memory bank keeps one feature per image, and a new feature must be "
        "most similar to what is remembered of the same image among thousands of others.",
    ),
    method=NPID,
    views=views,
    presets={
        "resnet50_8xb32-steplr-200e_in1k": NPIDConfig(**RESNET50),
        "ensure-neg_resnet50_8xb32-steplr-200e_in1k": NPIDConfig(**RESNET50, ensure_negatives=True),
        "nce_resnet50_8xb32-steplr-200e_in1k": NPIDConfig(**RESNET50, loss="nce", negatives=4096, sync_bn=False),
        "resnet18_1xb512-coslr-200e_cifar10": NPIDConfig(
            **CIFAR, optim=Optim(lr=0.1, weight_decay=5e-4, every="epoch"), negatives=0, temperature=0.1, flip=0.0,
        ),
        "photos": NPIDConfig(**PHOTOS, optim=Optim(lr=0.06, weight_decay=1e-4), negatives=0, temperature=0.1),
        "digits": NPIDConfig(
            **DIGITS, batch=128, epochs=30, optim=Optim(lr=0.1, weight_decay=1e-4, warmup=1), precision="bf16",
            negatives=0, dim=64, flip=0.0, crop_min=0.5, jitter=(0.8, 0.8, 0.8, 0.5),
        ),
        "tiny": NPIDConfig(
            **TINY, optim=Optim(lr=0.02), negatives=64, ensure_negatives=True, temperature=0.2, dim=16, flip=0.0,
        ),
    },
    reference={
        "resnet50_8xb32-steplr-200e_in1k": (
            Published("linear/top1", 57.97, "MMSelfSup 0.x configs/selfsup/npid/README.md", "58.97 in its model zoo"),
            Published("linear/top1", 58.3, "MMSelfSup 1.x configs/selfsup/npid/metafile.yml"),
            Published("linear/top1", 56.60, "OpenSelfSup docs/MODEL_ZOO.md", "best epoch on test"),
            Published("svm/map", 76.75, "MMSelfSup 0.x configs/selfsup/npid/README.md", "selected on test"),
        ),
        "ensure-neg_resnet50_8xb32-steplr-200e_in1k": (
            Published("svm/map", 75.70, "OpenSelfSup docs/MODEL_ZOO.md", "selected on test"),
        ),
        "nce_resnet50_8xb32-steplr-200e_in1k": (
            Published("linear/top1", 54.99, "VISSL MODEL_ZOO.md", "the official weights; 52.73 retrained"),
        ),
    },
    batch_dependent="batch norm statistics come from the micro-batch of all processes (of each process with NCE)",
)  # fmt: skip
