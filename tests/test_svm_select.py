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
from suite.nn.svm_fitter import make_fitter
from suite.nn.svm_select import (
    average_precision,
    cross_validate,
    fit_costs,
    refit,
    stratified_folds,
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
    fitter = make_fitter(x.numpy(), x.numpy(), torch.device("cpu"))
    held, about, certificate = cross_validate(fitter, y, (0.01, 1.0), folds=3)
    assert certificate <= 1e-8
    for i, cost in enumerate((0.01, 1.0)):
        for row in range(2):
            values = []
            for train, test in StratifiedKFold(3).split(x, y[row]):
                machine = LinearSVC(C=cost, dual=False, tol=1e-9, max_iter=20000, class_weight={1: 2, -1: 1})
                score = machine.fit(x[train], y[row][train]).decision_function(x[test])
                values.append(average_precision_score(y[row][test], score, pos_label=1))
            assert float(held[i, row]) == pytest.approx(np.mean(values), abs=1e-3)
        whole = fit(x, y, [cost], weigh(y))[0].dual
        assert (about[i] - whole).norm() <= 0.3 * whole.norm()  # near enough to start from


def test_refitting_at_own_costs_equals_fits_at_those_costs():
    x, y = problem(150, 40, (0.1, 0.3, 0.5))
    z = problem(80, 40, (0.5,), seed=1)[0]
    for solver, close in (("newton", 1e-4), ("liblinear", 1e-2)):
        fitter = make_fitter(x.numpy(), z.numpy(), torch.device("cpu"), solver=solver)
        every, _ = fit_costs(fitter, y, (1.0, 0.01))
        _, about, _ = cross_validate(fitter, y, (1.0, 0.01), folds=3)
        machines, certificate = refit(fitter, y, [0.01, 1.0, 0.01], torch.stack([about[1][0], about[0][1], about[1][2]]))
        expected = torch.stack([every[1][0], every[0][1], every[1][2]])
        torch.testing.assert_close(fitter.score(machines), fitter.score(expected), atol=close, rtol=0)
        assert 0 < certificate < 0.1


def test_both_solvers_choose_alike():
    x, y = problem(150, 40, (0.1, 0.3, 0.5))
    z = problem(80, 40, (0.5,), seed=1)[0]
    out = {}
    for solver in ("newton", "liblinear"):
        fitter = make_fitter(x.numpy(), z.numpy(), torch.device("cpu"), solver=solver)
        held, _, _ = cross_validate(fitter, y, (10.0, 1.0, 0.01), folds=3)
        machines, certificate = fit_costs(fitter, y, (10.0, 1.0, 0.01))
        scores = torch.stack([fitter.score(one) for one in machines])
        skimmed = torch.stack(list(fitter.skim(torch.stack(machines))), 1)
        torch.testing.assert_close(skimmed.double(), scores, atol=1e-4, rtol=0)
        out[solver] = held, scores, certificate
    ours, theirs = out["newton"], out["liblinear"]
    assert ours[0].shape == (3, 3) and ours[1].shape == (3, 3, 80)
    torch.testing.assert_close(ours[0], theirs[0], atol=2e-3, rtol=0)
    torch.testing.assert_close(ours[1], theirs[1], atol=2e-2, rtol=0)
    assert 0 < ours[2] <= 1e-8 < theirs[2] < 0.1  # 2000 epochs of liblinear at its default tolerance
