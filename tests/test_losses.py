# SPDX-License-Identifier: Apache-2.0
"""Each loss against its paper's equation, written naively in float64, value and gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lightly.loss import NTXentLoss
from torch.nn import functional as F

from suite.nn.contrast import info_nce, nt_xent


def naive_info_nce(q, k, negatives, tau):
    """MoCo, eq. 1, one query at a time."""
    total = 0.0
    for i in range(len(q)):
        positive = torch.exp(q[i] @ k[i] / tau)
        rest = sum(torch.exp(q[i] @ n / tau) for n in negatives)
        total = total - torch.log(positive / (positive + rest))
    return total / len(q)


def naive_nt_xent(z1, z2, tau):
    """SimCLR, eq. 1, pair by pair, views interleaved as in the paper."""
    z = torch.stack([z1, z2], 1).flatten(0, 1)
    z = z / z.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(len(z)):
        j = i ^ 1
        bottom = sum(torch.exp(z[i] @ z[k] / tau) for k in range(len(z)) if k != i)
        total = total - torch.log(torch.exp(z[i] @ z[j] / tau) / bottom)
    return total / len(z)


def pair(n=6, d=5, seed=0, count=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("tau", [0.07, 0.2, 1.0])
def test_info_nce(tau):
    q, k, negatives = (F.normalize(x, dim=1) for x in pair(count=3))
    q32 = q.float().requires_grad_()
    q64 = q.clone().requires_grad_()
    ours, theirs = info_nce(q32, k.float(), negatives.float(), tau), naive_info_nce(q64, k, negatives, tau)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(q32.grad.double(), q64.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("tau", "n"), [(0.1, 6), (0.5, 2), (0.2, 9)])
def test_nt_xent(tau, n):
    z1, z2 = pair(n)
    a32, a64 = z1.float().requires_grad_(), z1.clone().requires_grad_()
    ours, theirs = nt_xent(a32, z2.float(), tau), naive_nt_xent(a64, z2, tau)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(a32.grad.double(), a64.grad, rtol=1e-4, atol=1e-6)


def test_losses_at_chance_are_the_logarithm_of_the_choices():
    """ln(K+1) and ln(2N-1) when all similarities are alike."""
    same = F.normalize(torch.ones(8, 4), dim=1)
    assert info_nce(same, same, same[:1].expand(65536, 4), 0.07).item() == pytest.approx(math.log(65537), rel=1e-5)
    assert nt_xent(same, same, 0.1).item() == pytest.approx(math.log(15), rel=1e-5)


def test_half_precision_inputs_accumulate_in_float32():
    q, k, negatives = (F.normalize(x, dim=1).float() for x in pair(32, 64, count=3))
    exact = info_nce(q, k, negatives, 0.2)
    rough = info_nce(q.bfloat16(), k.bfloat16(), negatives.bfloat16(), 0.2)
    assert rough.dtype == torch.float32
    assert np.isclose(rough.item(), exact.item(), rtol=2e-2)


def test_against_an_independent_implementation():
    z1, z2 = (x.float() for x in pair(16, 8))
    assert nt_xent(z1, z2, 0.3).item() == pytest.approx(NTXentLoss(temperature=0.3)(z1, z2).item(), rel=1e-5)
