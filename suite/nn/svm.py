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
from dataclasses import dataclass
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

    Yields:
        One Solution per cost.

    Raises:
        JobError: a machine did not reach the tolerance. None is known with features of about unit norm;
            from a cost times squared norm of a million on, rounding may prevent it.
    """
    y = targets.double()
    weight = y.abs() if weights is None else weights.double() * y.abs()
    most = int((weight > 0).sum(1).max())
    if STACK_SIDE < most <= len(weight[0]) // 3:
        yield from _one_by_one(gram, y, weight, costs, tol)
        return
    index = _few_samples(weight)
    kernel: SharedGram | StackedGrams = gram
    if index is not None:
        kernel, y, weight = StackedGrams(gram.block(index)), y.gather(1, index), weight.gather(1, index)
    dual, scores, previous = torch.zeros_like(y), torch.zeros_like(y), 1.0
    for cost in sorted({float(c) for c in costs}):
        dual, scores = _warm_start(y, weight * cost, dual, scores, cost / previous)
        with blas.limit():
            dual, scores, objective, gap = _newton(kernel, y, weight * cost, dual, scores, tol)
        previous = cost
        if index is None:
            yield Solution(cost, dual, partial(_same, scores), objective, gap)
        else:
            full = torch.zeros_like(targets, dtype=torch.float64).scatter_add_(1, index, dual)
            yield Solution(cost, full, partial(gram.apply, full), objective, gap)


def _one_by_one(gram: SharedGram, y: Tensor, weight: Tensor, costs: Sequence[float], tol: float) -> Iterator[Solution]:
    """As `path`, every problem at all costs on the Gram matrix of its own samples, one problem in memory at a time."""
    ascending = sorted({float(c) for c in costs})
    start = [c for c in ascending if c <= TOGETHER]
    batches = [start] * bool(start) + [[c] for c in ascending[len(start) :]]
    index = [row.nonzero().flatten() for row in weight]
    duals: list[list[Tensor]] = []  # problem by problem, costs×S
    objectives, gaps = y.new_zeros(len(ascending), len(y)), y.new_zeros(len(ascending), len(y))
    for row, used in enumerate(index):
        target, factor = y[row : row + 1, used], weight[row : row + 1, used]
        dual, scores, previous, done = torch.zeros_like(target), torch.zeros_like(target), 1.0, 0
        duals.append([])
        with blas.limit():
            kernel = gram.restrict(used)
            for batch in batches:
                bounds = factor * factor.new_tensor(batch).unsqueeze(1)
                labels, dual, scores = (x.expand_as(bounds).contiguous() for x in (target, dual[-1:], scores[-1:]))
                if len(batch) == 1:
                    dual, scores = _warm_start(labels, bounds, dual, scores, batch[0] / previous)
                some, previous = slice(done, done + len(batch)), batch[-1]
                dual, scores, objectives[some, row], gaps[some, row] = _newton(kernel, labels, bounds, dual, scores, tol)
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


def _warm_start(y: Tensor, cost: Tensor, dual: Tensor, scores: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """The previous solution or, where that is lower, the previous solution times the ratio of the costs."""
    scaled, kept = _objective(y, cost, dual * ratio, scores * ratio), _objective(y, cost, dual, scores)
    factor = torch.where(scaled < kept, ratio, 1.0).unsqueeze(1)
    return dual * factor, scores * factor


def _objective(y: Tensor, cost: Tensor, dual: Tensor, scores: Tensor) -> Tensor:
    return 0.5 * (dual * scores).sum(1) + (cost * (1 - y * scores).clamp_min(0).square()).sum(1)


def _newton(
    kernel: SharedGram | StackedGrams, y: Tensor, cost: Tensor, dual: Tensor, scores: Tensor, tol: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Newton on the active set for P problems; solved ones leave the batch.

    Returns:
        a, f, objective and bound on its excess.
    """
    result, fitted = dual.clone(), scores.clone()
    objectives, gaps = y.new_zeros(len(y)), y.new_zeros(len(y))
    rows = torch.arange(len(y), device=y.device)
    exact = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    for step in range(MAX_STEPS):
        slack = (1 - y * scores).clamp_min(0)
        expected = 2 * cost * slack * y  # a at the optimum
        gradient, image = expected - dual, kernel.apply(expected) - scores  # g and Kg; ∇ = -Zᵀg
        gap = 0.5 * (gradient * image).sum(1).clamp_min(0)
        norm = 0.5 * (dual * scores).sum(1)
        objective = norm + (cost * slack.square()).sum(1)
        done = gap <= tol * torch.maximum(norm, (1e-6 if step < 2 * PATIENCE else 1) * objective)
        result[rows], fitted[rows], objectives[rows], gaps[rows] = dual, scores, objective, gap
        if done.all():
            return result, fitted, objectives, gaps
        keep = (~done).nonzero().flatten()
        rows, exact, kernel = rows[keep], exact[keep] | (step >= PATIENCE), kernel.take(keep)
        y, cost, dual, scores, slack = y[keep], cost[keep], dual[keep], scores[keep], slack[keep]
        curvature = 2 * cost * (slack > 0)
        active = curvature > 0
        inner, outer = dual * active, dual * ~active
        missing = y - scores - torch.where(active, dual / curvature, 0)
        if outer.any():
            missing += kernel.apply_few(outer)
        wanted = float((tol * norm[keep] / gap[keep]).min().sqrt()) / 4
        target = inner + kernel.solve(curvature, missing, exact, min(max(wanted, EXACT_DIRECTION), ROUGH))
        slopes, values = gradient[keep], objective[keep]
        dual, scores, failed = _line_search(kernel, y, cost, dual, scores, target, slopes, values)
        exact = exact | failed
    worst = float((gaps / objectives).nan_to_num(torch.inf).max())
    raise JobError(f"SVM stopped at relative gap {worst:.1e} after {MAX_STEPS} Newton steps, not below {tol:.1e}")


def _line_search(
    kernel: SharedGram | StackedGrams, y: Tensor, cost: Tensor, dual: Tensor, scores: Tensor,
    target: Tensor, gradient: Tensor, objective: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Take the full step where it is good, else bisect the slope; stay and tell where the direction fails."""
    there = kernel.apply(target)
    move, change = target - dual, there - scores
    start = -(gradient * change).sum(1)
    failed = ~(torch.isfinite(change).all(1) & torch.isfinite(move).all(1) & (start < 0))

    def slope(t: Tensor) -> Tensor:
        slack = (1 - y * (scores + t * change)).clamp_min(0)
        return ((dual + t * move - 2 * cost * slack * y) * change).sum(1)

    full = y.new_ones(len(y), 1)
    good = (slope(full) <= -0.25 * start) & (_objective(y, cost, target, there) <= objective * (1 + 1e-12))
    if bool((good & ~failed).all()):
        return target, there, failed
    low, high = torch.zeros_like(full), full.clone()
    for _ in range(30):
        middle = (low + high) / 2
        rising = slope(middle).unsqueeze(1) > 0
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    t = torch.where(good.unsqueeze(1), full, (low + high) / 2)
    stay = failed.unsqueeze(1)
    moved = torch.where(stay, dual, dual + t * move)
    return moved, torch.where(stay, scores, scores + t * change), failed
