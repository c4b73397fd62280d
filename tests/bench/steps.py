# SPDX-License-Identifier: Apache-2.0
"""What a whole training step costs against forward, backward and optimizer alone, for every recipe; and how long `tiny` takes.

Each recipe runs in a process of its own, so that the peak memory is its own. Both sides see one batch whose views are made:
making them is compared elsewhere (`train`, `views`).
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from suite import engine, plugins
from suite.data import load
from suite.method import Batch
from suite.progress import Reporter
from suite.testing import started, trainer
from suite.train import Trainer
from tests.bench.paired import Effort, aligned
from tests.bench.training import synchronise

T = TypeVar("T")
GOAL = 1.15
"""A step may take so many times its three parts."""
PARTS = ("forward", "backward", "optimizer")
TINY_GOAL = 10.0
"""Seconds that a whole `tiny` run may take."""


@dataclass(frozen=True)
class Step:
    """Seconds of whole steps and of their parts, one number per repetition."""

    recipe: str
    precision: str
    batch: int
    whole: Sequence[float]
    forward: Sequence[float]
    backward: Sequence[float]
    optimizer: Sequence[float]
    peak_mb: float
    "Of the process, imports and data included; on a GPU what was allocated there."

    @property
    def parts(self) -> float:
        """Medians of the three parts, added."""
        return sum(statistics.median(getattr(self, part)) for part in PARTS)

    @property
    def ratio(self) -> float:
        """Whole step over its parts."""
        return statistics.median(self.whole) / self.parts

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        seconds = [statistics.median(getattr(self, name)) for name in ("whole", *PARTS)]
        verdict = "met" if self.ratio <= GOAL else "not met"
        return (
            f"{self.recipe} ({self.precision}, batch {self.batch})", *(f"{1000 * number:.1f}" for number in seconds),
            f"{self.ratio:.2f}", f"<= {GOAL}", verdict, f"{self.batch / seconds[0]:.0f}", f"{self.peak_mb:.0f}",
        )  # fmt: skip


HEADER = ("recipe", "step ms", "forward", "backward", "optimizer", "step / parts", "goal", "", "images/s", "peak MB")


def measure(
    some: Trainer, batch: Batch, repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of whole steps and of the parts, alternating; the first round warms up and does not count."""
    found: dict[str, list[float]] = {name: [] for name in ("whole", *PARTS)}
    kinds = (lambda: _whole(some, batch, clock), lambda: _parts(some, batch, clock))
    for repetition in range(repetitions + 1):
        for kind in kinds if repetition % 2 == 0 else reversed(kinds):
            for name, seconds in kind().items():
                if repetition:
                    found[name].append(seconds)
    return found


def _whole(some: Trainer, batch: Batch, clock: Callable[[], float]) -> dict[str, float]:
    """One step of the loop, with all that the method does around it and the watch for collapse where it is due."""
    began = clock()
    some._step(0, iter((batch,)))
    if some.step % some.plan.log_every == 0:
        some._flush()
    synchronise()
    return {"whole": clock() - began}


def _parts(some: Trainer, batch: Batch, clock: Callable[[], float]) -> dict[str, float]:
    """The same batch through the same network, optimizer and precision; what else the method does is not timed."""
    progress = some._progress(0)
    some.method.on_step_start(progress)
    synchronise()
    times = [clock()]
    loss = some.model(batch)["loss"]
    synchronise()
    times.append(clock())
    some.fabric.backward(loss)
    synchronise()
    times.append(clock())
    some.wrapped.step()
    some.wrapped.zero_grad(set_to_none=True)
    synchronise()
    times.append(clock())
    some.method.after_step(progress)
    return {name: end - start for name, start, end in zip(PARTS, times, times[1:], strict=False)}


def step(name: str, repetitions: int, preset: str = "digits") -> Step:
    """Measure one recipe in this process, in the preset's precision where the device really has it, else in float32."""
    recipe = plugins.load("recipes", name)
    config = recipe.presets[preset]
    if engine.default_device().type == "cpu" and not native_bf16():
        config = replace(config, precision="32")
    some = trainer(recipe, config, load(config.dataset, "train"), epochs=1_000_000)
    times = measure(some, next(started(some)), repetitions)
    precision = engine.supported(config.precision, some.fabric.device)
    return Step(name, precision, config.batch, **times, peak_mb=engine.peak_memory_mb(some.fabric.device))


def native_bf16() -> bool:
    """Whether this CPU computes in bf16; others only imitate it, in several times the time of float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def tiny(name: str) -> tuple[str, float]:
    """Seconds of one recipe's whole `tiny` run, data and augmentation included."""
    recipe = plugins.load("recipes", name)
    config = replace(recipe.presets["tiny"], precision="32")
    images = load(config.dataset, "train")
    began = time.perf_counter()
    trainer(recipe, config, images).run(Reporter(), name)
    return name, time.perf_counter() - began


def trained(names: Sequence[str]) -> list[str]:
    """The recipes that train, of those named or of all.

    Raises:
        UsageError: an unknown recipe.
    """
    every = {name: plugins.load("recipes", name) for name in names or plugins.find("recipes")}
    return [name for name, recipe in every.items() if recipe.method is not None]


def each(what: Callable[..., T], names: Sequence[str], *arguments: int) -> list[T]:
    """`what(name, *arguments)` for every recipe, one after the other, each in a fresh process."""
    context, found = multiprocessing.get_context("spawn"), []
    for name in names:
        print(f"  {name} ...", file=sys.stderr, flush=True)
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found.append(pool.submit(what, name, *arguments).result())
    return found


def step_table(names: Sequence[str], effort: Effort) -> str:
    """Steps against their parts, as plain text."""
    steps = each(step, trained(names), 3 * effort.repetitions)
    return aligned([HEADER, *(found.cells() for found in steps)], texts={0, 7})


def tiny_table(names: Sequence[str], effort: Effort) -> str:
    """Seconds of the `tiny` presets, once each, as plain text."""
    rows = [
        (name, f"{seconds:.1f}", f"< {TINY_GOAL:g}", "met" if seconds < TINY_GOAL else "not met")
        for name, seconds in each(tiny, trained(names))
    ]
    return aligned([("tiny preset, float32", "seconds", "goal", ""), *rows], texts={0, 3})
