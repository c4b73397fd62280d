# SPDX-License-Identifier: Apache-2.0
"""Exact linear SVMs, many at a time: squared hinge, L2, regularised bias, sample weights, cost path.

Minimises ½‖w‖² + Σᵢ cᵢ max(0, 1 - yᵢ fᵢ)² with f = Z w, where Z holds the features and a constant 1:
the problem of scikit-learn's `LinearSVC(loss="squared_hinge", intercept_scaling=1)`. With w = Zᵀa everything
lives in sample space, so one Gram matrix serves all classes, folds (cᵢ = 0 for held-out samples), draws and
costs. Newton steps on the active set (Mangasarian, A finite Newton method for classification, 2002; Keerthi
& DeCoste, JMLR 2005) end with a certificate: the objective is 1-strongly convex, so it exceeds its minimum by
at most half the squared norm of its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from suite.errors import JobError
from suite.nn import blas
from suite.nn.gram import SharedGram
from suite.nn.samples import Rows
from suite.nn.svm_systems import EXACT_DIRECTION, StackedGrams

MAX_STEPS = 100
ROUGH = 0.1
"""Loosest relative residual of a Newton direction, for problems that are nearly solved."""
PATIENCE = 8
"""Newton steps after which the systems of the remaining problems are solved by Cholesky."""
DRIFT = 0.01
"""Part of the tolerance that the drift of estimated scores may take up."""
STACK_LIMIT = 1 << 27
"""Most elements of a stack of small Gram matrices (1 GiB of float64)."""
STACK_SIDE = 160
"""Samples up to which problems are solved as a stack, not one after another."""
TOGETHER = 2.0**-4
"""Costs up to this one need no warm start: those of a problem that is solved on its own are the rows of one batch."""


@dataclass(frozen=True)
class Solution:
    """P machines at one cost."""

    cost: float
    dual: Tensor
    """a, P×N: w = Zᵀa."""
    fitted: Callable[[], Tensor]
    """Gives `scores`."""
    objective: Tensor
    """P."""
    gap: Tensor
    """P: upper bound on the objective's distance from its minimum."""

    @cached_property
    def scores(self) -> Tensor:
        """Scores f on all N samples, those that a problem leaves out included: P×N."""
        with blas.limit():
            return self.fitted()

    @property
    def certificate(self) -> Tensor:
        """Relative bound on the distance from the minimum, P."""
        return self.gap / self.objective.clamp_min(torch.finfo(self.gap.dtype).tiny)

    def coefficients(self, features: Tensor) -> Tensor:
        """Weights w with the bias last, P×(d+1), from the training features N×d."""
        return Rows(features).weigh(self.dual)


def fit(
    features: Tensor,
    targets: Tensor,
    costs: Sequence[float],
    weights: Tensor | None = None,
    tol: float = 1e-8,
) -> list[Solution]:
    """All machines at all costs; `path` on the Gram matrix of `features`.

    Args:
        features: N×d.
        targets: P×N in {1, -1, 0}; 0: the sample is ignored.
        costs: positive, in any order; the solutions come in this order.
        weights: P×N factors on the cost per sample, default 1.
        tol: relative tolerance, see `path`.

    Raises:
        JobError: a machine did not reach the tolerance.
    """
    found = {s.cost: s for s in path(SharedGram(features), targets, costs, weights, tol)}
    return [found[float(cost)] for cost in costs]


def decision(features: Tensor, coefficients: Tensor) -> Tensor:
    """Scores of machines P×(d+1) on samples L×d: P×L."""
    return (coefficients[:, :-1] @ features.double().T) + coefficients[:, -1:]


def path(
    gram: SharedGram,
    targets: Tensor,
    costs: Sequence[float],
    weights: Tensor | None = None,
    tol: float = 1e-8,
    start: Tensor | None = None,
) -> Iterator[Solution]:
    """Solve P problems at every cost in ascending order, each from the previous solution.

    Args:
        gram: Gram matrix of the N samples.
        targets: P×N in {1, -1, 0}; 0: the sample is ignored.
        costs: positive.
        weights: P×N factors on the cost per sample, default 1; 0: the sample is held out.
        tol: a problem is solved when the bound on its excess objective is at most `tol` times ½‖w‖²; then
            the relative errors are at most `tol` (objective) and √tol (w). Where rounding prevents that,
            because the loss dwarfs ½‖w‖², `tol` times the objective is accepted.
        start: dual variables P×N near the solution at the smallest cost, default 0.

    Yields:
        One Solution per cost.

    Raises:
        JobError: a machine did not reach the tolerance. None is known with features of about unit norm;
            from a cost times squared norm of a million on, rounding may prevent it.
    """
    y = targets.double()
    weight = y.abs() if weights is None else weights.double() * y.abs()
    dual = torch.zeros_like(y) if start is None else start.to(y) * (weight > 0)
    most = int((weight > 0).sum(1).max())
    if STACK_SIDE < most <= len(weight[0]) // 3:
        yield from _one_by_one(gram, y, weight, costs, tol, dual)
        return
    index = _few_samples(weight)
    kernel: SharedGram | StackedGrams = gram
    if index is not None:
        kernel = StackedGrams(gram.block(index))
        y, weight, dual = (x.gather(1, index) for x in (y, weight, dual))
    with blas.limit():
        scores = kernel.apply(dual) if dual.any() else torch.zeros_like(dual)
    previous = None
    for cost in sorted({float(c) for c in costs}):
        dual, scores = _warm_start(y, weight * cost, dual, scores, cost / (previous or cost))
        with blas.limit():
            dual, scores, objective, gap = _newton(kernel, _Problems(y, weight * cost, dual, scores), tol)
        previous = cost
        if index is None:
            yield Solution(cost, dual, partial(_same, scores), objective, gap)
        else:
            full = torch.zeros_like(targets, dtype=torch.float64).scatter_add_(1, index, dual)
            yield Solution(cost, full, partial(gram.apply, full), objective, gap)


