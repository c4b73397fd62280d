# SPDX-License-Identifier: Apache-2.0
"""MoCo v1 against equation 1 in float64 and lightly's NT-Xent with a memory bank; its queue and momentum encoder."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from lightly.loss import NTXentLoss
from torch.nn import functional as F

from recipes.mocov1 import RECIPE
from suite.nn.contrast import info_nce
from suite.optim import rate
from suite.testing import build, trainer

TINY = RECIPE.presets["tiny"]
PAPER = "resnet50_8xb32-steplr-200e_in1k"


def naive(q, k, negatives, tau):
    """-log exp(q·k+/tau) / sum over the positive and all negatives, query by query."""
    total = 0.0
    for i in range(len(q)):
        terms = [torch.exp(q[i] @ key / tau) for key in (k[i], *negatives)]
        total = total - torch.log(terms[0] / sum(terms))
    return total / len(q)


def units(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=1)


@pytest.mark.parametrize(("n", "count"), [(5, 9), (1, 1), (3, 40)])
def test_loss_at_the_papers_temperature(n, count):
    q, k, negatives = units(n, 8), units(n, 8, seed=1), units(count, 8, seed=2)
    q32, q64 = q.float().requires_grad_(), q.clone().requires_grad_()
    ours, theirs = info_nce(q32, k.float(), negatives.float(), 0.07), naive(q64, k, negatives, 0.07)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(q32.grad.double(), q64.grad, rtol=1e-4, atol=1e-6)


def eval_parts(digits, **changes):
    """A method without batch statistics, its loss on a batch, and the q, k and negatives that should be in it."""
    some = trainer(RECIPE, replace(TINY, **changes), digits)
    method, batch = some.method.eval(), next(some.loader.epoch(0))
    negatives = method.queue.keys.clone()
    with torch.no_grad():
        q = F.normalize(method.fc(method.backbone(batch.views[0])), dim=1)
        k = F.normalize(method.f_k.module(batch.views[1]), dim=1)
        return method, method(batch)["loss"].item(), q, k, negatives


def test_the_method_computes_equation_1(digits):
    _, loss, q, k, negatives = eval_parts(digits, temperature=0.07)
    assert loss == pytest.approx(naive(q.double(), k.double(), negatives.double(), 0.07).item(), rel=1e-5)


def test_against_an_independent_implementation(digits):
    _, loss, q, k, negatives = eval_parts(digits, temperature=0.1)
    theirs = NTXentLoss(temperature=0.1, memory_bank_size=(TINY.queue, TINY.dim))
    theirs.memory_bank.bank = negatives.T if theirs.memory_bank.bank.shape[0] == TINY.dim else negatives
    assert loss == pytest.approx(theirs(q, k).item(), rel=1e-5)


def test_logits_of_zero_cost_11_09():
    """ln(65536 + 1), where all similarities are alike."""
    same = F.normalize(torch.ones(4, 8), dim=1)
    assert info_nce(same, same, same[:1].expand(65536, 8), 0.07).item() == pytest.approx(math.log(65537), rel=1e-6)


def test_key_encoder_starts_as_a_copy_and_has_one_linear_layer(digits):
    method = build(RECIPE, TINY, digits)
    own, keys = dict(method.f_q.named_parameters()), dict(method.f_k.module.named_parameters())
    assert own.keys() == keys.keys() and all(torch.equal(own[name], keys[name]) for name in own)
    assert not any(p.requires_grad for p in keys.values())
    assert isinstance(method.fc, torch.nn.Linear) and method.fc.bias is not None


def test_keys_enter_the_queue_after_the_loss_and_leave_first_in_first_out(digits):
    method, _, _, k, before = eval_parts(digits)
    n = TINY.batch
    torch.testing.assert_close(method.queue.keys[:n], k)
    assert torch.equal(method.queue.keys[n:], before[n:]) and int(method.queue.position) == n


def test_momentum_update_is_equation_2(digits):
    some = trainer(RECIPE, TINY, digits)
    method = some.method
    with torch.no_grad():
        method.fc.weight.add_(1.0)
    before, target = method.f_k.module[1].weight.clone(), method.fc.weight.detach().clone()
    method.on_step_start(some._progress(0))
    torch.testing.assert_close(method.f_k.module[1].weight, TINY.m * before + (1 - TINY.m) * target)


def test_the_paper_preset_steps_at_120_and_160_and_orders_its_augmentations():
    config = RECIPE.presets[PAPER]
    rates = [rate(config.optim, 5004 * epoch, 5004, 5004 * 200) for epoch in (0, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])
    first, second = RECIPE.views(config)
    names = [type(op).__name__ for op in first.ops]
    assert names == ["RandomResizedCrop", "Grayscale", "ColorJitter", "HorizontalFlip", "Normalize"] and first == second
