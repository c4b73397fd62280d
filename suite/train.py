# SPDX-License-Identifier: Apache-2.0
"""The loop: pre-training, fine-tuning, semi-supervised and linear evaluation all run through `fit`."""

from __future__ import annotations

import io
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from suite import optim
from suite.data.imageset import ImageSet
from suite.data.loader import Loader
from suite.errors import JobError, UsageError
from suite.interrupt import Interrupted, signals
from suite.method import Method, Progress, TrainSet
from suite.nn.collapse import effective_rank, feature_std
from suite.nn.gather import synchronise_batch_norm
from suite.progress import Reporter
from suite.spec import Config, Optim
from suite.store import write_bytes
from suite.views import View

if TYPE_CHECKING:
    from lightning_fabric import Fabric

COLLAPSED_STD, COLLAPSED_RANK = 0.1, 1.5
"""Below these a training counts as collapsed."""


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know; recipes' configs and evaluators both make one."""

    optim: Optim
    batch: int
    epochs: int
    max_steps: int | None = None
    seed: int = 0
    workers: int = 0
    sync_bn: bool = False
    accumulate: int = 1
    log_every: int = 10
    save_every: float = 10.0
    "Seconds between checkpoints; saving never takes more than about 2 % of the time."
    keep: int = 0
    "How many of the best checkpoints (lowest epoch loss) stay beside the last one."

    @classmethod
    def of(cls, config: Config, **changes: Any) -> Plan:
        """The plan of a recipe's config."""
        names = ("optim", "batch", "epochs", "max_steps", "seed", "workers", "sync_bn")
        return cls(**{**{name: getattr(config, name) for name in names}, **changes})


@dataclass
class Outcome:
    """What a finished training cost."""

    steps: int = 0
    seconds: float = 0.0
    images: int = 0
    loss: float | None = None
    "Mean loss of the last logging interval."
    feature_std: float | None = None
    "Spread of the last watched batch's embeddings, 1 when healthy; see `suite.nn.collapse`."
    feature_rank: float | None = None
    "Their effective rank."

    @property
    def collapsed(self) -> bool:
        """Whether the embeddings of different images have become (nearly) the same, or differ in one direction only."""
        std, rank = self.feature_std, self.feature_rank
        return std is not None and rank is not None and (std < COLLAPSED_STD or rank < COLLAPSED_RANK)

    @property
    def images_per_second(self) -> float:
        """Training throughput, augmentation included, over all processes."""
        return self.images / self.seconds if self.seconds else 0.0


