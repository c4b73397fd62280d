# SPDX-License-Identifier: Apache-2.0
"""Random weights: the control that every benchmark must tell from a trained network.

No paper. The network is initialised and saved; nothing is trained.

Run: suite run --algo random
Expected: VOC07 SVM 30.5 mAP and ImageNet linear 4.4 for ResNet-50 (OpenSelfSup model zoo, `Random`).
"""

from __future__ import annotations

from suite.presets import CIFAR, DIGITS, PHOTOS, TINY
from suite.spec import Config, Paper, Published, Recipe

RECIPE = Recipe(
    name="random",
    title="Random weights",
    paper=Paper(
        title="Random weights",
        authors="none",
        venue="control",
        url="",
        summary="The untrained network. What a benchmark gives it is what the architecture alone is worth; a trained "
        "network that scores no better was probably not loaded.",
    ),
    method=None,
    views=lambda config: (),
    presets={
        "resnet50_in1k": Config(),
        "resnet18_cifar10": Config(**CIFAR),
        "photos": Config(**PHOTOS),
        "digits": Config(**DIGITS),
        "tiny": Config(**TINY),
    },
    reference={
        "resnet50_in1k": (
            Published("linear/top1", 4.35, "OpenSelfSup docs/MODEL_ZOO.md"),
            Published("svm/map", 30.54, "OpenSelfSup docs/MODEL_ZOO.md", "best layer feat2"),
        )
    },
    control=True,
)
