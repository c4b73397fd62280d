# SPDX-License-Identifier: Apache-2.0
"""Supervised training with plain cross entropy: the control that says what labels would have given.

Deep Residual Learning for Image Recognition. Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun. CVPR 2016.
https://arxiv.org/abs/1512.03385 (section 3.4, the ImageNet recipe that the field compares with)

Run: suite run --algo supervised
Expected: ImageNet top-1 76.1 for ResNet-50 (torchvision), VOC07 SVM 87.17 mAP (OpenSelfSup model zoo, `ImageNet`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from suite.nn.classifier import Classifier
from suite.presets import CIFAR, DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe
from suite.views import ColorJitter, HorizontalFlip, Normalize, RandomResizedCrop, View


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(Config):
    """Settings of the supervised control."""

    label_smoothing: float = 0.0
    crop_min: float = 0.08
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


def views(config: SupervisedConfig) -> Sequence[View]:
    """One view: crop, flip and, where set, colour jitter."""
    ops = (RandomResizedCrop(config.size, scale=(config.crop_min, 1.0)), HorizontalFlip(config.flip))
    jitter = (ColorJitter(*config.jitter),) if any(config.jitter) else ()
    return (View((*ops, *jitter, Normalize())),)


RECIPE = Recipe(
    name="supervised",
    title="Supervised",
    paper=Paper(
        title="Deep Residual Learning for Image Recognition",
        authors="Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun",
        venue="CVPR 2016",
        url="https://arxiv.org/abs/1512.03385",
        summary="Cross entropy on the labels, with the usual crop and flip: what the same network learns when it is told "
        "the answers.",
    ),
    method=Classifier,
    views=views,
    presets={
        "resnet50_8xb32-steplr-100e_in1k": SupervisedConfig(
            epochs=100, optim=Optim(lr=0.1, weight_decay=1e-4, schedule="step", milestones=(30, 60, 90)), workers=8
        ),
        "resnet18_1xb128-coslr-200e_cifar10": SupervisedConfig(
            **{**CIFAR, "batch": 128}, optim=Optim(lr=0.1, weight_decay=5e-4, nesterov=True)
        ),
        "photos": SupervisedConfig(**PHOTOS, optim=Optim(lr=0.05, weight_decay=5e-4, nesterov=True), crop_min=0.2),
        "digits": SupervisedConfig(
            **DIGITS, batch=128, epochs=8, precision="bf16", optim=Optim(lr=0.1, weight_decay=5e-4, nesterov=True, warmup=1),
            flip=0.0, crop_min=0.6,
        ),
        "tiny": SupervisedConfig(**TINY, optim=Optim(lr=0.05), flip=0.0),
    },
    reference={
        "resnet50_8xb32-steplr-100e_in1k": (
            Published("linear/top1", 74.12, "OpenSelfSup docs/MODEL_ZOO.md", "AvgPool, best epoch, torchvision weights"),
            Published("svm/map", 87.17, "OpenSelfSup docs/MODEL_ZOO.md", "feat5"),
        )
    },
    control=True,
    labels=True,
)  # fmt: skip
