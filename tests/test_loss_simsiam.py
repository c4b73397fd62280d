# SPDX-License-Identifier: Apache-2.0
"""SimSiam: loss against the paper's equations in float64 and against lightly, stop-gradient, fixed predictor rate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity

from recipes.simsiam import RECIPE, negative_cosine
from suite import optim
from suite.nn.collapse import feature_std
from suite.testing import build, trainer
from tests.equations import Claim, both, randn

COSINE = Claim("simsiam", "eq. 1 and 4: negative cosine, symmetric", "lightly NegativeCosineSimilarity")


def naive(p, z):
    """Eq. 1, one sample at a time."""
    total = 0.0
    for one, other in zip(p, z, strict=True):
        total = total - (one / (one @ one).sqrt()) @ (other / (other @ other).sqrt())
    return total / len(p)


def pair(n, d, seed=0):
    return randn(n, d, seed=seed), randn(n, d, seed=seed + 1)


@pytest.fixture
def fresh(digits):
    return trainer(RECIPE, RECIPE.presets["tiny"], digits)


@pytest.mark.parametrize(("n", "d"), [(7, 5), (1, 3), (16, 256)])
def test_loss_is_equation_1(ledger, n, d):
    p, z = pair(n, d)
    p32, p64 = both(p)
    ours = negative_cosine(p32, z.float())
    ledger.agree(COSINE, ours, naive(p64, z), [p32], [p64])
    ledger.independent(COSINE, ours, NegativeCosineSimilarity()(p32, z.float()))


def test_no_gradient_flows_through_the_projection():
    p, z = (x.float().requires_grad_() for x in pair(6, 4))
    negative_cosine(p, z).backward()
    assert p.grad is not None and z.grad is None


def test_loss_at_the_ends_of_its_range():
    p, _ = pair(6, 4)
    assert negative_cosine(p, 3 * p).item() == pytest.approx(-1, abs=1e-6)
    assert negative_cosine(p, -p).item() == pytest.approx(1, abs=1e-6)
    zero = torch.zeros(2, 4, requires_grad=True)
    negative_cosine(zero, p[:2]).backward()
    assert torch.isfinite(zero.grad).all()


def test_half_precision_inputs_accumulate_in_float32():
    p, z = (x.float() for x in pair(32, 64))
    rough = negative_cosine(p.bfloat16(), z.bfloat16())
    assert rough.dtype == torch.float32 and rough.item() == pytest.approx(negative_cosine(p, z).item(), abs=2e-3)


def test_loss_is_the_symmetric_one_of_equation_4(ledger, fresh):
    method, batch = fresh.method.train(), next(fresh.loader.epoch(0))
    loss = method(batch)["loss"]
    z1, z2 = (method.projector(method.backbone(x)).double() for x in batch.views)
    p1, p2 = (method.h(z.float()).double() for z in (z1, z2))
    ledger.agree(COSINE, loss, naive(p1, z2) / 2 + naive(p2, z1) / 2)


def test_training_begins_without_similarity_and_without_collapse(fresh):
    """Cosine near 0 for an untrained predictor; directions of z spread over the sphere (section 4.1)."""
    values = fresh.method.train()(next(fresh.loader.epoch(0)))
    assert abs(values["loss"].item()) < 0.3
    assert feature_std(values["features"]).item() == pytest.approx(1, abs=0.2)


def test_predictor_keeps_its_rate_at_every_step(fresh):
    """Section 4.2, "lr with no decay": with a cosine by step, the exemption must hold at every step."""
    predictor = {id(p) for p in fresh.method.h.parameters()}
    for step in (0, 1, fresh.total - 1):
        now = optim.rate(fresh.plan.optim, step, fresh.per_epoch, fresh.total)
        optim.set_rate(fresh.optimizer, fresh.plan.optim, now)
        for group in fresh.optimizer.param_groups:
            owned = {id(p) in predictor for p in group["params"]}
            assert len(owned) == 1 and group["lr"] == pytest.approx(0.05 if owned == {True} else now)
    assert now < 0.05


def test_everything_is_decayed(digits):
    method = build(RECIPE, RECIPE.presets["tiny"], digits)
    groups = method.param_groups(RECIPE.presets["resnet50_8xb32-coslr-100e_in1k"].optim)
    assert {group["weight_decay"] for group in groups} == {1e-4}
    assert sum(len(group["params"]) for group in groups) == len(list(method.parameters()))


def test_heads_are_the_papers(digits):
    """Projection: batch norm everywhere, the last without scale and shift; predictor: a bottleneck, no norm at its end."""
    method = build(RECIPE, replace(RECIPE.presets["tiny"], layers=3), digits)
    linear = [layer for layer in method.projector if isinstance(layer, torch.nn.Linear)]
    norms = [layer for layer in method.projector if isinstance(layer, torch.nn.BatchNorm1d)]
    assert [layer.out_features for layer in linear] == [32, 32, 32] and all(layer.bias is None for layer in linear)
    assert [norm.affine for norm in norms] == [True, True, False] and method.projector[-1] is norms[-1]
    first, norm, _, last = method.h
    assert first.weight.shape == (16, 32) and first.bias is None and isinstance(norm, torch.nn.BatchNorm1d)
    assert last.weight.shape == (32, 16) and last.bias is not None


def test_views_are_those_of_moco_v2():
    first, second = RECIPE.views(RECIPE.presets["resnet50_8xb32-coslr-100e_in1k"])
    names = [type(op).__name__ for op in first.ops]
    assert names == ["RandomResizedCrop", "ColorJitter", "Grayscale", "GaussianBlur", "HorizontalFlip", "Normalize"]
    assert first == second and first.ops[1].p == 0.8 and first.ops[2].p == 0.2
