# SPDX-License-Identifier: Apache-2.0
"""Unsupervised Learning of Visual Features by Contrasting Cluster Assignments (SwAV).

Mathilde Caron, Ishan Misra, Julien Mairal, Priya Goyal, Piotr Bojanowski, Armand Joulin. NeurIPS 2020.
https://arxiv.org/abs/2006.09882

From one crop of an image predict to which prototypes another crop of it is assigned, the assignments of a batch being
balanced so that not all images end up with one prototype.

Run: suite run --algo swav --preset resnet50_8xb32-mcrop-2-6-coslr-200e_in1k-224-96 --data-root imagenet=DIR
Expected: ImageNet linear 70.47 (MMSelfSup, batch 256, 200 epochs); official 72.7 (batch 256), 73.9 (batch 4096).
Differs: codes are balanced over the samples of all processes in every iteration (MMSelfSup balances each process's own);
the queue is one for all processes and is saved with the checkpoint (the official one is a file per process); the Sinkhorn
iterations run on logarithms. LARS is the form with the rate outside the momentum buffer, as the official LARC (MMSelfSup:
inside), with ‖g + wd·w‖ where both have ‖g‖ + wd·‖w‖. Batch norm is over all devices (official at batch 4096: groups of
8). `resnet18_1xb512-coslr-200e_cifar10` has lightly's settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from suite.backbone import Backbone
from suite.method import Batch, Method, Progress, TrainSet
from suite.nn.gather import gather_detached, rank, world_size
from suite.nn.heads import mlp
from suite.nn.queue import Queue
from suite.nn.sinkhorn import sinkhorn
from suite.presets import CIFAR, DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe
from suite.views import ColorJitter, GaussianBlur, Grayscale, HorizontalFlip, Normalize, View, multi_crop


@dataclass(frozen=True, kw_only=True)
class SwAVConfig(Config):
    """Settings of SwAV; the defaults are those of batch 256. `size` is the side of the large crops."""

    dim: PositiveInt = 128
    hidden: PositiveInt = 2048
    prototypes: PositiveInt = 3000
    "K."
    temperature: PositiveFloat = 0.1
    epsilon: PositiveFloat = 0.05
    "Smoothness of the codes."
    iterations: NonNegativeInt = 3
    "Rounds of Sinkhorn-Knopp."
    freeze: NonNegativeInt = 5005
    "Steps at the start during which the prototypes stay."
    queue: NonNegativeInt = 3840
    "Earlier samples per large crop, over all processes, that take part in the balancing; 0: none."
    queue_epoch: NonNegativeInt = 15
    "Epoch, counted from 0, at which the queue starts to fill."
    crops: PositiveInt = 2
    "Large crops, which give codes and predictions."
    small_crops: NonNegativeInt = 6
    "Small crops, which only predict."
    small_size: PositiveInt = 96
    scale: tuple[float, float] = (0.14, 1.0)
    small_scale: tuple[float, float] = (0.05, 0.14)
    sync_bn: bool = True
    blur: float = 0.5
    "Probability of Gaussian blur."
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)


class SwAV(Method):
    """z_t predicts the code q_s of another crop, and the reverse."""

    def __init__(self, config: SwAVConfig, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        self.settings = config
        self.projector = mlp((backbone.dim, config.hidden, config.dim), bias=True)
        self.prototypes = nn.Linear(config.dim, config.prototypes, bias=False)
        self.queues = nn.ModuleList(Queue(config.queue, config.dim) for _ in range(config.crops if config.queue else 0))
        self.filling = self.full = False
        self._normalise()

    @torch.no_grad()
    def _normalise(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def on_step_start(self, progress: Progress) -> None:
        """Prototypes of length 1; whether the queue fills and is full follows from the step alone, also after a resume."""
        self._normalise()
        since = progress.step - self.settings.queue_epoch * progress.steps_per_epoch
        self.filling = bool(self.queues) and since >= 0
        self.full = self.filling and since * self.settings.batch >= self.settings.queue

    def after_backward(self, progress: Progress) -> None:
        """Early prototypes stay where they are (appendix: implementation details)."""
        if progress.step < self.settings.freeze:
            self.prototypes.weight.grad = None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 1 and 6: every crop predicts the codes of the other large crops."""
        z = self.embed(batch.views)  # V×N×d
        scores = self.scores(z)  # V×N×K
        large = self.settings.crops
        codes = self.codes(z[:large].detach(), scores[:large].detach())  # A×N×K
        return {"loss": swapped_prediction(scores, codes, self.settings.temperature), "features": z[0]}

    def embed(self, views: list[Tensor]) -> Tensor:
        """Unit embeddings V×N×d; crops of one size pass the backbone together, all pass the projection together."""
        groups = (views[: self.settings.crops], views[self.settings.crops :])
        h = torch.cat([self.backbone(torch.cat(group)) for group in groups if group])  # VN×D
        return F.normalize(self.projector(h).float(), dim=1).unflatten(0, (len(views), -1))

    def scores(self, z: Tensor) -> Tensor:
        """C^T z in float32: …×d -> …×K."""
        with torch.autocast(z.device.type, enabled=False):
            return self.prototypes(z)

    @torch.no_grad()
    def codes(self, z: Tensor, scores: Tensor) -> Tensor:
        """Codes A×N×K of the large crops, balanced together with this process's share of the queued samples."""
        found = []
        for i, mine in enumerate(scores):
            balanced = mine
            if self.full:
                queued = self._queue(i).keys.tensor_split(world_size())[rank()]  # (queue/W)×d
                balanced = torch.cat([self.scores(queued), mine])
            found.append(sinkhorn(balanced, self.settings.epsilon, self.settings.iterations)[-len(mine) :])
            if self.filling:
                self._queue(i).push(gather_detached(z[i]))
        return torch.stack(found)

    def _queue(self, i: int) -> Queue:
        queue = self.queues[i]
        assert isinstance(queue, Queue)
        return queue


