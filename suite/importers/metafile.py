# SPDX-License-Identifier: Apache-2.0
"""MMSelfSup's `metafile.yml`: models with `Results` and, in 1.x, `Downstream` results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite import figures
from suite.errors import UsageError
from suite.figures import Context, Imported, Row

DEPTH = 30
"""Levels of nesting at most."""
TASKS = {
    "linearevaluation": "linear", "selfsupervisedimageclassification": "linear", "finetuning": "finetune",
    "objectdetection": "detection", "instancesegmentation": "detection", "semanticsegmentation": "segmentation",
}  # fmt: skip
"""Tasks in letters and digits alone, to our evaluators."""
METRICS = {
    "top1accuracy": "top1", "top5accuracy": "top5", "boxap": "map", "bboxmap": "map", "maskap": "mask_map",
    "segmmap": "mask_map", "ap50": "ap50", "map": "map", "miou": "miou",
}  # fmt: skip


def read(data: bytes, path: Path, context: Context) -> Imported:
    """Every figure of a metafile.

    Raises:
        UsageError: no metafile, or a value that is not what it should be; names the key.
    """
    raw = _yaml(data, path)
    models = figures.sequence(raw.get("Models"), f"{path}: Models")
    if not models:
        raise UsageError(f"{path}: Models is empty or missing")
    found = Imported("mmselfsup")
    for i, model in enumerate(models):
        where = f"{path}: Models[{i}]"
        _model(found, figures.mapping(model, where), where, path, context)
    return found


def _model(found: Imported, entry: Mapping[str, Any], where: str, path: Path, context: Context) -> None:
    """Add one model's figures to what was found."""
    title = figures.name(entry.get("Name"), f"{where}.Name").removesuffix(".py")
    collection = figures.name(entry.get("In Collection") or title.split("_")[0], f"{where}.In Collection")
    algorithm = figures.algorithm(collection, context.recipes)
    head, _, tail = title.partition("_")
    preset = tail if tail and figures.plain(head) == figures.plain(collection) else title
    weights = str(entry.get("Weights") or "").rpartition("/")[2]
    note = figures.line(f"{figures.UNPROVEN}: {weights}" if weights else figures.UNPROVEN)
    for one in _measured(entry, where):
        evaluator, metric = TASKS.get(figures.plain(one.task)), METRICS.get(figures.plain(one.metric))
        if evaluator is None or metric is None:
            found.left_out.append(f"{title}: {one.task}, {one.metric} on {one.dataset}: no benchmark here measures that")
            continue
        found.rows.append(
            Row(algorithm, preset, figures.dataset(one.dataset), f"{evaluator}/{metric}", one.value, "MMSelfSup metafile",
                figures.place(path), note, one.protocol)
        )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One number of a metafile."""

    task: str
    dataset: str
    metric: str
    value: str
    protocol: str


def _measured(model: Mapping[str, Any], where: str) -> Iterator[Measured]:
    groups = [(model, where)]
    for i, one in enumerate(figures.sequence(model.get("Downstream"), f"{where}.Downstream")):
        groups.append((figures.mapping(one, f"{where}.Downstream[{i}]"), f"{where}.Downstream[{i}]"))
    for group, at in groups:
        metadata = figures.mapping(group.get("Metadata") or {}, f"{at}.Metadata")
        config = str(group.get("Config") or "").rpartition("/")[2].removesuffix(".py")
        said = [config, *(f"{key.lower()} {metadata[key]}" for key in ("Epochs", "Batch Size") if key in metadata)]
        for i, result in enumerate(figures.sequence(group.get("Results"), f"{at}.Results")):
            here = f"{at}.Results[{i}]"
            one = figures.mapping(result, here)
            for metric, value in figures.mapping(one.get("Metrics") or {}, f"{here}.Metrics").items():
                yield Measured(
                    figures.name(one.get("Task"), f"{here}.Task"), figures.name(one.get("Dataset"), f"{here}.Dataset"),
                    figures.name(metric, f"{here}.Metrics"), figures.number(value, f"{here}.Metrics.{metric}", 0, 100),
                    figures.line(", ".join(part for part in said if part)),
                )  # fmt: skip


def _yaml(data: bytes, path: Path) -> dict[str, Any]:
    """A YAML mapping of plain text, lists and mappings.

    Raises:
        UsageError: no YAML, too deep, or with references (a small file could unfold without end).
    """
    import yaml

    depth = 0
    try:
        for event in yaml.parse(data, Loader=yaml.SafeLoader):
            at = f"{path} line {event.start_mark.line + 1}"
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise UsageError(f"{at}: nested deeper than {DEPTH} levels")
            if isinstance(event, yaml.AliasEvent):
                raise UsageError(f"{at}: references (*{event.anchor}) are not read")
        # BaseLoader makes text of every value, so that 71.80 stays as it was printed, and objects of nothing.
        raw = yaml.load(data, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UsageError(f"{path}{f' line {mark.line + 1}' if mark else ''}: not YAML") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{path}: not a metafile (no mapping)")
    return raw
