# SPDX-License-Identifier: Apache-2.0
"""What weights cost: speed, hours, memory, size, length."""

from __future__ import annotations

from collections.abc import Sequence

from reports._scores import CellKind
from suite.record import RunRecord
from suite.spec import Cell

COLUMNS = ("Speed\nimages/s", "Training\nGPU or CPU hours", "Peak memory\nMB", "Parameters\nmillions", "Length\nepochs")


def cost_cells(records: Sequence[RunRecord], control: bool, trained: bool = True) -> list[Cell]:
    """One cell per column of `COLUMNS`, means over runs of the same settings."""
    kind: CellKind = "control" if control else ""
    why = "not measured" if trained else "nothing was trained"
    env = records[0].env
    hover = f"measured on {env.device}, {env.threads} threads" if env.device else ""
    speed = sum(record.images_per_second for record in records) / len(records)
    memory = sum(record.peak_memory_mb for record in records) / len(records)
    parameters = records[0].weights.parameters
    return [
        _cell(f"{speed:,.0f}", speed, hover, kind, why),
        _hours(records, kind, why) if trained else _cell("", 0, "", kind, why),
        _cell(f"{memory:,.0f}", memory, hover, kind, "not measured"),
        _cell(f"{parameters / 1e6:.2f}", parameters / 1e6, "", kind, "not known"),
        _length(records[0], kind, trained),
    ]


def _cell(text: str, value: float, hover: str, kind: CellKind, why: str) -> Cell:
    return Cell(text, value, hover, kind=kind) if value > 0 else Cell("–", None, why, kind="missing")


def _hours(records: Sequence[RunRecord], kind: CellKind, why: str) -> Cell:
    """Wall time of one run times what it kept busy: its GPU, or its CPU threads."""
    env = records[0].env
    seconds = sum(record.seconds for record in records) / len(records)
    cpu = env.device.startswith("cpu") or not env.device
    hours = seconds / 3600 * (max(env.threads, 1) if cpu else 1)
    digits = 0 if hours >= 100 else 1 if hours >= 10 else 2 if hours >= 0.1 else 3
    busy = f"{max(env.threads, 1)} CPU threads" if cpu else env.device
    unit = "CPU h" if cpu else "GPU h"
    return _cell(f"{hours:,.{digits}f} {unit}", hours, f"{duration(seconds)} on {busy}", kind, why)


def _length(record: RunRecord, kind: CellKind, trained: bool) -> Cell:
    if not trained:
        return Cell("–", None, "nothing was trained", kind="missing")
    limit, epochs, batch = (record.config.get(name) for name in ("max_steps", "epochs", "batch"))
    hover = f"{record.steps:,} steps of {batch} images" if record.steps and batch else ""
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
