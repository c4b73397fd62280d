# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. optim.lr=0.1, or knn.temperature=0.1")
]
Algo = Annotated[str, typer.Option("--algo", help="Algorithm, a list with commas, `all`, or a path to a .py file.")]
Bench = Annotated[str, typer.Option("--bench", help="`all`, or a list such as `knn,linear:pooled`.")]
Preset = Annotated[str, typer.Option("--preset", help="Preset or a list; empty: the recipe's default.")]
Seeds = Annotated[str, typer.Option("--seeds", help="A list such as 0,1,2; empty: the preset's seed.")]
Dataset = Annotated[str, typer.Option("--dataset", help="Pre-training data by catalogue name.")]
DatasetRoot = Annotated[Path | None, typer.Option("--dataset-root", help="Folder of the pre-training data.")]
DataRoot = Annotated[list[str] | None, typer.Option("--data-root", help="NAME=DIR for any data set; may repeat.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of the runs.")]
Pages = Annotated[Path, typer.Option("--pages", help="Folder of the pages.")]
Published = Annotated[Path, typer.Option("--results", help="Folder of published results.")]
Replace = Annotated[bool, typer.Option("--replace", help="Drop a published record that is about other weights.")]
Stale = Annotated[bool, typer.Option("--stale", help="Publish results of older versions too, marked as such.")]
Broken = Annotated[str, typer.Option("--on-broken", help="Broken images: refuse or skip.")]
Devices = Annotated[int, typer.Option("--devices", min=1, help="Processes (GPUs) to train on.")]
Accumulate = Annotated[int, typer.Option("--accumulate", min=1, help="Micro-batches per step; the global batch stays.")]
Keep = Annotated[int, typer.Option("--keep", min=0, help="Best checkpoints to keep beside the last one.")]
Track = Annotated[str, typer.Option("--track", help="tensorboard, wandb, mlflow, or a list.")]
Pack = Annotated[
    bool,
    typer.Option(
        "--pack",
        help="Decode photographs once into the cache, with the shorter side at most 256 pixels (more for views above 224), "
        "and read that copy from then on. The reduced pictures count as another data set in the records.",
    ),
]
Scale = Annotated[bool, typer.Option("--scale-lr", help="Scale the learning rate with batch=… (linear rule).")]
Again = Annotated[bool, typer.Option("--again", help="Compute anew what is already there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
