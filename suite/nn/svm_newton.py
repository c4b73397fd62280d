# SPDX-License-Identifier: Apache-2.0
"""Newton's method on the active set for many squared-hinge machines at a time, in sample space; see `suite.nn.svm`.

Mangasarian, A finite Newton method for classification, 2002; Keerthi & DeCoste, A modified finite Newton method for fast
solution of large scale linear SVMs, JMLR 2005.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from suite.errors import JobError
from suite.nn.gram import SharedGram
from suite.nn.svm_systems import EXACT_DIRECTION, StackedGrams

MAX_STEPS = 100
ROUGH = 0.1
"""Loosest relative residual of a Newton direction, for problems that are nearly solved."""
PATIENCE = 8
"""Newton steps after which the systems of the remaining problems are solved by Cholesky."""
DRIFT = 0.01
"""Part of the tolerance that the drift of estimated scores may take up."""


@dataclass(frozen=True)
class Problems:
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

    def take(self, rows: Tensor) -> Problems:
        """Some of the problems."""
        return Problems(self.y[rows], self.cost[rows], self.dual[rows], self.scores[rows])

    def at(self, dual: Tensor, scores: Tensor) -> Problems:
        """The same problems elsewhere."""
        return replace(self, dual=dual, scores=scores)


def warm_start(y: Tensor, cost: Tensor, dual: Tensor, scores: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """The previous solution or, where that is lower, the previous solution times the ratio of the costs."""
    kept = Problems(y, cost, dual, scores)
    scaled = kept.at(dual * ratio, scores * ratio)
    factor = torch.where(scaled.objective < kept.objective, ratio, 1.0).unsqueeze(1)
    return dual * factor, scores * factor


def newton(kernel: SharedGram | StackedGrams, now: Problems, tol: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
    kernel: SharedGram | StackedGrams, now: Problems, exact: Tensor, gap: Tensor, tol: float
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


def _line_search(now: Problems, move: Tensor, change: Tensor) -> tuple[Problems, Tensor]:
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
