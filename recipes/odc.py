# SPDX-License-Identifier: Apache-2.0
"""Online Deep Clustering for Unsupervised Representation Learning (ODC).

Xiaohang Zhan, Jiahao Xie, Ziwei Liu, Yew-Soon Ong, Chen Change Loy. CVPR 2020. https://arxiv.org/abs/2006.10645

Clustering and learning at once: in every step the images of the batch move to their nearest cluster, so that labels and
network change together instead of in turns.

Run: suite run --algo odc --preset resnet50_8xb64-steplr-440e_in1k --data-root imagenet=DIR
Expected: ImageNet linear 53.42 (MMSelfSup 0.x README, 440 epochs; its metafile says 53.43), best layer 57.70.
Differs: class weights follow the labels that the loss uses, and where several processes train, their weighted mean is over
the global batch (MMSelfSup: each device's own).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from suite.backbone import Backbone
from suite.method import Batch, Method, Progress, TrainSet
from suite.nn.cluster import kmeans_on_main, weighted_cross_entropy
from suite.nn.gather import gather_detached
from suite.nn.sample_memory import SampleMemory
from suite.nn.sweep import sweep
from suite.presets import DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe, Rule
from suite.views import CenterCrop, ColorJitter, Grayscale, HorizontalFlip, Normalize, RandomResizedCrop, Resize, Rotate, View


@dataclass(frozen=True, kw_only=True)
class ODCConfig(Config):
    """Settings of ODC; the defaults are those of the ResNet-50 preset."""

    clusters: PositiveInt = 10000
    hidden: PositiveInt = 512
    dim: PositiveInt = 256
    dropout: NonNegativeFloat = 0.5
    neck_momentum: PositiveFloat = 0.001
    "Weight of a batch in the running statistics of the neck's batch norm."
    momentum: NonNegativeFloat = 0.5
    "Share of the old feature in an update of the samples memory."
    centroids_every: PositiveInt = 10
    "Steps between updates of the centroids memory."
    minimum: NonNegativeInt = 20
    "Clusters with fewer images are dissolved."
    reweight: NonNegativeFloat = 0.5
    "Classes weigh size^-reweight in the loss."
    iterations: PositiveInt = 20
    "Of the k-means at the start."
    resize: PositiveInt = 256
    "Shorter side of the pictures before their centre is cropped for that k-means."
    sync_bn: bool = True
    crop_min: float = 0.08
    flip: float = 0.5
    rotation: NonNegativeFloat = 2.0
    "Degrees to either side."
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 1.0, 0.5)
    gray: float = 0.2


class ODC(Method):
    """Features f, labels y and centroids in memory; a classifier learns y while the memories follow f."""

    def __init__(self, config: ODCConfig, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        self.settings, self.seed = config, data.seed
        self.neck = nn.Sequential(
            nn.Linear(backbone.dim, config.hidden),
            nn.BatchNorm1d(config.hidden, momentum=config.neck_momentum, affine=False),
            nn.ReLU(inplace=True),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.dim),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(config.dim, config.clusters)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.memory = SampleMemory(len(data), config.dim, config.clusters, config.momentum)

    def on_epoch_start(self, progress: Progress, data: TrainSet) -> Tensor | None:
        """Fill the memories by one k-means at the very start; images are then drawn with replacement."""
        if not bool(self.memory.filled):
            self.fill(data)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + progress.epoch)
        return torch.randint(len(data), (len(data),), generator=generator)

    def fill(self, data: TrainSet) -> None:
        """Section 3.2: features of un-augmented images and their clusters."""
        config, device = self.settings, self.memory.features.device
        view = View((Resize(config.resize), CenterCrop(config.size), Normalize()))
        features = sweep(
            nn.Sequential(self.backbone, self.neck), data.images, view, batch=config.batch, device=device,
            workers=config.workers, channels_last=not self.backbone.is_vit,
        )  # n×d  # fmt: skip
        features = F.normalize(features, dim=1)
        found = kmeans_on_main(features, config.clusters, device, seed=self.seed, iterations=config.iterations)
        self.memory.fill(features.to(device), found.labels)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy with the labels from before this step; then the samples memory follows."""
        i = batch.index
        y = self.memory.labels[i]  # N
        f = self.neck(self.backbone(batch.views[0])).float()  # N×d
        logits = self.head(f).float()  # N×k
        top1 = 100 * (logits.detach().argmax(1) == y).float().mean()
        loss = weighted_cross_entropy(logits, y, self.memory.weights(self.settings.reweight))
        changed = 100 * self.memory.update(gather_detached(i), gather_detached(f))
        return {"loss": loss, "top1": top1, "changed": changed, "features": f}

    def after_step(self, progress: Progress) -> None:
        """Centroids every few steps, small clusters in every step (section 3.2)."""
        if (progress.step + 1) % self.settings.centroids_every == 0:
            self.memory.update_centroids()
        self.memory.resolve_small(self.settings.minimum, seed=progress.step)


