# SPDX-License-Identifier: Apache-2.0
"""SwAV against its equations in float64 and against lightly's SwaVLoss; its queue, frozen prototypes and crops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from lightly.loss import SwaVLoss
from torch.nn import functional as F

from recipes.swav import RECIPE, swapped_prediction
from suite.method import Progress
from suite.nn.sinkhorn import sinkhorn
from suite.optim import rate
from suite.progress import Reporter
from suite.testing import build, trainer
from tests.equations import Claim, both, units

SWAPPED = Claim("swav", "eq. 1 to 6: swapped prediction of Sinkhorn codes", "lightly SwaVLoss")
TINY = RECIPE.presets["tiny"]


def naive_codes(scores, epsilon=0.05, iterations=3):
    """Equations 3 to 5: the K×B matrix exp(C^T Z / epsilon), rows to 1/K, columns to 1/B, times B."""
    q = torch.exp(scores.T / epsilon)
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def naive_loss(scores, codes, tau):
    """Equations 1, 2 and 6, one code, crop, image and prototype at a time."""
    total = 0.0
    for s in range(len(codes)):
        for t in range(len(scores)):
            if t == s:
                continue
            for n in range(scores.shape[1]):
                bottom = sum(torch.exp(c / tau) for c in scores[t, n])
                for k in range(scores.shape[2]):
                    total = total - codes[s, n, k] * torch.log(torch.exp(scores[t, n, k] / tau) / bottom)
    return total / (len(codes) * (len(scores) - 1) * scores.shape[1])


def products(*shape, seed=0):
    """Products of unit vectors, float64."""
    return units(*shape[:-1], 6, seed=2 * seed) @ units(shape[-1], 6, seed=2 * seed + 1).T


@pytest.mark.parametrize("shape", [(4, 5, 7), (2, 3, 4), (3, 1, 5), (2, 6, 1)], ids=str)
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_loss_equals_the_equations(ledger, shape, tau):
    a32, a64 = both(products(*shape))
    codes = torch.stack([naive_codes(s.detach()) for s in a64[:2]])
    ours_codes = torch.stack([sinkhorn(s.detach()) for s in a32[:2]])
    torch.testing.assert_close(ours_codes.double(), codes, rtol=1e-4, atol=1e-6)
    ledger.agree(SWAPPED, swapped_prediction(a32, ours_codes, tau), naive_loss(a64, codes, tau), [a32], [a64])


def test_one_code_per_image_and_certain_predictions_cost_nothing():
    codes = torch.eye(4)[None].expand(2, 4, 4)
    assert swapped_prediction(codes.repeat(2, 1, 1) * 10, codes, 0.1).item() == pytest.approx(0, abs=1e-6)


def test_equal_scores_cost_the_logarithm_of_the_prototypes():
    scores = torch.zeros(8, 4, 3000)
    codes = torch.stack([sinkhorn(s) for s in scores[:2]])
    assert swapped_prediction(scores, codes, 0.1).item() == pytest.approx(math.log(3000), rel=1e-6)


@pytest.mark.parametrize("queued", [0, 9])
@pytest.mark.parametrize("small", [0, 3])
def test_against_an_independent_implementation(ledger, queued, small):
    scores = products(2 + small, 8, 12, seed=1).float()
    waiting = [products(queued, 12, seed=2 + i).float() for i in range(2)] if queued else None
    theirs = SwaVLoss()(list(scores[:2]), list(scores[2:]), waiting)
    everything = [torch.cat([waiting[i], scores[i]]) if queued else scores[i] for i in range(2)]
    codes = torch.stack([sinkhorn(s)[-8:] for s in everything])
    ledger.independent(SWAPPED, swapped_prediction(scores, codes, 0.1), theirs)


def test_the_method_is_its_parts(ledger, digits):
    """forward = embed, score, balance, compare; checked with lightly's loss on the method's own scores."""
    some = trainer(RECIPE, TINY, digits)
    method, batch = some.method, next(some.loader.epoch(0))
    method.eval()  # so that two passes give the same
    with torch.no_grad():
        found = method(batch)["loss"]
        z = [F.normalize(method.projector(method.backbone(view)), dim=1) for view in batch.views]
        scores = [x @ F.normalize(method.prototypes.weight, dim=1).T for x in z]
    ledger.independent(SWAPPED, found, SwaVLoss()(scores[:2], scores[2:]))


def test_gradients_reach_backbone_and_prototypes_but_not_through_the_codes(digits):
    some = trainer(RECIPE, TINY, digits)
    some.method(next(some.loader.epoch(0)))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in some.method.prototypes.parameters())
    scores = torch.randn(2, 3, 4, requires_grad=True)
    assert not some.method.codes(torch.randn(2, 3, TINY.dim), scores).requires_grad


def test_prototypes_have_length_one_and_stay_while_frozen(digits):
    some = trainer(RECIPE, replace(TINY, freeze=2, max_steps=4), digits)
    seen, usual = [], some.method.on_step_start

    def note(progress):
        usual(progress)
        seen.append(some.method.prototypes.weight.detach().clone())

    some.method.on_step_start = note
    some.run(Reporter(), "test")
    for weight in seen:
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(TINY.prototypes))
    torch.testing.assert_close(seen[0], seen[2])
    assert not torch.allclose(seen[2], seen[3], atol=1e-6)


@pytest.mark.parametrize(
    ("step", "filling", "full"), [(0, False, False), (29, False, False), (30, True, False), (44, True, False), (45, True, True)]
)
def test_queue_fills_from_its_epoch_and_is_used_once_full(digits, step, filling, full):
    """Epoch 15 of two steps each, 3840 = 15 batches of 256."""
    config = replace(TINY, queue=3840, queue_epoch=15, batch=256)
    method = build(RECIPE, config, digits)
    method.on_step_start(Progress(epoch=step // 2, step=step, steps_per_epoch=2, total_steps=400))
    assert (method.filling, method.full) == (filling, full)


def test_no_queue_where_none_is_asked_for(digits):
    method = build(RECIPE, replace(TINY, queue=0), digits)
    method.on_step_start(Progress(99, 9_999, 100, 10_000))
    assert not method.filling and not method.full and len(method.queues) == 0


def test_queued_samples_join_the_balancing_and_the_batch_follows(digits):
    method = build(RECIPE, replace(TINY, queue=6), digits)
    method.filling = method.full = True
    z = F.normalize(torch.randn(2, 4, TINY.dim), dim=2)
    scores = z @ method.prototypes.weight.T
    before = [queue.keys.clone() for queue in method.queues]
    found = method.codes(z, scores)
    for i in range(2):
        everything = torch.cat([before[i] @ method.prototypes.weight.T, scores[i]]).detach()
        torch.testing.assert_close(found[i].double(), naive_codes(everything.double())[-4:], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(method.queues[i].keys, torch.cat([z[i], before[i][4:]]))


def test_crops_are_the_papers():
    config = RECIPE.presets["resnet50_8xb32-mcrop-2-6-coslr-200e_in1k-224-96"]
    crops = [view.ops[0] for view in RECIPE.views(config)]
    assert [crop.size for crop in crops] == [224] * 2 + [96] * 6
    assert [crop.scale for crop in crops] == [(0.14, 1.0)] * 2 + [(0.05, 0.14)] * 6
    names = [type(op).__name__ for op in RECIPE.views(config)[7].ops[1:]]
    assert names == ["ColorJitter", "Grayscale", "GaussianBlur", "HorizontalFlip", "Normalize"]


def test_rates_are_the_official_ones():
    small = RECIPE.presets["resnet50_8xb32-mcrop-coslr-200e_in1k-224px-96px"].optim
    assert rate(small, 0, 5004, 5004 * 200) == 0.6
    assert rate(small, 5004 * 200, 5004, 5004 * 200) == pytest.approx(6e-4)
    large = RECIPE.presets["resnet50_64xb64-mcrop-2-6-coslr-200e_in1k-224-96"].optim
    assert rate(large, 0, 312, 312 * 200) == pytest.approx(0.3)
    assert rate(large, 3120, 312, 312 * 200) == 4.8
