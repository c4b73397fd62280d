# SPDX-License-Identifier: Apache-2.0
"""One benchmark's table on an algorithm's page: our runs, the controls, the published rows and the difference."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports._published import Figure
from reports._tables import (
    CellKind,
    Group,
    Score,
    benchmark_title,
    best,
    evaluated_on,
    fixed,
    natural,
    results_of,
    run_hover,
    score,
    score_cell,
    signed,
)
from suite.spec import Cell, Evaluator, Metric, Recipe, Table

DECIMALS = 2
QUALIFIERS = ("_std", "_low", "_high")
"""Endings of metrics that qualify another one: spread and interval over repetitions."""
MOST_COMPARED = 4
"""Presets of one run that are all compared with each other; more are compared with the first."""


@dataclass(frozen=True)
class Section:
    """What one benchmark's table is built from."""

    evaluator: str
    ours: Sequence[Group]
    controls: Sequence[Group]
    published: Sequence[Figure]
    recipes: Mapping[str, Recipe]
    evaluators: Mapping[str, Evaluator]

    @property
    def known(self) -> Evaluator | None:
        """The evaluator, when it is installed."""
        return self.evaluators.get(self.evaluator)

    def presets(self, one: Group) -> list[str]:
        """The evaluator's presets that were run on a group; the default one when none was."""
        found = {r.preset for record in one.records for r in record.results.values() if r.evaluator == self.evaluator}
        return sorted(found, key=lambda preset: (preset != "default", preset)) or ["default"]


def build_section(section: Section) -> Table:
    """The table of one benchmark; its columns are the metrics that anybody reported, in natural order."""
    metrics = _metrics(section)
    rows = [row for one in section.ours for row in _rows(section, one, metrics, False)]
    if len({row[2].text for row in rows}) == 1:
        for i, metric in enumerate(metrics):
            rows = best(rows, i + 3, _declared(section, metric).higher_is_better)
    rows += [row for one in section.ours for row in _preset_differences(section, one, metrics)]
    rows += [row for one in section.controls for row in _rows(section, one, metrics, True)]
    rows += _published_rows(section, metrics)
    columns = ["Weights", "Preset", "Data", *(_column(section, metric) for metric in metrics)]
    return Table(benchmark_title(section.evaluator, section.evaluators), columns, rows, _note(section))


def _metrics(section: Section) -> list[str]:
    """Metric names: the headline, then the others by family and suffix; spreads belong to the number they qualify."""
    declared = [metric.name for metric in section.known.metrics] if section.known else []
    found = {figure.metric for figure in section.published} | set(declared[:1])
    for one in (*section.ours, *section.controls):
        for preset in section.presets(one):
            found |= {name for result in results_of(one, section.evaluator, preset) for name in result.metrics}
    found = {name for name in found if not name.partition(".")[0].endswith(QUALIFIERS)}

    def order(name: str) -> tuple[bool, int, bool, object, str]:
        base, _, suffix = name.partition(".")
        family = declared.index(base) if base in declared else len(declared)
        return (name not in declared[:1], family, bool(suffix), natural(suffix or base), name)

    return sorted(found, key=order)


def _declared(section: Section, name: str) -> Metric:
    base = name.partition(".")[0]
    metrics = section.known.metrics if section.known else ()
    return next((metric for metric in metrics if metric.name == base), Metric(base, base.replace("_", " ")))


SUFFIXES = (
    (re.compile(r"k(\d+)"), r"k = \1"),
    (re.compile(r"stage(\d+)"), r"Feature\1"),
    (re.compile(r"pooled"), "AvgPool"),
    (re.compile(r"(\d+)pct"), r"\1% labels"),
)


def _column(section: Section, name: str) -> str:
    suffix = name.partition(".")[2]
    metric = _declared(section, name)
    unit = f", {metric.unit}" if metric.unit else ""
    for pattern, replacement in SUFFIXES:
        if pattern.fullmatch(suffix):
            suffix = pattern.sub(replacement, suffix)
    return f"{suffix}\n{metric.title}{unit}" if suffix else f"{metric.title}\n{metric.unit}".rstrip()


def _rows(section: Section, one: Group, metrics: Sequence[str], control: bool) -> list[list[Cell]]:
    recipe = section.recipes.get(one.recipe)
    rows = []
    for preset in section.presets(one):
        scores = [score(one, section.evaluator, preset, m, section.evaluators, section.recipes) for m in metrics]
        kind: CellKind = "control" if control else ""
        title = recipe.title if recipe else one.recipe
        shown = title if preset == "default" else f"{title} [{preset}]"
        peeks = section.known is not None and preset in section.known.selects_on_test
        hover = f"selects on test data\n{run_hover(one)}" if peeks else run_hover(one)
        cells = [
            Cell(f"{shown} †" if peeks else shown, None, hover, link=one.recipe if control else "", kind=kind),
            Cell(one.preset, None, kind=kind),
            Cell(evaluated_on(results_of(one, section.evaluator, preset)) or "–", None, kind=kind),
        ]
        for metric, found in zip(metrics, scores, strict=True):
            cells.append(score_cell(one, found, DECIMALS, control, _spread(metric, found)))
        rows.append(cells)
    return rows


