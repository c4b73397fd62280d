# SPDX-License-Identifier: Apache-2.0
"""One embedding per training image (NPID), and negatives drawn from among them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suite.errors import UsageError


class MemoryBank(nn.Module):
    """Unit vectors v_1 … v_n that follow the features of their images (NPID, section 3.1).

    Random directions at the start. An index outside 0 … n - 1 is an error (IndexError or RuntimeError on the CPU, a
    device assertion on a GPU). Several processes keep equal banks by updating with the gathered batch.

    Args:
        size: number of training images n.
        dim: width of the embeddings d.
        momentum: share of the old entry in an update; 0 replaces it.
    """

    features: Tensor

    def __init__(self, size: int, dim: int, momentum: float = 0.5) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("features", F.normalize(torch.randn(size, dim), dim=1))  # n×d

    def __len__(self) -> int:
        return len(self.features)

    def lookup(self, index: Tensor) -> Tensor:
        """The entries of the images in `index`: index's shape ×d, without gradient."""
        return self.features.index_select(0, index.flatten()).unflatten(0, index.shape)

    def scores(self, q: Tensor, index: Tensor) -> Tensor:
        """Cosines q_i · v_j for the images j in row i of `index`, in float32; the gradient reaches q only.

        Args:
            q: N×d unit vectors.
            index: N×m.

        Returns:
            N×m.
        """
        with torch.autocast(q.device.type, enabled=False):
            q, bank = q.float(), self.features
            if index.shape[1] * bank.shape[1] >= len(bank):  # then all n products move less memory than m entries each
                return (q @ bank.T).gather(1, index)
            return torch.bmm(self.lookup(index), q.unsqueeze(2)).squeeze(2)

    @torch.no_grad()
    def update(self, index: Tensor, features: Tensor) -> Tensor:
        """v_i <- normalise(momentum·v_i + (1 - momentum)·f_i); of an index given twice, the last feature counts.

        Args:
            index: N, of the gathered global batch.
            features: N×d, normalised here.

        Returns:
            The new entries N×d.
        """
        new = F.normalize(features.float(), dim=1)
        mixed = F.normalize(torch.lerp(new, self.lookup(index), self.momentum), dim=1)  # N×d
        mixed = mixed[last_of_equal(index)]
        self.features.index_copy_(0, index, mixed)
        return mixed


def last_of_equal(index: Tensor) -> Tensor:
    """Position of the last equal element for every element: N -> N. Makes writes to repeated places well defined."""
    places = torch.arange(1, len(index) + 1, device=index.device)
    return ((index[:, None] == index[None]) * places).argmax(1)


def draw_negatives(
    own: Tensor, total: int, count: int, *, exclude_own: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Uniform indices of other images, with replacement (NPID, section 3.2: noise samples).

    Args:
        own: N indices of the images themselves.
        total: number of images n.
        count: negatives per image m.
        exclude_own: never draw the image itself ("ensured negatives"). Uniform over the n - 1 others, in one draw.
        generator: torch's default if None. Processes that share its seed and pass the gathered `own` agree.

    Returns:
        N×m int64.

    Raises:
        UsageError: no other image exists.
    """
    choices = total - 1 if exclude_own else total
    if choices < 1:
        raise UsageError(f"negatives need at least 2 images, not {total}")
    drawn = torch.randint(choices, (len(own), count), generator=generator, device=own.device)  # N×m
    return drawn + (drawn >= own[:, None]) if exclude_own else drawn
