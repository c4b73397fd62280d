# SPDX-License-Identifier: Apache-2.0
"""The batched SVM against scikit-learn, against a direct primal Newton, and against its own certificate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import LinearSVC

from suite.errors import JobError
from suite.metrics import average_precision as voc_ap
from suite.nn import samples as sample_rows
from suite.nn import svm, svm_newton
from suite.nn.gram import SharedGram
from suite.nn.samples import Rows
from suite.nn.svm import decision, fit, path
from suite.nn.svm_fitter import make_fitter, normalise
from suite.nn.svm_systems import StackedGrams
from tests.svm_samples import problem, weigh

COSTS = (2.0**-19, 2.0**-10, 2.0**-4, 1.0, 10.0, 100.0)


def objective(x, y, weight, w):
    """Squared hinge plus half the squared norm, bias (last of `w`) included."""
    z = np.c_[x, np.ones(len(x))]
    return 0.5 * w @ w + (weight * np.maximum(0, 1 - y * (z @ w)) ** 2).sum()


def reference(x, y, weight, steps=200):
    """Damped Newton in the primal, written independently: dense Hessian, backtracking, to the end."""
    z = np.c_[x, np.ones(len(x))]
    w = np.zeros(z.shape[1])
    for _ in range(steps):
        slack = np.maximum(0, 1 - y * (z @ w))
        gradient = w - z.T @ (2 * weight * slack * y)
        if gradient @ gradient <= 1e-24 * (1 + w @ w):
            break
        active = (slack > 0) * 2 * weight
        move = np.linalg.solve(np.eye(len(w)) + z.T @ (active[:, None] * z), -gradient)
        t, here = 1.0, objective(x, y, weight, w)
        while objective(x, y, weight, w + t * move) > here + 1e-4 * t * gradient @ move and t > 1e-6:
            t /= 2
        w = w + t * move
    return w


@pytest.mark.parametrize(
    ("samples", "width", "rates"),
    [
        (20, 8, (0.3, 0.5)),
        (60, 600, (0.1, 0.4)),
        (300, 30, (0.02, 0.5)),
        (300, 280, (0.05, 0.3)),
        (600, 64, (0.01, 0.2)),
    ],
)
def test_average_precision_and_objective_equal_scikit_learn(samples, width, rates):
    x, y = problem(samples, width, rates)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fresh, truth = x + 0.3 * noise / width**0.5, y.numpy().astype(int)
    for found in fit(x, y, COSTS, weigh(y)):
        ours = decision(fresh, found.coefficients(x)).numpy()
        for row in range(len(rates)):
            machine = LinearSVC(C=found.cost, dual=False, tol=1e-9, max_iter=20000, class_weight={1: 2, -1: 1})
            machine.fit(x.numpy(), truth[row])
            theirs = machine.decision_function(fresh.numpy())
            gap = abs(voc_ap(truth[row], ours[row]) - voc_ap(truth[row], theirs))
            assert gap <= 1e-3, (found.cost, row)
            w = np.r_[machine.coef_[0], machine.intercept_]
            value = objective(x.numpy(), truth[row], found.cost * weigh(y)[row].numpy(), w)
            assert float(found.objective[row]) <= value * (1 + 1e-8)
            np.testing.assert_allclose(ours[row], theirs, atol=2e-3 * np.abs(theirs).max())


@pytest.mark.parametrize(("samples", "width"), [(40, 12), (40, 90), (150, 100), (150, 400)])
def test_objective_equals_direct_reference(samples, width):
    x, y = problem(samples, width, (0.1, 0.5), seed=3)
    for found in fit(x, y, COSTS, weigh(y)):
        for row in range(2):
            weight = (found.cost * weigh(y)[row]).numpy()
            best = objective(x.numpy(), y[row].numpy(), weight, reference(x.numpy(), y[row].numpy(), weight))
            assert float(found.objective[row]) == pytest.approx(best, rel=2e-8)
            assert float(found.objective[row] - found.gap[row]) <= best * (1 + 1e-12)
            assert found.certificate[row] <= 1e-8


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    samples=st.integers(4, 40),
    width=st.integers(1, 30),
    power=st.integers(-19, 10),
    steps=st.integers(0, 3),
)
def test_certificate_bounds_the_true_gap(seed, samples, width, power, steps):
    """At any point, solved or not: the objective minus its bound is below the true minimum."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((samples, width)))
    y = torch.from_numpy(rng.choice([-1.0, 1.0], (1, samples)))
    tol = 10.0 ** -(2 * steps + 2)
    (found,) = fit(x, y, [2.0**power], tol=tol)
    weight = np.full(samples, 2.0**power)
    best = objective(x.numpy(), y[0].numpy(), weight, reference(x.numpy(), y[0].numpy(), weight))
    excess = float(found.objective) - best
    assert -1e-9 * best <= excess <= float(found.gap) + 1e-9 * best
    assert float(found.gap) <= tol * float(found.objective)
    w = found.coefficients(x)[0].numpy()
    assert objective(x.numpy(), y[0].numpy(), weight, w) == pytest.approx(float(found.objective), rel=1e-9)


