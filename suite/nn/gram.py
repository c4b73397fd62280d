# SPDX-License-Identifier: Apache-2.0
"""Gram matrices K = X Xᵀ + 1 and the Newton systems of many kernel machines that live on them.

A *problem* is a row: P problems over the same N samples are P×N tensors. Each Newton step of a squared-hinge
machine asks for (W_S⁻¹ + K_SS) δ_S = r_S, where W holds the curvature of the samples in the active set S.

Memory of K in float64 plus K in float32: 0.3 GB for N = 5,011 (VOC07), 1.2 GB for 10,000, 4.8 GB for 20,000 (3.2 + 1.6),
30 GB for 50,000; a Cholesky adds at most as much as K again. Where 2(d+1) < N the factor is kept instead, 12·N·(d+1) bytes:
2.5 GB for N = 100,000 and d = 2,048. `SharedGram.restrict` to S samples adds 12·S² bytes: 44 MB for S = 1,920.
"""

from __future__ import annotations

import math
from copy import copy
from functools import cached_property

import torch
from torch import Tensor

from suite.nn.blas import cholesky_solve, multiply, submatrix
from suite.nn.samples import Rows, blocks
from suite.nn.svm_systems import EXACT_DIRECTION, Woodbury, deflated_solve

CHOLESKY_SLOWNESS = 1.5
"""How much longer an operation of a Cholesky takes than one of a product of many rows."""
LEAST_ROWS = 24
"""A product of fewer rows takes as long as one of so many: it waits for memory."""
GATHER = 200
"""Operations in the time in which an element of a system is picked."""
FEW = 6
"""One row of K in so many, or fewer, is worth picking out: the copy is read and written again."""


