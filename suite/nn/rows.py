# SPDX-License-Identifier: Apache-2.0
"""Rows of feature matrices larger than memory: read where they are, standardised block by block as they are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from suite.errors import JobError

EPS = 1e-5
"""Added to the variance, as batch norm does."""


def moments(parts: Sequence[np.ndarray], what: str, elements: int = 1 << 22) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance per column over the rows of all parts, in float64, one block in memory at a time.

    Blocks are merged by the update of Chan, Golub and LeVeque (1983), which does not cancel.

    Args:
        parts: matrices N×d.
        what: names them in the error.
        elements: size of a block.

    Returns:
        Two vectors of d.

    Raises:
        JobError: a value is not finite.
    """
    width = parts[0].shape[1]
    mean, square, count = np.zeros(width), np.zeros(width), 0
    for part in parts:
        for start in range(0, len(part), max(1, elements // width)):
            block = np.asarray(part[start : start + max(1, elements // width)], np.float64)
            average = block.mean(0)
            if not np.isfinite(average).all():
                row = start + int((~np.isfinite(block).all(1)).argmax())
                raise JobError(f"features of {what} are not finite (first at image {row}): the weights are damaged or overflow")
            total = count + len(block)
            apart = average - mean
            square += ((block - average) ** 2).sum(0) + apart**2 * (count * len(block) / total)
            mean += apart * (len(block) / total)
            count = total
    return mean, square / max(1, count)


class Rows:
    """Rows of one or several matrices of the same images (views of them), standardised by column.

    Args:
        parts: float32 matrices N×d, which may be memory-mapped; they are never copied as a whole, except to a GPU that has
            four times the room.
        mean: per column, d.
        variance: per column, d.
        device: where rows go.
    """

    def __init__(self, parts: Sequence[np.ndarray], mean: np.ndarray, variance: np.ndarray, device: torch.device) -> None:
        self.device = device
        self.mean = torch.as_tensor(mean, dtype=torch.float32, device=device)
        self.scale = torch.as_tensor(1 / np.sqrt(variance + EPS), dtype=torch.float32, device=device)
        resident = device.type == "cuda" and 4 * sum(part.nbytes for part in parts) < torch.cuda.mem_get_info(device)[0]
        self.parts = [_moved(part, device) if resident else part for part in parts]
        self.elements = 1 << (26 if device.type == "cuda" else 21)

    @classmethod
    def of(cls, parts: Sequence[np.ndarray], device: torch.device, what: str = "features") -> Rows:
        """With the statistics of all parts.

        Raises:
            JobError: a value is not finite.
        """
        return cls(parts, *moments(parts, what), device)

    def like(self, *parts: np.ndarray | Tensor) -> Rows:
        """Other matrices with these statistics."""
        other = Rows.__new__(Rows)
        other.device, other.mean, other.scale, other.elements = self.device, self.mean, self.scale, self.elements
        other.parts = list(parts)
        return other

    def first(self) -> Rows:
        """The first matrix alone."""
        return self.like(self.parts[0])

    def __len__(self) -> int:
        """Number of images."""
        return len(self.parts[0])

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.mean)

    def take(self, index: np.ndarray | slice, part: int = 0) -> Tensor:
        """The standardised rows of these images, n×d."""
        matrix = self.parts[part]
        if isinstance(matrix, Tensor):
            block = matrix[index if isinstance(index, slice) else torch.from_numpy(index).to(self.device)]
        else:
            block = torch.from_numpy(np.array(matrix[index])).to(self.device, non_blocking=True)
        return (block - self.mean).mul_(self.scale)

    def blocks(self, rows: np.ndarray | None = None, columns: int = 0) -> Iterator[tuple[np.ndarray, Tensor]]:
        """All parts, block by block.

        Args:
            rows: images to visit; None: all.
            columns: width of what the caller makes of a block, if that is wider than the features.

        Yields:
            Image numbers n, and their standardised rows n×d.
        """
        size = max(1, self.elements // max(self.width, columns))
        for part in range(len(self.parts)):
            count = len(self) if rows is None else len(rows)
            for start in range(0, count, size):
                stop = min(start + size, count)
                if rows is None:
                    yield np.arange(start, stop), self.take(slice(start, stop), part)
                else:
                    yield rows[start:stop], self.take(rows[start:stop], part)


def _moved(matrix: np.ndarray, device: torch.device, elements: int = 1 << 24) -> Tensor:
    """A matrix on the device, with only a block of it in memory here at a time."""
    out = torch.empty(matrix.shape, dtype=torch.float32, device=device)
    step = max(1, elements // matrix.shape[1])
    for start in range(0, len(matrix), step):
        out[start : start + step] = torch.from_numpy(np.array(matrix[start : start + step]))
    return out
