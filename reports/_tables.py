# SPDX-License-Identifier: Apache-2.0
"""What the pages share: runs grouped over seeds, scores with their provenance, cells, columns, order."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from suite.record import Result, RunRecord
from suite.spec import Cell, Evaluator, Metric, Recipe

MODEL_ZOO = ("svm", "linear", "knn", "semi_supervised", "finetune", "detection", "segmentation", "retrieval", "rank", "tsne")
"""The order in which model zoos list their benchmarks; others follow by name."""


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed."""

    recipe: str
    preset: str
    digest: str
    records: tuple[RunRecord, ...]

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings that the runs share."""
        return self.records[0].config

    @property
    def dataset(self) -> str:
        """What the weights were pre-trained on."""
        return str(self.config.get("dataset") or "")


def group(records: Sequence[RunRecord]) -> list[Group]:
    """Groups of runs by recipe, preset and digest, in that order; seeds ascend inside."""
    found: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record in records:
        found.setdefault((record.recipe, record.preset, record.digest), []).append(record)
    seeds = {key: tuple(sorted(runs, key=lambda run: (run.seed, run.id))) for key, runs in sorted(found.items())}
    return [Group(*key, runs) for key, runs in seeds.items()]


def is_control(one: Group, recipes: Mapping[str, Recipe]) -> bool:
    """Whether a group is a control: random weights, supervised training."""
    return one.recipe in recipes and recipes[one.recipe].control


def notes_of(one: Group) -> list[str]:
    """The warnings that belong to a group's numbers, each once."""
    return list(dict.fromkeys(flat(note) for record in one.records for note in record.notes))


def flat(text: str) -> str:
    """Text of a record as one line without a paragraph's markup."""
    return " ".join(text.split()).replace("`", "'")


def title_of(one: Group, recipes: Mapping[str, Recipe]) -> str:
    """The algorithm's name as people know it."""
    return recipes[one.recipe].title if one.recipe in recipes else one.recipe


def trained(one: Group, recipes: Mapping[str, Recipe]) -> bool:
    """Whether the recipe trains anything at all."""
    return one.recipe not in recipes or recipes[one.recipe].method is not None


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key in which `k2` precedes `k10`, and `pooled` follows every stage."""
    parts = re.findall(r"\d+|\D+", text)
    return [(1, int(part), "") if part.isdigit() else (2 if part == "pooled" else 0, 0, part) for part in parts]


def evaluator_order(name: str) -> tuple[int, str]:
    """Sort key that follows the model zoos."""
    return (MODEL_ZOO.index(name) if name in MODEL_ZOO else len(MODEL_ZOO), name)


def benchmark_title(name: str, evaluators: Mapping[str, Evaluator]) -> str:
    """The evaluator's title; its name in words when it is not installed."""
    return evaluators[name].title if name in evaluators else name.replace("_", " ").capitalize()


def keys(groups: Sequence[Group], evaluators: Mapping[str, Evaluator]) -> list[tuple[str, str]]:
    """(evaluator, preset) of every known evaluator's default and of everything that was measured, ordered."""
    found = {(name, "default") for name in evaluators}
    for one in groups:
        for record in one.records:
            found |= {(result.evaluator, result.preset) for result in record.results.values()}
    return sorted(found, key=lambda key: (evaluator_order(key[0]), key[1] != "default", key[1]))


def headline(name: str, results: Sequence[Result], evaluators: Mapping[str, Evaluator]) -> Metric:
    """The first metric of an evaluator; for one that is not installed, the first it reported."""
    if name in evaluators:
        return evaluators[name].metrics[0]
    reported = sorted({metric for result in results for metric in result.metrics}, key=natural)
    return Metric(reported[0] if reported else name, reported[0] if reported else name, unit="")


