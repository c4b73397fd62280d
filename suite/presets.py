# SPDX-License-Identifier: Apache-2.0
"""Settings that several recipes' presets share because the data, not the paper, asks for them."""

from __future__ import annotations

from typing import Any

SMALL_RESNET: dict[str, Any] = {
    "arch": "resnet18",
    "arch_options": {
        "layers": [1, 1, 1, 1],
        "channels": [16, 32, 64, 128],
        "stem_type": "deep",
        "stem_width": 8,
        "zero_init_last": False,
    },
    "stem": "nopool",
}
"""A ResNet of one basic block per stage, 0.3 M parameters: what two CPU cores can train in a minute or two."""

DIGITS: dict[str, Any] = {**SMALL_RESNET, "dataset": "digits", "size": 32}
"""The embedded pictures."""

PHOTOS: dict[str, Any] = {
    "arch": "resnet18",
    "dataset": "imagefolder",
    "size": 96,
    "batch": 128,
    "epochs": 50,
    "precision": "bf16",
}
"""Your own photographs on a modest machine: ResNet-18 at 96 pixels."""

TINY: dict[str, Any] = {**DIGITS, "batch": 32, "epochs": 1, "max_steps": 4, "workers": 0}
"""For tests: a few steps."""

CIFAR: dict[str, Any] = {"arch": "resnet18", "stem": "cifar", "dataset": "cifar10", "size": 32, "batch": 512, "epochs": 200}
"""The field's small-scale setting: ResNet-18 with a 3×3 stem on CIFAR-10."""
