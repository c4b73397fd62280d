# SPDX-License-Identifier: Apache-2.0
"""DenseCL against equations 1 to 4 in float64, and part by part against lightly (NT-Xent with a bank, most similar cells)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lightly.models.utils import select_most_similar
from torch.nn import functional as F

from recipes.densecl import RECIPE, correspondence, matched
from suite.method import Progress
from suite.nn.contrast import info_nce
from suite.testing import build, trainer
from tests.equations import Claim, both, lightly_info_nce, naive_info_nce, units

GLOBAL = Claim("densecl", "eq. 1: InfoNCE of the images", "lightly NTXentLoss with a memory bank")
DENSE = Claim("densecl", "eq. 2 and 4: InfoNCE of matched cells", "lightly NTXentLoss and select_most_similar")
TINY = RECIPE.presets["tiny"]


def naive_match(f_q, f_k):
    """Eq. 4, cell by cell."""
    best = torch.zeros(f_q.shape[:2], dtype=torch.long)
    for n in range(f_q.shape[0]):
        for i in range(f_q.shape[1]):
            similarities = [float(f_q[n, i] @ f_k[n, j]) for j in range(f_k.shape[1])]
            best[n, i] = similarities.index(max(similarities))
    return best


def naive_dense(r, t, f_q, f_k, negatives, tau):
    """Eq. 2: the mean over images and cells."""
    best = naive_match(f_q, f_k)
    positive = torch.stack([torch.stack([t[i, j] for j in row]) for i, row in enumerate(best.tolist())])
    return naive_info_nce(r.flatten(0, 1), positive.flatten(0, 1), negatives, tau)


@pytest.mark.parametrize(("n", "cells"), [(3, 4), (1, 1), (2, 9)])
@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_dense_loss_equals_the_equations(ledger, n, cells, tau):
    r, t, negatives = units(n, cells, 6), units(n, cells, 6, seed=1), units(7, 6, seed=2)
    f_q, f_k = units(n, cells, 10, seed=3), units(n, cells, 10, seed=4)
    r32, r64 = both(r)
    positive = matched(t.float(), correspondence(f_q, f_k))
    ours = info_nce(r32.flatten(0, 1), positive.flatten(0, 1), negatives.float(), tau)
    ledger.agree(DENSE, ours, naive_dense(r64, t, f_q, f_k, negatives, tau), [r32], [r64])


@pytest.mark.parametrize("n", [1, 4])
def test_global_loss_equals_equation_1(ledger, n):
    (q32, q64), k, negatives = both(units(n, 8)), units(n, 8, seed=1), units(9, 8, seed=2)
    ours, theirs = info_nce(q32, k.float(), negatives.float(), 0.2), naive_info_nce(q64, k, negatives, 0.2)
    ledger.agree(GLOBAL, ours, theirs, [q32], [q64])


def test_correspondence_finds_moved_cells():
    cells = units(2, 9, 16).float()
    order = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    moved = matched(cells, order)
    assert torch.equal(correspondence(moved, cells), order)
    assert torch.equal(correspondence(cells, cells), torch.arange(9).expand(2, 9))


def test_correspondence_against_an_independent_implementation():
    f_q, f_k, t = units(3, 6, 8).float(), units(3, 6, 8, seed=1).float(), units(3, 6, 4, seed=2).float()
    torch.testing.assert_close(matched(t, correspondence(f_q, f_k)), select_most_similar(f_q, f_k, t))


def eval_parts(digits, **changes):
    """A method without batch statistics, what it returns, both encoders' outputs and the queues before."""
    some = trainer(RECIPE, replace(TINY, **changes), digits)
    method, batch = some.method.eval(), next(some.loader.epoch(0))
    queues = method.queue.keys.clone(), method.dense_queue.keys.clone()
    with torch.no_grad():
        own, keys = method.f_q(batch.views[0]), method.f_k.module(batch.views[1])
        return method, method(batch), own, keys, queues


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_the_method_computes_equation_3(ledger, digits, lam):
    _, found, own, keys, queues = eval_parts(digits, lam=lam, batch=8)
    q, r, _, f_q = (x.double() for x in own)
    k, t, _, f_k = (x.double() for x in keys)
    image, dense = naive_info_nce(q, k, queues[0].double(), 0.2), naive_dense(r, t, f_q, f_k, queues[1].double(), 0.2)
    ledger.agree(GLOBAL, found["global_loss"], image)
    ledger.agree(DENSE, found["dense_loss"], dense)
    assert found["loss"].item() == pytest.approx(((1 - lam) * image + lam * dense).item(), rel=1e-5)


