# SPDX-License-Identifier: Apache-2.0
"""Scores: one metric of one row with its spread, its interval and its provenance, ours or published, and its cell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from reports._groups import Group
from suite.record import Result
from suite.spec import Cell, Evaluator, Recipe

CellKind = Literal["", "control", "published", "stale", "missing", "best"]
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""97.5 % quantiles of Student's t for 1 to 9 degrees of freedom; 2.1 serves for more."""


@dataclass(frozen=True)
class Score:
    """One metric of one row: over its seeds, or as somebody printed it."""

    values: tuple[float, ...]
    results: tuple[Result, ...]
    why: str = ""
    "Why there is no value."
    stale: str = ""
    "Why the value no longer counts."
    aside: int = 0
    "Results of other seeds that are not included, because their settings or data differ."
    ends: tuple[tuple[float, float], ...] = ()
    "95 % bootstrap intervals of the values over test images, where every value has one."
    printed: str = ""
    "A published number, digit by digit."
    where: tuple[str, ...] = ()
    "Its sources."

    @cached_property
    def mean(self) -> float | None:
        """Mean over seeds, None without a value."""
        return math.fsum(self.values) / len(self.values) if self.values else None

    @cached_property
    def std(self) -> float:
        """Sample standard deviation over seeds, 0 for one seed."""
        if self.mean is None or len(self.values) < 2:
            return 0.0
        return math.sqrt(math.fsum((value - self.mean) ** 2 for value in self.values) / (len(self.values) - 1))

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval: over test images for one seed; for several, Student's over seeds joined with the images'."""
        n, mean = len(self.values), self.mean
        if mean is None or n == 1:
            return self.ends[0] if self.ends else None
        seeds = (STUDENT[n - 2] if n - 2 < len(STUDENT) else 2.1) * self.std / math.sqrt(n)
        images = sum(high - low for low, high in self.ends) / 2 / n
        half = math.hypot(seeds, images)  # all seeds see the same images, so that part does not shrink with n
        return mean - half, mean + half


def score(
    one: Group, name: str, preset: str, metric: str, evaluators: Mapping[str, Evaluator], recipes: Mapping[str, Recipe]
) -> Score:
    """One metric of a group over the seeds that were measured alike, or the reason why there is none."""
    return one.once(("score", name, preset, metric), lambda: _score(one, name, preset, metric, evaluators, recipes))


def _score(
    one: Group, name: str, preset: str, metric: str, evaluators: Mapping[str, Evaluator], recipes: Mapping[str, Recipe]
) -> Score:
    results = one.results(name, preset)
    good = [result for result in results if result.status == "ok" and finite(result.metrics.get(metric))]
    if not good:
        return Score((), (), why=_why(results, metric))
    digests = [result.digest for result in good]
    most = digests[0] if len(set(digests)) == 1 else max(sorted(set(digests)), key=digests.count)
    alike = tuple(result for result in good if result.digest == most)
    values = tuple(float(result.metrics[metric]) for result in alike)
    ends = tuple(pair for result in alike if result.intervals and (pair := _ends(result, metric)))
    return Score(
        values, alike, stale=_stale(one, alike, evaluators, recipes), aside=len(good) - len(alike),
        ends=ends if len(ends) == len(values) else (),
    )  # fmt: skip


def finite(value: object) -> bool:
    """Whether a record's value is a number that can be shown."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _ends(result: Result, metric: str) -> tuple[float, float] | None:
    pair = result.intervals.get(metric, ())
    return (float(pair[0]), float(pair[1])) if len(pair) == 2 and all(finite(end) for end in pair) else None


def _why(results: Sequence[Result], metric: str) -> str:
    if not results:
        return "not run"
    bad = next((result for result in results if result.status != "ok"), None)
    if bad is not None:
        return f"{bad.status}: {bad.why}" if bad.why else bad.status
    if any(metric in result.metrics for result in results):
        return "the stored value is not a finite number"
    return "not part of this protocol"


def _stale(one: Group, results: Sequence[Result], evaluators: Mapping[str, Evaluator], recipes: Mapping[str, Recipe]) -> str:
    reasons = []
    recipe = recipes.get(one.recipe)
    if recipe is not None and one.versions != {recipe.version}:
        old = _all(one.versions - {recipe.version})
        reasons.append(f"pre-trained with version {old} of {one.recipe}, now {recipe.version}")
    evaluator = evaluators.get(results[0].evaluator)
    if evaluator is not None and any(result.version != evaluator.version for result in results):
        old = _all({result.version for result in results} - {evaluator.version})
        reasons.append(f"measured with version {old} of {evaluator.name}, now {evaluator.version}")
    seeds = one.seeds
    if any(result.weights not in seeds for result in results):
        reasons.append("measured on weights that the run no longer has")
    return "; ".join(reasons)