class SharedGram:
    """One Gram matrix for all problems: samples that a problem leaves out have curvature 0.

    Directions are computed in float32 on K - g gᵀ, the Gram matrix without the direction of the mean sample: of features
    that are not centred, and of the bias, that one direction holds the largest eigenvalue by far, which float32 could not
    carry beside the small ones.

    Args:
        features: N×d, or a `Rows`.

    Attributes:
        matrix: K, N×N float64; None where products with the factor are cheaper.
        factor: Z, N×(d+1) float64, with K = Z Zᵀ; None where K is there.
    """

    def __init__(self, features: Tensor | Rows) -> None:
        """Multiply out K, unless products with Z and then Zᵀ are cheaper than with K."""
        self.rows = features if isinstance(features, Rows) else Rows(features)
        self.size, self.width = len(self.rows), self.rows.width + 1
        self.factor: Tensor | None = None
        self.matrix: Tensor | None = None
        if 2 * self.width < self.size:
            self.factor = self.rows.block(slice(None))  # N×M
        else:
            self.matrix = self.rows.gram()  # N×N

    def apply(self, x: Tensor) -> Tensor:
        """K x for every row: P×N -> P×N float64."""
        if self.matrix is not None:
            return multiply(x, self.matrix)
        factor = self._factor
        return multiply(multiply(x, factor), factor.T)

    def estimate(self, x: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
        """K x with the rounding of the type of `_base`, and a bound on the error of xᵀKx: P×N and P.

        Args:
            x: P×N float64.
            exact: P booleans; True: as `apply`.
        """
        bound = 4 * math.sqrt(self.size) * self.precision
        image, error = x.new_empty(x.shape), bound * x.square().sum(1)
        if not exact.all():
            some = x[~exact]
            image[~exact] = self._with_mean(some, self._apply_base(some))
        if exact.any():
            image[exact], error[exact] = self.apply(x[exact]), 0
        return image, error

    def estimate_few(self, x: Tensor, exact: Tensor) -> Tensor:
        """`estimate` for rows of which most entries are 0, the same ones in all, or all."""
        image = torch.zeros_like(x)
        rows = x.any(1)
        if not rows.any():
            return image
        used = x.any(0).nonzero().flatten()
        if self.matrix is None or FEW * len(used) > self.size:
            image[rows] = self.estimate(x[rows], exact[rows])[0]
        else:
            image[rows] = multiply(x[rows][:, used], self.matrix[used])
        return image

    def _apply_base(self, x: Tensor) -> Tensor:
        """K - g gᵀ times every row, in the type of `_base`."""
        base = self._base
        x = x.to(base.dtype)
        return multiply(x, base) if self.matrix is not None else multiply(multiply(x, base), base.T)

    def _with_mean(self, x: Tensor, image: Tensor) -> Tensor:
        """K x from (K - g gᵀ) x, in float64."""
        return image.double().addmm_((x @ self._mean).unsqueeze(1), self._mean.unsqueeze(0))

    @property
    def _factor(self) -> Tensor:
        if self.factor is None:
            raise ValueError("this Gram matrix is multiplied out, its factor is not kept")
        return self.factor

    def take(self, rows: Tensor) -> SharedGram:
        """The Gram matrix of these problems: the same for all."""
        return self

    def restrict(self, index: Tensor) -> SharedGram:
        """The Gram matrix of the samples in `index` (S) alone; its mean direction and preconditioner are this one's rows."""
        values, vectors = self._spectrum
        part = copy(self)
        part.size, part.factor, part.matrix = len(index), None, None
        part._mean = self._mean[index]
        if self.factor is not None and 2 * self.width < part.size:
            part.factor, part._base = self.factor[index], self._base[index]
        else:
            part.matrix, part._base = self.block(index), self._among(self._base, index)
        part._spectrum = values * (part.size / self.size), vectors[index]
        part.__dict__.pop("precision", None)  # its own is smaller
        return part

    def block(self, index: Tensor) -> Tensor:
        """K between the samples in `index` (…×S): …×S×S."""
        if index.ndim > 1:
            return torch.stack([self.block(row) for row in index])
        return self._among(self._factor if self.matrix is None else self.matrix, index)

    def _among(self, source: Tensor, index: Tensor) -> Tensor:
        """S×S of a matrix like K, or of the products of a factor like Z, whichever is kept."""
        if self.matrix is not None:
            return submatrix(source, index)
        z = source[index]
        return multiply(z, z.T)

    def solve(self, curvature: Tensor, rhs: Tensor, exact: Tensor, tol: float = EXACT_DIRECTION) -> tuple[Tensor, Tensor]:
        """Solve (W_S⁻¹ + K_SS) δ_S = r_S for every problem.

        Args:
            curvature: W, P×N, 0 outside the active set.
            rhs: r, P×N; only its entries in S are read.
            exact: P booleans; True: by a float64 Cholesky, else by whichever way is cheaper.
            tol: relative residual, in the preconditioned norm, that conjugate gradients may leave.

        Returns:
            δ, P×N, 0 outside S; and an estimate of K δ.
        """
        try:
            return self._solve(curvature, rhs, exact, tol)
        except torch.cuda.OutOfMemoryError:
            if len(rhs) == 1:
                raise
            torch.cuda.empty_cache()
            halves = zip(curvature.chunk(2), rhs.chunk(2), exact.chunk(2), strict=True)
            delta, image = zip(*(self.solve(*half, tol) for half in halves), strict=True)
            return torch.cat(delta), torch.cat(image)

    def _solve(self, curvature: Tensor, rhs: Tensor, exact: Tensor, tol: float) -> tuple[Tensor, Tensor]:
        rank, condition = self._preconditioner(float(curvature.max()))
        steps = 0.5 * math.log(2 / tol) * math.sqrt(condition)
        direct = exact | self._direct((curvature > 0).sum(1).double(), steps, exact)
        delta, image = torch.zeros_like(rhs), torch.zeros_like(rhs)
        if not direct.all():
            some = ~direct
            delta[some], image[some] = self._conjugate_gradients(curvature[some], rhs[some], rank, int(4 * steps) + 20, tol)
        for row in direct.nonzero().flatten().tolist():
            delta[row] = self._cholesky(curvature[row], rhs[row], bool(exact[row]))
        if direct.any():
            image[direct] = self.estimate(delta[direct], exact[direct])[0]
        return delta, image

    def _direct(self, active: Tensor, steps: float, exact: Tensor) -> Tensor:
        """Which problems are cheaper by Cholesky than by so many steps of conjugate gradients, P."""
        product = 2.0 * self.size * (self.size if self.matrix is not None else 2 * self.width)
        cholesky = active**3 / 3 + GATHER * active**2
        if self.factor is not None:
            cholesky = torch.minimum(cholesky, active * self.width**2 + self.width**3 / 3)
        direct = exact | (CHOLESKY_SLOWNESS * cholesky < steps * product)
        left = cholesky[~direct]
        few = CHOLESKY_SLOWNESS * float(left.sum()) < steps * product * max(len(left), LEAST_ROWS)
        return torch.ones_like(direct) if few else direct

    def _cholesky(self, curvature: Tensor, rhs: Tensor, exact: bool) -> Tensor:
        support = curvature.nonzero().flatten()  # S
        weight, right = curvature[support], rhs[support]
        delta = torch.zeros_like(rhs)
        if not len(support):
            return delta
        if self.factor is not None and self.width < len(support):  # Woodbury: the system of the primal is smaller
            z = self.factor[support]  # S×M
            hessian = multiply(z.T, weight.unsqueeze(1) * z)  # M×M
            hessian.diagonal().add_(1)
            inner = cholesky_solve(hessian, ((weight * right) @ z).unsqueeze(1)).squeeze(1)
            delta[support] = weight * (right - z @ inner)
        elif exact or self.matrix is None:
            system = self.block(support)  # S×S
            system.diagonal().add_(1 / weight)
            delta[support] = cholesky_solve(system, right.unsqueeze(1)).squeeze(1)
        else:
            delta[support] = deflated_solve(submatrix(self._base, support), self._mean[support], weight, right)
        return delta

    def _conjugate_gradients(
        self, curvature: Tensor, rhs: Tensor, rank: int, limit: int, tol: float = EXACT_DIRECTION
    ) -> tuple[Tensor, Tensor]:
        """Preconditioned conjugate gradients on all rows at once; rows that are done just go on."""
        dtype = self._base.dtype
        mean = self._mean.to(dtype)
        weight = curvature.to(dtype)
        active = weight > 0
        inverse = torch.where(active, 1 / weight, 0)
        residual = torch.where(active, rhs, 0)
        scale = residual.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        residual = (residual / scale).to(dtype)
        precondition = Woodbury(self._spectrum[1][:, :rank].to(dtype), weight)
        delta, product, direction = torch.zeros_like(residual), torch.zeros_like(residual), precondition(residual)
        norm = (residual * direction).sum(1, keepdim=True)  # P×1
        target, tiny = tol**2 * norm, torch.finfo(dtype).tiny
        for _ in range(limit):
            image = self._apply_base(direction)
            whole = image.addmm((direction @ mean).unsqueeze(1), mean.unsqueeze(0)).mul_(active).addcmul_(inverse, direction)
            step = norm / (direction * whole).sum(1, keepdim=True).clamp_min(tiny)
            delta.addcmul_(step, direction)
            product.addcmul_(step, image)
            residual.addcmul_(step, whole, value=-1)
            conditioned = precondition(residual)
            previous, norm = norm, (residual * conditioned).sum(1, keepdim=True)
            if not (norm > target).any():  # not-a-number counts as done: the caller sees it
                break
            direction = torch.addcmul(conditioned, norm / previous.clamp_min(tiny), direction)
        found = delta.double()
        return found * scale, self._with_mean(found, product) * scale

    @cached_property
    def _mean(self) -> Tensor:
        """The direction of the mean sample, g = K 1 / ‖1‖_K in float64."""
        if self.matrix is not None:
            total = self.matrix.sum(1)
            return total / total.sum().sqrt()
        return self._factor @ self._middle

    @property
    def _middle(self) -> Tensor:
        """Direction of the mean sample, M."""
        total = self._factor.sum(0)
        return total / total.norm()

    @cached_property
    def _base(self) -> Tensor:
        """K - g gᵀ, or the factor without its mean direction, in float32; in float64 where TF32 would spoil products."""
        dtype = torch.float32 if torch.get_float32_matmul_precision() == "highest" else torch.float64
        if self.matrix is None:
            return (self._factor - self._mean.unsqueeze(1) * self._middle).to(dtype)
        mean, base = self._mean, torch.empty_like(self.matrix, dtype=dtype)
        for rows in blocks(self.size):
            base[rows] = torch.addmm(self.matrix[rows], mean[rows].unsqueeze(1), mean.unsqueeze(0), alpha=-1).to(dtype)
        return base

    @cached_property
    def precision(self) -> float:
        """Error of one element of K x by `estimate`, for ‖x‖ = 1."""
        size = float(self._base.norm()) ** (1 if self.matrix is not None else 2)  # at least the largest eigenvalue
        return torch.finfo(self._base.dtype).eps * size / math.sqrt(self.size)

    def _preconditioner(self, curvature: float) -> tuple[int, float]:
        """Rank of the preconditioner and the condition number that it leaves."""
        values = curvature * self._spectrum[0]
        rank = int((values > 2).sum())
        if rank < len(values):
            return rank, 1 + float(values[rank])
        return rank, 1.0 if rank == min(self.size, self.width) else 1 + float(values[-1])

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Leading eigenvalues, descending, and eigenvectors times their roots, N×k (subspace iteration)."""
        rank = min(256, max(16, self.size // 8), self.size, self.width)
        generator = torch.Generator().manual_seed(0)
        block = torch.randn(min(self.size, rank + 8), self.size, generator=generator)
        block = block.to(self.rows.device)
        for _ in range(4):
            image = self._with_mean(block.double(), self._apply_base(block)).to(block.dtype)
            block = torch.linalg.qr(image.T)[0].T.contiguous()
        block = torch.linalg.qr(block.double().T)[0].T.contiguous()
        small = multiply(self.apply(block), block.T)
        values, vectors = torch.linalg.eigh((small + small.T) / 2)
        values, vectors = values.flip(0)[:rank].clamp_min(0), vectors.flip(1)[:, :rank]
        return values, multiply(block.T, vectors * values.sqrt())
