# SPDX-License-Identifier: Apache-2.0
"""Rotation prediction against its equations in float64; Pillow turns the pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.rotation_pred import RECIPE
from suite.method import Batch
from suite.optim import rate
from suite.testing import build
from tests.equations import Claim

ROTATIONS = Claim("rotation-pred", "eq. 2 and 3: cross entropy of the four rotations")
TINY = RECIPE.presets["tiny"]


def naive(logits):
    """Eq. 2 and 3: -1/(NK) sum_i sum_y log F^y(g(X_i | y)), from logits N×4×4 of picture, rotation, answer."""
    total = 0.0
    for picture in logits:
        for y in range(4):
            total = total - torch.log(torch.exp(picture[y, y]) / sum(torch.exp(answer) for answer in picture[y]))
    return total / (4 * len(logits))


def turned(picture):
    """The four versions of an H×W×3 uint8 picture by Pillow, counter-clockwise."""
    image = Image.fromarray(picture)
    turns = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    return [np.array(image), *(np.array(image.transpose(turn)) for turn in turns)]


@pytest.mark.parametrize("n", [1, 5])
def test_loss_equals_the_equations(ledger, digits, n):
    method = build(RECIPE, TINY, digits).eval()
    with torch.no_grad():
        method.head.weight.normal_(std=1.0)  # far from chance
    pictures = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    versions = torch.from_numpy(np.stack([turned(picture) for picture in pictures])).permute(0, 1, 4, 2, 3) / 255  # N×4×3×S×S
    found = method(Batch([versions[:, 0].contiguous()], None, torch.arange(n)))
    h = method.backbone(versions.flatten(0, 1)).detach().double()
    weight, bias = (p.detach().double().requires_grad_() for p in (method.head.weight, method.head.bias))
    theirs = naive((h @ weight.T + bias).view(n, 4, 4))
    ledger.agree(ROTATIONS, found["loss"], theirs, [method.head.weight, method.head.bias], [weight, bias])
    torch.testing.assert_close(found["features"].double(), h[::4], rtol=1e-4, atol=1e-5)


def test_accuracy_counts_right_answers(digits):
    method = build(RECIPE, replace(TINY, batch=8), digits).eval()
    with torch.no_grad():
        method.head.weight.zero_()
        method.head.bias.copy_(torch.tensor([0.0, 5.0, 0.0, 0.0]))  # always "90 degrees"
    assert method(Batch([torch.randn(8, 3, 32, 32)], None, torch.arange(8)))["top1"].item() == 25


@pytest.mark.parametrize("preset", [name for name in RECIPE.presets if name.endswith("_in1k")])
def test_the_paper_presets_warm_up_and_step(preset):
    config = RECIPE.presets[preset]
    steps = 1281167 // config.batch
    rates = [rate(config.optim, steps * epoch, steps, steps * 70) for epoch in (0, 5, 29, 30, 50, 69)]
    assert rates == pytest.approx([0.02, 0.2, 0.2, 0.02, 0.002, 0.002])
    names = [type(op).__name__ for op in RECIPE.views(config)[0].ops]
    assert names == ["RandomResizedCrop", "HorizontalFlip", "Normalize"]
