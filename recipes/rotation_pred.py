# SPDX-License-Identifier: Apache-2.0
"""Unsupervised Representation Learning by Predicting Image Rotations (RotNet).

Spyros Gidaris, Praveer Singh, Nikos Komodakis. ICLR 2018. https://arxiv.org/abs/1803.07728

Tell by how many quarter turns a picture was rotated, which is hard without knowing what it shows.

Run: suite run --algo rotation-pred --preset resnet50_8xb16-steplr-70e_in1k --data-root imagenet=DIR
Expected: ImageNet linear 48.12 (MMSelfSup 0.x, 70 epochs), 47.0 (1.x); the paper's network is an AlexNet.
Differs: the presets follow MMSelfSup's ResNet-50, not the paper's AlexNet (batch 192, rate 0.1, decay 5e-4); 16-bit
runs scale the loss dynamically (MMSelfSup 0.x by 512).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from suite.backbone import Backbone
from suite.method import Batch, Method, TrainSet
from suite.nn.patches import rotations
from suite.presets import DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe
from suite.views import ColorJitter, HorizontalFlip, Normalize, RandomResizedCrop, View


@dataclass(frozen=True, kw_only=True)
class RotationPredConfig(Config):
    """Settings of rotation prediction; `batch` counts pictures, each of which is seen in all four rotations."""

    sync_bn: bool = True
    crop_min: float = 0.08
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    "Not in the paper: keeps colour from giving small generated pictures away."


class RotationPred(Method):
    """F^y(X^y*): which of the K = 4 rotations was applied."""

    def __init__(self, config: RotationPredConfig, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        self.head = nn.Linear(backbone.dim, 4)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 2 and 3: mean over pictures and rotations of -log F^y(g(X|y))."""
        x, y = rotations(batch.views[0])  # 4N×3×S×S, 4N
        h = self.backbone(x)  # 4N×D
        logits = self.head(h).float()  # 4N×4
        top1 = 100 * (logits.detach().argmax(1) == y).float().mean()
        return {"loss": F.cross_entropy(logits, y), "top1": top1, "features": h[::4]}  # the upright ones


def views(config: RotationPredConfig) -> Sequence[View]:
    """One view, cropped and mirrored; the method turns it."""
    ops = (RandomResizedCrop(config.size, scale=(config.crop_min, 1.0)), HorizontalFlip(config.flip))
    jitter = (ColorJitter(*config.jitter, p=0.8),) if any(config.jitter) else ()
    return (View((*ops, *jitter, Normalize())),)


RESNET50: dict[str, Any] = {
    "arch_options": {"zero_init_last": False},
    "batch": 128,
    "epochs": 70,
    "optim": Optim(lr=0.2, weight_decay=1e-4, schedule="step", milestones=(30, 50), warmup=5, warmup_ratio=0.1),
    "workers": 8,
}

RECIPE = Recipe(
    name="rotation-pred",
    title="Rotation prediction",
    paper=Paper(
        title="Unsupervised Representation Learning by Predicting Image Rotations",
        authors="Spyros Gidaris, Praveer Singh, Nikos Komodakis",
        venue="ICLR 2018",
        url="https://arxiv.org/abs/1803.07728",
        summary="The network sees a picture turned by 0, 90, 180 or 270 degrees and must tell which. To do so it has to "
        "recognise the things in the picture and how they usually stand.",
    ),
    method=RotationPred,
    views=views,
    presets={
        "resnet50_8xb16-steplr-70e_in1k": RotationPredConfig(**RESNET50),
        "resnet50_8xb16-fp16-steplr-70e_in1k": RotationPredConfig(**RESNET50, precision="16"),
        "resnet50_8xb16-amp-steplr-70e_in1k": RotationPredConfig(**RESNET50, precision="16"),
        "photos": RotationPredConfig(**PHOTOS, optim=Optim(lr=0.1, weight_decay=5e-4, warmup=1), crop_min=0.2),
        "digits": RotationPredConfig(
            **DIGITS, batch=128, epochs=12, optim=Optim(lr=0.1, weight_decay=5e-4, warmup=1), precision="bf16",
            flip=0.0, crop_min=0.5, jitter=(0.8, 0.8, 0.8, 0.5),
        ),
        "tiny": RotationPredConfig(**TINY, optim=Optim(lr=0.02), flip=0.0),
    },
    reference={
        "resnet50_8xb16-steplr-70e_in1k": (
            Published("linear/top1", 48.12, "MMSelfSup 0.x configs/selfsup/rotation_pred/README.md"),
            Published("linear/top1", 47.0, "MMSelfSup 1.x configs/selfsup/rotation_pred/metafile.yml"),
            Published("svm/map", 67.70, "MMSelfSup 0.x configs/selfsup/rotation_pred/README.md", "selected on test"),
        ),
    },
    batch_dependent="batch norm statistics come from the micro-batch of all processes",
)  # fmt: skip
