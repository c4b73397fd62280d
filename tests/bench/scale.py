# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.bench.scale`: memory and time of what evaluators do with features, by number of images, up to ImageNet's.

Every measurement runs in a process of its own, so that its peak of memory is its own. Two kinds of growth are shown: `own` is
what the process allocated (sampled), `peak` also counts the pages of mapped files, which the system takes back when it needs
room. Own memory far below the size of the matrix means that it was copied nowhere.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from evaluators import linear, rank
from suite.features import FeatureStore
from suite.nn import neighbours
from suite.nn.rows import Rows
from tests.bench.__main__ import machine

IMAGENET = 1_281_167
CLASSES, QUERIES, BLOCK, WARM = 1000, 1000, 4096, 512


def blocks(rows: int, width: int) -> Iterator[dict[str, np.ndarray]]:
    """Rows that differ, made at no cost worth measuring."""
    block = np.random.default_rng(0).standard_normal((min(BLOCK, rows), width), np.float32)
    for i, start in enumerate(range(0, rows, BLOCK)):
        yield {"x": np.roll(block[: rows - start], i, axis=1)}


def write(root: Path, rows: int, width: int) -> None:
    """Write an entry."""
    FeatureStore(root, 1 << 50).create({"x": "x"}, rows, blocks(rows, width))


def stored(root: Path) -> np.ndarray:
    """Open the entry."""
    found = FeatureStore(root, 1 << 50).get("x")
    assert found is not None
    return found


def read(root: Path, rows: int, width: int) -> None:
    """Open the entry, which verifies it, and go through it once."""
    features = stored(root)
    for start in range(0, rows, BLOCK):
        features[start : start + BLOCK].sum()


def search(root: Path, rows: int, width: int) -> None:
    """Neighbours of 1000 queries."""
    features = stored(root)
    neighbours.search(features, np.array(features[:QUERIES]), 20)


def epoch(root: Path, rows: int, width: int) -> None:
    """Statistics for the batch norm, and one epoch of a linear head per learning rate."""
    prepared = {"pooled": Rows.of([stored(root)], torch.device("cpu"))}
    labels = np.arange(rows) % CLASSES
    linear.train_heads(prepared, labels, np.arange(rows), CLASSES, linear.LinearConfig(epochs=1), None)


def singular(root: Path, rows: int, width: int) -> None:
    """Spectrum of as many rows as `rank` takes at most."""
    count = min(rows, rank.RankConfig().images)
    rank.spectrum(np.array(stored(root)[np.linspace(0, rows - 1, count).astype(int)]))


JOBS: dict[str, Callable[[Path, int, int], None]] = {
    "store: write": write,
    "store: read": read,
    f"kNN of {QUERIES} queries": search,
    "linear: one epoch": epoch,
    "rank: spectrum": singular,
}


class Cost(NamedTuple):
    """Of one job."""

    seconds: float
    own: float
    "Growth of allocated memory, MB; nan where the system does not tell."
    peak: float
    "Growth of the peak of resident memory, MB."


def memory() -> tuple[float, float]:
    """Allocated now, and peak of resident memory, in MB."""
    status = Path("/proc/self/status")
    if not status.is_file():
        unit = 1 if sys.platform == "darwin" else 1024
        return float("nan"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    # Not getrusage: its peak includes that of the parent from before exec.
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return float(fields["RssAnon"].split()[0]) * 1024 / 1e6, float(fields["VmHWM"].split()[0]) * 1024 / 1e6


def measure(job: str, root: Path, rows: int, width: int, pipe: Connection) -> None:
    """Send the cost of a job in this process."""
    JOBS[job](root / "warm", WARM, width)  # libraries loaded, threads started
    before, done, seen = memory(), threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(memory()[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    JOBS[job](root / "full", rows, width)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    after = memory()
    pipe.send(Cost(seconds, max(*seen, after[0]) - before[0], after[1] - before[1]))


def costs(rows: int, width: int) -> dict[str, Cost]:
    """Every job, each in a fresh process."""
    fresh, found = multiprocessing.get_context("forkserver"), {}
    fresh.set_forkserver_preload(["tests.bench.__main__", "evaluators.linear", "evaluators.rank", "faiss"])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for job in JOBS:
            ours, theirs = fresh.Pipe(duplex=False)
            process = fresh.Process(target=measure, args=(job, root, rows, width, theirs))
            process.start()
            theirs.close()
            found[job] = ours.recv()
            process.join()
    return found


def extrapolate(sizes: Sequence[int], values: Sequence[float], to: int = IMAGENET) -> float:
    """The line through the two largest sizes, at `to`: what is fixed, such as the size of a block, does not grow with it."""
    slope = (values[-1] - values[-2]) / (sizes[-1] - sizes[-2])
    return values[-1] + max(0.0, slope) * (to - sizes[-1])


def table(sizes: Sequence[int], dim: int) -> str:
    """Measured seconds and memory by number of images, and the extrapolation to ImageNet, as text.

    Args:
        sizes: two numbers of images or more, ascending.
        dim: width of the features.
    """
    measured = [costs(rows, dim) for rows in sizes]
    columns = [*sizes, IMAGENET]
    lines = [f"{dim} features, {torch.get_num_threads()} threads; the last column is extrapolated", ""]
    lines.append(f"{'images':<28}" + "".join(f"{rows:>12,}" for rows in columns))
    lines.append(f"{'matrix, MB':<28}" + "".join(f"{4e-6 * rows * dim:>12.0f}" for rows in columns))
    for job in JOBS:
        for field, unit in (("seconds", "s"), ("own", "own MB"), ("peak", "peak MB")):
            values = [getattr(cost[job], field) for cost in measured]
            cells = [*values, extrapolate(sizes, values)]
            lines.append(f"{job + ', ' + unit:<28}" + "".join(f"{value:>12.1f}" for value in cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    quick = parser.parse_args(arguments).quick
    print(f"{machine()}\n{table((500, 1000, 2000), 32) if quick else table((10_000, 30_000, 100_000), 2048)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