def test_all_ways_to_solve_a_system_agree():
    """Conjugate gradients, Cholesky among samples, Cholesky among features, and a stack of matrices."""
    rng = np.random.default_rng(0)
    for width in (30, 500):
        x, _ = problem(200, width, (0.5,))
        gram = SharedGram(x)
        kernel = torch.cat([x, torch.ones(200, 1)], 1).double()
        kernel = kernel @ kernel.T
        curvature = torch.from_numpy(rng.choice([0.0, 2.0, 4.0], (3, 200)))
        curvature[2] = 0
        rhs = torch.from_numpy(rng.standard_normal((3, 200)))
        every = torch.ones(3, dtype=torch.bool)
        exact, exact_image = gram.solve(curvature, rhs, every)
        stacked, stacked_image = StackedGrams(kernel.repeat(3, 1, 1)).solve(curvature, rhs, every)
        rank = gram._preconditioner(4.0)[0]
        iterated, image = gram._conjugate_gradients(curvature, rhs, rank, 500)
        torch.testing.assert_close(exact_image, exact @ kernel, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(stacked_image, stacked @ kernel, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(image, iterated @ kernel, rtol=0, atol=1e-5 * float((iterated @ kernel).abs().max()))
        for row in range(2):
            s = curvature[row].nonzero().flatten()
            system = kernel[s][:, s] + torch.diag(1 / curvature[row, s])
            expected = torch.zeros(200, dtype=torch.float64)
            expected[s] = torch.linalg.solve(system, rhs[row, s])
            torch.testing.assert_close(exact[row], expected, rtol=1e-7, atol=1e-9)
            torch.testing.assert_close(stacked[row], expected, rtol=1e-7, atol=1e-9)
            assert (iterated[row] - expected).norm() <= 2e-3 * expected.norm()
        assert not exact[2].any() and not stacked[2].any() and not iterated[2].any()


def test_useless_inner_solver_falls_back_to_cholesky(monkeypatch):
    """Directions that are not a number or point uphill must cost time, never correctness."""
    x, y = problem(150, 300, (0.2, 0.5))
    expected = fit(x, y, (1.0, 10.0), weigh(y))
    monkeypatch.setattr(SharedGram, "_preconditioner", lambda self, curvature: (4, 1.0))
    for spoil in (torch.nan, 1e4):
        monkeypatch.setattr(SharedGram, "_conjugate_gradients", lambda self, c, r, k, n, t, f=spoil: (f * r, f * r))
        for found, wanted in zip(fit(x, y, (1.0, 10.0), weigh(y)), expected, strict=True):
            torch.testing.assert_close(found.objective, wanted.objective, rtol=1e-7, atol=0)


def test_giving_up_is_an_error(monkeypatch):
    x, y = problem(100, 20, (0.3,))
    monkeypatch.setattr(svm_newton, "MAX_STEPS", 1)
    with pytest.raises(JobError, match="relative gap"):
        fit(x, y, [10.0])


def test_line_search_recovers_from_a_bad_start():
    """A leap from a tiny to a huge cost on large features needs damped steps; the answer is the same."""
    x, y = problem(80, 5, (0.1, 0.5), seed=5)
    leap = fit(30 * x, y, (2.0**-19, 1000.0), weigh(y))[1]
    for row in range(2):
        weight = (1000 * weigh(y)[row]).numpy()
        w = reference(30 * x.numpy(), y[row].numpy(), weight)
        best = objective(30 * x.numpy(), y[row].numpy(), weight, w)
        assert float(leap.objective[row]) == pytest.approx(best, rel=1e-6)


def test_line_search_finds_the_minimum_on_the_way_and_keeps_good_full_steps():
    """Overshooting tenfold ends at the best point of the segment; uphill and nonsense stay and are reported."""
    x, y = problem(60, 20, (0.3, 0.4, 0.5, 0.5), seed=4)
    gram, cost = SharedGram(x), 5 * weigh(y)
    dual = torch.from_numpy(np.random.default_rng(0).standard_normal(y.shape))
    best = torch.cat([s.dual for s in fit(x, y, [5.0], weigh(y))])
    target = dual + (best - dual) * torch.tensor([[10.0], [1.0], [-1.0], [torch.nan]])
    now = svm_newton.Problems(y, cost, dual, gram.apply(dual))
    after, failed = svm_newton._line_search(now, target - dual, gram.apply(target - dual))
    assert failed.tolist() == [False, False, True, True]
    assert torch.equal(after.dual[2:], dual[2:])
    torch.testing.assert_close(after.scores, gram.apply(after.dual))
    way = dual[0] + torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None] * (target - dual)[0]
    values = svm_newton.Problems(y[0], cost[0], way, gram.apply(way)).objective
    assert 0 < int(values.argmin()) < 400 and values[-1] > now.objective[0]
    assert after.objective[0] <= values.min() * (1 + 1e-9)
    torch.testing.assert_close(after.dual[1], target[1])


@pytest.mark.parametrize("width", [30, 500])
def test_estimates_keep_within_their_bounds(width):
    """Products in float32, by the matrix and by the factor, of all samples and of a few; exact where that is asked for."""
    x, _ = problem(200, width, (0.5,))
    gram, rng = SharedGram(x), np.random.default_rng(0)
    kernel = np.c_[x, np.ones(200)] @ np.c_[x, np.ones(200)].T
    dual = torch.from_numpy(rng.standard_normal((6, 200)) * 10.0 ** np.arange(6)[:, None])
    exact = torch.tensor([False, True] * 3)
    image, bound = gram.estimate(dual, exact)
    truth = dual.numpy() @ kernel
    error = np.abs(image.numpy() - truth)
    assert (error <= 4 * gram.precision * np.linalg.norm(dual, axis=1, keepdims=True)).all() and error[::2].max() > 0
    assert (
        np.abs((dual * image).sum(1).numpy() - (dual.numpy() * truth).sum(1))
        <= bound.numpy() + 1e-9 * 10.0 ** np.arange(0, 12, 2)
    ).all()
    np.testing.assert_allclose(image[1::2], truth[1::2], rtol=1e-9)
    assert not bound[1::2].any() and bound[::2].all()
    few = torch.zeros_like(dual)
    few[1:, 7:12] = dual[1:, 7:12]
    np.testing.assert_allclose(gram.estimate_few(few, exact), few.numpy() @ kernel, atol=4 * gram.precision * 1e6)
    part = gram.restrict(torch.arange(50, 90))
    assert 0 < part.precision < gram.precision


def test_a_start_changes_the_way_but_not_the_solution():
    x, y = problem(200, 40, (0.3, 0.4), seed=7)
    (cold,) = fit(x, y, [10.0], weigh(y))
    for start in (cold.dual * 0.9, -cold.dual, 100 * torch.ones_like(cold.dual)):
        (warm,) = path(SharedGram(x), y, [10.0], weigh(y), start=start)
        torch.testing.assert_close(warm.objective, cold.objective, rtol=2e-8, atol=0)
        assert warm.certificate.max() <= 1e-8


@pytest.mark.parametrize("few", [False, True])
def test_ignored_samples_have_no_influence(few):
    """Weight 0 and target 0 equal leaving it out, however wild; `few` takes the stacked solver."""
    x, y = problem(200, 40, (0.3, 0.4), seed=7)
    kept = torch.zeros(2, 200, dtype=torch.bool)
    for row in range(2):
        kept[row, torch.randperm(200, generator=torch.Generator().manual_seed(row))[: 30 if few else 150]] = True
    masked = fit(x, y * kept, (0.01, 10.0), weigh(y))
    held = fit(x, y, (0.01, 10.0), weigh(y) * kept)
    lies = fit(x, torch.where(kept, y, -y), (0.01, 10.0), weigh(y) * kept)
    assert (svm._few_samples(weigh(y) * kept) is not None) == few
    for i, cost in enumerate((0.01, 10.0)):
        assert torch.equal(masked[i].dual, held[i].dual) and torch.equal(held[i].dual, lies[i].dual)
        assert not held[i].dual[~kept].any()
        for row in range(2):
            alone = fit(x[kept[row]], y[row : row + 1, kept[row]], [cost], weigh(y)[row : row + 1, kept[row]])[0]
            scores = decision(x, alone.coefficients(x[kept[row]]))[0]
            torch.testing.assert_close(held[i].scores[row], scores, rtol=1e-3, atol=1e-4)


def test_scores_and_coefficients_agree_and_costs_keep_their_order():
    x, y = problem(50, 20, (0.3,))
    found = fit(x, y, (10.0, 0.1, 1.0))
    assert [s.cost for s in found] == [10.0, 0.1, 1.0]
    for s in found:
        torch.testing.assert_close(decision(x, s.coefficients(x)), s.scores)
    assert [s.cost for s in path(SharedGram(x), y, (10.0, 0.1, 1.0))] == [0.1, 1.0, 10.0]


def test_degenerate_problems_are_solved():
    """One class only, nothing at all, and contradicting twins."""
    x, _ = problem(30, 5, (0.5,))
    y = torch.stack([torch.ones(30), torch.zeros(30), -torch.ones(30)]).double()
    for found in fit(x, y, (2.0**-19, 1.0, 100.0)):
        assert torch.isfinite(found.scores).all() and not found.dual[1].any()
        assert (found.scores[0] > 0).all() and (found.scores[2] < 0).all()
    twins = torch.cat([x[:1], x[:1]])
    (found,) = fit(twins, torch.tensor([[1.0, -1.0]]), [1.0])
    assert found.scores.abs().max() < 1e-9


@pytest.mark.parametrize("width", [60, 700])
def test_nothing_is_estimated_in_less_than_single_precision(width):
    """Where PyTorch may multiply float32 in TF32 or bfloat16, estimates are float64; the solution is the same."""
    x, y = problem(300, width, (0.1, 0.4))
    expected = fit(x, y, COSTS, weigh(y))
    torch.set_float32_matmul_precision("high")
    try:
        gram = SharedGram(x)
        assert gram._base.dtype == torch.float64 and gram.precision < 1e-12
        for found, wanted in zip(path(gram, y, COSTS, weigh(y)), expected, strict=True):
            torch.testing.assert_close(found.objective, wanted.objective, rtol=2e-8, atol=0)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu():
    x, y = problem(600, 700, (0.1, 0.4))
    for here, there in zip(fit(x, y, COSTS), fit(x.cuda(), y.cuda(), COSTS), strict=True):
        torch.testing.assert_close(here.objective, there.objective.cpu(), rtol=1e-7, atol=0)
        assert there.certificate.max() <= 1e-8


@pytest.mark.slow
def test_thousands_of_samples_reach_the_certificate():
    """Large enough for float32 conjugate gradients, Cholesky at high cost and the random subspace matter."""
    x, y = problem(1500, 1600, (0.03, 0.2, 0.4))
    for found in fit(x, y, (2.0**-19, 2.0**-8, 2.0**-4, 1.0, 10.0, 100.0), weigh(y)):
        assert found.certificate.max() <= 1e-8
        weight = (found.cost * weigh(y)).numpy()
        w = found.coefficients(x).numpy()
        for row in range(3):
            slack = np.maximum(0, 1 - y[row].numpy() * (np.c_[x, np.ones(1500)] @ w[row]))
            gradient = w[row] - np.c_[x, np.ones(1500)].T @ (2 * weight[row] * slack * y[row].numpy())
            assert 0.5 * gradient @ gradient <= 1.01e-8 * float(found.objective[row])


VOC_COSTS = (1.0, 10.0, 100.0, *(0.5**power for power in range(4, 20)))


def agree_with_liblinear(samples, width, rates, costs, fresh=1000):
    """Test AP of every machine within 0.1 point of scikit-learn's primal solver run to convergence."""
    x, y = problem(samples + fresh, width, rates, seed=samples + width)
    x, z, y, truth = x[:samples], x[samples:], y[:, :samples], y[:, samples:].numpy().astype(int)
    fitter = make_fitter(x.numpy(), z.numpy(), torch.device("cpu"))
    for found in fitter(y, weigh(y), costs):
        assert found.certificate <= 1e-8
        ours = fitter.score(found.machines).numpy()
        unit = x.numpy() / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5)
        for row in range(len(rates)):
            machine = LinearSVC(C=found.cost, dual=False, tol=1e-8, max_iter=100000, class_weight={1: 2, -1: 1})
            machine.fit(unit, y[row].numpy())
            theirs = machine.decision_function(z.numpy() / (np.linalg.norm(z, axis=1, keepdims=True) + 1e-5))
            assert abs(voc_ap(truth[row], ours[row]) - voc_ap(truth[row], theirs)) <= 1e-3, (found.cost, row)


