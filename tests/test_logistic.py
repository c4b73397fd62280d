# SPDX-License-Identifier: Apache-2.0
"""Logistic regression over memory-mapped rows against autograd and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from suite.errors import JobError, UsageError
from suite.nn import logistic
from suite.nn.rows import EPS, Rows, moments

CPU = torch.device("cpu")


def clusters(n, d, classes, seed=0, noise=1.5):
    """Float32 features with one centre per class, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    return (rng.normal(size=(classes, d))[labels] + noise * rng.normal(size=(n, d))).astype(np.float32), labels


def awkward(n, d, classes, seed=0):
    """Strongly correlated columns of very different scales, far from zero, one of them constant."""
    x, labels = clusters(n, d, classes, seed)
    mixing = np.random.default_rng(seed + 1).normal(size=(d, d)) * np.logspace(0, -3, d)
    x = 100 * (x @ mixing) + np.linspace(0, 1000, d)
    x[:, 0] = 7
    return x.astype(np.float32), labels


def probabilities(solution, rows):
    scores = logistic.scores(solution, rows).astype(np.float64)
    return torch.from_numpy(scores).softmax(1).numpy()


def agrees(x, labels, classes, cost, gradient=1e-6):
    """Compare with scikit-learn on the same standardised features."""
    rows = Rows.of([x], CPU)
    solution = logistic.fit(logistic.Objective(rows, labels, classes), cost)
    z = rows.take(np.arange(len(x))).double().numpy()
    reference = LogisticRegression(C=cost, tol=1e-9, max_iter=20_000).fit(z, labels)
    ours, theirs = probabilities(solution, rows), reference.predict_proba(z)
    assert solution.gradient <= gradient
    assert np.abs(ours - theirs).max() < 1e-3
    assert abs((ours.argmax(1) == labels).mean() - (theirs.argmax(1) == labels).mean()) < 1e-3


