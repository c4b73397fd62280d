# SPDX-License-Identifier: Apache-2.0
"""Dense products and Cholesky solves: PyTorch on the GPU, NumPy's and SciPy's BLAS on the CPU.

Most builds of PyTorch bring Intel's MKL, which runs at about half speed on processors of other makers but multiplies
few rows up to three times faster than OpenBLAS on Intel's own: there products are PyTorch's too. `limit` holds
OpenBLAS to PyTorch's thread count.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import lapack
from threadpoolctl import ThreadpoolController
from torch import Tensor

PICKED_ROWS = 64
"""Rows that are picked at a time: so few stay in the cache until their columns are picked too."""
FEW_ROWS = 4
"""A product of so few rows with a matrix is faster row by row."""


@contextlib.contextmanager
def limit() -> Iterator[None]:
    """Within it NumPy and SciPy use as many threads as PyTorch does (`torch.get_num_threads()`)."""
    with _libraries().limit(limits=torch.get_num_threads(), user_api="blas"):
        yield


@cache
def _libraries() -> ThreadpoolController:
    """Looked up once: that takes milliseconds."""
    return ThreadpoolController()


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """A @ b for two matrices or two stacks of matrices."""
    if a.device.type != "cpu" or _intel():
        return a @ b
    left, right = a.numpy(), b.numpy()
    if a.ndim == 2 and 1 < len(a) <= FEW_ROWS:  # a product of matrices would first copy b, which takes longer
        return torch.from_numpy(np.stack([row @ right for row in left]))
    return torch.from_numpy(left @ right)


@cache
def _intel() -> bool:
    """Whether PyTorch multiplies with MKL on one of Intel's own processors."""
    described = Path("/proc/cpuinfo")  # on Linux, which leaves `platform.processor()` empty
    maker = platform.processor() + (described.read_text() if described.exists() else "")
    return torch.backends.mkl.is_available() and "GenuineIntel" in maker


def submatrix(matrix: Tensor, index: Tensor) -> Tensor:
    """Rows and columns `index` (S) of a square matrix: S×S, a copy."""
    if matrix.device.type != "cpu":
        return matrix[index.unsqueeze(1), index.unsqueeze(0)]
    source, at = matrix.numpy(), index.numpy()
    picked = np.empty((len(at), len(at)), source.dtype)
    for start in range(0, len(at), PICKED_ROWS):
        some = slice(start, start + PICKED_ROWS)
        np.take(source[at[some]], at, axis=1, out=picked[some], mode="clip")  # without a mode, NumPy would copy `out`
    return torch.from_numpy(picked)


def cholesky_solver(system: Tensor) -> Callable[[Tensor], Tensor]:
    """Factorise once, solve for right-hand sides S×R.

    Args:
        system: S×S, symmetric positive definite, float32 or float64; overwritten.

    Returns:
        A function from S×R to S×R in the type of `system`; its values are not a number where the system is not
        positive definite in that precision.
    """
    if system.device.type != "cpu":
        factor, info = torch.linalg.cholesky_ex(system)
        factor[info != 0] = torch.nan
        return lambda rhs: torch.cholesky_solve(rhs, factor)
    single = system.dtype == torch.float32
    factorise, solve = (lapack.spotrf, lapack.spotrs) if single else (lapack.dpotrf, lapack.dpotrs)
    # The transpose of a symmetric matrix in C order is the same matrix in the order that LAPACK wants.
    triangle, failed = factorise(system.numpy().T, lower=1, clean=0, overwrite_a=1)
    if failed:
        return lambda rhs: torch.full_like(rhs, torch.nan)
    return lambda rhs: torch.from_numpy(np.ascontiguousarray(solve(triangle, rhs.numpy(), lower=1)[0]))


def cholesky_solve(system: Tensor, rhs: Tensor) -> Tensor:
    """Solve one system, overwritten, for right-hand sides S×R; see `cholesky_solver`."""
    return cholesky_solver(system)(rhs)
