# SPDX-License-Identifier: Apache-2.0
"""Annotated pictures as OpenMMLab's transforms take them, and the batches that are drawn of them."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

Item = dict[str, Any]


class Samples(Dataset[Item]):
    """Annotated pictures run through transforms.

    Indexed by (draw, index): the transforms' randomness depends on the draw alone, not on the worker that does it.
    The annotations are held as one string of bytes: as Python objects, those of a large set would be copied page by page
    into every worker.
    """

    def __init__(self, items: Sequence[Item], transforms: Sequence[Callable[[Item], Item]]) -> None:
        packed = [pickle.dumps(item) for item in items]
        self.bytes, self.transforms = b"".join(packed), transforms
        self.ends = np.cumsum([0, *map(len, packed)])

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.ends) - 1

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """The packed inputs and data sample of one draw of one picture."""
        draw, index = key
        random.seed(draw)
        np.random.seed(draw % 2**32)  # the transforms draw from NumPy's global generator
        item: Item = pickle.loads(memoryview(self.bytes)[self.ends[index] : self.ends[index + 1]])
        for transform in self.transforms:
            item = transform(item)
        return item


class Draws(Sampler[list[tuple[int, int]]]):
    """Batches of (draw, index), a shuffled pass after the other; the same for the same seed wherever it starts.

    Args:
        groups: a batch holds pictures of one group (tall or wide, to waste little padding).
        batch: pictures per batch.
        start: first batch.
        stop: batch to stop before.
        seed: seeds the order and the draws.
    """

    def __init__(self, groups: Sequence[int], batch: int, start: int, stop: int, seed: int) -> None:
        self.groups, self.batch = np.asarray(groups), min(batch, len(groups))
        self.start, self.stop, self.seed = start, stop, seed

    def __len__(self) -> int:
        """Number of batches."""
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Batch after batch."""
        done, epoch = 0, 0
        while done < self.stop:
            for indices in self._epoch(np.random.default_rng((self.seed, epoch))):
                if self.start <= done < self.stop:
                    draw = self.seed * 1_000_003 + done * self.batch
                    yield [(draw + i, int(index)) for i, index in enumerate(indices)]
                done += 1
            epoch += 1

    def _epoch(self, rng: np.random.Generator) -> list[np.ndarray]:
        order = rng.permutation(len(self.groups))
        batches = []
        for group in np.unique(self.groups):
            members = order[self.groups[order] == group]
            short = -len(members) % self.batch
            members = np.concatenate([members, np.resize(members, short)])  # fill the last batch from the front
            batches += list(members.reshape(-1, self.batch))
        return [batches[i] for i in rng.permutation(len(batches))]


def collate(samples: Sequence[Item]) -> dict[str, list[Any]]:
    """The form that OpenMMLab's data preprocessors take: lists of pictures and of data samples."""
    return {key: [sample[key] for sample in samples] for key in ("inputs", "data_samples")}
