# SPDX-License-Identifier: Apache-2.0
"""MoCo v1 against equation 1 in float64 and lightly's NT-Xent with a memory bank; its queue and momentum encoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from recipes.mocov1 import RECIPE
from suite.nn.contrast import info_nce
from suite.optim import rate
from suite.testing import build, trainer
from tests.equations import Claim, both, lightly_info_nce, naive_info_nce, units

INFO_NCE = Claim("mocov1", "eq. 1: InfoNCE with a queue", "lightly NTXentLoss with a memory bank")
TINY = RECIPE.presets["tiny"]
PAPER = "resnet50_8xb32-steplr-200e_in1k"


@pytest.mark.parametrize(("n", "count"), [(5, 9), (1, 1), (3, 40)])
def test_loss_at_the_papers_temperature(ledger, n, count):
    (q32, q64), k, negatives = both(units(n, 8)), units(n, 8, seed=1), units(count, 8, seed=2)
    ours, theirs = info_nce(q32, k.float(), negatives.float(), 0.07), naive_info_nce(q64, k, negatives, 0.07)
    ledger.agree(INFO_NCE, ours, theirs, [q32], [q64])


def eval_parts(digits, **changes):
    """A method without batch statistics, its loss on a batch, and the q, k and negatives that should be in it."""
    some = trainer(RECIPE, replace(TINY, **changes), digits)
    method, batch = some.method.eval(), next(some.loader.epoch(0))
    negatives = method.queue.keys.clone()
    with torch.no_grad():
        q = F.normalize(method.fc(method.backbone(batch.views[0])), dim=1)
        k = F.normalize(method.f_k.module(batch.views[1]), dim=1)
        return method, method(batch)["loss"], q, k, negatives


@pytest.mark.parametrize("tau", [0.07, 0.1])
def test_the_method_computes_equation_1(ledger, digits, tau):
    _, loss, *parts = eval_parts(digits, temperature=tau)
    ledger.agree(INFO_NCE, loss, naive_info_nce(*(x.double() for x in parts), tau))
    ledger.independent(INFO_NCE, loss, lightly_info_nce(*parts, tau))


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
