# SPDX-License-Identifier: Apache-2.0
"""The choice of an SVM's cost: folds, average precision and cross-validation against scikit-learn, two solvers alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from suite.nn.svm import fit
from suite.nn.svm_select import (
    average_precision,
    cross_validated,
    cross_validated_scores,
    fit_costs,
    make_fitter,
    stratified_folds,
    with_folds,
)
from tests.svm_samples import problem, weigh


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_equal_scikit_learn(folds):
    rng = np.random.default_rng(folds)
    for size in (10, 11, 97, 200):
        for rate in (0.2, 0.5, 0.9):
            y = np.where(rng.random(size) < rate, 1, -1)
            y[:folds], y[-folds:] = 1, -1
            y = y[rng.permutation(size)]
            target = np.zeros(size + 7, dtype=np.int64)
            used = np.sort(rng.choice(size + 7, size, replace=False))
            target[used] = y
            expected = np.full(size + 7, -1)
            for number, (_, test) in enumerate(StratifiedKFold(folds).split(np.zeros(size), y)):
                expected[used[test]] = number
            np.testing.assert_array_equal(stratified_folds(torch.from_numpy(target)[None], folds)[0].numpy(), expected)


def test_average_precision_equals_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(20):
        target, score = rng.choice([-1, 0, 1], (3, 30)), np.round(rng.standard_normal((3, 30)), 1)
        ours = average_precision(torch.from_numpy(target), torch.from_numpy(score))
        for t, s, value in zip(target, score, ours, strict=True):
            assert float(value) == pytest.approx(average_precision_score(t[t != 0], s[t != 0], pos_label=1), abs=1e-12)
    assert torch.isnan(average_precision(-torch.ones(1, 5), torch.zeros(1, 5))).all()


def test_cross_validation_equals_separate_fits():
    x, y = problem(120, 15, (0.2, 0.4), seed=2)
    assigned = stratified_folds(y, 3)
    weight = weigh(y)
    (found,) = fit(x, y.repeat(4, 1), [1.0], with_folds(weight, assigned, 3))
    ours = cross_validated(found.scores, y, assigned, 3)
    held = cross_validated_scores(found.scores, assigned, 3)
    for row in range(2):
        values = []
        for train, test in StratifiedKFold(3).split(x, y[row]):
            machine = LinearSVC(C=1.0, dual=False, tol=1e-9, max_iter=20000, class_weight={1: 2, -1: 1})
            score = machine.fit(x[train], y[row][train]).decision_function(x[test])
            np.testing.assert_allclose(held[row, test], score, atol=1e-3)
            values.append(average_precision_score(y[row][test], score, pos_label=1))
        assert float(ours[row]) == pytest.approx(np.mean(values), abs=1e-3)


def test_both_solvers_choose_alike():
    x, y = problem(150, 40, (0.1, 0.3, 0.5))
    z = problem(80, 40, (0.5,), seed=1)[0]
    out = {}
    for solver in ("newton", "liblinear"):
        fitter = make_fitter(x.numpy(), z.numpy(), torch.device("cpu"), solver=solver)
        held, machines, certificate = fit_costs(fitter, y, (10.0, 1.0, 0.01), folds=3)
        scores = torch.stack([fitter.score(one) for one in machines])
        skimmed = torch.stack(list(fitter.skim(torch.stack(machines))), 1)
        torch.testing.assert_close(skimmed.double(), scores, atol=1e-4, rtol=0)
        out[solver] = held, scores, certificate
    ours, theirs = out["newton"], out["liblinear"]
    assert ours[0].shape == (3, 3) and ours[1].shape == (3, 3, 80)
    torch.testing.assert_close(ours[0], theirs[0], atol=2e-3, rtol=0)
    torch.testing.assert_close(ours[1], theirs[1], atol=2e-2, rtol=0)
    assert 0 < ours[2] <= 1e-8 < theirs[2] < 0.1  # 2000 epochs of liblinear at its default tolerance
