# SPDX-License-Identifier: Apache-2.0
"""Random numbers that belong to a sample, not to a generator.

Every number is a hash of (seed, epoch, sample index, stream, column), so it is the same whichever batch, process, worker or
device asks for it, and an interrupted epoch continues with the numbers it would have had. The hash chains the finaliser of
SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

import functools
import hashlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD = (1 << 64) - 1


def _signed(word: int) -> int:
    """The two's complement reading of a 64-bit word, which is what an int64 tensor holds."""
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's `>>` on int64 repeats the sign bit, the mask removes it again."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on every element; int64 products wrap modulo 2**64."""
    x = (x ^ _shift_right(x, 30)) * _signed(_MULTIPLIERS[0])
    x = (x ^ _shift_right(x, 27)) * _signed(_MULTIPLIERS[1])
    return x ^ _shift_right(x, 31)


def _mix_word(word: int) -> int:
    """SplitMix64's finaliser on one unsigned 64-bit word."""
    word = (word ^ (word >> 30)) * _MULTIPLIERS[0] & _WORD
    word = (word ^ (word >> 27)) * _MULTIPLIERS[1] & _WORD
    return word ^ (word >> 31)


@functools.lru_cache(maxsize=4096)
def _word(stream: int | str) -> int:
    """A well mixed 64-bit word for a stream's name or number."""
    if isinstance(stream, str):
        return int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little")
    return _mix_word((stream + _GOLDEN) & _WORD)


class Draws:
    """Per-sample random numbers for one batch.

    Cheapest with `index` on the CPU, where augmentations then choose their rows without waiting for the accelerator.

    Args:
        seed: the run's seed.
        epoch: the pass over the data, or any counter that should give fresh numbers.
        index: the samples' indices in the data set, N, int64; sets the device of the numbers.
    """

    __slots__ = ("key",)

    def __init__(self, seed: int, epoch: int, index: Tensor) -> None:
        if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool:
            raise ValueError(f"index must be a vector of integers, not {index.dtype} of shape {tuple(index.shape)}")
        run = _mix_word(_word(int(seed)) ^ _word(int(epoch) ^ _GOLDEN))
        self.key = _mix(_mix(index.to(torch.int64) + _signed(_GOLDEN)) ^ _signed(run))  # N

    @classmethod
    def _of(cls, key: Tensor) -> Draws:
        draws = cls.__new__(cls)
        draws.key = key
        return draws

    def __len__(self) -> int:
        return self.key.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Draws:
        """The draws of some of the samples: a slice, indices or a mask."""
        return self._of(self.key[rows])

    def to(self, device: torch.device | str) -> Draws:
        """The same numbers, computed on `device`."""
        return self._of(self.key.to(device))

    def fold(self, k: int | str) -> Draws:
        """Draws that are independent of these and of every other `k`: one per view, one per operation."""
        return self._of(_mix(self.key ^ _signed(_word(k))))

    def uniform(self, stream: int | str, k: int = 1) -> Tensor:
        """Uniform numbers in [0, 1), N×k float32, multiples of 2**-24; column j does not depend on `k`."""
        start = self.fold(stream).key[:, None]  # N×1
        steps = torch.arange(1, k + 1, device=start.device) * _signed(_GOLDEN)  # k, made where they are used
        bits = _mix(start + steps)  # N×k
        return _shift_right(bits, 40).to(torch.float32) * 2.0**-24

    def normal(self, stream: int | str, k: int = 1) -> Tensor:
        """Standard normal numbers, N×k float32 (Box and Muller, 1958)."""
        radius, angle = self.uniform(stream, 2 * k).view(-1, k, 2).unbind(2)
        return (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * torch.pi * angle)