def test_both_terms_against_an_independent_implementation(ledger, digits):
    _, found, own, keys, queues = eval_parts(digits)
    ledger.independent(GLOBAL, found["global_loss"], lightly_info_nce(own[0], keys[0], queues[0], 0.2))
    positive = select_most_similar(own[3], keys[3], keys[1])
    theirs = lightly_info_nce(own[1].flatten(0, 1), positive.flatten(0, 1), queues[1], 0.2)
    ledger.independent(DENSE, found["dense_loss"], theirs)


def test_the_dense_queue_holds_one_mean_cell_per_image(digits):
    method, _, _, keys, before = eval_parts(digits)
    n = TINY.batch
    torch.testing.assert_close(method.queue.keys[:n], keys[0])
    torch.testing.assert_close(method.dense_queue.keys[:n], keys[2])
    assert torch.equal(method.dense_queue.keys[n:], before[1][n:])
    torch.testing.assert_close(method.dense_queue.keys.norm(dim=1), torch.ones(TINY.queue))


def test_encoder_shapes_and_heads(digits):
    """7×7 cells become S² rows; the mean is that of the cells before they are normalised."""
    method = build(RECIPE, TINY, digits).eval()
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        image, cells, mean, features = method.f_q(x)
        pooled, maps = method.backbone.pooled_and_stages(x)
    side = maps[-1].shape[2]
    assert image.shape == (2, TINY.dim) and cells.shape == (2, side**2, TINY.dim)
    assert features.shape == (2, side**2, method.backbone.dim)
    one = method.neck.cells(maps[-1])[0, :, 1, 2]  # row 1, column 2
    torch.testing.assert_close(cells[0, side + 2], F.normalize(one, dim=0))
    torch.testing.assert_close(mean, F.normalize(method.neck.cells(maps[-1]).mean((2, 3)), dim=1))
    torch.testing.assert_close(image, F.normalize(method.neck.image(pooled), dim=1))
    kinds = [type(layer).__name__ for layer in method.neck.cells]
    assert kinds == ["Conv2d", "ReLU", "Conv2d"] and all(layer.bias is not None for layer in method.neck.cells[::2])


@pytest.mark.parametrize(("step", "warmup", "expected"), [(0, 1000, 0.0), (999, 1000, 0.0), (1000, 1000, 0.5), (0, 0, 0.5)])
def test_lambda_is_zero_during_its_warm_up(digits, step, warmup, expected):
    method = build(RECIPE, replace(TINY, lam_warmup=warmup), digits)
    method.on_step_start(Progress(0, step, 5004, 5004 * 200))
    assert method.lam == expected


def test_key_encoder_follows_all_three_parts(digits):
    some = trainer(RECIPE, TINY, digits)
    method = some.method
    own, keys = dict(method.f_q.named_parameters()), dict(method.f_k.module.named_parameters())
    assert own.keys() == keys.keys() and all(torch.equal(own[name], keys[name]) for name in own)
    before = {name: p.clone() for name, p in keys.items()}
    with torch.no_grad():
        for p in own.values():
            p.add_(1.0)
    method.on_step_start(some._progress(0))
    for name, p in keys.items():
        torch.testing.assert_close(p, before[name] + (1 - TINY.m), msg=name)
