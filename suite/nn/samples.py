# SPDX-License-Identifier: Apache-2.0
"""Samples of kernel machines that may be larger than memory: read in float64 blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from suite.nn.blas import multiply

ROWS = 1024
"""Samples in a float64 block of features."""


def blocks(size: int, step: int = 0) -> Iterator[slice]:
    """Consecutive slices of at most `step` (0: `ROWS`) rows."""
    step = step or ROWS
    return (slice(start, min(size, start + step)) for start in range(0, size, step))


class Rows:
    """Samples N×d that may be mapped from disk, given out in float64 blocks with a constant 1 appended (the bias).

    Args:
        features: N×d tensor or array; never copied as a whole.
        unit: divide every sample by its norm + 1e-5.
        device: of the blocks.
    """

    def __init__(self, features: Tensor | np.ndarray, unit: bool = False, device: torch.device | None = None) -> None:
        """Read once through for the norms."""
        self.features = features
        self.device = device or (features.device if isinstance(features, Tensor) else torch.device("cpu"))
        self.width = features.shape[1]
        self.scale = torch.ones(len(features), 1, dtype=torch.float64, device=self.device)
        if unit:
            for rows in blocks(len(features)):
                self.scale[rows] = 1 / (self._raw(rows).norm(dim=1, keepdim=True) + 1e-5)

    def __len__(self) -> int:
        """N."""
        return len(self.features)

    def _raw(self, rows: slice | Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        if isinstance(self.features, Tensor):
            return self.features[rows].to(self.device, dtype)
        chosen = self.features[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        return torch.from_numpy(np.array(chosen, dtype=np.float64 if dtype == torch.float64 else np.float32)).to(self.device)

    def block(self, rows: slice | Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Z of these samples, n×(d+1)."""
        raw = self._raw(rows, dtype)
        z = raw.new_ones(len(raw), self.width + 1)
        torch.mul(raw, self.scale[rows].to(dtype), out=z[:, :-1])
        return z

    def weigh(self, dual: Tensor) -> Tensor:
        """Weights Zᵀa of machines: P×N -> P×(d+1)."""
        total = dual.new_zeros(len(dual), self.width + 1)
        for rows in blocks(len(self)):
            total += multiply(dual[:, rows], self.block(rows))
        return total

    def cross(self, other: Rows) -> Tensor:
        """Products of these and other samples: N×L float32."""
        products = torch.empty(len(self), len(other), device=self.device)
        for columns in blocks(len(other)):
            right = other.block(columns, torch.float32).T
            for rows in blocks(len(self)):
                products[rows, columns] = multiply(self.block(rows, torch.float32), right)
        return products

    def gram(self) -> Tensor:
        """Z Zᵀ, N×N float64: only one triangle is multiplied out."""
        matrix = torch.empty(len(self), len(self), dtype=torch.float64, device=self.device)
        for rows in blocks(len(self)):
            left = self.block(rows)
            matrix[rows, rows] = multiply(left, left.T)
            for columns in blocks(rows.start):
                part = multiply(left, self.block(columns).T)
                matrix[rows, columns], matrix[columns, rows] = part, part.T
        return matrix
