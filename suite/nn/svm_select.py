# SPDX-License-Identifier: Apache-2.0
"""Choosing the cost of linear SVMs: stratified folds as masks, average precision by rows.

The training parts of P problems are folds·P rows over the same N samples, so that the scores of held-out samples come with
the fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from suite.nn.svm_fitter import Fitter


def weigh(targets: Tensor, positive_weight: float) -> Tensor:
    """Factors on the cost: that of positives, 1, and 0 where the sample is ignored."""
    return torch.where(targets > 0, positive_weight, 1.0) * targets.abs()


def fit_costs(
    fitter: Fitter,
    targets: Tensor,
    costs: Sequence[float],
    positive_weight: float = 2.0,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[list[Tensor], float]:
    """Fit problems P×N at every cost.

    Args:
        fitter: see `make_fitter`.
        targets: P×N in {1, -1, 0}.
        costs: in the order wanted.
        positive_weight: factor on the cost of positives.
        advance: told of every cost that is done.

    Returns:
        P machines per cost, largest certificate.
    """
    targets = targets.double()
    machines, certificates = {}, []
    for fit in fitter(targets, weigh(targets, positive_weight), costs):
        machines[fit.cost] = fit.machines.clone()
        certificates.append(fit.certificate)
        advance(1)
    return [machines[c] for c in costs], max(certificates)


def cross_validate(
    fitter: Fitter,
    targets: Tensor,
    costs: Sequence[float],
    folds: int,
    positive_weight: float = 2.0,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[Tensor, list[Tensor], float]:
    """Fit the training parts of problems P×N at every cost; arguments as of `fit_costs`.

    Returns:
        held-out average precision costs×P; per cost P machines that are about those of all samples, for `refit`; largest
        certificate.
    """
    targets = targets.double()
    weights, assigned = weigh(targets, positive_weight), stratified_folds(targets, folds)
    parts = torch.cat([weights * (assigned != fold) for fold in range(folds)])
    held, about, certificates = {}, {}, []
    for fit in fitter(targets.repeat(folds, 1), parts, costs):
        held[fit.cost] = cross_validated(fit.train(), targets, assigned, folds)
        about[fit.cost] = fit.machines.unflatten(0, (folds, -1)).sum(0) / (folds - 1)  # every sample is in all parts but one
        certificates.append(fit.certificate)
        advance(1)
    return torch.stack([held[c] for c in costs]), [about[c] for c in costs], max(certificates)


def refit(
    fitter: Fitter, targets: Tensor, costs: Sequence[float], about: Tensor, positive_weight: float = 2.0
) -> tuple[Tensor, float]:
    """Fit problems P×N, each at its own cost.

    Args:
        fitter: see `make_fitter`.
        targets: P×N in {1, -1, 0}.
        costs: of the problems, P.
        about: machines near the solution, see `cross_validate`.
        positive_weight: factor on the cost of positives.

    Returns:
        P machines, largest certificate.
    """
    targets = targets.double()
    weights = weigh(targets, positive_weight) * targets.new_tensor(costs).unsqueeze(1)
    (fit,) = fitter(targets, weights, [1.0], about)
    return fit.machines, fit.certificate


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


def cross_validated(scores: Tensor, targets: Tensor, assigned: Tensor, folds: int) -> Tensor:
    """Mean held-out average precision over folds: from the scores of their machines, folds·P×N -> P.

    Folds without positives are left out; nan when that leaves none.
    """
    held = torch.cat([targets * (assigned == fold) for fold in range(folds)])
    return average_precision(held, scores).unflatten(0, (folds, -1)).nanmean(0)


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


def quick_ap(target: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """`suite.metrics.average_precision` of many rankings of the same samples without sorting out which sample is where.

    Args:
        target: L in {1 present, 0 difficult: left out, -1 absent}.
        scores: Q×L; a positive ranks below its equals.

    Returns:
        Q in 0..1; nan without positives.
    """
    if not (target == 1).any():
        return np.full(len(scores), math.nan)
    every = np.sort(scores[:, target != 0], axis=1)
    hits = np.sort(scores[:, target == 1], axis=1)[:, ::-1]
    rank = every.shape[1] - np.stack([np.searchsorted(*pair) for pair in zip(every, hits, strict=True)])
    precision = np.arange(1, hits.shape[1] + 1) / rank
    return np.maximum.accumulate(precision[:, ::-1], axis=1).mean(axis=1)
