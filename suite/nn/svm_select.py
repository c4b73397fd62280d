# SPDX-License-Identifier: Apache-2.0
"""Choosing the cost of linear SVMs: stratified folds as masks, average precision by rows, two solvers.

A batch holds P problems and their training parts per fold as (1+folds)·P rows over the same N samples, so
that the scores of held-out samples come with the fit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from suite.nn.gram import SharedGram
from suite.nn.svm import path

if TYPE_CHECKING:
    from sklearn.svm import LinearSVC


@dataclass(frozen=True)
class Fit:
    """Scores of P machines at one cost."""

    cost: float
    train: Tensor
    """P×N, left-out samples included."""
    test: Tensor
    """P×L."""
    certificate: float
    """Largest certified relative error of the objectives."""


Fitter = Callable[[Tensor, Tensor, Sequence[float]], Iterator[Fit]]
"""From targets P×N in {1, -1, 0}, weights P×N (0: left out) and costs to one Fit per cost, ascending."""


def make_fitter(
    train: np.ndarray,
    test: np.ndarray,
    device: torch.device,
    tol: float = 1e-8,
    solver: Literal["newton", "liblinear"] = "newton",
) -> Fitter:
    """Prepare features N×d and L×d, divided by their norm + 1e-5 in float64.

    Args:
        train: training features.
        test: test features.
        device: where to solve; one without float64 is replaced by the CPU.
        tol: certified relative tolerance of the Newton solver.
        solver: `newton`, or `liblinear` for scikit-learn's LinearSVC as the published VOC07 scripts call it.
    """
    device = device if device.type in ("cpu", "cuda") else torch.device("cpu")
    x, z = normalise(train, device), normalise(test, device)
    if solver == "liblinear":
        return lambda targets, weights, costs: _liblinear(x.cpu(), z.cpu(), targets, weights, costs)
    gram = SharedGram(x)
    cross = gram.cross(z)  # L×N

    def exact(targets: Tensor, weights: Tensor, costs: Sequence[float]) -> Iterator[Fit]:
        for found in path(gram, targets.to(device), costs, weights.to(device), tol):
            test_scores = (found.dual @ cross.T).cpu()
            yield Fit(found.cost, found.scores.cpu(), test_scores, float(found.certificate.max()))

    return exact


def normalise(features: np.ndarray, device: torch.device) -> Tensor:
    """Features N×d divided by their norm + 1e-5, in float64."""
    x = torch.from_numpy(np.array(features, dtype=np.float64)).to(device)
    return x / (x.norm(dim=1, keepdim=True) + 1e-5)


def _liblinear(
    x: Tensor, z: Tensor, targets: Tensor, weights: Tensor, costs: Sequence[float]
) -> Iterator[Fit]:  # fmt: skip
    """The same problems one by one; machines that see one class only score 0."""
    from sklearn.svm import LinearSVC

    features, both = x.numpy(), torch.cat([x, z]).numpy()
    for cost in sorted(set(costs)):
        machine = LinearSVC(C=cost, tol=1e-4, max_iter=2000, dual=True, intercept_scaling=1, random_state=0)
        scores, worst = torch.zeros(len(targets), len(both), dtype=torch.float64), 0.0
        for row, (target, weight) in enumerate(zip(targets.numpy(), weights.numpy(), strict=True)):
            used = weight * np.abs(target) > 0
            if len(np.unique(target[used])) == 2:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # 2000 epochs are too few at large costs
                    machine.fit(features[used], target[used], sample_weight=weight[used])
                scores[row] = torch.from_numpy(machine.decision_function(both))
                worst = max(worst, _certificate(machine, features[used], target[used], cost * weight[used]))
        yield Fit(cost, scores[:, : len(x)], scores[:, len(x) :], worst)


def _certificate(machine: LinearSVC, x: np.ndarray, y: np.ndarray, cost: np.ndarray) -> float:
    """Half the squared gradient of the objective over the objective, for a machine fitted elsewhere."""
    z = np.c_[x, np.ones(len(x))]
    w = np.append(machine.coef_, machine.intercept_)
    slack = np.maximum(0, 1 - y * (z @ w))
    gradient = w - (2 * cost * slack * y) @ z
    return float(0.5 * gradient @ gradient / (0.5 * w @ w + (cost * slack**2).sum()))


def fit_costs(
    fitter: Fitter, targets: Tensor, costs: Sequence[float], folds: int, positive_weight: float = 2.0
) -> tuple[Tensor, Tensor, float]:
    """Fit problems P×N and their cross-validation folds at every cost.

    Args:
        fitter: see `make_fitter`.
        targets: P×N in {1, -1, 0}.
        costs: in the order wanted.
        folds: 0: no cross-validation.
        positive_weight: factor on the cost of positives.

    Returns:
        held-out average precision costs×P (nan without folds), test scores costs×P×L, largest certificate.
    """
    targets = targets.double()
    weights = torch.where(targets > 0, positive_weight, 1.0) * targets.abs()
    assigned = stratified_folds(targets, max(1, folds))
    held, tested, certificates = {}, {}, []
    for fit in fitter(targets.repeat(1 + folds, 1), with_folds(weights, assigned, folds), costs):
        nothing = torch.full((len(targets),), math.nan, dtype=torch.float64)
        held[fit.cost] = cross_validated(fit.train, targets, assigned, folds) if folds else nothing
        tested[fit.cost] = fit.test[: len(targets)]
        certificates.append(fit.certificate)
    return torch.stack([held[c] for c in costs]), torch.stack([tested[c] for c in costs]), max(certificates)


def stratified_folds(targets: Tensor, folds: int = 3) -> Tensor:
    """The fold of every sample not ignored, as scikit-learn's unshuffled `StratifiedKFold` assigns it.

    Args:
        targets: P×N in {1, -1, 0}.
        folds: number of folds.

    Returns:
        P×N int64; -1 where the target is 0.
    """
    assigned = torch.full(targets.shape, -1, dtype=torch.int64, device=targets.device)
    for row, target in zip(assigned, targets, strict=True):
        present = target[target != 0]
        if not len(present):
            continue
        first = present[0]
        counts = torch.tensor([int((present == first).sum()), int((present == -first).sum())])
        order = torch.repeat_interleave(torch.arange(2), counts)  # classes in order of appearance
        share = torch.stack([torch.bincount(order[i::folds], minlength=2) for i in range(folds)])  # folds×2
        for column, value in enumerate((first, -first)):
            blocks = torch.repeat_interleave(torch.arange(folds), share[:, column])
            row[target == value] = blocks.to(row.device)
    return assigned


def with_folds(weights: Tensor, assigned: Tensor, folds: int) -> Tensor:
    """Weights of P problems, then of their training parts per fold: P×N -> (1+folds)P×N."""
    return torch.cat([weights, *(weights * (assigned != fold) for fold in range(folds))])


def cross_validated(scores: Tensor, targets: Tensor, assigned: Tensor, folds: int) -> Tensor:
    """Mean held-out average precision over folds: from the scores of a `with_folds` batch, (1+folds)P×N -> P.

    Folds without positives are left out; nan when that leaves none.
    """
    parts = scores.unflatten(0, (1 + folds, len(targets)))[1:]  # folds×P×N
    held = torch.stack([targets * (assigned == fold) for fold in range(folds)])
    return average_precision(held.flatten(0, 1), parts.flatten(0, 1)).unflatten(0, (folds, -1)).nanmean(0)


def cross_validated_scores(scores: Tensor, assigned: Tensor, folds: int) -> Tensor:
    """Every sample's score by the machine that did not see it: (1+folds)P×N -> P×N, nan where ignored."""
    parts = scores.unflatten(0, (1 + folds, len(assigned)))[1:]
    picked = parts.gather(0, assigned.clamp_min(0).unsqueeze(0)).squeeze(0)
    return torch.where(assigned >= 0, picked, torch.nan)


def average_precision(targets: Tensor, scores: Tensor) -> Tensor:
    """Average precision without interpolation, as scikit-learn's `average_precision_score`, for every row.

    Args:
        targets: P×N in {1, -1, 0}; 0 is ignored.
        scores: P×N; tied samples enter together.

    Returns:
        P in 0..1; nan for rows without positives.
    """
    key, order = torch.where(targets != 0, scores, -torch.inf).sort(1, descending=True)
    ranked = targets.gather(1, order)
    hits, seen = (ranked > 0).cumsum(1).double(), (ranked != 0).cumsum(1).double()
    last = torch.ones_like(key, dtype=torch.bool)
    last[:, :-1] = key[:, 1:] != key[:, :-1]  # end of a run of ties
    place = torch.arange(key.shape[1], device=key.device).expand_as(key)
    end = torch.where(last, place, key.shape[1]).flip(1).cummin(1).values.flip(1)
    precision = (hits / seen.clamp_min(1)).gather(1, end)
    positives = (ranked > 0).double()
    return (precision * positives).sum(1) / positives.sum(1)
