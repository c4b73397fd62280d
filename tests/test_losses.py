# SPDX-License-Identifier: Apache-2.0
"""Each loss against its paper's equation, written naively in float64, value and gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lightly.loss import NTXentLoss
from sklearn.metrics import log_loss
from torch.nn import functional as F

from recipes.supervised import RECIPE as SUPERVISED
from suite.method import Batch
from suite.nn.contrast import info_nce, nt_xent
from suite.testing import build
from tests.equations import Claim, both, lightly_info_nce, naive_info_nce, randn, units

INFO_NCE = Claim("mocov2", "MoCo, eq. 1: InfoNCE with a queue", "lightly NTXentLoss with a memory bank")
NT_XENT = Claim("simclr", "eq. 1: NT-Xent", "lightly NTXentLoss")
CROSS_ENTROPY = Claim("supervised", "cross entropy of the labels", "scikit-learn log_loss")


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


@pytest.mark.parametrize(("n", "count"), [(6, 6), (1, 1), (3, 40)])
@pytest.mark.parametrize("tau", [0.07, 0.2, 1.0])
def test_info_nce(ledger, n, count, tau):
    (q32, q64), k, negatives = both(units(n, 8)), units(n, 8, seed=1), units(count, 8, seed=2)
    ours, theirs = info_nce(q32, k.float(), negatives.float(), tau), naive_info_nce(q64, k, negatives, tau)
    ledger.agree(INFO_NCE, ours, theirs, [q32], [q64])
    ledger.independent(INFO_NCE, ours, lightly_info_nce(q32, k.float(), negatives.float(), tau))


@pytest.mark.parametrize(("tau", "n"), [(0.1, 6), (0.5, 2), (0.2, 9), (0.3, 16)])
def test_nt_xent(ledger, tau, n):
    """The gradient reaches both views."""
    (a32, a64), (b32, b64) = both(randn(n, 5)), both(randn(n, 5, seed=1))
    ours = nt_xent(a32, b32, tau)
    ledger.agree(NT_XENT, ours, naive_nt_xent(a64, b64, tau), [a32, b32], [a64, b64])
    ledger.independent(NT_XENT, ours, NTXentLoss(temperature=tau)(a32, b32))


@pytest.mark.parametrize("n", [1, 6])
def test_supervised_cross_entropy(ledger, digits, n):
    """-log of the softmax of the label's score, picture by picture, from the method's own features."""
    method = build(SUPERVISED, SUPERVISED.presets["tiny"], digits).eval()
    x, label = randn(n, 3, 32, 32).float(), torch.arange(n) % 10
    found = method(Batch([x], label, torch.arange(n)))
    h = method.backbone(x).detach().double()
    weight, bias = (p.detach().double().requires_grad_() for p in (method.head.weight, method.head.bias))
    logits, total = h @ weight.T + bias, 0.0
    for row, y in zip(logits, label.tolist(), strict=True):
        total = total - torch.log(torch.exp(row[y]) / torch.exp(row).sum())
    ledger.agree(CROSS_ENTROPY, found["loss"], total / n, [method.head.weight, method.head.bias], [weight, bias])
    shares = logits.detach().softmax(1).numpy()
    ledger.independent(CROSS_ENTROPY, found["loss"], log_loss(label.numpy(), shares, labels=list(range(10))))


def test_losses_at_chance_are_the_logarithm_of_the_choices():
    """ln(K+1) and ln(2N-1) when all similarities are alike."""
    same = F.normalize(torch.ones(8, 4), dim=1)
    assert info_nce(same, same, same[:1].expand(65536, 4), 0.07).item() == pytest.approx(math.log(65537), rel=1e-5)
    assert nt_xent(same, same, 0.1).item() == pytest.approx(math.log(15), rel=1e-5)


def test_half_precision_inputs_accumulate_in_float32():
    q, k, negatives = (units(32, 64, seed=seed).float() for seed in range(3))
    exact = info_nce(q, k, negatives, 0.2)
    rough = info_nce(q.bfloat16(), k.bfloat16(), negatives.bfloat16(), 0.2)
    assert rough.dtype == torch.float32
    assert np.isclose(rough.item(), exact.item(), rtol=2e-2)
