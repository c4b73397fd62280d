# SPDX-License-Identifier: Apache-2.0
"""Small networks and a view for the tests of linear evaluation."""

from __future__ import annotations

import torch

from suite.backbone import Backbone
from suite.presets import SMALL_RESNET
from suite.views import CenterCrop, Normalize, View

VIEW = View((CenterCrop(32), Normalize()))
"""Draws nothing."""
TINY = {**SMALL_RESNET["arch_options"], "channels": [4, 8, 8, 16]}


def convolutional() -> Backbone:
    """A ResNet of a few channels."""
    torch.manual_seed(0)
    return Backbone(SMALL_RESNET["arch"], TINY, SMALL_RESNET["stem"])


def transformer() -> Backbone:
    """Five blocks of twelve channels."""
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 5, "num_heads": 2}
    return Backbone("vit_tiny_patch16_224", options)
