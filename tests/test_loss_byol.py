# SPDX-License-Identifier: Apache-2.0
"""BYOL: loss against the paper's equation in float64 and against lightly, target network, schedule, augmentations."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity

from recipes.byol import RECIPE, regression_loss
from suite import optim
from suite.testing import build, trainer
from tests.equations import Claim, both, randn

REGRESSION = Claim("byol", "eq. 2: squared distance of normalised vectors", "lightly NegativeCosineSimilarity, 2 + 2x")


def naive(p, z):
    """Eq. 2, one sample at a time."""
    total = 0.0
    for one, other in zip(p, z, strict=True):
        total = total + ((one / (one @ one).sqrt() - other / (other @ other).sqrt()) ** 2).sum()
    return total / len(p)


def pair(n, d, seed=0):
    return randn(n, d, seed=seed), randn(n, d, seed=seed + 1)


@pytest.mark.parametrize(("n", "d", "scale"), [(7, 5, 1.0), (1, 3, 1.0), (16, 256, 1e-3), (4, 2, 1e4)])
def test_loss_is_equation_2(ledger, n, d, scale):
    p, z = pair(n, d)
    p32, p64 = both(p * scale)
    ours = regression_loss(p32, z.float())
    ledger.agree(REGRESSION, ours, naive(p64, z), [p32], [p64])
    ledger.independent(REGRESSION, ours, 2 + 2 * NegativeCosineSimilarity()(p32, z.float()))


def test_loss_at_the_ends_of_its_range():
    p, _ = pair(6, 4)
    p = p.float()
    assert regression_loss(p, 3 * p).item() == pytest.approx(0, abs=1e-6)
    assert regression_loss(p, -p).item() == pytest.approx(4, rel=1e-6)
    zero = torch.zeros(2, 4, requires_grad=True)
    regression_loss(zero, p[:2]).backward()
    assert torch.isfinite(zero.grad).all()


def test_half_precision_inputs_accumulate_in_float32():
    p, z = (x.float() for x in pair(32, 64))
    rough = regression_loss(p.bfloat16(), z.bfloat16())
    assert rough.dtype == torch.float32 and rough.item() == pytest.approx(regression_loss(p, z).item(), rel=1e-2)


def test_loss_is_symmetric_and_starts_between_unrelated_directions(digits):
    """An untrained predictor's output has nothing to do with the target: cosine near 0, so 2 - 0 for either view."""
    method = build(RECIPE, RECIPE.presets["tiny"], digits).train()
    fresh = trainer(RECIPE, RECIPE.presets["tiny"], digits)
    batch = next(fresh.loader.epoch(0))
    loss = method(batch)["loss"]
    batch.views.reverse()
    assert method(batch)["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert loss.item() == pytest.approx(4, abs=1)


def test_target_begins_as_a_copy_without_gradient_and_without_predictor(digits):
    method = build(RECIPE, RECIPE.presets["tiny"], digits)
    mine, theirs = list(method.online.parameters()), list(method.target.parameters())
    assert len(mine) == len(theirs) and all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert not any(p.requires_grad for p in theirs)


def test_target_moves_after_the_step_by_the_scheduled_momentum(digits):
    """Step t of T: xi <- m xi + (1 - m) theta with m = 1 - (1 - m0)(cos(pi t/T) + 1)/2 and the theta of after the step."""
    some = trainer(RECIPE, RECIPE.presets["tiny"], digits)
    batches = some.loader.epoch(0)
    for t in range(3):
        before = [p.clone() for p in some.method.target.parameters()]
        some._step(0, batches)
        m = 1 - (1 - 0.9) * (math.cos(math.pi * t / some.total) + 1) / 2
        for old, new, theta in zip(before, some.method.target.parameters(), some.method.online.parameters(), strict=True):
            torch.testing.assert_close(new, m * old + (1 - m) * theta, rtol=1e-5, atol=1e-7)
    assert some.total == 4


def test_target_batch_norm_sees_its_own_batches(digits):
    some = trainer(RECIPE, RECIPE.presets["tiny"], digits)
    some._step(0, some.loader.epoch(0))
    buffers = dict(some.method.target.module.named_buffers())
    counted = [value for name, value in buffers.items() if name.endswith("num_batches_tracked")]
    assert counted and all(int(value) == 2 for value in counted)


def test_heads_are_the_papers(digits):
    method = build(RECIPE, RECIPE.presets["tiny"], digits)
    for head, wide in ((method.g, method.backbone.dim), (method.q, 16)):
        first, norm, _, last = head
        assert first.weight.shape == (32, wide) and first.bias is not None
        assert isinstance(norm, torch.nn.BatchNorm1d) and last.weight.shape == (16, 32) and last.bias is None


def test_norms_and_biases_are_neither_decayed_nor_adapted(digits):
    settings = RECIPE.presets["resnet50_16xb256-coslr-200e_in1k"].optim
    method = build(RECIPE, RECIPE.presets["tiny"], digits)
    for group in method.param_groups(settings):
        plain = all(p.ndim <= 1 for p in group["params"])
        assert (group["weight_decay"], group["adapt"]) == ((0.0, False) if plain else (1e-6, True))


def test_schedule_of_the_model_zoo():
    """Warm-up from 1e-4 of the rate under a cosine by epoch (0.x), before a shifted one (1.x)."""
    old = RECIPE.presets["resnet50_16xb256-coslr-200e_in1k"].optim
    new = RECIPE.presets["resnet50_8xb256-amp-accum2-coslr-200e_in1k"].optim
    per, total = 312, 312 * 200
    assert optim.rate(old, 0, per, total) == pytest.approx(4.8e-4)
    assert optim.rate(old, 10 * per, per, total) == pytest.approx(4.8 * 0.99384, rel=1e-4)
    assert optim.rate(new, 10 * per, per, total) == pytest.approx(4.8)
    for settings in (old, new):
        assert optim.rate(settings, 57 * per, per, total) == optim.rate(settings, 58 * per - 1, per, total)
    assert optim.rate(new, 105 * per, per, total) == pytest.approx(2.4)


def test_views_are_the_papers_two():
    first, second = RECIPE.views(RECIPE.presets["resnet50_16xb256-coslr-200e_in1k"])
    names = [type(op).__name__ for op in first.ops]
    assert names == [
        "RandomResizedCrop", "HorizontalFlip", "ColorJitter", "Grayscale", "GaussianBlur", "Solarize", "Normalize"
    ]  # fmt: skip
    assert first.ops[0].interpolation == "bicubic"
    assert [view.ops[4].p for view in (first, second)] == [1.0, 0.1]
    assert [view.ops[5].p for view in (first, second)] == [0.0, 0.2]
    assert first.ops[:4] == second.ops[:4]
