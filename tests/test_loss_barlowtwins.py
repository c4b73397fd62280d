# SPDX-License-Identifier: Apache-2.0
"""Barlow Twins: loss against the paper's equations in float64 and against lightly, global statistics, rates of biases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from lightly.loss import BarlowTwinsLoss
from torch import nn
from torch.nn import functional as F

from recipes import barlowtwins
from recipes.barlowtwins import RECIPE, cross_correlation, redundancy_loss
from suite import optim
from suite.nn.gather import rank, synchronise_batch_norm
from suite.testing import build, trainer
from tests.equations import Claim, both, randn

REDUNDANCY = Claim("barlowtwins", "eq. 1 and 2: cross-correlation against the identity", "lightly BarlowTwinsLoss")
LAMBDA = 0.0051


def naive(z1, z2, weight):
    """Eq. 1 and 2, entry by entry; embeddings centred along the batch, as section 2.1 assumes."""
    z1, z2 = z1 - z1.mean(0), z2 - z2.mean(0)
    loss = 0.0
    for i in range(z1.shape[1]):
        for j in range(z1.shape[1]):
            c = (z1[:, i] * z2[:, j]).sum() / ((z1[:, i] ** 2).sum().sqrt() * (z2[:, j] ** 2).sum().sqrt())
            loss = loss + ((1 - c) ** 2 if i == j else weight * c**2)
    return loss


def ours(z1, z2, weight):
    z1, z2 = (F.batch_norm(z, None, None, training=True) for z in (z1, z2))
    return redundancy_loss(cross_correlation(z1, z2), weight)


def pair(n, d, seed=0, shared=0.5):
    common, *own = (randn(n, d, seed=3 * seed + i) for i in range(3))
    return [3 * (shared * common + (1 - shared) * one) + 2 for one in own]


@pytest.mark.parametrize(("n", "d", "weight"), [(8, 5, LAMBDA), (3, 1, LAMBDA), (32, 6, 1.0), (16, 4, 0.0)])
def test_loss_is_equation_1(ledger, n, d, weight):
    # The batch norm adds 1e-5 to each variance, the paper nothing: embeddings so large that it does not matter.
    z32, z64 = zip(*(both(100 * z) for z in pair(n, d)), strict=True)
    loss = ours(*z32, weight)
    ledger.agree(REDUNDANCY, loss, naive(*z64, weight), z32, z64)
    ledger.independent(REDUNDANCY, loss, BarlowTwinsLoss(lambda_param=weight)(*z32))


def test_sum_over_entries_is_exact():
    """From a given matrix the two sums of eq. 1 agree to float32's last digits, even where one is a millionth of the other."""
    generator = torch.Generator().manual_seed(0)
    for off in (1.0, 1e-3):
        c = torch.randn(64, 64, generator=generator, dtype=torch.float64) * off
        c.fill_diagonal_(0.999)
        c32, c64 = c.float().requires_grad_(), c.clone().requires_grad_()
        rest = ~torch.eye(64, dtype=torch.bool)
        exact = (1 - c64.diagonal()).square().sum() + LAMBDA * c64[rest].square().sum()
        loss = redundancy_loss(c32, LAMBDA)
        assert loss.item() == pytest.approx(exact.item(), rel=1e-4 if off < 1 else 1e-6)
        loss.backward()
        exact.backward()
        torch.testing.assert_close(c32.grad.double(), c64.grad, rtol=1e-4, atol=1e-7)


def test_equal_uncorrelated_views_cost_nothing():
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert ours(z, z, 1.0).item() == pytest.approx(0, abs=1e-8)
    assert ours(z, -z, 1.0).item() == pytest.approx(8, rel=1e-4)


def test_constant_component_gives_a_finite_gradient():
    z1, z2 = (z.float() for z in pair(8, 3))
    z1 = torch.cat([z1, torch.ones(8, 1)], 1).requires_grad_()
    ours(z1, torch.cat([z2, torch.ones(8, 1)], 1), LAMBDA).backward()
    assert torch.isfinite(z1.grad).all()


def test_loss_of_noise():
    """Unrelated Gaussian embeddings: d from the diagonal and lambda·d(d - 1)/N from the rest."""
    n, d = 256, 1024
    z1, z2 = (z.float() for z in pair(n, d, shared=0.0))
    assert ours(z1, z2, LAMBDA).item() == pytest.approx(d * (1 + 1 / n) + LAMBDA * d * (d - 1) / n, rel=0.02)


