# SPDX-License-Identifier: Apache-2.0
"""MTEB-style JSON: one file per model and task, with scores by split and a list entry per subset.

A task of MTEB's own becomes `mteb/main_score.TASK` in percent, since its protocols are not ours. A contributed file may name an
evaluator of ours as its task (`knn`, `linear:moco`); its scores are then our metrics in our units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from suite import figures
from suite.errors import UsageError
from suite.figures import Context, Imported, Row
from suite.record import parse


def read(raw: Mapping[str, Any], path: Path, context: Context) -> Imported:
    """The scores of one model on one task.

    Raises:
        UsageError: no result, no model, or a value that is not what it should be; names the key.
    """
    task = figures.name(raw.get("task_name"), f"{path}: task_name")
    scores = figures.mapping(raw.get("scores"), f"{path}: scores")
    split = "test" if "test" in scores else next(iter(scores), "")
    where = f"{path}: scores.{figures.line(split, 40)}"
    entries = [figures.mapping(one, where) for one in figures.sequence(scores.get(split), where)]
    if not entries:
        raise UsageError(f"{path}: scores has no entry")
    model = _model(raw, path, context)
    algorithm = figures.algorithm_within(model, context.recipes) or figures.algorithm(model, context.recipes)
    source = _source(raw)
    evaluator, _, variant = task.partition(":")
    if ours := context.declared(evaluator):
        data = figures.dataset(figures.line(entries[0].get("dataset"), 60)) if entries[0].get("dataset") else ""
        values, note = _ours(evaluator, ours, entries, where), figures.UNPROVEN
        said = f"preset {variant}" if variant else ""
    else:
        data, said = figures.dataset(task), f"task {task}, split {figures.line(split, 40)}{_revision(raw)}"
        values = {f"mteb/main_score.{task}": _percent(entries, where)}
        note = f"{figures.UNPROVEN}; printed as a fraction"
        note += f", mean of {len(entries)} subsets" if len(entries) > 1 else ""
    rows = [
        Row(algorithm, model, data, metric, value, source, figures.place(path), note, said) for metric, value in values.items()
    ]
    return Imported("mteb" if raw.get("mteb_version") else "contributed", rows)


def _source(raw: Mapping[str, Any]) -> str:
    return f"MTEB {figures.line(raw['mteb_version'], 20)}" if raw.get("mteb_version") else "contributed"


def _revision(raw: Mapping[str, Any]) -> str:
    return f", revision {figures.line(raw['dataset_revision'], 40)}" if raw.get("dataset_revision") else ""


def _ours(evaluator: str, metrics: Sequence[str], entries: Sequence[Mapping[str, Any]], where: str) -> dict[str, str]:
    """Our metric names to values, of the one entry that there must be."""
    found = {f"{evaluator}/{figures.name(key, where)}": figures.number(value, f"{where}.{key}")
             for key, value in entries[0].items() if key.partition(".")[0] in metrics}  # fmt: skip
    if len(entries) != 1 or not found:
        raise UsageError(f"{where}: needs one entry with a metric of {evaluator} ({', '.join(metrics)})")
    return found


def _percent(entries: Sequence[Mapping[str, Any]], where: str) -> str:
    """Mean main score over subsets, from fractions to percent without rounding errors of binary numbers."""
    values = [Decimal(figures.number(one.get("main_score"), f"{where}[{i}].main_score", 0, 1)) for i, one in enumerate(entries)]
    return f"{round(100 * sum(values) / len(values), 4):f}"


def _model(raw: Mapping[str, Any], path: Path, context: Context) -> str:
    """Name of the model: given, in the file, in `model_meta.json` beside it, or in `<model>/<revision>/<task>.json`."""
    meta = path.with_name("model_meta.json")
    named = context.model or raw.get("model_name")
    if not named and meta.is_file():
        named = parse(figures.read_bytes(meta), str(meta)).get("name")
    if not named and len(path.parts) > 2 and "__" in path.parts[-3]:
        named = path.parts[-3]
    if not isinstance(named, str) or not named:
        raise UsageError(f"{path}: which model is that? It has no model_name and no model_meta.json; give --model")
    return figures.name(named.replace("/", "__"), f"{path}: model")
