# SPDX-License-Identifier: Apache-2.0
"""A fixed-length first-in first-out store of embeddings (MoCo, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from suite.errors import UsageError


class Queue(nn.Module):
    """The last `size` keys, L2-normalised; filled with random unit vectors at the start, as the official code does.

    Args:
        size: number of keys K.
        dim: their width.
    """

    keys: Tensor
    position: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", nn.functional.normalize(torch.randn(size, dim), dim=1))  # K×d
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Replace the oldest entries by `keys` (N×d, the gathered global batch).

        Raises:
            UsageError: more keys than the queue holds.
        """
        size, count = len(self.keys), len(keys)
        if count > size:
            raise UsageError(f"queue of {size} is smaller than the global batch {count}; set queue >= batch")
        slots = (self.position + torch.arange(count, device=keys.device)) % size
        self.keys[slots] = keys.to(self.keys.dtype)
        self.position.copy_((self.position + count) % size)
