# SPDX-License-Identifier: Apache-2.0
"""Exact linear SVMs, many at a time: squared hinge, L2, regularised bias, sample weights, cost path.

Minimises ½‖w‖² + Σᵢ cᵢ max(0, 1 - yᵢ fᵢ)² with f = Z w, where Z holds the features and a constant 1:
the problem of scikit-learn's `LinearSVC(loss="squared_hinge", intercept_scaling=1)`. With w = Zᵀa everything
lives in sample space, so one Gram matrix serves all classes, folds (cᵢ = 0 for held-out samples), draws and
costs. Newton's method (`suite.nn.svm_newton`) ends with a certificate: the objective is 1-strongly convex, so it
exceeds its minimum by at most half the squared norm of its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from suite.nn import blas
from suite.nn.gram import SharedGram
from suite.nn.samples import Rows
from suite.nn.svm_newton import Problems, newton, warm_start
from suite.nn.svm_systems import StackedGrams

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
        dual, scores = warm_start(y, weight * cost, dual, scores, cost / (previous or cost))
        with blas.limit():
            dual, scores, objective, gap = newton(kernel, Problems(y, weight * cost, dual, scores), tol)
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
                    dual, scores = warm_start(labels, bounds, dual, scores, batch[0] / previous)
                some, previous = slice(done, done + len(batch)), batch[-1]
                now = Problems(labels, bounds, dual, scores)
                dual, scores, objectives[some, row], gaps[some, row] = newton(kernel, now, tol)
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
