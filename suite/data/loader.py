# SPDX-License-Identifier: Apache-2.0
"""From an image set to batches of views on the training device.

What a sample looks like depends on (seed, epoch, index) alone, never on the number of workers, processes or the batch it
falls into. Sets that live decoded in memory are augmented whole batches at a time on the device. Larger photographs are
decoded and cropped by workers (the crop is the view's first operation), the rest happens on the device.
"""

from __future__ import annotations

import atexit
import signal
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from suite.data.imageset import ImageSet
from suite.draws import Draws
from suite.errors import JobError, SuiteError, UsageError
from suite.method import Batch
from suite.views import View

Item = tuple[list[np.ndarray], int]
"""The views of one picture, S×S×3 uint8 each, and its index."""
SHARED = (signal.SIGINT, signal.SIGTERM)
"""Signals that reach a whole group of processes."""


class Loader:
    """Batches of a training set, for one process of several.

    Args:
        images: the set.
        views: one View per picture that the method wants of an image.
        batch: global batch; every process yields its contiguous share of it.
        seed: of order and augmentation.
        device: where batches go.
        workers: decoding processes (only for sets that are not in memory).
        rank: this process.
        world: number of processes.
        accumulate: micro-batches per step and process.
        channels_last: memory format of the views.
        shuffle: False keeps the set's order and the short last batch (evaluation).

    Raises:
        UsageError: the set is smaller than the batch, or the batch does not divide by processes × accumulation.
    """

    def __init__(
        self,
        images: ImageSet,
        views: Sequence[View],
        batch: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        channels_last: bool = False,
        shuffle: bool = True,
    ) -> None:
        if batch % (world * accumulate):
            raise UsageError(f"batch {batch} does not divide by {world} process(es) x {accumulate} accumulated step(s)")
        if len(images) < batch and shuffle:
            raise UsageError(f"batch {batch} is larger than {images.name}/{images.split} with {len(images)} images")
        self.images, self.views, self.batch, self.seed = images, tuple(views), batch, seed
        self.device, self.workers = torch.device(device), workers
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.channels_last, self.shuffle = channels_last, shuffle
        self.labels = None if images.labels is None else torch.as_tensor(images.labels)
        self.pixels = None if images.array is None else _resident(images.array, self.device)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; a short last batch is dropped when training."""
        full, rest = divmod(len(self.images), self.batch)
        return full if self.shuffle or not rest else full + 1

    def order(self, epoch: int) -> Tensor:
        """The epoch's order of indices, the same on every process."""
        if not self.shuffle:
            return torch.arange(len(self.images))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.images), generator=generator)

    def epoch(self, epoch: int, order: Tensor | None = None, start: int = 0) -> Iterator[Batch]:
        """Micro-batches of an epoch from optimizer step `start` on."""
        order = self.order(epoch) if order is None else order
        chunks = [part for step in range(start, self.steps_per_epoch) for part in self._share(order, step)]
        if self.pixels is not None:
            return (self._whole(index, epoch) for index in chunks)
        return self._decoded(chunks, epoch)

    def _share(self, order: Tensor, step: int) -> list[Tensor]:
        """This process's micro-batches of one global batch: consecutive slices in (accumulation, rank) order."""
        whole = order[step * self.batch : (step + 1) * self.batch]
        parts = whole.chunk(self.world * self.accumulate)
        return [parts[a * self.world + self.rank] for a in range(min(self.accumulate, len(parts)))]

    def _whole(self, index: Tensor, epoch: int) -> Batch:
        """In-memory path: index, then augment the whole batch on the device."""
        assert self.pixels is not None
        raw = self.pixels[index.to(self.pixels.device)].to(self.device, non_blocking=True)  # N×3×H×W uint8
        draws = Draws(self.seed, epoch, index)
        views = [self._format(view(raw, view.stream(draws, v))) for v, view in enumerate(self.views)]
        return Batch(views, self._label(index), index.to(self.device, non_blocking=True))

    def _decoded(self, chunks: list[Tensor], epoch: int) -> Iterator[Batch]:
        """On-disk path: workers decode and crop, the device does the rest.

        Raises:
            UsageError: a picture cannot be decoded; names the file.
            JobError: a worker died.
        """
        loader = DataLoader(
            _Crops(self.images, self.views, self.seed, epoch),
            batch_sampler=[chunk.tolist() for chunk in chunks],
            num_workers=self.workers,
            collate_fn=_stack,
            worker_init_fn=_ready,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if self.workers else None,
            generator=torch.Generator().manual_seed(0),
        )
        for crops, index in _fetched(loader):
            draws = Draws(self.seed, epoch, index)
            views = [
                self._format(view.rest(crop.to(self.device, non_blocking=True), view.stream(draws, v)))
                for v, (view, crop) in enumerate(zip(self.views, crops, strict=True))
            ]
            yield Batch(views, self._label(index), index.to(self.device, non_blocking=True))

    def _label(self, index: Tensor) -> Tensor | None:
        return None if self.labels is None else self.labels[index].to(self.device, non_blocking=True)

    def _format(self, view: Tensor) -> Tensor:
        return view.contiguous(memory_format=torch.channels_last) if self.channels_last else view


