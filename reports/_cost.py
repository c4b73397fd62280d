# SPDX-License-Identifier: Apache-2.0
"""What weights cost: speed, time, memory, size, length."""

from __future__ import annotations

import statistics

from reports._tables import CellKind, Group
from suite.spec import Cell

COLUMNS = ("Speed\nimages/s", "Training\ntime", "Peak memory\nMB", "Parameters\nmillions", "Length\nepochs")


def cost_cells(one: Group, control: bool, trained: bool = True) -> list[Cell]:
    """One cell per column of `COLUMNS`, means over seeds."""
    kind: CellKind = "control" if control else ""
    why = "not measured" if trained else "nothing was trained"
    device = one.records[0].env.device
    hover = f"measured on {device}, {one.records[0].env.threads} threads" if device else ""
    speed = statistics.fmean(record.images_per_second for record in one.records)
    seconds = statistics.fmean(record.seconds for record in one.records)
    memory = statistics.fmean(record.peak_memory_mb for record in one.records)
    parameters = one.records[0].weights.parameters
    return [
        _cell(f"{speed:,.0f}", speed, hover, kind, why),
        _cell(duration(seconds), seconds if trained else 0, hover, kind, why),
        _cell(f"{memory:,.0f}", memory, hover, kind, "not measured"),
        _cell(f"{parameters / 1e6:.2f}", parameters / 1e6, "", kind, "not known"),
        _length(one, kind, trained),
    ]


def _cell(text: str, value: float, hover: str, kind: CellKind, why: str) -> Cell:
    return Cell(text, value, hover, kind=kind) if value > 0 else Cell("–", None, why, kind="missing")


def _length(one: Group, kind: CellKind, trained: bool) -> Cell:
    if not trained:
        return Cell("–", None, "nothing was trained", kind="missing")
    steps, limit = one.records[0].steps, one.config.get("max_steps")
    epochs = one.config.get("epochs")
    batch = one.config.get("batch")
    hover = f"{steps:,} steps of {batch} images" if steps and batch else ""
    if limit:
        return Cell(f"{limit} steps", None, hover, kind=kind)
    return Cell(str(epochs), float(epochs), hover, kind=kind) if epochs else Cell("–", None, "not known", kind="missing")


def duration(seconds: float) -> str:
    """A length of time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