@dataclass(frozen=True)
class Score:
    """One metric of one group, over its seeds."""

    values: tuple[float, ...]
    results: tuple[Result, ...]
    why: str = ""
    "Why there is no value."
    stale: str = ""
    "Why the value no longer counts."
    aside: int = 0
    "Results of other seeds that are not included, because their settings or data differ."

    @property
    def mean(self) -> float | None:
        """Mean over seeds, None without a value."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds, 0 for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


def results_of(one: Group, name: str, preset: str) -> list[Result]:
    """The results of one evaluator's preset over a group's seeds."""
    found = (r for record in one.records for r in record.results.values())
    return [result for result in found if (result.evaluator, result.preset) == (name, preset)]


def score(
    one: Group, name: str, preset: str, metric: str, evaluators: Mapping[str, Evaluator], recipes: Mapping[str, Recipe]
) -> Score:
    """One metric of a group over the seeds that were measured alike, or the reason why there is none."""
    results = results_of(one, name, preset)
    good = [result for result in results if result.status == "ok" and metric in result.metrics]
    if not good:
        return Score((), (), why=_why(results, metric))
    counts = {digest: sum(r.digest == digest for r in good) for digest in sorted({r.digest for r in good})}
    chosen = max(counts, key=lambda digest: counts[digest])
    alike = tuple(result for result in good if result.digest == chosen)
    values = tuple(float(result.metrics[metric]) for result in alike)
    return Score(values, alike, stale=_stale(one, alike, evaluators, recipes), aside=len(good) - len(alike))


def _why(results: Sequence[Result], metric: str) -> str:
    if not results:
        return "not run"
    bad = next((result for result in results if result.status != "ok"), None)
    if bad is not None:
        return f"{bad.status}: {bad.why}" if bad.why else bad.status
    return "not part of this protocol"


def _stale(one: Group, results: Sequence[Result], evaluators: Mapping[str, Evaluator], recipes: Mapping[str, Recipe]) -> str:
    reasons = []
    recipe = recipes.get(one.recipe)
    versions = {record.recipe_version for record in one.records}
    if recipe is not None and versions != {recipe.version}:
        reasons.append(f"pre-trained with version {_all(versions - {recipe.version})} of {one.recipe}, now {recipe.version}")
    evaluator = evaluators.get(results[0].evaluator)
    measured = {result.version for result in results}
    if evaluator is not None and measured != {evaluator.version}:
        old = _all(measured - {evaluator.version})
        reasons.append(f"measured with version {old} of {evaluator.name}, now {evaluator.version}")
    weights = {record.weights.sha256 for record in one.records}
    if any(result.weights not in weights for result in results):
        reasons.append("measured on weights that the run no longer has")
    return "; ".join(reasons)


def _all(values: set[int]) -> str:
    return ", ".join(str(value) for value in sorted(values))


def evaluated_on(results: Sequence[Result]) -> str:
    """Names of the data sets behind results (`digits`, or several joined)."""
    names = {key.split("/")[0] for result in results for key in result.data}
    names |= {str(r.config.get("dataset") or "") for r in results if not r.data}
    return " + ".join(sorted(names - {""}))


def fixed(value: float, decimals: int) -> str:
    """A number with a true minus sign and never a negative zero."""
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def signed(value: float, decimals: int) -> str:
    """A difference, always with its sign."""
    text = fixed(value, decimals)
    return text if text.startswith("−") or float(text) == 0 else f"+{text}"


def shown(one: Score, decimals: int) -> str:
    """`72.3`, or `72.3 ± 0.4 (3)` over seeds: mean, sample standard deviation, number of seeds."""
    if one.mean is None:
        return "–"
    spread = f" ± {fixed(one.std, decimals)} ({len(one.values)})" if len(one.values) > 1 else ""
    return fixed(one.mean, decimals) + spread


CellKind = Literal["", "control", "published", "stale", "missing", "best"]


def score_cell(one: Group, found: Score, decimals: int, control: bool, extra: Sequence[str] = ()) -> Cell:
    """The cell of a score, with its provenance, or with the reason why it is empty."""
    if found.mean is None:
        return Cell("–", None, found.why, kind="missing")
    kind: CellKind = "stale" if found.stale else "control" if control else ""
    lines = [found.stale] if found.stale else []
    return Cell(shown(found, decimals), found.mean, "\n".join([*lines, *extra, *provenance(one, found)]), kind=kind)


def provenance(one: Group, found: Score) -> list[str]:
    """Where a score comes from: seeds, settings, data, weights, machine."""
    first = found.results[0]
    seeds = {record.weights.sha256: record.seed for record in one.records}
    lines = []
    if len(found.values) > 1:
        pairs = zip(found.results, found.values, strict=True)
        lines.append("per seed: " + ", ".join(f"{seeds.get(r.weights, '?')}: {fixed(v, 2)}" for r, v in pairs))
    if found.aside:
        lines.append(f"{found.aside} more with other settings or data, not included")
    selected = ", ".join(f"{key} {value}" for key, value in sorted(first.selected.items()))
    lines.append(f"{first.evaluator}, preset {first.preset}, version {first.version}")
    lines += [f"chosen: {selected[:300]}"] if selected else []
    lines += [f"data: {name} {fingerprint[:12]}" for name, fingerprint in sorted(first.data.items())]
    lines.append("weights: " + ", ".join(result.weights[:12] for result in found.results))
    packages = [f"{key} {first.env.packages[key]}" for key in ("torch", "timm") if key in first.env.packages]
    env = [first.env.device, *packages, f"suite {first.env.suite}" if first.env.suite else "", first.env.git]
    return [*lines, ", ".join(part for part in env if part)] if any(env) else lines


def run_hover(one: Group) -> str:
    """Where a row comes from: runs, settings digest, architecture."""
    record = one.records[0]
    lines = [f"{one.recipe}, preset {one.preset}, version {record.recipe_version}, settings {one.digest[:12]}"]
    lines.append(f"{record.weights.arch}, {_size(one)} on {one.dataset or 'unknown data'}")
    lines += [f"seed {run.seed}: {run.id}, weights {run.weights.sha256[:12]}" for run in one.records]
    return "\n".join(lines)


def _size(one: Group) -> str:
    size = one.config.get("size")
    return f"{size} px" if size else "size unknown"


def best(rows: Sequence[Sequence[Cell]], column: int, higher: bool) -> list[list[Cell]]:
    """The rows with the best plain cell of a column marked; equal texts are all marked."""
    plain = [row[column] for row in rows if row[column].kind == "" and row[column].value is not None]
    if len(plain) < 2:
        return [list(row) for row in rows]
    winner = (max if higher else min)(plain, key=lambda cell: cell.value or 0.0).text.split(" ")[0]
    marked = []
    for row in rows:
        cell = row[column]
        won = cell.kind == "" and cell.value is not None and cell.text.split(" ")[0] == winner
        marked.append([*row[:column], replace(cell, kind="best") if won else cell, *row[column + 1 :]])
    return marked