def views(config: ODCConfig) -> Sequence[View]:
    """One view by the augmentation of MMSelfSup."""
    return (
        View(
            (
                RandomResizedCrop(config.size, scale=(config.crop_min, 1.0)),
                HorizontalFlip(config.flip),
                Rotate(config.rotation),
                ColorJitter(*config.jitter, p=1.0),
                Grayscale(config.gray),
                Normalize(),
            )
        ),
    )


HEAD = (Rule(pattern=r"^head\.", momentum=0.0),)
"""Labels change all the time, so the classifier has no momentum."""

RECIPE = Recipe(
    name="odc",
    title="ODC",
    paper=Paper(
        title="Online Deep Clustering for Unsupervised Representation Learning",
        authors="Xiaohang Zhan, Jiahao Xie, Ziwei Liu, Yew-Soon Ong, Chen Change Loy",
        venue="CVPR 2020",
        url="https://arxiv.org/abs/2006.10645",
        summary="Clustering and learning at once: memories keep every image's feature and cluster and the cluster centres. "
        "In every step the images of the batch move to their nearest centre, and clusters that get small are dissolved.",
    ),
    method=ODC,
    views=views,
    presets={
        "resnet50_8xb64-steplr-440e_in1k": ODCConfig(
            arch_options={"zero_init_last": False}, batch=512, epochs=440, workers=8,
            optim=Optim(lr=0.06, weight_decay=1e-5, schedule="step", milestones=(400,), gamma=0.4, rules=HEAD),
        ),
        "photos": ODCConfig(
            **PHOTOS, optim=Optim(lr=0.06, weight_decay=1e-5, rules=HEAD), clusters=256, hidden=256, dim=128, dropout=0.2,
            neck_momentum=0.1, minimum=5, resize=110, crop_min=0.2,
        ),
        "digits": ODCConfig(
            **DIGITS, batch=128, epochs=30, optim=Optim(lr=0.4, weight_decay=1e-4, rules=HEAD), precision="bf16",
            clusters=50, hidden=128, dim=64, dropout=0.0, neck_momentum=0.1, minimum=10, resize=32, flip=0.0, crop_min=0.5,
            jitter=(0.8, 0.8, 0.8, 0.5),
        ),
        "tiny": ODCConfig(
            **TINY, optim=Optim(lr=0.02, rules=HEAD), clusters=8, hidden=32, dim=16, dropout=0.0, neck_momentum=0.1,
            centroids_every=2, minimum=4, iterations=5, resize=32, flip=0.0,
        ),
    },
    reference={
        "resnet50_8xb64-steplr-440e_in1k": (
            Published("linear/top1", 53.42, "MMSelfSup 0.x configs/selfsup/odc/README.md", "53.43 in its metafile"),
            Published("svm/map", 78.42, "MMSelfSup 0.x configs/selfsup/odc/README.md", "selected on test"),
        ),
    },
    batch_dependent="batch norm statistics and class weights' mean come from the micro-batch of all processes",
)  # fmt: skip
