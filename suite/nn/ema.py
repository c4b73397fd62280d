# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of a module: the momentum encoder of MoCo, BYOL and their descendants."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """A frozen copy that follows its source: xi = m·xi + (1 - m)·theta (MoCo, eq. 2).

    Parameters are averaged; buffers (batch-norm statistics) come from the copy's own forward passes. The copy is taken
    when this is built, so build it after initialisation.
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(source).requires_grad_(False)

    @torch.no_grad()
    def update(self, source: nn.Module, m: float) -> None:
        """Move towards `source`; m = 1 stays, m = 0 copies."""
        mine: list[Tensor] = list(self.module.parameters())
        theirs = [p.detach().to(q.dtype) for p, q in zip(source.parameters(), mine, strict=True)]
        torch._foreach_lerp_(mine, theirs, 1 - m)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """The copy's output, without gradient."""
        return self.module(x)


def cosine_momentum(base: float, fraction: float) -> float:
    """m_t = 1 - (1 - base)·(cos(pi·t/T) + 1)/2 (BYOL, section 3.3)."""
    return 1 - (1 - base) * (math.cos(math.pi * fraction) + 1) / 2
