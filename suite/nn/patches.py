# SPDX-License-Identifier: Apache-2.0
"""Pictures cut into patches, and two pretext tasks made from a batch: where a patch was, how a picture was turned."""

from __future__ import annotations

import torch
from torch import Tensor

from suite.draws import Draws
from suite.errors import UsageError


def patchify(x: Tensor, side: int) -> Tensor:
    """N×C×H×W -> N×L×(side²·C), patches row by row, inside a patch (row, column, channel) (MAE, section 3).

    Raises:
        UsageError: the picture's sides do not divide by `side`.
    """
    n, c, h, w = x.shape
    if h % side or w % side:
        raise UsageError(f"a picture of {h}x{w} pixels does not divide into patches of {side}")
    x = x.reshape(n, c, h // side, side, w // side, side)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(n, h * w // side**2, side**2 * c)


def unpatchify(patches: Tensor, side: int, height: int) -> Tensor:
    """Undo `patchify` for pictures of `height` rows of patches."""
    n, length, width = patches.shape
    x = patches.reshape(n, height, length // height, side, side, width // side**2)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(n, -1, height * side, length // height * side)


def rotations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Every square picture turned by 0°, 90°, 180° and 270° counter-clockwise (rotation prediction, section 2.2).

    Args:
        x: N×C×S×S.

    Returns:
        4N×C×S×S, the four versions of a picture side by side, and their labels 0 to 3, 4N.
    """
    turned = torch.stack([torch.rot90(x, turn, (2, 3)) for turn in range(4)], 1).flatten(0, 1)  # 4N×C×S×S
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    turned = turned.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return turned, torch.arange(4, device=x.device).repeat(len(x))


def jittered_grid(x: Tensor, side: int, draws: Draws, grid: int = 3) -> Tensor:
    """A side×side patch at a random place of every cell of a grid×grid partition (relative location, section 3).

    The slack between patch and cell is the random gap that keeps lines from running across patches.

    Args:
        x: N×C×H×W; what a whole number of cells leaves over at the right and bottom is not used.
        side: of the patches, at most that of a cell.
        draws: of the N samples.
        grid: cells per side.

    Returns:
        N×grid²×C×side×side, cells row by row.

    Raises:
        UsageError: the patches are larger than the cells.
    """
    tall, wide = x.shape[2] // grid, x.shape[3] // grid
    if side > min(tall, wide):
        raise UsageError(f"patches of {side} pixels do not fit into cells of {tall}x{wide}")
    u = draws.uniform("grid", 2 * grid**2).to(x.device).unflatten(1, (grid**2, 2))  # N×G²×2
    cell = torch.arange(grid**2, device=x.device)
    span = torch.arange(side, device=x.device)
    top = cell // grid * tall + (u[..., 0] * (tall - side + 1)).long()  # N×G²
    left = cell % grid * wide + (u[..., 1] * (wide - side + 1)).long()
    rows, columns = (top[..., None] + span)[..., None], (left[..., None] + span)[..., None, :]  # N×G²×side×1, N×G²×1×side
    sample = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1)
    return x.permute(0, 2, 3, 1)[sample, rows, columns].permute(0, 1, 4, 2, 3)


def neighbour_pairs(features: Tensor) -> tuple[Tensor, Tensor]:
    """All eight (neighbour, centre) pairs of a 3×3 grid, as concatenated features (relative location, section 3).

    Args:
        features: N×9×d, row by row.

    Returns:
        8N×2d, and the neighbour's place among the eight, 8N int64: row by row without the centre.
    """
    n, cells, d = features.shape
    if cells != 9:
        raise ValueError(f"a 3×3 grid has 9 cells, not {cells}")
    around = torch.cat([features[:, :4], features[:, 5:]], 1)  # N×8×d
    pairs = torch.cat([around, features[:, 4:5].expand(n, 8, d)], 2)  # N×8×2d
    return pairs.flatten(0, 1), torch.arange(8, device=features.device).repeat(n)
