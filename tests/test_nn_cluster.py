# SPDX-License-Identifier: Apache-2.0
"""Clustering blocks: Sinkhorn codes, k-means, whitening, balanced order, class weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from suite.draws import Draws
from suite.errors import JobError, UsageError
from suite.nn.cluster import class_weights, cluster_sizes, kmeans, nmi, pca_whiten, uniform_order
from suite.nn.sinkhorn import prototype_usage, sinkhorn
from suite.nn.sweep import sweep
from suite.views import CenterCrop, Normalize, View


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive_sinkhorn(scores, epsilon, iterations):
    """SwAV's appendix A.1, row by row in float64."""
    q = torch.exp(scores.double() / epsilon).T  # K×B
    q = q / q.sum()
    k, b = q.shape
    for _ in range(iterations):
        for row in range(k):
            q[row] = q[row] / q[row].sum() / k
        for column in range(b):
            q[:, column] = q[:, column] / q[:, column].sum() / b
    return (q * b).T


@pytest.mark.parametrize(("n", "k", "epsilon"), [(8, 5, 0.05), (6, 30, 0.05), (64, 10, 0.5)])
def test_sinkhorn_equals_the_naive_algorithm(n, k, epsilon):
    scores = F.normalize(randn(n, 16), dim=1) @ F.normalize(randn(k, 16, seed=1), dim=1).T
    for iterations in (1, 3):
        expected = naive_sinkhorn(scores, epsilon, iterations)
        torch.testing.assert_close(sinkhorn(scores, epsilon, iterations).double(), expected, rtol=1e-4, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), st.integers(2, 12), st.integers(0, 1000))
def test_sinkhorn_becomes_doubly_stochastic(n, k, seed):
    codes = sinkhorn(randn(n, k, seed=seed), 0.5, 500)
    assert (codes >= 0).all()
    torch.testing.assert_close(codes.sum(1), torch.ones(n), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(codes.sum(0), torch.full((k,), n / k), rtol=5e-3, atol=1e-4)


def test_sinkhorn_survives_scores_that_overflow_an_exponential():
    scores = torch.tensor([[60.0, -60.0, 0.0], [60.0, -60.0, 0.0], [-60.0, 60.0, 0.0]])
    codes = sinkhorn(scores, 0.05)
    assert torch.isfinite(codes).all()
    torch.testing.assert_close(codes.sum(1), torch.ones(3))
    shifted = sinkhorn(scores + 7.0, 0.05)  # a constant cancels
    torch.testing.assert_close(codes, shifted, rtol=1e-3, atol=1e-4)


def test_sinkhorn_is_float32_under_half_precision_and_has_no_gradient():
    scores = randn(8, 5).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = sinkhorn(scores)
    assert codes.dtype == torch.float32 and not codes.requires_grad
    assert torch.equal(codes, sinkhorn(scores))


def test_prototype_usage_counts_prototypes():
    assert prototype_usage(torch.eye(7)).item() == pytest.approx(7)
    assert prototype_usage(torch.eye(7)[:1].expand(9, 7)).item() == pytest.approx(1)


def blobs(k=5, each=40, d=8, seed=0):
    centres = 10 * randn(k, d, seed=seed)
    labels = torch.arange(k).repeat_interleave(each)
    return centres[labels] + randn(k * each, d, seed=seed + 1), labels


def test_kmeans_finds_blobs_and_repeats_itself():
    x, labels = blobs()
    first, second = (kmeans(x, 5, seed=3) for _ in range(2))
    assert torch.equal(first.labels, second.labels) and torch.equal(first.centroids, second.centroids)
    best = max(nmi(kmeans(x, 5, seed=s).labels, labels) for s in range(5))
    assert best == pytest.approx(1.0)
    distance = torch.cdist(x.double(), first.centroids.double())
    assert torch.equal(first.labels, distance.argmin(1))


def test_kmeans_ends_where_lloyds_algorithm_ends():
    x, _ = blobs()
    found = kmeans(x, 5, iterations=50)
    means = torch.stack([x[found.labels == c].mean(0) for c in range(5)])
    torch.testing.assert_close(found.centroids, means, rtol=1e-4, atol=1e-4)


def test_kmeans_on_a_tiny_set_says_nothing(capfd):
    """64 pictures, 8 clusters: below the number of points that faiss warns about."""
    x = F.normalize(randn(64, 16), dim=1)
    found = kmeans(x, 8, spherical=True)
    assert tuple(capfd.readouterr()) == ("", "")
    torch.testing.assert_close(found.centroids.norm(dim=1), torch.ones(8), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.labels, (x @ found.centroids.T).argmax(1))
    assert len(kmeans(x, 64).labels.unique()) == 64
    for equal in (torch.zeros(64, 4), torch.ones(64, 4)):
        assert torch.isfinite(kmeans(equal, 8).centroids).all()


def test_kmeans_refuses_what_cannot_be_clustered():
    with pytest.raises(UsageError, match="9 clusters of 8"):
        kmeans(randn(8, 2), 9)
    with pytest.raises(JobError, match="not finite"):
        kmeans(torch.full((8, 2), torch.nan), 2)


@pytest.mark.parametrize(("n", "d", "dim"), [(300, 12, 6), (20, 50, 8), (64, 16, 256)])
def test_whitening_equals_eigenvectors_of_the_covariance(n, d, dim):
    x = randn(n, d) @ randn(d, d, seed=1) + 3
    ours = pca_whiten(x, dim)
    centred = x.double() - x.double().mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / n)
    rank = min(dim, d, n - 1)
    values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    expected = F.normalize(centred @ vectors / values.sqrt(), dim=1)
    assert ours.shape == (n, rank)
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(n), rtol=1e-5, atol=1e-5)
    # Signs of eigenvectors are free; the products of rows are not.
    torch.testing.assert_close((ours @ ours.T).double(), expected @ expected.T, rtol=1e-3, atol=1e-3)


