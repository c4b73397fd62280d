# SPDX-License-Identifier: Apache-2.0
"""Two solvers of linear SVMs behind one face: the batched Newton method, and scikit-learn's LinearSVC as published."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from suite.errors import JobError
from suite.nn import blas
from suite.nn.gram import SharedGram
from suite.nn.samples import Rows, blocks
from suite.nn.svm import Solution, path

if TYPE_CHECKING:
    from sklearn.svm import LinearSVC


@dataclass(frozen=True)
class Fit:
    """P machines at one cost."""

    cost: float
    train: Callable[[], Tensor]
    """Gives scores P×N, left-out samples included."""
    machines: Tensor
    """What `Fitter.score` reads: P×N dual variables, or P×(d+1) weights."""
    certificate: float
    """Largest certified relative error of the objectives."""


@dataclass(frozen=True)
class Fitter:
    """A solver with its training and test features."""

    solve: Callable[[Tensor, Tensor, Sequence[float], Tensor | None], Iterator[Fit]]
    score: Callable[[Tensor], Tensor]
    """Test scores of machines, P×… -> P×L float64."""
    skim: Callable[[Tensor], Iterator[Tensor]]
    """From machines Q×P×… their test scores in float32, problem by problem P times Q×L: faster for thousands of machines,
    after a first call that multiplies all test by all training samples."""

    def __call__(self, targets: Tensor, weights: Tensor, costs: Sequence[float], about: Tensor | None = None) -> Iterator[Fit]:
        """From targets P×N in {1, -1, 0}, weights P×N (0: left out) and costs to one Fit per cost, ascending.

        `about` are machines to start from, near those of the smallest cost.
        """
        return self.solve(targets, weights, costs, about)


def make_fitter(
    train: np.ndarray,
    test: np.ndarray,
    device: torch.device,
    tol: float = 1e-8,
    solver: Literal["newton", "liblinear"] = "newton",
    name: str = "",
) -> Fitter:
    """Prepare features N×d and L×d, divided by their norm + 1e-5 in float64.

    Args:
        train: training features; may be mapped from disk, they are read in blocks of rows (but as a whole by liblinear).
        test: test features, the same.
        device: where to solve; one without float64 is replaced by the CPU.
        tol: certified relative tolerance of the Newton solver.
        solver: `newton`, or `liblinear` for scikit-learn's LinearSVC as the published VOC07 scripts call it.
        name: of the layer, for errors.

    Raises:
        JobError: a feature is not finite.
    """
    device = device if device.type in ("cpu", "cuda") else torch.device("cpu")
    x, z = Rows(train, unit=True, device=device), Rows(test, unit=True, device=device)
    for kind, rows in (("training", x), ("test", z)):
        if not torch.isfinite(rows.scale).all() or not rows.scale.all():
            raise JobError(f"layer {name!r}: the {kind} features are not all finite numbers")
    if solver == "liblinear":
        every = partial(_by_weights, z)
        return Fitter(partial(_liblinear, x), every, lambda machines: (every(one).float() for one in machines.unbind(1)))
    with blas.limit():
        gram = SharedGram(x)

    def newton(targets: Tensor, weights: Tensor, costs: Sequence[float], about: Tensor | None) -> Iterator[Fit]:
        start = None if about is None else about.to(device)
        for found in path(gram, targets.to(device), costs, weights.to(device), tol, start):
            yield Fit(found.cost, partial(_train_scores, found), found.dual.cpu(), float(found.certificate.max()))

    def score(dual: Tensor) -> Tensor:
        with blas.limit():
            return _by_weights(z, x.weigh(dual.to(device)))

    @cache
    def cross() -> Tensor:
        return x.cross(z)  # N×L

    def skim(dual: Tensor) -> Iterator[Tensor]:
        for one in dual.unbind(1):  # Q×N
            used = one.any(0).nonzero().flatten()
            with blas.limit():
                yield blas.multiply(one[:, used].to(device, torch.float32), cross()[used.to(device)]).cpu()

    return Fitter(newton, score, skim)


def _train_scores(found: Solution) -> Tensor:
    return found.scores.cpu()


def _by_weights(rows: Rows, weights: Tensor) -> Tensor:
    """Scores of machines P×(d+1): P×L."""
    weights = weights.to(rows.device)
    return torch.cat([blas.multiply(rows.block(some), weights.T) for some in blocks(len(rows))]).T.cpu()


def normalise(features: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Features N×d divided by their norm + 1e-5, in float64."""
    return Rows(features, unit=True, device=device).block(slice(None))[:, :-1]


def _liblinear(rows: Rows, targets: Tensor, weights: Tensor, costs: Sequence[float], about: Tensor | None) -> Iterator[Fit]:
    """The same problems one by one, from zero; machines that see one class only score 0."""
    from sklearn.svm import LinearSVC

    features = normalise(rows.features, torch.device("cpu")).numpy()
    for cost in sorted(set(costs)):
        machine = LinearSVC(C=cost, tol=1e-4, max_iter=2000, dual=True, intercept_scaling=1, random_state=0)
        found, worst = torch.zeros(len(targets), rows.width + 1, dtype=torch.float64), 0.0
        for row, (target, weight) in enumerate(zip(targets.numpy(), weights.numpy(), strict=True)):
            used = weight * np.abs(target) > 0
            if len(np.unique(target[used])) == 2:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # 2000 epochs are too few at large costs
                    machine.fit(features[used], target[used], sample_weight=weight[used])
                found[row] = torch.from_numpy(np.append(machine.coef_, machine.intercept_))
                worst = max(worst, _certificate(machine, features[used], target[used], cost * weight[used]))
        yield Fit(cost, partial(_by_weights, rows, found), found, worst)


def _certificate(machine: LinearSVC, x: np.ndarray, y: np.ndarray, cost: np.ndarray) -> float:
    """Half the squared gradient of the objective over the objective, for a machine fitted elsewhere."""
    z = np.c_[x, np.ones(len(x))]
    w = np.append(machine.coef_, machine.intercept_)
    slack = np.maximum(0, 1 - y * (z @ w))
    gradient = w - (2 * cost * slack * y) @ z
    return float(0.5 * gradient @ gradient / (0.5 * w @ w + (cost * slack**2).sum()))
