# SPDX-License-Identifier: Apache-2.0
"""Relative location against a patch-by-patch computation in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from recipes.relative_loc import RECIPE
from suite.method import Batch, Progress
from suite.nn.patches import jittered_grid
from suite.testing import build
from tests.equations import Claim, randn

PAIRS = Claim("relative-loc", "cross entropy of the eight places of neighbours (section 3)")
TINY = RECIPE.presets["tiny"]
PAPER = "resnet50_8xb64-steplr-70e_in1k"
AROUND = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]
"""Row and column of the neighbour for each label."""


def naive(features, neck, head):
    """Cross entropy of head(neck([neighbour, centre])) pair by pair; `features` N×3×3×D by row and column."""
    total, (fc, norm), (weight, bias) = 0.0, neck, head
    for grid in features:
        for label, (row, column) in enumerate(AROUND):
            pair = torch.cat([grid[row, column], grid[1, 1]])
            hidden = (pair @ fc[0].T + fc[1] - norm[0]) / (norm[1] + 1e-5).sqrt() * norm[2] + norm[3]
            logits = hidden.clamp_min(0) @ weight.T + bias
            total = total - torch.log(torch.exp(logits[label]) / torch.exp(logits).sum())
    return total / (8 * len(features))


def on_grid(digits, n=3):
    """A method without batch statistics, and pictures whose cells are the patches, so that nothing is random."""
    method = build(RECIPE, replace(TINY, patch=15, crop=45), digits).eval()
    with torch.no_grad():
        method.neck[0].weight.normal_(std=0.3)
        method.head.weight.normal_(std=0.5)
    return method, randn(n, 3, 45, 45).float()


@pytest.mark.parametrize("n", [1, 4])
def test_loss_equals_the_pairwise_computation(ledger, digits, n):
    method, x = on_grid(digits, n)
    found = method(Batch([x], None, torch.arange(n)))
    cells = [x[:, :, 15 * r : 15 * r + 15, 15 * c : 15 * c + 15] for r in range(3) for c in range(3)]
    with torch.no_grad():
        features = torch.stack([method.backbone(cell) for cell in cells], 1).double().unflatten(1, (3, 3))
    bn = method.neck[1]
    fc = [p.detach().double() for p in method.neck[0].parameters()]
    norm = [v.detach().double() for v in (bn.running_mean, bn.running_var, bn.weight, bn.bias)]
    weight, bias = (p.detach().double().requires_grad_() for p in method.head.parameters())
    theirs = naive(features, (fc, norm), (weight, bias))
    ledger.agree(PAIRS, found["loss"], theirs, [method.head.weight, method.head.bias], [weight, bias])


def test_patches_depend_on_image_and_epoch_but_not_on_the_batch(digits, monkeypatch):
    seen = []
    monkeypatch.setattr("recipes.relative_loc.jittered_grid", lambda *args: seen.append(jittered_grid(*args)) or seen[-1])
    method = build(RECIPE, TINY, digits).eval()
    x, index = torch.randn(4, 3, 45, 45), torch.arange(4)
    for epoch, rows in ((0, slice(0, 4)), (0, slice(2, 4)), (1, slice(0, 4))):
        method.on_step_start(Progress(epoch, 7, 10, 100))
        method(Batch([x[rows]], None, index[rows]))
    whole, half, later = seen
    assert whole.shape == (4, 9, 3, TINY.patch, TINY.patch)
    assert torch.equal(whole[2:], half) and not torch.equal(whole, later)


def test_neck_and_head_start_and_decay_as_published(digits):
    config = RECIPE.presets[PAPER]
    method = build(RECIPE, replace(config, arch="resnet18", arch_options={}), digits)
    fc, norm, _, drop = method.neck
    assert (fc.in_features, fc.out_features, method.head.out_features) == (2 * method.backbone.dim, 4096, 8)
    assert norm.momentum == 0.003 and drop.p == 0.5
    assert fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert method.head.weight.std().item() == pytest.approx(0.005, rel=0.02)
    assert not fc.bias.any() and not method.head.bias.any()
    decays = {}
    for group in method.param_groups(config.optim):
        decays.setdefault(group["weight_decay"], set()).update(map(id, group["params"]))
    heads = {id(p) for part in (method.neck, method.head) for p in part.parameters()}
    assert decays == {5e-4: heads, 1e-4: {id(p) for p in method.backbone.parameters()}}


def test_the_paper_preset_cuts_64_pixel_patches_with_21_pixels_of_slack():
    config = RECIPE.presets[PAPER]
    assert config.crop // 3 - config.patch == 21
    (view,) = RECIPE.views(config)
    assert [type(op).__name__ for op in view.ops] == ["Resize", "RandomCrop", "Grayscale", "Normalize"]
    assert (view.ops[0].size, view.ops[1].size, view.ops[2].p) == (292, 255, 0.66)
