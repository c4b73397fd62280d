# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.bench`: how fast this project is, as ratios measured in one run."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from suite.data import load
from tests.bench import evaluations, gate, neighbours, pipelines, records, steps, svm, training
from tests.bench.paired import Effort, Row, table

GROUPS = {
    "train": training.rows,
    "features": pipelines.feature_rows,
    "views": pipelines.augmentation_rows,
    "knn": neighbours.rows,
    "svm": svm.rows,
    "linear": evaluations.linear_rows,
    "together": evaluations.together_rows,
    "records": records.rows,
}
TABLES = {"steps": steps.step_table, "tiny": steps.tiny_table}
"""Of every recipe, in tables of their own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code says nothing about speed. `gate` as first word: see `tests.bench.gate`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["gate"]:
        return gate.main(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short repetition of everything: does it run?")
    every = [*GROUPS, *TABLES]
    parser.add_argument("--only", choices=every, nargs="+", default=every, help="which comparisons")
    parser.add_argument("--recipes", nargs="+", default=[], metavar="NAME", help="of `steps` and `tiny`; without, all")
    given = parser.parse_args(arguments)
    effort = Effort(repetitions=1, seconds=0.0, most=1) if given.quick else Effort()
    images = load("digits", "train")
    if given.quick:
        images = images.subset(np.arange(512))
    began = time.perf_counter()
    print(machine(), flush=True)
    found: list[Row] = []
    tables = []
    for group in given.only:
        print(f"measuring {group} ...", file=sys.stderr, flush=True)
        if group in GROUPS:
            found += GROUPS[group](images, effort)
        else:
            tables.append(TABLES[group](given.recipes, effort))
    how = f"{effort.repetitions} paired repetitions of about {effort.seconds:g} s each, medians"
    texts = [table(found)] if found else []
    print(f"{how}; measured in {time.perf_counter() - began:.0f} s", *texts, *tables, sep="\n\n")
    return 0


def machine() -> str:
    """Processor, threads and versions; warns of other processes, whose threads slow ours down many times over."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads, load = torch.get_num_threads(), os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    busy = f"\nload average {load:.1f} before the start: the machine is busy, repeat this on an idle one" if load > 0.5 else ""
    return f"{processor()}{gpu}, {threads} threads, torch {torch.__version__}{busy}"


def processor() -> str:
    """The CPU's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
