# SPDX-License-Identifier: Apache-2.0
"""Fine-tune and apply an mmdet or mmseg model: a short loop over iterations, seeded, resumable, quiet.

The models, losses, transforms and data samples are OpenMMLab's; its Runner, hooks and config files are not needed. One
process on one device computes the whole batch, where plain BatchNorm is what SyncBN is over several devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from evaluators.mm.samples import Draws, Item, Samples, collate
from suite.errors import JobError
from suite.train import Interrupted, signals

if TYPE_CHECKING:
    from evaluators.detection import DetectionConfig
    from evaluators.segmentation import SegmentationConfig
    from suite.bench import Bench


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

    Where the accelerator's memory does not hold `batch / accumulate` pictures, the parts are halved and the record says so.

    Args:
        model: an mmdet or mmseg model; it ends on `bench.device`.
        data: training pictures.
        cfg: `batch` pictures an iteration, computed in `accumulate` equal parts.
        bench: device, precision, scratch folder and progress.
        rate: factor on `cfg.lr` by iteration.
        groups: see `Draws`.
        save_every: seconds between two checkpoints; a training that took longer is also kept when it is done.

    Raises:
        JobError: no pictures, the loss is no longer finite, or one picture is too much for the memory.
        Interrupted: a signal came; what was done is saved.
    """
    if not len(data):
        raise JobError("fine-tuning has no training picture with an annotation")
    model.to(bench.device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay)
    scaler = torch.amp.GradScaler(bench.device.type, enabled=bench.precision.startswith("16"))
    key = repr((dataclasses.replace(cfg, workers=0), bench.weights, sorted(bench.fingerprints.items())))
    checkpoint = Checkpoint(bench.out / "finetune.pt", key, model, optimizer, scaler)
    start, parts = checkpoint.restore(cfg.accumulate)
    run = Training(model, optimizer, scaler, cfg.clip, bench)
    sampler = Draws(groups or [0] * len(data), cfg.batch, start, cfg.iterations, cfg.seed)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=cfg.workers, collate_fn=list)
    began = saved = time.monotonic()
    with preserved_rng(), quiet(), signals() as stop, bench.progress(cfg.iterations, "fine-tuning") as advance:
        advance(start)
        for step, samples in enumerate(loader, start):
            for group in optimizer.param_groups:
                group["lr"] = cfg.lr * rate(step)
            loss, parts = _step(run, samples, parts, cfg.seed * 1_000_003 + step)
            if not np.isfinite(loss):
                raise JobError(f"the loss is {loss} at iteration {step} of fine-tuning; lower lr={cfg.lr:g}")
            advance(1)
            if step + 1 < cfg.iterations and (stop or time.monotonic() - saved > save_every):
                checkpoint.save(step + 1, parts)
                saved = time.monotonic()
            if stop and step + 1 < cfg.iterations:
                raise Interrupted(f"stopped at iteration {step + 1} of {cfg.iterations}; the same command continues")
    if parts != cfg.accumulate:
        size = -(-min(cfg.batch, len(data)) // parts)
        bench.select(accumulate=f"{parts}, as memory ran out with {cfg.accumulate}: BatchNorm saw {size} picture(s) at a time")
    if start == cfg.iterations or time.monotonic() - began > save_every:
        checkpoint.save(cfg.iterations, parts)  # the prediction that follows may be interrupted too
    else:
        checkpoint.path.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Training:
    """What takes part in an optimizer step."""

    model: Any
    optimizer: torch.optim.Optimizer
    scaler: Any
    clip: float | None
    bench: Bench


def _step(run: Training, samples: list[Item], parts: int, seed: int) -> tuple[float, int]:
    """One optimizer step, in smaller parts when memory runs out; returns the loss and the number of parts."""
    while True:
        torch.manual_seed(seed)  # the heads sample boxes at random
        run.optimizer.zero_grad(set_to_none=True)
        loss = _gradients(run, samples, parts)
        if loss is not None:
            break
        if parts >= len(samples):
            raise JobError("out of memory with one picture at a time; lower the size of the pictures or of the network")
        parts = min(2 * parts, len(samples))
        _release(run.bench)
    if run.clip is not None:
        run.scaler.unscale_(run.optimizer)
        nn.utils.clip_grad_norm_(run.optimizer.param_groups[0]["params"], run.clip)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return loss, parts


def _gradients(run: Training, samples: list[Item], parts: int) -> float | None:
    """Loss of a batch computed in parts, its gradients left on the parameters; None when memory runs out."""
    size, total = -(-len(samples) // parts), 0.0
    try:
        for begin in range(0, len(samples), size):
            part = samples[begin : begin + size]
            batch = run.model.data_preprocessor(collate(part), training=True)
            with autocast(run.bench):
                losses = run.model.loss(batch["inputs"], batch["data_samples"])
            loss = total_loss(losses) * (len(part) / len(samples))
            run.scaler.scale(loss).backward()
            total += float(loss.detach())
    except torch.cuda.OutOfMemoryError:
        return None  # freed by the caller: until this frame is gone, it holds what filled the memory
    return total


def _release(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()


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
def quiet() -> Iterator[None]:
    """Without the warnings that OpenMMLab's own code causes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "indexing with dtype torch.uint8", UserWarning)
        warnings.filterwarnings("ignore", "When align_corners=True", UserWarning)
        yield


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
    """Data samples with predictions, in order, at most `batch` pictures of one size at a time.

    Raises:
        JobError: one picture is too much for the accelerator's memory.
    """
    model.to(bench.device).eval()
    order = [[(i, i) for i in range(at, min(at + batch, len(data)))] for at in range(0, len(data), batch)]
    loader = DataLoader(data, batch_sampler=order, num_workers=workers, collate_fn=list)
    with preserved_rng(), quiet(), bench.progress(len(data), "predicting") as advance:
        for samples in loader:
            for _, same_size in itertools.groupby(samples, key=lambda sample: sample["inputs"].shape):
                part = list(same_size)
                yield _predicted(model, part, bench)
                advance(len(part))


def _predicted(model: Any, part: list[Item], bench: Bench) -> list[Any]:
    try:
        with torch.inference_mode(), autocast(bench):
            inputs = model.data_preprocessor(collate(part), training=False)
            return model.predict(inputs["inputs"], inputs["data_samples"])
    except torch.cuda.OutOfMemoryError:
        if len(part) == 1:
            raise JobError("out of memory predicting one picture; lower test_side or test_proposals") from None
    _release(bench)
    middle = len(part) // 2
    return [*_predicted(model, part[:middle], bench), *_predicted(model, part[middle:], bench)]


class Checkpoint:
    """An interrupted fine-tuning: a file that is only resumed by the same config, weights and data."""

    def __init__(self, path: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
        self.path, self.key = path, key
        self.model, self.optimizer, self.scaler = model, optimizer, scaler

    def save(self, step: int, parts: int) -> None:
        """Write atomically that `step` iterations are done, the last one in `parts` parts."""
        state = {
            "key": self.key, "step": step, "parts": parts, "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
        }  # fmt: skip
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.path)

    def restore(self, parts: int) -> tuple[int, int]:
        """Load the file if it is there and fits; returns the iterations done and the number of parts, else 0 and `parts`."""
        if not self.path.is_file():
            return 0, parts
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:  # a damaged file is as good as none, and torch raises many types
            return 0, parts
        if state.get("key") != self.key:
            return 0, parts
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        return int(state["step"]), int(state["parts"])
