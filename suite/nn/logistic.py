# SPDX-License-Identifier: Apache-2.0
"""Multinomial logistic regression on feature matrices larger than memory, solved to a small gradient by L-BFGS.

The objective is scikit-learn's: C · sum of cross entropies + half the squared weights, the bias free, on standardised features.
A value and its gradient take one pass over the rows, in blocks; only the weights and the history of L-BFGS are held.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from suite.errors import UsageError
from suite.nn.rows import Rows

WIDEST = 4096
"Features up to which their covariance is decomposed to condition the problem."
FEW = 50_000
"Rows below which float32's rounding does not average out, so that all is computed in float64."


@dataclass(frozen=True)
class Solution:
    """A fitted classifier over standardised features.

    Attributes:
        weight: C×d, float64.
        bias: C, float64.
        cost: the C it was fitted with.
        loss: mean cross entropy of the training rows plus the penalty divided by C · rows.
        gradient: largest entry of that objective's gradient: how far from the optimum it may be.
        passes: passes over the training rows that this took.
    """

    weight: np.ndarray
    bias: np.ndarray
    cost: float
    loss: float
    gradient: float
    passes: int


class Objective:
    """Mean cross entropy plus penalty, and its gradient, as a function of weights and bias.

    Two classes count as scikit-learn's binary problem: one weight vector, of which the two here are plus and minus a half.

    Args:
        rows: features of all images.
        labels: class index of every image, N.
        classes: number of classes.
        index: images to fit; None: all.
    """

    def __init__(self, rows: Rows, labels: np.ndarray, classes: int, index: np.ndarray | None = None) -> None:
        self.rows, self.labels, self.classes, self.index = rows, labels, classes, index
        self.count = (len(rows) if index is None else len(index)) * len(rows.parts)
        self.dtype = torch.float64 if self.count < FEW else torch.float32
        self.passes = 0

    def penalty(self, cost: float) -> float:
        """Factor of half the squared weights in the mean objective."""
        return (2 if self.classes == 2 else 1) / (cost * self.count)

    def __call__(self, weight: Tensor, bias: Tensor, cost: float) -> tuple[float, Tensor, Tensor]:
        """Value, slope C×d and slope C at one cost; blocks are halved where they do not fit into the GPU's memory."""
        penalty = self.penalty(cost)
        while True:
            try:
                loss, slope, shift = self._pass(weight.to(self.dtype), bias.to(self.dtype))
                break
            except torch.cuda.OutOfMemoryError:
                if self.rows.elements <= self.rows.width:
                    raise
                self.rows.elements //= 2
                torch.cuda.empty_cache()
        self.passes += 1
        value = loss / self.count + 0.5 * penalty * weight.square().sum()
        return value.item(), (slope / self.count).add_(weight, alpha=penalty), shift / self.count

    @torch.no_grad()
    def _pass(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of cross entropies and its derivatives; sums over blocks in float64, whatever the type of the products."""
        slope, shift = torch.zeros_like(weight, dtype=torch.float64), torch.zeros_like(bias, dtype=torch.float64)
        loss = torch.zeros((), dtype=torch.float64, device=weight.device)
        for images, x in self.rows.blocks(self.index, self.classes):
            label = torch.from_numpy(self.labels[images]).to(weight.device)[:, None]  # n×1
            x = x.to(self.dtype)
            logged = torch.addmm(bias, x, weight.T).log_softmax(1)  # n×C
            loss -= logged.gather(1, label).sum(dtype=torch.float64)
            error = logged.exp_().scatter_add_(1, label, logged.new_full(label.shape, -1.0))
            slope += error.T @ x
            shift += error.sum(0, dtype=torch.float64)
        return loss, slope, shift

    @functools.cached_property
    def spectrum(self) -> tuple[Tensor, Tensor] | None:
        """Eigenvalues d and vectors d×d of the features' covariance, from a sample of rows; None where they are too many."""
        if self.rows.width > WIDEST:
            return None
        index = np.arange(len(self.rows)) if self.index is None else self.index
        chosen = index[np.unique(np.linspace(0, len(index) - 1, max(4096, 4 * self.rows.width)).astype(np.int64))]
        total = torch.zeros(self.rows.width, self.rows.width, dtype=torch.float64, device=self.rows.device)
        for _, x in self.rows.first().blocks(chosen):
            total += x.T @ x
        values, vectors = torch.linalg.eigh(total / len(chosen))
        return values.clamp_min_(0), vectors


class Basis:
    """Coordinates in which the objective curves about alike in all directions: those that L-BFGS works in.

    Weights are turned into the eigenvectors of the features' covariance and stretched by the square root of the curvature that
    the objective has along each at uniform class probabilities.
    """

    def __init__(self, objective: Objective, cost: float) -> None:
        curve = (objective.classes - 1) / objective.classes**2
        values, vectors = objective.spectrum or (torch.ones(1, dtype=torch.float64, device=objective.rows.device), None)
        self.vectors, self.classes, self.width = vectors, objective.classes, objective.rows.width
        self.root = (curve * values + objective.penalty(cost)).sqrt_()  # d
        self.bias_root = curve**0.5

    def pack(self, weight: Tensor, bias: Tensor) -> np.ndarray:
        """Weights C×d and bias C to one vector in these coordinates."""
        turned = weight if self.vectors is None else weight @ self.vectors
        return torch.cat([(turned * self.root).flatten(), bias * self.bias_root]).cpu().numpy()

    def unpack(self, flat: np.ndarray) -> tuple[Tensor, Tensor]:
        """Back to weights C×d and bias C."""
        both = torch.from_numpy(flat).to(self.root.device)
        turned = both[: -self.classes].view(self.classes, self.width) / self.root
        return turned if self.vectors is None else turned @ self.vectors.T, both[-self.classes :] / self.bias_root

    def pack_slope(self, slope: Tensor, shift: Tensor) -> np.ndarray:
        """A gradient by weights and bias to one in these coordinates."""
        turned = slope if self.vectors is None else slope @ self.vectors
        return torch.cat([(turned / self.root).flatten(), shift / self.bias_root]).cpu().numpy()


def fit(
    objective: Objective, cost: float, start: Solution | None = None, *, tol: float = 1e-6, iterations: int = 1000
) -> Solution:
    """Minimise at one cost.

    Args:
        objective: the data.
        cost: C, larger is less regularised.
        start: a solution to continue from.
        tol: largest entry of the gradient of the mean objective to stop at.
        iterations: most steps of L-BFGS.

    Raises:
        UsageError: a cost that is not positive.
    """
    from scipy.optimize import minimize  # takes a second, which listing and reporting need not wait for

    if not 0 < cost < float("inf"):
        raise UsageError(f"config key 'costs' = {cost}: must be positive numbers")
    basis, device, before = Basis(objective, cost), objective.rows.device, objective.passes
    weight = torch.zeros(objective.classes, objective.rows.width, dtype=torch.float64, device=device)
    bias = torch.zeros(objective.classes, dtype=torch.float64, device=device)
    if start is not None:
        weight, bias = torch.from_numpy(start.weight).to(device), torch.from_numpy(start.bias).to(device)
    best = Solution(weight.cpu().numpy(), bias.cpu().numpy(), cost, float("inf"), float("inf"), 0)

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        weight, bias = basis.unpack(flat)
        loss, slope, shift = objective(weight, bias, cost)
        largest = max(slope.abs().max().item(), shift.abs().max().item())
        if largest < best.gradient:
            passes = objective.passes - before
            best = Solution(weight.cpu().numpy(), bias.cpu().numpy(), cost, loss, largest, passes)
        if largest <= tol:
            raise _Converged
        return loss, basis.pack_slope(slope, shift)

    # No tolerance of its own: it ends by ours, or where float32 shows no further decrease.
    options = {"gtol": 0.0, "ftol": 0.0, "maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 10}
    with contextlib.suppress(_Converged):
        minimize(value, basis.pack(weight, bias), jac=True, method="L-BFGS-B", options=options)
    return replace(best, passes=objective.passes - before)


class _Converged(Exception):
    """The gradient is small enough."""


def path(objective: Objective, costs: Sequence[float], *, tol: float = 1e-6, iterations: int = 1000) -> Iterator[Solution]:
    """Solutions from the smallest to the largest cost, each starting from the one before; stop asking to stop computing."""
    last = None
    for cost in sorted(costs):
        last = fit(objective, cost, last, tol=tol, iterations=iterations)
        yield last


@torch.no_grad()
def scores(solution: Solution, rows: Rows, index: np.ndarray | None = None) -> np.ndarray:
    """Class scores n×C of images, float32; of several views the sum."""
    device = rows.device
    w: Tensor = torch.as_tensor(solution.weight, dtype=torch.float32, device=device)
    b: Tensor = torch.as_tensor(solution.bias, dtype=torch.float32, device=device)
    found = [torch.addmm(b, x, w.T).cpu().numpy() for _, x in rows.blocks(index, len(b))]
    return np.concatenate(found) if len(rows.parts) == 1 else np.concatenate(found).reshape(len(rows.parts), -1, len(b)).sum(0)