@pytest.mark.parametrize(("samples", "width"), [(20, 32), (20, 1000), (100, 100), (400, 32), (400, 700)])
def test_every_cost_of_the_list_agrees_with_liblinear(samples, width):
    agree_with_liblinear(samples, width, (0.1, 0.4) if samples < 100 else (0.03, 0.1, 0.4), VOC_COSTS, fresh=400)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("samples", "width", "costs"),
    [
        (5000, 32, VOC_COSTS),
        (1000, 2048, VOC_COSTS),
        (20, 9216, VOC_COSTS),
        (5000, 9216, (2.0**-19, 2.0**-7, 2.0**-4, 1.0, 10.0, 100.0)),
    ],
)
def test_large_problems_agree_with_liblinear(samples, width, costs):
    agree_with_liblinear(samples, width, (0.1, 0.4) if samples < 100 else (0.03, 0.4), costs)


def test_the_gram_matrix_is_made_of_blocks_of_rows(monkeypatch):
    x, _ = problem(130, 90, (0.5,))
    whole = SharedGram(x)
    monkeypatch.setattr(sample_rows, "ROWS", 32)
    parts = SharedGram(Rows((7 * x).numpy().astype(np.float32), unit=True))
    np.testing.assert_allclose(whole.matrix, np.c_[x, np.ones(130)] @ np.c_[x, np.ones(130)].T, rtol=1e-12)
    np.testing.assert_allclose(parts.matrix, whole.matrix, rtol=3e-5)
    unit = normalise((7 * x).numpy(), torch.device("cpu"))
    np.testing.assert_allclose(unit, 7 * x / ((7 * x).norm(dim=1, keepdim=True) + 1e-5), rtol=1e-12)