def _one_by_one(
    gram: SharedGram, y: Tensor, weight: Tensor, costs: Sequence[float], tol: float, start: Tensor
) -> Iterator[Solution]:
    """As `path`, every problem at all costs on the Gram matrix of its own samples, one problem in memory at a time."""
    ascending = sorted({float(c) for c in costs})
    small = [c for c in ascending if c <= TOGETHER]
    batches = [small] * bool(small) + [[c] for c in ascending[len(small) :]]
    index = [row.nonzero().flatten() for row in weight]
    duals: list[list[Tensor]] = []  # problem by problem, costs×S
    objectives, gaps = y.new_zeros(len(ascending), len(y)), y.new_zeros(len(ascending), len(y))
    for row, used in enumerate(index):
        target, factor = y[row : row + 1, used], weight[row : row + 1, used]
        dual, previous, done = start[row : row + 1, used], ascending[0], 0
        duals.append([])
        with blas.limit():
            kernel = gram.restrict(used)
            scores = kernel.apply(dual) if dual.any() else torch.zeros_like(dual)
            for batch in batches:
                bounds = factor * factor.new_tensor(batch).unsqueeze(1)
                labels, dual, scores = (x.expand_as(bounds).contiguous() for x in (target, dual[-1:], scores[-1:]))
                if len(batch) == 1:
                    dual, scores = _warm_start(labels, bounds, dual, scores, batch[0] / previous)
                some, previous = slice(done, done + len(batch)), batch[-1]
                now = _Problems(labels, bounds, dual, scores)
                dual, scores, objectives[some, row], gaps[some, row] = _newton(kernel, now, tol)
                duals[-1] += dual
                done += len(batch)
    for i, cost in enumerate(ascending):
        full = torch.zeros_like(y)
        for row, used in enumerate(index):
            full[row, used] = duals[row][i]
        yield Solution(cost, full, partial(gram.apply, full), objectives[i], gaps[i])


def _same(x: Tensor) -> Tensor:
    return x


def _few_samples(weight: Tensor) -> Tensor | None:
    """Samples of every problem, P×S, padded by ones of weight 0; None: separate matrices cost more."""
    problems, samples = weight.shape
    most = int((weight > 0).sum(1).max())
    if most**3 > 8 * samples**2 or problems * most**2 > STACK_LIMIT:
        return None
    return (weight > 0).to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : max(1, most)]


@dataclass(frozen=True)
class _Problems:
    """P problems at one cost and where they are."""

    y: Tensor
    """Targets, P×N."""
    cost: Tensor
    """c, P×N."""
    dual: Tensor
    """a, P×N."""
    scores: Tensor
    """f = K a, P×N."""

    @cached_property
    def slack(self) -> Tensor:
        """ξ, P×N."""
        return (1 - self.y * self.scores).clamp_min(0)

    @cached_property
    def gradient(self) -> Tensor:
        """What the dual variables lack, g = 2cξy - a, P×N: the gradient is -Zᵀg."""
        return 2 * self.cost * self.slack * self.y - self.dual

    @cached_property
    def norm(self) -> Tensor:
        """½‖w‖², P."""
        return 0.5 * (self.dual * self.scores).sum(1)

    @cached_property
    def objective(self) -> Tensor:
        """P."""
        return self.norm + (self.cost * self.slack.square()).sum(1)

    def take(self, rows: Tensor) -> _Problems:
        """Some of the problems."""
        return _Problems(self.y[rows], self.cost[rows], self.dual[rows], self.scores[rows])

    def at(self, dual: Tensor, scores: Tensor) -> _Problems:
        """The same problems elsewhere."""
        return replace(self, dual=dual, scores=scores)


