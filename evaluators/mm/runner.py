# SPDX-License-Identifier: Apache-2.0
"""Fine-tune and apply an mmdet or mmseg model: a short loop over iterations, seeded, resumable, quiet.

The models, losses, transforms and data samples are OpenMMLab's; its Runner, hooks and config files are not needed.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from suite.errors import JobError

if TYPE_CHECKING:
    from evaluators.detection import DetectionConfig
    from evaluators.segmentation import SegmentationConfig
    from suite.bench import Bench

Item = dict[str, Any]


class Samples(Dataset[Item]):
    """Annotated pictures run through transforms.

    Indexed by (draw, index): the transforms' randomness depends on the draw alone, not on the worker that does it.
    """

    def __init__(self, items: Sequence[Item], transforms: Sequence[Callable[[Item], Item]]) -> None:
        self.items, self.transforms = items, transforms

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """The packed inputs and data sample of one draw of one picture."""
        draw, index = key
        random.seed(draw)
        np.random.seed(draw % 2**32)  # the transforms draw from NumPy's global generator
        item: Item = {name: list(v) if isinstance(v, list) else v for name, v in self.items[index].items()}
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


def step_rate(milestones: Sequence[int], gamma: float, warmup: int, warmup_ratio: float) -> Callable[[int], float]:
    """Factor on the learning rate per iteration: linear warm-up from `warmup_ratio`, times gamma at each milestone."""

    def rate(step: int) -> float:
        ramp = 1.0 if step >= warmup else warmup_ratio + (1 - warmup_ratio) * step / warmup
        return ramp * gamma ** sum(step >= milestone for milestone in milestones)

    return rate


def poly_rate(iterations: int, power: float, floor: float) -> Callable[[int], float]:
    """Factor (1 - floor) (1 - step / iterations)^power + floor on the learning rate."""
    return lambda step: (1 - floor) * (1 - step / iterations) ** power + floor


def finetune(
    model: Any,
    data: Samples,
    cfg: DetectionConfig | SegmentationConfig,
    bench: Bench,
    rate: Callable[[int], float],
    *,
    groups: Sequence[int] | None = None,
    save_every: float = 300.0,
) -> None:
    """Train a model with SGD for `cfg.iterations`, resuming from `bench.out` if an earlier call was interrupted.

    Args:
        model: an mmdet or mmseg model; it ends on `bench.device`.
        data: training pictures.
        cfg: `batch` pictures an iteration, computed in `accumulate` equal parts.
        bench: device, precision, scratch folder and progress.
        rate: factor on `cfg.lr` by iteration.
        groups: see `Draws`.
        save_every: seconds between two checkpoints.

    Raises:
        JobError: no pictures, or the loss is no longer finite.
    """
    if not len(data):
        raise JobError("fine-tuning has no training picture with an annotation")
    model.to(bench.device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay)
    scaler = torch.amp.GradScaler(bench.device.type, enabled=bench.precision.startswith("16"))
    checkpoint = Checkpoint(bench.out / "finetune.pt", repr(cfg), model, optimizer, scaler)
    start = checkpoint.restore()
    sampler = Draws(groups or [0] * len(data), cfg.batch, start, cfg.iterations, cfg.seed)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=cfg.workers, collate_fn=list)
    saved = time.monotonic()
    with preserved_rng(), bench.progress(cfg.iterations, "fine-tuning") as advance:
        advance(start)
        for step, samples in enumerate(loader, start):
            torch.manual_seed(cfg.seed * 1_000_003 + step)  # the heads sample boxes at random
            for group in optimizer.param_groups:
                group["lr"] = cfg.lr * rate(step)
            loss = _step(model, samples, cfg, bench, optimizer, scaler)
            if not np.isfinite(loss):
                raise JobError(f"the loss is {loss} at iteration {step} of fine-tuning; lower lr={cfg.lr:g}")
            advance(1)
            if time.monotonic() - saved > save_every and step + 1 < cfg.iterations:
                checkpoint.save(step + 1)
                saved = time.monotonic()
    checkpoint.path.unlink(missing_ok=True)


def _step(
    model: Any,
    samples: list[Item],
    cfg: DetectionConfig | SegmentationConfig,
    bench: Bench,
    optimizer: torch.optim.Optimizer,
    scaler: Any,
) -> float:
    """One optimizer step; returns the loss."""
    optimizer.zero_grad(set_to_none=True)
    size, total = -(-len(samples) // cfg.accumulate), 0.0
    for begin in range(0, len(samples), size):
        part = samples[begin : begin + size]
        batch = model.data_preprocessor(collate(part), training=True)
        with autocast(bench):
            losses = model.loss(batch["inputs"], batch["data_samples"])
        loss = total_loss(losses) * (len(part) / len(samples))
        scaler.scale(loss).backward()
        total += float(loss.detach())
    if cfg.clip is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], cfg.clip)
    scaler.step(optimizer)
    scaler.update()
    return total


def collate(samples: Sequence[Item]) -> dict[str, list[Any]]:
    """The form that OpenMMLab's data preprocessors take: lists of pictures and of data samples."""
    return {key: [sample[key] for sample in samples] for key in ("inputs", "data_samples")}


def total_loss(losses: dict[str, Any]) -> Tensor:
    """Sum of every entry with "loss" in its name; lists hold one term per pyramid level."""
    terms = [value for name, value in losses.items() if "loss" in name]
    flat = [term for value in terms for term in (value if isinstance(value, (list, tuple)) else [value])]
    return torch.stack([term.mean() for term in flat]).sum()


def autocast(bench: Bench) -> contextlib.AbstractContextManager[Any]:
    """The arithmetic that `bench.precision` asks for."""
    if bench.precision.startswith("32"):
        return contextlib.nullcontext()
    return torch.autocast(bench.device.type, torch.bfloat16 if bench.precision.startswith("bf16") else torch.float16)


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Leave the global random generators as they were."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)


def predict(model: Any, data: Samples, batch: int, workers: int, bench: Bench) -> Iterator[list[Any]]:
    """Data samples with predictions, in order, at most `batch` pictures of one size at a time."""
    model.to(bench.device).eval()
    order = [[(i, i) for i in range(at, min(at + batch, len(data)))] for at in range(0, len(data), batch)]
    loader = DataLoader(data, batch_sampler=order, num_workers=workers, collate_fn=list)
    with preserved_rng(), bench.progress(len(data), "predicting") as advance:
        for samples in loader:
            for _, same_size in itertools.groupby(samples, key=lambda sample: sample["inputs"].shape):
                part = list(same_size)
                with torch.inference_mode(), autocast(bench):
                    inputs = model.data_preprocessor(collate(part), training=False)
                    found = model.predict(inputs["inputs"], inputs["data_samples"])
                yield found
                advance(len(part))


class Checkpoint:
    """An interrupted fine-tuning: a file that is only resumed by the same config."""

    def __init__(self, path: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
        self.path, self.key = path, key
        self.model, self.optimizer, self.scaler = model, optimizer, scaler

    def save(self, step: int) -> None:
        """Write atomically that `step` iterations are done."""
        state = {
            "key": self.key, "step": step, "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
        }  # fmt: skip
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.path)

    def restore(self) -> int:
        """Load the file if it is there and fits; returns the iterations done."""
        if not self.path.is_file():
            return 0
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:  # a damaged file is as good as none, and torch raises many types
            return 0
        if state.get("key") != self.key:
            return 0
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        return int(state["step"])