def test_whitening_leaves_out_what_does_not_vary():
    x = torch.cat([randn(50, 3), torch.zeros(50, 4)], 1)
    assert pca_whiten(x, 6).shape == (50, 3)
    with pytest.raises(JobError, match="collapsed"):
        pca_whiten(torch.ones(10, 4))
    with pytest.raises(UsageError, match="2 samples"):
        pca_whiten(torch.ones(1, 4))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=120), st.integers(0, 100))
def test_uniform_order_balances_the_clusters(labels, seed):
    labels = torch.tensor(labels)
    order = uniform_order(labels, torch.Generator().manual_seed(seed))
    n, c = len(labels), len(labels.unique())
    assert len(order) == n and order.min() >= 0 and order.max() < n
    share = n // c + 1
    counts = cluster_sizes(labels[order], 10)[labels.unique()]
    assert counts.max() <= share and (share - counts).sum() == share * c - n  # the cut takes the rest
    for cluster in labels.unique():
        mine = order[labels[order] == cluster]
        if int((labels == cluster).sum()) > share:
            assert len(mine.unique()) == len(mine)
    assert torch.equal(order, uniform_order(labels, torch.Generator().manual_seed(seed)))


def test_uniform_order_draws_every_member_alike():
    labels = torch.tensor([0] * 12 + [1] * 4)
    generator = torch.Generator().manual_seed(0)
    counts = sum(torch.bincount(uniform_order(labels, generator), minlength=16).double() for _ in range(3000)) / 3000
    assert (counts[:12] - 8 / 12).abs().max() < 0.06 and (counts[12:] - 8 / 4).abs().max() < 0.15


def test_class_weights_are_inverse_powers_of_sizes():
    labels = torch.tensor([0] * 4 + [1] * 9 + [3])
    weights = class_weights(labels, 5).double()
    expected = torch.tensor([1 / 2, 1 / 3, 0, 1, 0], dtype=torch.float64)
    torch.testing.assert_close(weights, expected / expected.sum(), rtol=1e-6, atol=0)
    # The formula of the reference, with its guard against division by zero, gives the same loss.
    sizes = np.bincount(labels.numpy(), minlength=5)
    theirs = torch.tensor((1 / (sizes + 1e-10)) ** 0.5)
    logits = randn(14, 5, dtype=torch.float64)
    a, b = F.cross_entropy(logits, labels, weights), F.cross_entropy(logits, labels, theirs / theirs.sum())
    assert a.item() == pytest.approx(b.item(), rel=1e-6)
    assert torch.equal(class_weights(labels, 5, power=0.0) > 0, torch.tensor([True, True, False, True, False]))


def test_sweep_sees_every_picture_once_in_order(digits):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 4), torch.nn.BatchNorm1d(4))
    view = View((CenterCrop(32), Normalize()))
    some = digits.subset(range(50))
    found = sweep(net, some, view, batch=16, device=torch.device("cpu"))
    assert net.training and net[2].num_batches_tracked == 0
    pixels = torch.from_numpy(some.array).permute(0, 3, 1, 2)
    expected = net.eval()(view(pixels, Draws(0, 0, torch.arange(50))))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)


def test_nmi_by_hand():
    """DeepCluster's definition: I(A; B) over the geometric mean of the entropies."""
    a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 2])
    information = math.log(2)  # B determines A
    assert nmi(a, b) == pytest.approx(information / math.sqrt(math.log(2) * 1.5 * math.log(2)))
    assert nmi(a, 1 - a) == pytest.approx(1) and nmi(a, torch.tensor([0, 1, 0, 1])) == pytest.approx(0, abs=1e-9)
