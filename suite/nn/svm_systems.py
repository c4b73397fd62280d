# SPDX-License-Identifier: Apache-2.0
"""Linear systems of kernel machines: a stack of small ones, a preconditioner, a Cholesky in single precision."""

from __future__ import annotations

import torch
from torch import Tensor

from suite.nn.blas import cholesky_solve, cholesky_solver, multiply, submatrix

EXACT_DIRECTION = 1e-4
"""Relative residual, in the preconditioned norm, of conjugate gradients: looser costs more Newton steps."""
KEEP = 1e-5
"""Share of a direction that the float32 preconditioner leaves in place, so that rounding cannot make it indefinite."""
SMALL_SYSTEM = 48
"""Side up to which a stack of systems is factorised in one call."""
CHUNK = 1 << 23
"""Elements of a temporary batch of matrices (64 MiB of float64)."""


class StackedGrams:
    """One small Gram matrix per problem, for problems over few of the samples.

    Args:
        matrices: P×S×S float64.
    """

    precision = 0.0
    """Nothing is estimated: the matrices are small."""

    def __init__(self, matrices: Tensor) -> None:
        """Hold `matrices`."""
        self.matrices = matrices

    def apply(self, x: Tensor) -> Tensor:
        """K x for every row: P×S -> P×S."""
        return multiply(x.unsqueeze(1), self.matrices).squeeze(1)

    def estimate(self, x: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
        """`apply`, and no error."""
        return self.apply(x), x.new_zeros(len(x))

    def estimate_few(self, x: Tensor, exact: Tensor) -> Tensor:
        """`apply`."""
        return self.apply(x)

    def take(self, rows: Tensor) -> StackedGrams:
        """The matrices of these problems."""
        return self if len(rows) == len(self.matrices) else StackedGrams(self.matrices[rows])

    def solve(self, curvature: Tensor, rhs: Tensor, exact: Tensor, tol: float = EXACT_DIRECTION) -> tuple[Tensor, Tensor]:
        """As `SharedGram.solve`, always by a float64 Cholesky."""
        step = max(1, CHUNK // self.matrices[0].numel())
        parts = zip(self.matrices.split(step), curvature.split(step), rhs.split(step), strict=True)
        delta = torch.cat([self._solve(*part) for part in parts])
        return delta, self.apply(delta)

    @staticmethod
    def _solve(matrices: Tensor, curvature: Tensor, rhs: Tensor) -> Tensor:
        if matrices.device.type == "cpu" and matrices.shape[1] > SMALL_SYSTEM:
            return torch.stack([_restricted(*one) for one in zip(matrices, curvature, rhs, strict=True)])
        active = curvature > 0
        system = matrices * active.unsqueeze(1) * active.unsqueeze(2)
        system.diagonal(dim1=1, dim2=2).add_(torch.where(active, 1 / curvature, 1))
        right = torch.where(active, rhs, 0).unsqueeze(-1)
        return torch.cholesky_solve(right, torch.linalg.cholesky_ex(system)[0]).squeeze(-1)


def _restricted(matrix: Tensor, curvature: Tensor, rhs: Tensor) -> Tensor:
    """One problem's system, on its active set only."""
    support = curvature.nonzero().flatten()
    delta = torch.zeros_like(rhs)
    if len(support):
        system = submatrix(matrix, support)
        system.diagonal().add_(1 / curvature[support])
        delta[support] = cholesky_solve(system, rhs[support].unsqueeze(1)).squeeze(1)
    return delta


class Woodbury:
    """(W_S⁻¹ + B_S B_Sᵀ)⁻¹ for every problem, B being N×k.

    Equals W - W B (I + Bᵀ W B)⁻¹ Bᵀ W; the k×k inverse is taken in float64.
    """

    def __init__(self, basis: Tensor, weight: Tensor) -> None:
        """Invert the P inner systems."""
        self.basis, self.weight = basis, weight
        parts = []
        for row in weight:
            used = row.nonzero().flatten()
            scaled = row[used].sqrt_().unsqueeze(1) * basis[used]
            parts.append(multiply(scaled.T, scaled))
        inner = torch.stack(parts).double()  # P×k×k
        inner.diagonal(dim1=1, dim2=2).add_(1)
        self.inverse = (1 - KEEP) * torch.cholesky_inverse(torch.linalg.cholesky_ex(inner)[0]).to(basis.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Solve for every row, P×N."""
        weighted = self.weight * x
        if not self.basis.shape[1]:
            return weighted
        inner = torch.bmm(multiply(weighted, self.basis).unsqueeze(1), self.inverse).squeeze(1)  # P×k
        return weighted - self.weight * multiply(inner, self.basis.T)


def deflated_solve(base: Tensor, mean: Tensor, weight: Tensor, rhs: Tensor) -> Tensor:
    """Solve (W⁻¹ + K + g gᵀ) x = r with a Cholesky of W⁻¹ + K in the type of `base` and the Sherman-Morrison formula.

    Args:
        base: K, S×S, float32 or float64.
        mean: g, S float64.
        weight: W, S.
        rhs: r, S float64.
    """
    inverse = 1 / weight
    system = base.clone()
    system.diagonal().add_(inverse.to(base.dtype))
    factor = cholesky_solver(system)

    def solve(*sides: Tensor) -> list[Tensor]:
        return list(factor(torch.stack(sides, 1).to(base.dtype)).double().unbind(1))

    plain, shift = solve(rhs, mean)  # (W⁻¹ + K)⁻¹ of r and of g

    def corrected(plain: Tensor) -> Tensor:
        return plain - shift * ((mean @ plain) / (1 + mean @ shift))

    x = corrected(plain)
    residual = rhs - inverse * x - (base @ x.to(base.dtype)).double() - mean * (mean @ x)
    return x + corrected(*solve(residual))