def _all(values: set[int]) -> str:
    return ", ".join(str(value) for value in sorted(values))


def fixed(value: float, decimals: int) -> str:
    """A number with a true minus sign and never a negative zero."""
    text = f"{value:.{decimals}f}"
    if text[0] != "-":
        return text
    return text[1:] if float(text) == 0 else f"−{text[1:]}"


def signed(value: float, decimals: int) -> str:
    """A difference, always with its sign."""
    text = fixed(value, decimals)
    return text if text.startswith("−") or float(text) == 0 else f"+{text}"


def shown(one: Score, decimals: int, interval: bool = False) -> str:
    """`72.3`, `72.3 ± 0.4 (3)` over seeds (mean, standard deviation, seeds), `72.3 [71.4, 73.1]` with its interval."""
    if one.mean is None:
        return "–"
    if one.printed:
        return one.printed
    text = fixed(one.mean, decimals)
    if len(one.values) > 1:
        text += f" ± {fixed(one.std, decimals)} ({len(one.values)})"
    elif interval and one.interval is not None:
        text += f" [{fixed(one.interval[0], decimals)}, {fixed(one.interval[1], decimals)}]"
    return text


def score_cell(
    one: Group | None, found: Score, decimals: int, control: bool, extra: Sequence[str] = (), interval: bool = False
) -> Cell:
    """The cell of a score with its provenance, or with the reason why it is empty; without a group, a published one."""
    mean = found.mean
    if mean is None:
        return Cell("–", None, found.why, kind="missing")
    if one is None:
        return Cell(found.printed, mean, "\n".join(found.where), kind="published")
    kind: CellKind = "stale" if found.stale else "control" if control else ""
    lines = [found.stale] if found.stale else []
    lines += [*extra, *said_interval(found), *provenance(one, found)]
    return Cell(shown(found, decimals, interval), mean, "\n".join(lines), kind=kind)


def said_interval(found: Score) -> list[str]:
    """The interval in words, for pointing."""
    interval = found.interval
    if interval is None:
        return []
    ends = f"{fixed(interval[0], 2)} to {fixed(interval[1], 2)}"
    if len(found.values) > 1:
        over = "seeds and test images" if found.ends else "seeds"
        return [f"95 % interval {ends}, over {over}"]
    samples = found.results[0].samples
    return [f"95 % interval {ends}, over {samples:,} test images" if samples else f"95 % interval {ends}, over test images"]


def provenance(one: Group, found: Score) -> list[str]:
    """Where a score comes from: seeds, settings, data, weights, machine."""
    first = found.results[0]
    lines = []
    if len(found.values) > 1:
        pairs = zip(found.results, found.values, strict=True)
        lines.append("per seed: " + ", ".join(f"{one.seeds.get(r.weights, '?')}: {fixed(v, 2)}" for r, v in pairs))
    if found.aside:
        lines.append(f"{found.aside} more with other settings or data, not included")
    key = (first.evaluator, first.preset, first.digest, *(result.weights for result in found.results))
    return lines + one.once(key, lambda: _of_results(found.results))


def chosen(result: Result) -> str:
    """Hyper-parameters that were chosen, in words."""
    return ", ".join(f"{key} {_said(value)}" for key, value in sorted(result.selected.items()))


def _said(value: object) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_said(inner)}" for key, inner in value.items()) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _of_results(results: Sequence[Result]) -> list[str]:
    first = results[0]
    selected = chosen(first)
    lines = [f"{first.evaluator}, preset {first.preset}, version {first.version}"]
    lines += [f"chosen: {selected[:300]}"] if selected else []
    lines += [f"data: {name} {fingerprint[:12]}" for name, fingerprint in sorted(first.data.items())]
    lines.append("weights: " + ", ".join(result.weights[:12] for result in results))
    packages = [f"{key} {first.env.packages[key]}" for key in ("torch", "timm") if key in first.env.packages]
    env = [first.env.device, *packages, f"suite {first.env.suite}" if first.env.suite else "", first.env.git]
    return [*lines, ", ".join(part for part in env if part)] if any(env) else lines


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
        marked.append([*row[:column], replace(cell, kind="best"), *row[column + 1 :]] if won else list(row))
    return marked
