# SPDX-License-Identifier: Apache-2.0
"""Deep Clustering for Unsupervised Learning of Visual Features (DeepCluster).

Mathilde Caron, Piotr Bojanowski, Armand Joulin, Matthijs Douze. ECCV 2018. https://arxiv.org/abs/1807.05520

In turns: cluster the features of all images, then train the network to predict the cluster of each image.

Run: suite run --algo deepcluster --preset sobel_resnet50_8xb64-steplr-200e_in1k --data-root imagenet=DIR
Expected: ImageNet linear 46.92 (MMSelfSup 0.x, 200 epochs); the paper's networks are an AlexNet and a VGG-16.
Differs: the presets follow MMSelfSup's ResNet-50 and its colour augmentation and rotation (official: crop and flip only).
An epoch is balanced over the clusters that have members (official; MMSelfSup divides by the nominal number). MMSelfSup's
preset without Sobel filters fed two channels to a three-channel convolution; here it sees colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from suite.backbone import Backbone
from suite.method import Batch, Method, Progress, TrainSet
from suite.nn.cluster import agree, class_weights, kmeans, nmi, pca_whiten, uniform_order, weighted_cross_entropy
from suite.nn.gather import rank
from suite.nn.sweep import sweep
from suite.presets import DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe, Rule
from suite.views import CenterCrop, ColorJitter, Grayscale, HorizontalFlip, Normalize, RandomResizedCrop, Resize, Rotate, View


@dataclass(frozen=True, kw_only=True)
class DeepClusterConfig(Config):
    """Settings of DeepCluster; the defaults are those of the ResNet-50 presets."""

    clusters: PositiveInt = 10000
    pca: PositiveInt = 256
    "Whitened principal components that are clustered."
    iterations: PositiveInt = 20
    "Of k-means."
    uniform: bool = True
    "Every cluster comes up equally often in an epoch."
    reweight: NonNegativeFloat = 0.0
    "Classes weigh size^-reweight in the loss: 0.5 is the usual alternative to `uniform`."
    resize: PositiveInt = 256
    "Shorter side of the pictures before their centre is cropped for the clustering."
    crop_min: float = 0.08
    flip: float = 0.5
    rotation: NonNegativeFloat = 2.0
    "Degrees to either side."
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 1.0, 0.5)
    gray: float = 0.2


class DeepCluster(Method):
    """Features f(x), pseudo-labels y from k-means over all of them, classifier g trained to predict y."""

    labels: Tensor
    weights: Tensor
    stability: Tensor

    def __init__(self, config: DeepClusterConfig, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        self.settings, self.seed = config, data.seed
        self.head = nn.Linear(backbone.dim, config.clusters)
        self.register_buffer("labels", torch.zeros(len(data), dtype=torch.int64))  # n
        self.register_buffer("weights", torch.ones(config.clusters))  # k
        self.register_buffer("stability", torch.zeros(()))

    def on_epoch_start(self, progress: Progress, data: TrainSet) -> Tensor | None:
        """Section 3.2: cluster, start a new classifier, and balance the epoch (section 3.3, "Trivial parametrization")."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + progress.epoch)
        labels = self.cluster(data, int(torch.randint(2**31, (), generator=generator)))  # n
        self.stability.fill_(nmi(self.labels, labels))
        self.labels.copy_(labels)
        self.weights.copy_(class_weights(self.labels, len(self.weights), self.settings.reweight))
        with torch.no_grad():
            self.head.weight.copy_(0.01 * torch.randn(self.head.weight.shape, generator=generator))
            self.head.bias.zero_()
        return uniform_order(labels, generator) if self.settings.uniform else None

    def cluster(self, data: TrainSet, seed: int) -> Tensor:
        """Labels n on the CPU: k-means of whitened unit features of un-augmented images (section 3.4)."""
        config, device = self.settings, self.labels.device
        view = View((Resize(config.resize), CenterCrop(config.size), Normalize()))
        features = sweep(
            self.backbone, data.images, view, batch=config.batch, device=device, workers=config.workers,
            channels_last=not self.backbone.is_vit,
        )  # n×D  # fmt: skip
        found = torch.empty_like(self.labels)
        if rank() == 0:
            whitened = pca_whiten(features, config.pca)  # n×d
            found.copy_(kmeans(whitened, config.clusters, seed=seed, iterations=config.iterations).labels)
        agree(found)
        return found.cpu()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 1: cross entropy with the pseudo-labels."""
        y = self.labels[batch.index]  # N
        h = self.backbone(batch.views[0])  # N×D
        logits = self.head(h).float()  # N×k
        top1 = 100 * (logits.detach().argmax(1) == y).float().mean()
        loss = weighted_cross_entropy(logits, y, self.weights)
        return {"loss": loss, "top1": top1, "nmi": self.stability.clone(), "features": h}


def views(config: DeepClusterConfig) -> Sequence[View]:
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
"""The classifier is new in every epoch and has no momentum."""

FAST_HEAD = (Rule(pattern=r"^head\.", momentum=0.0, lr_mult=10.0),)
"""The same where an epoch has too few steps for a new classifier."""

RESNET50: dict[str, Any] = {
    "arch_options": {"zero_init_last": False},
    "batch": 512,
    "optim": Optim(lr=0.1, weight_decay=1e-5, schedule="step", milestones=(400,), rules=HEAD),
    "workers": 8,
}

RECIPE = Recipe(
    name="deepcluster",
    title="DeepCluster",
    paper=Paper(
        title="Deep Clustering for Unsupervised Learning of Visual Features",
        authors="Mathilde Caron, Piotr Bojanowski, Armand Joulin, Matthijs Douze",
        venue="ECCV 2018",
        url="https://arxiv.org/abs/1807.05520",
        summary="Before every epoch the features of all images are clustered by k-means. The network then learns to "
        "predict each image's cluster, with a new classifier and every cluster seen equally often.",
    ),
    method=DeepCluster,
    views=views,
    presets={
        "sobel_resnet50_8xb64-steplr-200e_in1k": DeepClusterConfig(**RESNET50, stem="sobel"),
        "resnet50_8xb64-steplr-200e_in1k": DeepClusterConfig(**RESNET50),
        "photos": DeepClusterConfig(
            **PHOTOS, optim=Optim(lr=0.05, weight_decay=1e-5, rules=HEAD), clusters=256, pca=128, resize=110, crop_min=0.2,
        ),
        "digits": DeepClusterConfig(
            **DIGITS, batch=64, epochs=20, optim=Optim(lr=0.2, weight_decay=1e-4, rules=FAST_HEAD), precision="bf16",
            clusters=50, pca=64, resize=32, flip=0.0, crop_min=0.5, jitter=(0.8, 0.8, 0.8, 0.5),
        ),
        "tiny": DeepClusterConfig(
            **TINY, optim=Optim(lr=0.02, rules=HEAD), clusters=8, pca=16, iterations=5, resize=32, flip=0.0,
        ),
    },
    reference={
        "sobel_resnet50_8xb64-steplr-200e_in1k": (
            Published("linear/top1", 46.92, "MMSelfSup 0.x configs/selfsup/deepcluster/README.md"),
            Published("svm/map", 74.26, "MMSelfSup 0.x configs/selfsup/deepcluster/README.md", "selected on test"),
        ),
    },
    batch_dependent="batch norm statistics are per device",
)  # fmt: skip