def swapped_prediction(scores: Tensor, codes: Tensor, tau: float) -> Tensor:
    """Mean over codes q of crop s and crops t other than s of -sum_k q_k log softmax(c_k·z_t / tau) (SwAV, eq. 2 and 6).

    Args:
        scores: V×N×K products of embeddings and prototypes.
        codes: A×N×K codes of the first A crops.
        tau: temperature.

    Returns:
        A scalar, averaged over the batch.
    """
    log_p = F.log_softmax(scores.float() / tau, dim=2)  # V×N×K
    others = log_p.sum(0) - log_p[: len(codes)]  # A×N×K
    return -(codes * others).sum(2).mean() / (len(scores) - 1)


def views(config: SwAVConfig) -> Sequence[View]:
    """Multi-crop (section 3.3): some large crops, then small ones, all with SimCLR's colour distortion."""
    return multi_crop(
        ColorJitter(*config.jitter, p=0.8),
        Grayscale(0.2),
        GaussianBlur((0.1, 2.0), config.blur),
        HorizontalFlip(config.flip),
        Normalize(),
        sizes=(config.size, config.small_size),
        numbers=(config.crops, config.small_crops),
        scales=(config.scale, config.small_scale),
    )


RESNET50: dict[str, Any] = {"arch": "resnet50", "workers": 8}
BATCH256: dict[str, Any] = {**RESNET50, "arch_options": {"zero_init_last": True}, "batch": 256}
BATCH4096: dict[str, Any] = {
    **RESNET50,
    "arch_options": {"zero_init_last": False},
    "batch": 4096,
    "optim": Optim(name="lars", lr=4.8, weight_decay=1e-6, min_lr=4.8e-3, warmup=10, warmup_ratio=0.0625),
    "precision": "16",
    "freeze": 313,
    "queue": 0,
}


def _lars(every: Any) -> Optim:
    return Optim(name="lars", lr=0.6, weight_decay=1e-6, min_lr=6e-4, every=every)