def test_method_takes_the_statistics_in_float32(digits):
    """Under autocast to bfloat16 the correlation of the embeddings is still exact."""
    fresh = trainer(RECIPE, RECIPE.presets["tiny"], digits)
    method, batch = fresh.method.train(), next(fresh.loader.epoch(0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(batch)["loss"]
        z1, z2 = (method.projector(method.backbone(view)) for view in batch.views)
    assert loss.dtype == torch.float32 and z1.dtype == torch.bfloat16
    assert loss.item() == pytest.approx(naive(z1.double(), z2.double(), LAMBDA).item(), rel=1e-3)


def test_correlation_is_over_the_images_of_all_processes(monkeypatch):
    """Each of two processes adds its own sum of products; the divisor is the global batch."""
    z1, z2 = (F.batch_norm(z.float(), None, None, training=True) for z in pair(12, 5))
    alone = cross_correlation(z1, z2)
    monkeypatch.setattr(barlowtwins, "world_size", lambda: 2)
    monkeypatch.setattr(barlowtwins, "all_sum", lambda own: own + z1[6:].T @ z2[6:])
    torch.testing.assert_close(cross_correlation(z1[:6], z2[:6]), alone)


def _loss_and_gradient():
    """Of this process's share of one global batch, the gradient scaled as distributed training averages it."""
    norm = synchronise_batch_norm(nn.Sequential(nn.BatchNorm1d(5, affine=False)), torch.device("cpu"))
    world = dist.get_world_size() if dist.is_initialized() else 1
    z1, z2 = (z.float().chunk(world)[rank()].clone().requires_grad_() for z in pair(12, 5))
    loss = redundancy_loss(cross_correlation(norm(z1), norm(z2)), LAMBDA)
    loss.backward()
    return loss.detach(), z1.grad / world


def _process(number, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    torch.save(_loss_and_gradient(), f"{folder}/{number}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_correlate_over_the_global_batch(tmp_path):
    torch.multiprocessing.spawn(_process, (tmp_path,), nprocs=2)
    parts = [torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in range(2)]
    loss, gradient = _loss_and_gradient()
    for part, _ in parts:
        torch.testing.assert_close(part, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.cat([part for _, part in parts]), gradient, rtol=1e-4, atol=1e-6)


def test_projector_is_the_papers(digits):
    method = build(RECIPE, replace(RECIPE.presets["tiny"], layers=3), digits)
    linear = [layer for layer in method.projector if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [32, 32, 32] and all(layer.bias is None for layer in linear)
    assert method.projector[-1] is linear[-1] and not method.norm.affine


def test_biases_and_norms_have_the_official_rate(digits):
    """0.2 and 0.0048 for a batch of 256, both falling to a thousandth, with no decay and no adaptation for the latter."""
    settings = RECIPE.presets["resnet50_8xb256-coslr-300e_in1k"].optim
    method = build(RECIPE, RECIPE.presets["tiny"], digits)
    optimizer = optim.build(method.param_groups(settings), settings)
    for now, peak in ((settings.lr, True), (settings.min_lr, False)):
        optim.set_rate(optimizer, settings, now)
        for group in optimizer.param_groups:
            weights = group["params"][0].ndim > 1
            assert all((p.ndim > 1) == weights for p in group["params"])
            rate = 8 * (0.2 if weights else 0.0048) * (1 if peak else 1e-3)
            assert group["lr"] == pytest.approx(rate, rel=1e-6)
            assert (group["weight_decay"], group["adapt"]) == ((1e-6, True) if weights else (0.0, False))


def test_schedule_of_the_model_zoo():
    """Warm-up from 1.6e-4 of the rate under a cosine that moves at every step and ends at 0.0016."""
    settings = RECIPE.presets["resnet50_8xb256-coslr-300e_in1k"].optim
    per, total = 625, 625 * 300
    assert optim.rate(settings, 0, per, total) == pytest.approx(1.6 * 1.6e-4)
    assert optim.rate(settings, 10 * per, per, total) == pytest.approx(1.6 * 0.9973, rel=1e-4)
    assert optim.rate(settings, total // 2, per, total) == pytest.approx((1.6 + 0.0016) / 2)
    assert optim.rate(settings, 50 * per + 1, per, total) < optim.rate(settings, 50 * per, per, total)
    assert optim.rate(settings, total, per, total) == pytest.approx(0.0016)


def test_views_are_those_of_byol():
    first, second = RECIPE.views(RECIPE.presets["resnet50_8xb256-coslr-300e_in1k"])
    names = [type(op).__name__ for op in first.ops]
    assert names == [
        "RandomResizedCrop", "HorizontalFlip", "ColorJitter", "Grayscale", "GaussianBlur", "Solarize", "Normalize"
    ]  # fmt: skip
    assert first.ops[0].interpolation == "bicubic"
    assert [view.ops[4].p for view in (first, second)] == [1.0, 0.1]
    assert [view.ops[5].p for view in (first, second)] == [0.0, 0.2]