class Trainer:
    """State of one training: what a checkpoint holds, and the steps between checkpoints."""

    def __init__(
        self,
        method: Method,
        images: ImageSet,
        views: Sequence[View],
        plan: Plan,
        fabric: Fabric,
        folder: Path | None = None,
        log: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.plan, self.fabric, self.folder, self.log = plan, fabric, folder, log
        self.data = TrainSet(images, plan.seed)
        channels_last = not method.backbone.is_vit
        method.to(fabric.device)
        if channels_last:
            method.to(memory_format=torch.channels_last)
        if plan.sync_bn:
            method = synchronise_batch_norm(method, fabric.device)
        self.loader = Loader(
            images, views, plan.batch, seed=plan.seed, device=fabric.device, workers=plan.workers,
            rank=fabric.global_rank, world=fabric.world_size, accumulate=plan.accumulate, channels_last=channels_last,
        )  # fmt: skip
        self.method = method
        self.optimizer = optim.build(method.param_groups(plan.optim), plan.optim)
        self.model, self.wrapped = fabric.setup(method, self.optimizer)
        self.per_epoch = self.loader.steps_per_epoch
        self.total = self.per_epoch * plan.epochs
        if plan.max_steps is not None:
            self.total = min(self.total, plan.max_steps)
        self.step, self.order, self.outcome = 0, torch.empty(0, dtype=torch.long), Outcome()
        self.pending: list[tuple[int, dict[str, Tensor]]] = []
        self.saved_at, self.save_cost = time.monotonic(), 0.0
        self.best: list[tuple[float, int]] = []

    def run(self, reporter: Reporter, what: str) -> Outcome:
        """Train to the end, from the last checkpoint if there is one.

        Raises:
            Interrupted: a signal came; the checkpoint is written.
            JobError: the loss is not finite; names the step and the values.
        """
        self._resume(reporter)
        self.method.train()
        with signals() as stop, reporter.task(what, self.total, "steps", self.step) as advance:
            while self.step < self.total:
                self._epoch(self.step // self.per_epoch, stop, advance)
        self.save() if self.folder is not None else self._flush()
        return self.outcome

    def _epoch(self, epoch: int, stop: list[int], advance: Callable[..., None]) -> None:
        done = self.step - epoch * self.per_epoch
        if done == 0:
            chosen = self.method.on_epoch_start(self._progress(epoch), self.data)
            self.order = self.loader.order(epoch) if chosen is None else chosen.cpu()
        batches = self.loader.epoch(epoch, self.order, done)
        began = time.monotonic()
        for _ in range(done, min(self.per_epoch, self.total - epoch * self.per_epoch)):
            self._step(epoch, batches)
            now = time.monotonic()
            self.outcome.seconds += now - began
            began = now
            if self.step % self.plan.log_every == 0:
                self._flush()
            advance(1, **self._shown())
            if self.step < self.total and self._stop_now(stop):
                self.save()
                name = signal.Signals(stop[0]).name if stop else "a signal"
                raise Interrupted(f"stopped by {name} at step {self.step} of {self.total}; the same command continues")
            if self.folder is not None and now - self.saved_at > max(self.plan.save_every, 50 * self.save_cost):
                self.save()
        if self.folder is not None and self.plan.keep:
            self._keep_best(epoch)

    def _step(self, epoch: int, batches: Iterator[Any]) -> None:
        """One optimizer step over `accumulate` micro-batches."""
        progress = self._progress(epoch)
        # Seeding each step makes dropout and permutations independent of where a resume began.
        torch.manual_seed((self.plan.seed * 7_919 + self.step) * 1_009 + self.fabric.global_rank)
        optim.set_rate(self.optimizer, self.plan.optim, optim.rate(self.plan.optim, self.step, self.per_epoch, self.total))
        self.method.on_step_start(progress)
        means: dict[str, Tensor] = {}
        for micro in range(self.plan.accumulate):
            batch = next(batches)
            last = micro == self.plan.accumulate - 1
            with self.fabric.no_backward_sync(self.model, enabled=not last):
                values = self.model(batch)
                features = values.pop("features", None)
                self.fabric.backward(values["loss"] / self.plan.accumulate)
            for name, value in values.items():
                means[name] = means.get(name, 0) + value.detach() / self.plan.accumulate
        self.method.after_backward(progress)
        if self.plan.optim.clip is not None:
            self.fabric.clip_gradients(self.model, self.wrapped, max_norm=self.plan.optim.clip, error_if_nonfinite=False)
        self.wrapped.step()
        self.wrapped.zero_grad(set_to_none=True)
        self.method.after_step(progress)
        self.step += 1
        if features is not None and (self.step % self.plan.log_every == 0 or self.step == self.total):
            self.outcome.feature_std = feature_std(features.detach()).item()
            self.outcome.feature_rank = effective_rank(features.detach()).item()
        self.outcome.steps, self.outcome.images = self.step, self.outcome.images + self.plan.batch
        self.pending.append((self.step, means))

    def _progress(self, epoch: int) -> Progress:
        return Progress(epoch, self.step, self.per_epoch, self.total)

    def _stop_now(self, stop: list[int]) -> bool:
        """Whether to stop; several processes agree every few steps so that none waits for the others."""
        if self.fabric.world_size == 1:
            return bool(stop)
        if self.step % self.plan.log_every:
            return False
        asked = torch.tensor(float(bool(stop)), device=self.fabric.device)
        return bool(_reduced(self.fabric, asked, "sum").item() > 0)

    def _shown(self) -> dict[str, str]:
        rate = f"{self.outcome.images_per_second:.0f}"
        loss = {} if self.outcome.loss is None else {"loss": f"{self.outcome.loss:.4f}"}
        return {"img/s": rate, **loss}

    def _flush(self) -> None:
        """Log the steps since the last flush; one synchronisation with the device for all of them."""
        if not self.pending:
            return
        names = sorted(self.pending[0][1])
        table = torch.stack([torch.stack([values[name].float() for name in names]) for _, values in self.pending])
        if self.fabric.world_size > 1:
            table = _reduced(self.fabric, table, "mean")
        rows = table.tolist()
        steps = [step for step, _ in self.pending]
        self.pending = []
        for step, row in zip(steps, rows, strict=True):
            if not all(math.isfinite(value) for value in row):
                values = ", ".join(f"{name} {value:g}" for name, value in zip(names, row, strict=True))
                raise JobError(f"not finite at step {step} (epoch {(step - 1) // self.per_epoch}): {values}; "
                               "lower optim.lr or set optim.clip; the last checkpoint is from before it")  # fmt: skip
        means = {name: sum(column) / len(rows) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
        self.outcome.loss = means["loss"]
        if self.log is not None and self.fabric.is_global_zero:
            rate = optim.rate(self.plan.optim, steps[-1] - 1, self.per_epoch, self.total)
            speed = round(self.outcome.images_per_second, 1)
            watched = {name: getattr(self.outcome, name) for name in ("feature_std", "feature_rank")}
            row = {**means, **{name: value for name, value in watched.items() if value is not None}, "lr": rate}
            self.log({"step": steps[-1], "epoch": steps[-1] / self.per_epoch, **row, "images_per_second": speed})

    def state(self) -> dict[str, Any]:
        """Everything a resume needs: plain tensors and numbers, readable with weights_only."""
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "order": self.order,
            "seconds": self.outcome.seconds,
            "images": self.outcome.images,
            "total": self.total,
        }

    def save(self, name: str = "last.pt") -> None:
        """Write a checkpoint atomically (process 0), after checking that the losses so far are finite."""
        self._flush()
        if self.folder is None or not self.fabric.is_global_zero:
            return
        began = time.monotonic()
        buffer = io.BytesIO()
        torch.save(self.state(), buffer)
        write_bytes(self.folder / name, buffer.getvalue())
        self.saved_at = time.monotonic()
        self.save_cost = self.saved_at - began

    def _keep_best(self, epoch: int) -> None:
        """Keep the checkpoints of the epochs with the lowest training loss."""
        self._flush()
        assert self.folder is not None and self.outcome.loss is not None
        self.best = sorted([*self.best, (self.outcome.loss, epoch)])
        if (self.outcome.loss, epoch) in self.best[: self.plan.keep]:
            self.save(f"epoch{epoch}.pt")
        for _, old in self.best[self.plan.keep :]:
            (self.folder / f"epoch{old}.pt").unlink(missing_ok=True)
        self.best = self.best[: self.plan.keep]

    def _resume(self, reporter: Reporter) -> None:
        path = self.folder / "last.pt" if self.folder is not None else None
        if path is None or not path.is_file():
            return
        try:
            state = torch.load(path, map_location=self.fabric.device, weights_only=True)
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception as error:
            raise UsageError(
                f"checkpoint {str(path)!r} cannot be resumed ({type(error).__name__}); delete it to start anew"
            ) from error
        self.step, self.order = state["step"], state["order"].cpu()
        self.outcome = Outcome(self.step, state["seconds"], state["images"])
        reporter.say(f"  resuming at step {self.step} of {self.total}")


def _reduced(fabric: Fabric, value: Tensor, how: str) -> Tensor:
    """A tensor summed or averaged over the processes."""
    result = fabric.all_reduce(value, reduce_op=how)
    assert isinstance(result, Tensor)
    return result


def fit(
    method: Method,
    images: ImageSet,
    views: Sequence[View],
    plan: Plan,
    fabric: Fabric,
    *,
    folder: Path | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    reporter: Reporter | None = None,
    what: str = "training",
) -> Outcome:
    """Train `method` on `images` to the end of `plan`; with a folder, resumable from a kill at any moment.

    Returns:
        Steps, seconds, throughput and the last loss. The method is trained in place.
    """
    trainer = Trainer(method, images, views, plan, fabric, folder, log)
    return trainer.run(reporter or Reporter(), what)