def _resident(array: np.ndarray, device: torch.device) -> Tensor:
    """N×H×W×3 uint8 array -> N×3×H×W tensor, on the GPU when it takes less than a tenth of its free memory."""
    pixels = torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2).contiguous()
    if device.type == "cuda" and pixels.numel() < torch.cuda.mem_get_info(device)[0] // 10:
        return pixels.to(device)
    return pixels


class _Crops(Dataset):
    """Decoded, cropped and resized views of single images, in worker processes."""

    def __init__(self, images: ImageSet, views: Sequence[View], seed: int, epoch: int) -> None:
        self.images, self.views, self.seed, self.epoch = images.images, views, seed, epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Item | SuiteError:
        """The views of picture `i`, or why there are none: torch would raise it again as a page of traceback."""
        try:
            image = Image.fromarray(self.images[i])
        except SuiteError as error:
            return error
        draws = Draws(self.seed, self.epoch, torch.tensor([i]))
        return [view.crop(image, view.stream(draws, v)) for v, view in enumerate(self.views)], i


def _stack(items: list[Item | SuiteError]) -> tuple[list[Tensor], Tensor] | SuiteError:
    """Per-image lists of views -> per-view batches N×3×S×S uint8, and the indices; or the first error."""
    good: list[Item] = []
    for item in items:
        if isinstance(item, SuiteError):
            return item
        good.append(item)
    crops = [
        torch.from_numpy(np.stack(view)).permute(0, 3, 1, 2).contiguous() for view in zip(*(c for c, _ in good), strict=True)
    ]
    return crops, torch.tensor([i for _, i in good])


def _fetched(loader: DataLoader) -> Iterator[tuple[list[Tensor], Tensor]]:
    """What the workers send; their errors as one line."""
    # Workers inherit the blocked signals: one that arrives before `_ready` ran must not kill them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SHARED)
    try:
        batches: Iterator | None = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def leave() -> None:
        """Drop the iterator, which ends its workers: a traceback may keep this generator alive until the very end."""
        nonlocal batches
        batches = None

    atexit.register(leave)
    try:
        while batches is not None and (batch := _next(batches)) is not None:
            if isinstance(batch, SuiteError):
                raise batch
            yield batch
    finally:
        atexit.unregister(leave)
        leave()


def _next(batches: Iterator) -> tuple[list[Tensor], Tensor] | SuiteError | None:
    """The next batch or error, None at the end.

    Raises:
        JobError: a worker died.
    """
    try:
        return next(batches, None)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        first = str(error).splitlines()[0]
        raise JobError(f"{first} (out of memory or shared memory? try fewer workers, or workers=0)") from error


def _ready(worker: int) -> None:
    """Leave Ctrl-C and a scheduler's SIGTERM, which reach the whole group of processes, to the main one.

    It finishes its step and saves, for which it needs the batch that its workers are decoding. A second SIGTERM ends a
    worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SHARED)