def test_single_precision_cholesky_is_accurate_at_high_cost():
    """Features that are not centred: without the deflation float32 would lose the small eigenvalues."""
    x, y = problem(900, 1200, (0.1,))
    kernel = SharedGram(x)
    curvature = 200 * weigh(y) * (torch.rand(1, 900, generator=torch.Generator().manual_seed(0)) < 0.6)
    support = curvature[0].nonzero().flatten()
    system = kernel.block(support) + torch.diag(1 / curvature[0, support])
    expected = torch.linalg.solve(system, y[0, support])
    got = kernel._cholesky(curvature[0], y[0], exact=False)[support]
    error = got - expected
    assert (error @ system @ error) ** 0.5 <= 1e-4 * (expected @ system @ expected) ** 0.5


@pytest.mark.parametrize("width", [40, 300])
def test_problems_solved_one_by_one_equal_those_solved_together(monkeypatch, width):
    x, y = problem(200, width, (0.3, 0.4), seed=7)
    y = y * torch.stack([torch.randperm(200, generator=torch.Generator().manual_seed(row)) < 60 - row for row in range(2)])
    together = fit(x, y, COSTS, weigh(y))
    monkeypatch.setattr(svm, "STACK_SIDE", 10)
    monkeypatch.setattr(svm, "_few_samples", None)  # must not be asked
    (again,) = path(SharedGram(x), y, [1.0], weigh(y), start=0.5 * together[3].dual)
    torch.testing.assert_close(again.objective, together[3].objective, rtol=2e-8, atol=0)
    for ours, theirs in zip(fit(x, y, COSTS, weigh(y)), together, strict=True):
        assert ours.certificate.max() <= 1e-8 and not ours.dual[y == 0].any()
        torch.testing.assert_close(ours.objective, theirs.objective, rtol=2e-8, atol=0)
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-3, atol=1e-3)
