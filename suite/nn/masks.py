# SPDX-License-Identifier: Apache-2.0
"""Which patches a masked-image model hides, drawn for a whole batch at a time, and the tokens that remain.

Masks come from per-sample draws: they depend on (seed, epoch, index), not on the batch, the process or the device.
True (or 1) means hidden throughout.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from suite.draws import Draws
from suite.errors import UsageError

ROUNDS = 48
"""Blocks proposed per sample by `block_mask`: at 75 of 14×14 they leave 1 place missing in 6 % of the samples."""


@dataclass(frozen=True)
class Kept:
    """A random choice of tokens and the way back (MAE, section 3, "Simple implementation")."""

    keep: Tensor
    """N×K places of the visible tokens, in shuffled order."""
    restore: Tensor
    """N×L: where each token of the picture is in (visible, hidden)."""
    mask: Tensor
    """N×L bool, True for hidden."""


def random_masking(draws: Draws, length: int, keep: int) -> Kept:
    """Keep `keep` of `length` tokens of every sample: sort random numbers, take the first ones.

    Raises:
        UsageError: `keep` is not between 1 and `length`.
    """
    if not 1 <= keep <= length:
        raise UsageError(f"{keep} visible patches of {length}: choose 1 to {length}")
    shuffle = draws.uniform("mask", length).argsort(dim=1, stable=True)  # N×L; equal numbers must not differ by device
    restore = shuffle.argsort(1)
    return Kept(shuffle[:, :keep], restore, restore >= keep)


def random_mask(draws: Draws, length: int, hidden: int) -> Tensor:
    """Hide exactly `hidden` of `length` places of every sample: N×length bool."""
    if not 0 <= hidden < length:
        raise UsageError(f"{hidden} hidden patches of {length}: choose 0 to {length - 1}")
    return random_masking(draws, length, length - hidden).mask


def simmim_mask(draws: Draws, size: int = 192, block: int = 32, stride: int = 4, ratio: float = 0.6) -> Tensor:
    """Random blocks of block×block pixels on the grid of a network's patches (SimMIM, section 3.2).

    Args:
        draws: of the N samples.
        size: side of the picture in pixels.
        block: side of what is hidden together.
        stride: side of the network's patches.
        ratio: share of hidden blocks, rounded up.

    Returns:
        N×(size/stride)×(size/stride) bool.

    Raises:
        UsageError: sides that do not divide.
    """
    if size % block or block % stride:
        raise UsageError(f"masks need size {size} to divide by block {block}, and that by stride {stride}")
    side = size // block
    mask = random_mask(draws, side**2, math.ceil(side**2 * ratio)).unflatten(1, (side, side))
    return upsample(mask, block // stride)


def upsample(mask: Tensor, factor: int) -> Tensor:
    """Repeat every place of N×h×w masks factor×factor times."""
    return mask.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def block_mask(
    draws: Draws, height: int = 14, width: int = 14, hidden: int = 75, smallest: int = 16, aspect: float = 0.3
) -> Tensor:
    """Blockwise masking: rectangles of random place, area and shape until `hidden` places are hidden (BEiT, algorithm 1).

    A block's area is uniform between `smallest` and what is still missing, its aspect ratio log-uniform between `aspect`
    and 1/aspect. A block that would hide nothing new or too much is drawn again. What `ROUNDS` proposals leave missing
    in rare samples is filled up by single random places, as the official CAE does, so every sample hides exactly `hidden`.

    All samples propose their next block at once: the cost is a fixed number of small operations.

    Args:
        draws: of the N samples.
        height: rows of patches.
        width: columns of patches.
        hidden: places to hide.
        smallest: area of a block, unless less is missing.
        aspect: smallest height/width.

    Returns:
        N×height×width bool.

    Raises:
        UsageError: not 0 <= hidden < height·width.
    """
    if not 0 <= hidden < height * width:
        raise UsageError(f"{hidden} hidden patches of {height}x{width}: choose 0 to {height * width - 1}")
    n, device = len(draws), draws.key.device
    u = draws.uniform("blocks", 4 * ROUNDS).unflatten(1, (ROUNDS, 4))  # N×R×4: area, shape, place
    row, column = torch.arange(height, device=device), torch.arange(width, device=device)
    mask = torch.zeros(n, height, width, dtype=torch.bool, device=device)
    missing = torch.full((n,), hidden, device=device)
    for area, shape, down, across in u.permute(1, 2, 0):  # N each
        target = smallest + (missing - smallest) * area
        ratio = torch.exp((2 * shape - 1) * math.log(1 / aspect))
        h, w = (target * ratio).sqrt().round(), (target / ratio).sqrt().round()
        top, left = (down * (height - h + 1)).floor(), (across * (width - w + 1)).floor()
        rows = (row >= top[:, None]) & (row < (top + h)[:, None])  # N×height
        columns = (column >= left[:, None]) & (column < (left + w)[:, None])  # N×width
        new = rows[:, :, None] & columns[:, None] & ~mask
        gain = new.sum((1, 2))
        good = (h < height) & (w < width) & (gain > 0) & (gain <= missing)
        mask |= new & good[:, None, None]
        missing = missing - gain * good
    return _fill(mask, missing, draws)


def _fill(mask: Tensor, missing: Tensor, draws: Draws) -> Tensor:
    """Hide `missing` more random places of every sample."""
    flat = mask.flatten(1)
    order = (draws.uniform("fill", flat.shape[1]) + flat).argsort(dim=1, stable=True)  # visible places first
    chosen = order.argsort(1) < missing[:, None]
    return (flat | chosen).view_as(mask)


def take_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """Tokens N×L×d at places N×K: N×K×d."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))


def visible_and_hidden(mask: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    """Places of visible and of hidden tokens, in order, from masks N×L that hide `hidden` each: N×(L-M), N×M.

    Raises:
        ValueError: a mask that hides another number (seen on the CPU only; asking a GPU would mean waiting for it).
    """
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    if mask.device.type == "cpu" and bool((mask.sum(1) != hidden).any()):
        raise ValueError(f"a mask does not hide {hidden} patches")
    return order[:, : mask.shape[1] - hidden], order[:, mask.shape[1] - hidden :]


@contextlib.contextmanager
def hidden_patches(net: Any, mask: Tensor, token: Tensor) -> Iterator[None]:
    """While open, a timm ViT or Swin sees `token` in place of the hidden patches' embeddings (SimMIM, section 3.2).

    Replaced right after the patch embedding, before positions are added.

    Args:
        net: a network with `patch_embed` that gives N×L×d (ViT) or N×h×w×d (Swin).
        mask: N×h×w bool.
        token: d, learned.
    """

    def replace(module: Any, inputs: Any, output: Tensor) -> Tensor:
        hidden = mask.flatten(1) if output.ndim == 3 else mask
        return torch.where(hidden.unsqueeze(-1), token.to(output.dtype), output)

    handle = net.patch_embed.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def masked_l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error over hidden pixels (SimMIM, eq. 1), float32.

    Args:
        prediction: N×C×H×W.
        target: N×C×H×W.
        mask: N×h×w, each place H/h×W/w pixels.
    """
    hidden = F.interpolate(mask[:, None].float(), size=target.shape[2:])  # N×1×H×W
    error = (prediction.float() - target.float()).abs() * hidden
    return error.sum() / (hidden.sum() + 1e-5) / target.shape[1]