@pytest.mark.parametrize("cost", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(("n", "d"), [(60, 100), (2000, 24)])
def test_agrees_with_scikit_learn(cost, classes, n, d):
    agrees(*clusters(n, d, classes), classes, cost)


@pytest.mark.parametrize("cost", [1e-2, 1.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_agrees_on_ill_conditioned_features(cost, classes):
    agrees(*awkward(800, 30, classes), classes, cost)


def test_value_and_gradient_are_those_of_autograd():
    x, labels = clusters(200, 7, 4)
    rows = Rows.of([x], CPU)
    weight = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    index = np.arange(0, 200, 3)
    z = rows.take(index).double()
    objective = logistic.Objective(rows, labels, 4, index)
    loss = torch.nn.functional.cross_entropy(z @ weight.T + bias, torch.from_numpy(labels[index]))
    loss = loss + weight.square().sum() / (2 * 0.3 * len(index))
    loss.backward()
    value, slope, shift = objective(weight.detach(), bias.detach(), 0.3)
    assert value == pytest.approx(loss.item(), rel=1e-9)
    torch.testing.assert_close(slope, weight.grad)
    torch.testing.assert_close(shift, bias.grad)


@pytest.mark.parametrize("classes", [2, 10])
def test_products_in_float32_serve_many_rows(classes, monkeypatch):
    monkeypatch.setattr(logistic, "FEW", 0)
    # So few rows leave float32 a floor that depends on the processor: the solver says how near it came.
    agrees(*clusters(5000, 16, classes, noise=3.0), classes, 0.01, gradient=5e-6)


def test_coordinates_turn_back_and_carry_the_gradient():
    x, labels = awkward(300, 12, 3)
    objective = logistic.Objective(Rows.of([x], CPU), labels, 3)
    basis = logistic.Basis(objective, 0.1)
    weight, bias = torch.randn(3, 12, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    flat = basis.pack(weight, bias)
    for found, true in zip(basis.unpack(flat), (weight, bias), strict=True):
        torch.testing.assert_close(found, true)
    slope, shift, step = torch.randn(3, 12).double(), torch.randn(3).double(), np.random.default_rng(0).normal(size=flat.shape)
    moved = basis.unpack(flat + step)
    change = ((moved[0] - weight) * slope).sum() + ((moved[1] - bias) * shift).sum()
    assert change.item() == pytest.approx(float(basis.pack_slope(slope, shift) @ step))


def test_conditioning_saves_passes(monkeypatch):
    x, labels = clusters(1500, 30, 5, noise=3.0)
    common = np.random.default_rng(3).normal(size=(1500, 4)) @ np.random.default_rng(4).normal(size=(4, 30))
    rows = Rows.of([(x + 30 * common).astype(np.float32)], CPU)
    helped = logistic.fit(logistic.Objective(rows, labels, 5), 1.0)
    monkeypatch.setattr(logistic, "WIDEST", 0)
    plain = logistic.fit(logistic.Objective(rows, labels, 5), 1.0)
    assert 2 * helped.passes < plain.passes
    np.testing.assert_allclose(probabilities(helped, rows), probabilities(plain, rows), atol=2e-3)


def test_views_count_as_more_rows():
    x, labels = clusters(150, 6, 3)
    other = x + np.random.default_rng(9).normal(size=x.shape).astype(np.float32)
    rows = Rows.of([x, other], CPU)
    joint = Rows.of([np.concatenate([x, other])], CPU)
    several = logistic.fit(logistic.Objective(rows, labels, 3), 0.5)
    one = logistic.fit(logistic.Objective(joint, np.concatenate([labels, labels]), 3), 0.5)
    np.testing.assert_allclose(several.weight, one.weight, atol=1e-3)
    np.testing.assert_allclose(rows.mean, joint.mean, rtol=1e-5)
    np.testing.assert_allclose(rows.scale, joint.scale, rtol=1e-5)


def test_a_path_reaches_what_single_fits_reach():
    x, labels = clusters(400, 10, 4)
    rows = Rows.of([x], CPU)
    objective = logistic.Objective(rows, labels, 4)
    along = list(logistic.path(objective, [1.0, 0.01, 0.1]))
    assert [solution.cost for solution in along] == [0.01, 0.1, 1.0]
    for solution in along:
        alone = logistic.fit(logistic.Objective(rows, labels, 4), solution.cost)
        np.testing.assert_allclose(probabilities(solution, rows), probabilities(alone, rows), atol=1e-3)
    assert objective.passes == sum(solution.passes for solution in along)


def test_a_class_without_training_images_is_never_predicted():
    x, labels = clusters(200, 8, 3)
    solution = logistic.fit(logistic.Objective(Rows.of([x], CPU), labels, 4), 1.0)
    assert probabilities(solution, Rows.of([x], CPU))[:, 3].max() < 1e-2


@pytest.mark.parametrize("cost", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_costs(cost):
    x, labels = clusters(30, 3, 2)
    with pytest.raises(UsageError, match="positive"):
        logistic.fit(logistic.Objective(Rows.of([x], CPU), labels, 2), cost)


def test_moments_block_by_block(tmp_path):
    x, _ = awkward(501, 9, 3)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    mean, variance = moments([mapped, x[:100]], "x", elements=9 * 64)
    both = np.concatenate([x, x[:100]]).astype(np.float64)
    np.testing.assert_allclose(mean, both.mean(0), rtol=1e-10)
    np.testing.assert_allclose(variance, both.var(0), rtol=1e-8, atol=1e-12)


def test_rows_are_standardised_in_blocks_and_in_order():
    x, _ = clusters(100, 5, 2)
    rows = Rows.of([x, 2 * x], CPU)
    rows.elements = 5 * 7
    both = np.concatenate([x, 2 * x]).astype(np.float64)
    true = (both - both.mean(0)) / np.sqrt(both.var(0) + EPS)
    found = list(rows.blocks())
    assert max(len(block) for _, block in found) == 7
    np.testing.assert_allclose(np.concatenate([block for _, block in found]), true, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate([index for index, _ in found]), np.tile(np.arange(100), 2))
    some = np.array([3, 50, 4])
    np.testing.assert_allclose(np.concatenate([b for _, b in rows.first().blocks(some)]), true[some], atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_named(value):
    x, _ = clusters(50, 4, 2)
    x[31, 2] = value
    with pytest.raises(JobError, match=r"layer 'stage3'.*image 31") as caught:
        moments([x], "layer 'stage3'", elements=4 * 16)
    assert "\n" not in str(caught.value)