RECIPE = Recipe(
    name="swav",
    title="SwAV",
    paper=Paper(
        title="Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
        authors="Mathilde Caron, Ishan Misra, Julien Mairal, Priya Goyal, Piotr Bojanowski, Armand Joulin",
        venue="NeurIPS 2020",
        url="https://arxiv.org/abs/2006.09882",
        summary="From one crop of an image the network predicts to which prototypes another crop of it is assigned. The "
        "assignments of a batch are balanced, so that not all images end up with one prototype, and many small crops make "
        "the comparison cheap.",
    ),
    method=SwAV,
    views=views,
    presets={
        "resnet50_8xb32-mcrop-2-6-coslr-200e_in1k-224-96": SwAVConfig(**BATCH256, optim=_lars("epoch")),
        "resnet50_8xb32-mcrop-coslr-200e_in1k-224px-96px": SwAVConfig(**BATCH256, optim=_lars("step")),
        "resnet50_64xb64-mcrop-2-6-coslr-200e_in1k-224-96": SwAVConfig(**BATCH4096),
        "resnet50_64xb64-mcrop-2-6-coslr-800e_in1k-224-96": SwAVConfig(**BATCH4096, epochs=800),
        "resnet18_1xb512-coslr-200e_cifar10": SwAVConfig(
            **CIFAR, optim=Optim(name="adam", lr=4e-3, weight_decay=1e-6, every="epoch"), hidden=512, prototypes=512,
            freeze=0, queue=0, small_crops=0, blur=0.0,
        ),
        "photos": SwAVConfig(
            **PHOTOS, optim=Optim(lr=0.12, weight_decay=1e-4, warmup=1), hidden=512, prototypes=256, freeze=100, queue=1024,
            queue_epoch=5, small_crops=2, small_size=48, scale=(0.2, 1.0), small_scale=(0.05, 0.2),
        ),
        "digits": SwAVConfig(
            **DIGITS, batch=128, epochs=25, optim=Optim(lr=0.2, weight_decay=1e-4, warmup=1), precision="bf16",
            hidden=128, dim=64, prototypes=300, temperature=0.2, freeze=0, queue=2048, queue_epoch=2, small_crops=0,
            scale=(0.5, 1.0), blur=0.0, flip=0.0, jitter=(0.8, 0.8, 0.8, 0.5),
        ),
        "tiny": SwAVConfig(
            **TINY, optim=Optim(lr=0.05), hidden=32, dim=16, prototypes=24, freeze=1, queue=32, queue_epoch=0,
            small_crops=2, small_size=16, flip=0.0,
        ),
    },
    reference={
        "resnet50_8xb32-mcrop-2-6-coslr-200e_in1k-224-96": (
            Published("linear/top1", 70.47, "MMSelfSup 0.x configs/selfsup/swav/README.md"),
            Published("linear/top1", 72.7, "github.com/facebookresearch/swav README", "batch 256, cosine per step"),
            Published("svm/map", 87.00, "MMSelfSup 0.x configs/selfsup/swav/README.md"),
        ),
        "resnet50_8xb32-mcrop-coslr-200e_in1k-224px-96px": (
            Published("linear/top1", 70.5, "MMSelfSup 1.x configs/selfsup/swav/metafile.yml"),
        ),
        "resnet50_64xb64-mcrop-2-6-coslr-200e_in1k-224-96": (
            Published("linear/top1", 73.9, "github.com/facebookresearch/swav README"),
        ),
        "resnet50_64xb64-mcrop-2-6-coslr-800e_in1k-224-96": (
            Published("linear/top1", 75.3, "github.com/facebookresearch/swav README"),
        ),
        "resnet18_1xb512-coslr-200e_cifar10": (
            Published(
                "knn/top1", 84.2, "lightly docs/source/getting_started/benchmarks.rst",
                "k=200, best epoch on the test set; 83.3 in an earlier table",
            ),
        ),
    },
    batch_dependent="codes are balanced over the micro-batch of all processes, so accumulation means fewer samples in it",
)  # fmt: skip