def _spread(metric: str, found: Score) -> list[str]:
    """What an evaluator reported beside a number: `lowshot.k1` has `lowshot_std.k1`, `lowshot_low.k1`, `lowshot_high.k1`."""
    base, dot, suffix = metric.partition(".")
    std, low, high = ([r.metrics.get(f"{base}{ending}{dot}{suffix}") for r in found.results] for ending in QUALIFIERS)
    spreads = [fixed(value, DECIMALS) for value in std if value is not None]
    ends = [(a, b) for a, b in zip(low, high, strict=True) if a is not None and b is not None]
    said = [f"± {', '.join(spreads)} over repetitions"] if spreads else []
    return said + [f"95 % interval {fixed(a, DECIMALS)} to {fixed(b, DECIMALS)}" for a, b in ends]


def _preset_differences(section: Section, one: Group, metrics: Sequence[str]) -> list[list[Cell]]:
    """What one protocol gives more than another on the same weights and data, for a group that ran several."""
    presets = section.presets(one)
    pairs = [(a, b) for i, a in enumerate(presets) for b in presets[i + 1 :]]
    rows = []
    for base, other in pairs if len(presets) <= MOST_COMPARED else [(presets[0], b) for b in presets[1:]]:
        data = [evaluated_on(results_of(one, section.evaluator, preset)) for preset in (base, other)]
        if data[0] != data[1]:
            continue
        cells = [_gap(section, one, base, other, metric) for metric in metrics]
        if any(cell.value is not None for cell in cells):
            rows.append([Cell(f"[{other}] − [{base}]", None, run_hover(one)), Cell(one.preset), Cell(data[0]), *cells])
    return rows


def _gap(section: Section, one: Group, base: str, other: str, metric: str) -> Cell:
    """The difference of two presets of one group in one metric; not a score, so it never counts as the best."""
    low, high = (score(one, section.evaluator, preset, metric, section.evaluators, section.recipes) for preset in (base, other))
    if low.mean is None or high.mean is None:
        return Cell("–", None, "not part of both protocols", kind="missing")
    gap = high.mean - low.mean
    hover = f"{fixed(high.mean, DECIMALS)} with {other}, {fixed(low.mean, DECIMALS)} with {base}"
    return Cell(signed(gap, DECIMALS), gap, hover, kind="control")


def _published_rows(section: Section, metrics: Sequence[str]) -> list[list[Cell]]:
    """A row per source, preset and data set, and under it our difference where exactly that was run."""
    by: dict[tuple[str, str, str], list[Figure]] = {}
    for figure in section.published:
        by.setdefault((figure.source, figure.preset, figure.dataset), []).append(figure)
    rows = []
    for (source, preset, dataset), found in by.items():
        head = [Cell(source, None, found[0].where, kind="published"), Cell(preset, kind="published")]
        cells = [_published_cell([figure for figure in found if figure.metric == metric]) for metric in metrics]
        rows.append([*head, Cell(dataset or "–", kind="published"), *cells])
        for one in section.ours:
            for evaluated in section.presets(one):
                if _comparable(section, one, evaluated, preset, dataset):
                    rows.append(_difference(section, one, evaluated, source, dataset, found, metrics))
    return rows


def _published_cell(found: Sequence[Figure]) -> Cell:
    if not found:
        return Cell("–", None, "not published", kind="missing")
    where = "\n".join(f"{figure.text}: {figure.where}" for figure in found)
    doubt = "*" if any(figure.note for figure in found) else ""
    return Cell(" / ".join(figure.text for figure in found) + doubt, found[0].value, where, kind="published")


def _comparable(section: Section, one: Group, evaluated: str, preset: str, dataset: str) -> bool:
    recipe = section.recipes.get(one.recipe)
    if recipe is None or preset not in (one.preset, one.config.get("compare")) or preset not in recipe.presets:
        return False
    on = evaluated_on(results_of(one, section.evaluator, evaluated))
    wanted = recipe.presets[preset].dataset
    return one.dataset == wanted and on == (dataset or wanted)


def _difference(
    section: Section, one: Group, evaluated: str, source: str, dataset: str, found: Sequence[Figure],
    metrics: Sequence[str],
) -> list[Cell]:  # fmt: skip
    cells = []
    for metric in metrics:
        theirs = [figure.value for figure in found if figure.metric == metric]
        ours = score(one, section.evaluator, evaluated, metric, section.evaluators, section.recipes)
        if len(theirs) == 1 and ours.mean is not None:
            gap = ours.mean - theirs[0]
            cells.append(Cell(signed(gap, DECIMALS), gap, f"ours {fixed(ours.mean, DECIMALS)}", kind="published"))
        else:
            why = "several figures are published" if len(theirs) > 1 else "nothing to compare"
            cells.append(Cell("–", None, why, kind="missing"))
    label = "ours − published" if evaluated == "default" else f"ours [{evaluated}] − published"
    return [Cell(label, None, source, kind="published"), Cell(one.preset, kind="published"),
            Cell(dataset or "–", kind="published"), *cells]  # fmt: skip


def _note(section: Section) -> str:
    notes = []
    known = section.known
    used = {preset for one in (*section.ours, *section.controls) for preset in section.presets(one)}
    for preset in sorted(used):
        text = known.describe.get(preset) if known else None
        if text:
            notes.append(f"{preset}: {text}.")
        if known and preset in known.selects_on_test:
            notes.append(f"† {preset} follows a published protocol that selects on test data.")
    doubts = sorted({figure.note for figure in section.published if figure.note})
    if doubts:
        notes.append("* " + "; ".join(doubts) + ".")
    return " ".join(notes)
