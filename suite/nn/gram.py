# SPDX-License-Identifier: Apache-2.0
"""Gram matrices K = X Xᵀ + 1 and the Newton systems of many kernel machines that live on them.

A *problem* is a row: P problems over the same N samples are P×N tensors. Each Newton step of a squared-hinge
machine asks for (W_S⁻¹ + K_SS) δ_S = r_S, where W holds the curvature of the samples in the active set S.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

EXACT_DIRECTION = 1e-4
"""Relative residual, in the preconditioned norm, of conjugate gradients: looser costs more Newton steps."""
SINGLE_LIMIT = 4e5
"""Largest curvature times leading eigenvalue for float32: beyond it the preconditioner loses definiteness."""
CHUNK = 1 << 23
"""Elements of a temporary batch of matrices (64 MiB of float64)."""


class SharedGram:
    """One Gram matrix for all problems: samples that a problem leaves out have curvature 0.

    Args:
        features: N×d; held in float64 with a constant column appended (the regularised bias).

    Attributes:
        factor: Z, N×(d+1), with K = Z Zᵀ.
    """

    def __init__(self, features: Tensor) -> None:
        """Multiply out K, unless products with Z and then Zᵀ are cheaper than with K."""
        self.factor = with_bias(features)  # N×M
        self.size, width = self.factor.shape
        self.matrix = self.factor @ self.factor.T if 2 * width >= self.size else None  # N×N

    def apply(self, x: Tensor) -> Tensor:
        """K x for every row: P×N -> P×N, in the type of `x`."""
        factor, matrix = self._in(x.dtype)
        return (x @ factor) @ factor.T if matrix is None else x @ matrix

    def cross(self, features: Tensor) -> Tensor:
        """Gram matrix between other samples and these: L×d -> L×N."""
        return with_bias(features) @ self.factor.T

    def take(self, rows: Tensor) -> SharedGram:
        """The Gram matrix of these problems: the same for all."""
        return self

    def block(self, index: Tensor) -> Tensor:
        """K between the samples in `index` (…×S): …×S×S."""
        if self.matrix is not None:
            return self.matrix[index.unsqueeze(-1), index.unsqueeze(-2)]
        if index.ndim > 1:
            return torch.stack([self.block(row) for row in index])  # all rows of Z at once would fill the memory
        z = self.factor[index]
        return z @ z.T

    def solve(self, curvature: Tensor, rhs: Tensor, exact: Tensor) -> Tensor:
        """Solve (W_S⁻¹ + K_SS) δ_S = r_S for every problem.

        Args:
            curvature: W, P×N, 0 outside the active set.
            rhs: r, P×N; only its entries in S are read.
            exact: P booleans; True: by Cholesky, else by whichever of the two ways is cheaper.

        Returns:
            δ, P×N, 0 outside S.
        """
        rank, condition = self._preconditioner(float(curvature.max()))
        steps = 0.5 * math.log(2 / EXACT_DIRECTION) * math.sqrt(condition)
        width = self.factor.shape[1]
        product = 2.0 * self.size * (self.size if self.matrix is not None else 2 * width)
        active = (curvature > 0).sum(1).double()
        cholesky = torch.minimum(active**3 / 3, active * width**2 + width**3 / 3)
        direct = exact | (2 * cholesky < steps * product)  # a Cholesky runs at half the speed of a product
        delta = torch.zeros_like(rhs)
        if not direct.all():
            some = ~direct
            delta[some] = self._conjugate_gradients(curvature[some], rhs[some], rank, int(4 * steps) + 20)
        for row in direct.nonzero().flatten().tolist():
            delta[row] = self._cholesky(curvature[row], rhs[row])
        return delta

    def _cholesky(self, curvature: Tensor, rhs: Tensor) -> Tensor:
        support = curvature.nonzero().flatten()  # S
        weight, right = curvature[support], rhs[support]
        delta = torch.zeros_like(rhs)
        if self.factor.shape[1] < len(support):  # Woodbury: the system of the primal is the smaller one
            z = self.factor[support]  # S×M
            hessian = z.T @ (weight.unsqueeze(1) * z)  # M×M
            hessian.diagonal().add_(1)
            inner = _cholesky_solve(hessian, (weight * right) @ z)
            delta[support] = weight * (right - z @ inner)
        elif len(support):
            system = self.block(support)  # S×S
            system.diagonal().add_(1 / weight)
            delta[support] = _cholesky_solve(system, right)
        return delta

    def _conjugate_gradients(self, curvature: Tensor, rhs: Tensor, rank: int, limit: int) -> Tensor:
        """Preconditioned conjugate gradients on all rows at once; rows that are done just go on."""
        single = float(curvature.max()) * float(self._spectrum[0][0]) <= SINGLE_LIMIT
        highest = torch.get_float32_matmul_precision() == "highest"  # TF32 would spoil the direction
        dtype = torch.float32 if single and highest else torch.float64
        weight = curvature.to(dtype)
        active = weight > 0
        inverse = torch.where(active, 1 / weight, 0)
        residual = torch.where(active, rhs, 0)
        scale = residual.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        residual = (residual / scale).to(dtype)
        precondition = _Woodbury(self._spectrum[1][:, :rank].to(dtype), weight)
        delta, direction = torch.zeros_like(residual), precondition(residual)
        norm = (residual * direction).sum(1, keepdim=True)  # P×1
        target, tiny = EXACT_DIRECTION**2 * norm, torch.finfo(dtype).tiny
        for _ in range(limit):
            image = inverse * direction + active * self.apply(direction)
            step = norm / (direction * image).sum(1, keepdim=True).clamp_min(tiny)
            delta += step * direction
            residual -= step * image
            conditioned = precondition(residual)
            previous, norm = norm, (residual * conditioned).sum(1, keepdim=True)
            if not (norm > target).any():  # not-a-number counts as done: the caller sees it
                break
            direction = conditioned + norm / previous.clamp_min(tiny) * direction
        return delta.double() * scale

    def _in(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        return self._single if dtype == torch.float32 else (self.factor, self.matrix)

    @cached_property
    def _single(self) -> tuple[Tensor, Tensor | None]:
        if self.matrix is None:
            return self.factor.float(), None
        return self.factor, self.matrix.float()  # the factor is not used

    def _preconditioner(self, curvature: float) -> tuple[int, float]:
        """Rank of the preconditioner and the condition number that it leaves."""
        values = curvature * self._spectrum[0]
        rank = int((values > 8).sum())
        if rank < len(values):
            return rank, 1 + float(values[rank])
        return rank, 1.0 if rank == min(self.factor.shape) else 1 + float(values[-1])

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Leading eigenvalues, descending, and eigenvectors times their roots, N×k (subspace iteration)."""
        rank = min(256, max(16, self.size // 8), *self.factor.shape)
        generator = torch.Generator().manual_seed(0)
        block = torch.randn(min(self.size, rank + 8), self.size, generator=generator, dtype=torch.float64)
        block = block.to(self.factor.device)
        for _ in range(4):
            block = torch.linalg.qr(self.apply(block).T)[0].T
        small = self.apply(block) @ block.T
        values, vectors = torch.linalg.eigh((small + small.T) / 2)
        values, vectors = values.flip(0)[:rank].clamp_min(0), vectors.flip(1)[:, :rank]
        return values, block.T @ (vectors * values.sqrt())


class StackedGrams:
    """One small Gram matrix per problem, for problems over few of the samples.

    Args:
        matrices: P×S×S float64.
    """

    def __init__(self, matrices: Tensor) -> None:
        """Hold `matrices`."""
        self.matrices = matrices

    def apply(self, x: Tensor) -> Tensor:
        """K x for every row: P×S -> P×S."""
        return torch.bmm(x.unsqueeze(1), self.matrices).squeeze(1)

    def take(self, rows: Tensor) -> StackedGrams:
        """The matrices of these problems."""
        return self if len(rows) == len(self.matrices) else StackedGrams(self.matrices[rows])

    def solve(self, curvature: Tensor, rhs: Tensor, exact: Tensor) -> Tensor:
        """As `SharedGram.solve`, always by Cholesky."""
        step = max(1, CHUNK // self.matrices[0].numel())
        parts = zip(self.matrices.split(step), curvature.split(step), rhs.split(step), strict=True)
        return torch.cat([self._solve(*part) for part in parts])

    @staticmethod
    def _solve(matrices: Tensor, curvature: Tensor, rhs: Tensor) -> Tensor:
        active = curvature > 0
        system = matrices * active.unsqueeze(1) * active.unsqueeze(2)
        system.diagonal(dim1=1, dim2=2).add_(torch.where(active, 1 / curvature, 1))
        return _cholesky_solve(system, torch.where(active, rhs, 0))


class _Woodbury:
    """(W_S⁻¹ + B_S B_Sᵀ)⁻¹ for every problem, B being N×k.

    Equals W - W B (I + Bᵀ W B)⁻¹ Bᵀ W; the k×k inverse is taken in float64.
    """

    def __init__(self, basis: Tensor, weight: Tensor) -> None:
        self.basis, self.weight = basis, weight
        step = max(1, CHUNK // max(1, basis.numel()))
        parts = [basis.T @ (part.unsqueeze(2) * basis) for part in weight.split(step)]
        inner = torch.cat(parts).double()  # P×k×k
        inner.diagonal(dim1=1, dim2=2).add_(1)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(inner)[0]).to(basis.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        weighted = self.weight * x
        if not self.basis.shape[1]:
            return weighted
        inner = torch.bmm((weighted @ self.basis).unsqueeze(1), self.inverse).squeeze(1)  # P×k
        return weighted - self.weight * (inner @ self.basis.T)


def with_bias(features: Tensor) -> Tensor:
    """N×d -> N×(d+1) in float64, the last column 1."""
    return torch.cat([features.double(), features.new_ones(len(features), 1, dtype=torch.float64)], 1)


def _cholesky_solve(system: Tensor, rhs: Tensor) -> Tensor:
    return torch.cholesky_solve(rhs.unsqueeze(-1), torch.linalg.cholesky_ex(system)[0]).squeeze(-1)