def _warm_start(y: Tensor, cost: Tensor, dual: Tensor, scores: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """The previous solution or, where that is lower, the previous solution times the ratio of the costs."""
    kept = _Problems(y, cost, dual, scores)
    scaled = kept.at(dual * ratio, scores * ratio)
    factor = torch.where(scaled.objective < kept.objective, ratio, 1.0).unsqueeze(1)
    return dual * factor, scores * factor


def _newton(kernel: SharedGram | StackedGrams, now: _Problems, tol: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Newton on the active set for P problems; solved ones leave the batch.

    Steps add estimates to the scores. These are multiplied out where a problem is nearly solved or the estimates are too rough
    for it, and no problem is solved before. Problems that take too long are worked on without estimates.

    Returns:
        a, f, objective and bound on its excess.
    """
    result, fitted = now.dual.clone(), now.scores.clone()
    objectives, gaps = torch.zeros_like(now.norm), torch.zeros_like(now.norm)
    rows = torch.arange(len(objectives), device=objectives.device)
    exact = torch.zeros_like(rows, dtype=torch.bool)  # without estimates
    sure = torch.ones_like(exact)  # the scores are multiplied out
    for step in range(MAX_STEPS):
        image, error = kernel.estimate(now.gradient, exact)
        gap = 0.5 * ((now.gradient * image).sum(1).clamp_min(0) + error)
        near = gap <= tol * torch.maximum(now.norm, (1e-6 if step < 2 * PATIENCE else 1) * now.objective)
        result[rows], fitted[rows], objectives[rows], gaps[rows] = now.dual, now.scores, now.objective, gap
        keep = (~(near & sure)).nonzero().flatten()
        if not len(keep):
            return result, fitted, objectives, gaps
        now, kernel, rows, gap, near = now.take(keep), kernel.take(keep), rows[keep], gap[keep], near[keep]
        exact = exact[keep] | (step >= PATIENCE)
        far, sure = (~near).nonzero().flatten(), near | exact
        if len(far):
            now.dual[far], now.scores[far], failed, rough = _step(kernel.take(far), now.take(far), exact[far], gap[far], tol)
            exact[far] |= failed
            sure[far] |= failed | rough
        again = sure.nonzero().flatten()
        if len(again):
            now.scores[again] = kernel.take(again).apply(now.dual[again])
        now = now.at(now.dual, now.scores)
    worst = float((gaps / objectives).nan_to_num(torch.inf).max())
    raise JobError(f"SVM stopped at relative gap {worst:.1e} after {MAX_STEPS} Newton steps, not below {tol:.1e}")


def _step(
    kernel: SharedGram | StackedGrams, now: _Problems, exact: Tensor, gap: Tensor, tol: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One Newton step.

    The direction δ ends at 0 outside the active set S: δ_out = -a_out. Within, (D⁻¹ + K_SS) δ_S = D⁻¹ g_S - K_S,out δ_out, D
    being the curvature 2c.

    Returns:
        a, f, where the direction fails, and where f should be multiplied out: it drifts too much for the tolerance, or S stays
        the same and this has been the last step.
    """
    curvature = 2 * now.cost * (now.slack > 0)
    active = curvature > 0
    outer = torch.where(active, 0, -now.dual)
    beside = kernel.estimate_few(outer, exact)
    rhs = torch.where(active, now.gradient / curvature, 0) - beside
    wanted = float((tol * now.norm / gap).min().sqrt()) / 4
    inner, image = kernel.solve(curvature, rhs, exact, min(max(wanted, EXACT_DIRECTION), ROUGH))
    move = outer + inner
    there, failed = _line_search(now, move, beside + image)
    drift = (kernel.precision * curvature).square().sum(1) * move.square().sum(1)
    same = (active == ((there.slack > 0) & (now.cost > 0))).all(1)
    return there.dual, there.scores, failed, (drift > DRIFT * tol * now.norm) | same


def _line_search(now: _Problems, move: Tensor, change: Tensor) -> tuple[_Problems, Tensor]:
    """Take the full step where it is good, else bisect the slope; stay and tell where the direction fails.

    Args:
        now: where to start.
        move: δ, P×N.
        change: K δ, P×N.
    """
    start = -(now.gradient * change).sum(1)
    failed = ~(torch.isfinite(change).all(1) & torch.isfinite(move).all(1) & (start < 0))
    target = now.at(now.dual + move, now.scores + change)
    good = (-(target.gradient * change).sum(1) <= -0.25 * start) & (target.objective <= now.objective * (1 + 1e-12))
    if bool((good & ~failed).all()):
        return target, failed
    low, high = torch.zeros_like(start).unsqueeze(1), torch.ones_like(start).unsqueeze(1)
    for _ in range(30):
        middle = (low + high) / 2
        halfway = now.at(now.dual + middle * move, now.scores + middle * change)
        rising = (halfway.gradient * change).sum(1, keepdim=True) < 0
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    t, stay = torch.where(good.unsqueeze(1), 1, (low + high) / 2), failed.unsqueeze(1)
    dual, scores = now.dual + t * move, now.scores + t * change
    return now.at(torch.where(stay, now.dual, dual), torch.where(stay, now.scores, scores)), failed
