# SPDX-License-Identifier: Apache-2.0
"""Fixed sine-cosine position embeddings of a grid of patches."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from suite.errors import UsageError


def sincos_2d(
    height: int,
    width: int,
    dim: int,
    *,
    first: Literal["row", "column"] = "column",
    class_tokens: int = 0,
    temperature: float = 10_000.0,
) -> Tensor:
    """[sin a·w, cos a·w, sin b·w, cos b·w] with w_i = temperature^(-i/(dim/4)), i = 0 … dim/4 - 1.

    The one-dimensional embedding of "Attention Is All You Need" (section 3.5) for either axis, as in MAE (appendix A.1)
    and MoCo v3.

    Args:
        height: rows of patches.
        width: columns of patches.
        dim: width of the embedding, a multiple of 4.
        first: what a is. `column`: the official MAE. `row`: MoCo v3 and MMSelfSup. One is the other of the transposed
            image; weights trained with one do not fit the other.
        class_tokens: rows of zeros in front.
        temperature: of the frequencies.

    Returns:
        (class_tokens + height·width)×dim float32, patches row by row.

    Raises:
        UsageError: dim is not a multiple of 4.
    """
    if dim % 4:
        raise UsageError(f"sine-cosine positions need a width that divides by 4, not {dim}")
    row = torch.arange(height, dtype=torch.float64).repeat_interleave(width)  # L
    column = torch.arange(width, dtype=torch.float64).repeat(height)  # L
    frequency = temperature ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))  # dim/4
    a, b = (row, column) if first == "row" else (column, row)
    angles = [axis[:, None] * frequency for axis in (a, b)]  # L×dim/4 each
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], 1)  # L×dim
    return torch.cat([table.new_zeros(class_tokens, dim), table]).float()
