# SPDX-License-Identifier: Apache-2.0
"""Drawing from any discrete distribution in constant time per draw."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from suite.errors import UsageError


class AliasSampler(nn.Module):
    """Walker's alias method with Vose's linear-time table (IEEE Transactions on Software Engineering 17(9), 1991).

    Column j of the table keeps j with probability `accept[j]` and gives `alias[j]` otherwise, so a draw is one uniform
    column and one uniform number. Where all weights are equal, `torch.randint` does the same.

    Args:
        weights: n non-negative numbers of any sum.

    Raises:
        UsageError: no weights, a negative or infinite one, or none above zero.
    """

    accept: Tensor
    alias: Tensor

    def __init__(self, weights: Tensor | Sequence[float]) -> None:
        super().__init__()
        w = torch.as_tensor(weights, dtype=torch.float64).cpu()
        if w.ndim != 1 or not len(w) or not torch.isfinite(w).all() or bool((w < 0).any()) or not float(w.sum()) > 0:
            raise UsageError("sampling weights must be finite, not negative and not all zero")
        accept, alias = _table((w / w.sum() * len(w)).tolist())
        self.register_buffer("accept", torch.tensor(accept, dtype=torch.float64))  # n
        self.register_buffer("alias", torch.tensor(alias))  # n

    def draw(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent indices of the given shape, int64, on the sampler's device."""
        device = self.accept.device
        column = torch.randint(len(self.accept), shape, generator=generator, device=device)
        u = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
        return torch.where(u < self.accept[column], column, self.alias[column])


def _table(scaled: list[float]) -> tuple[list[float], list[int]]:
    """Acceptance probability and alias of every column, from weights of mean 1."""
    accept, alias = list(scaled), list(range(len(scaled)))
    small = [j for j, p in enumerate(scaled) if p < 1]
    large = [j for j, p in enumerate(scaled) if p >= 1]
    while small and large:
        under, over = small.pop(), large.pop()
        alias[under] = over
        accept[over] -= 1 - accept[under]
        (small if accept[over] < 1 else large).append(over)
    for j in small + large:  # what rounding leaves over would be exactly 1
        accept[j] = 1.0
    return accept, alias
