# SPDX-License-Identifier: Apache-2.0
"""The model zoo's index: every algorithm, its rank, the headline of every benchmark, what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reports._cost import COLUMNS, cost_cells
from reports._groups import (
    Group,
    algorithm_page,
    benchmark_title,
    flat,
    group,
    headline,
    is_control,
    keys,
    noted,
    run_hover,
    title_of,
    trained,
)
from reports._plots import Panel, dots
from reports._rank import Rank, overall, rank_cell, ranks, span
from reports._scores import CellKind, Score, best, score, score_cell, signed
from suite.record import RunRecord
from suite.spec import Archive, Cell, Document, Evaluator, Metric, Page, Plot, Recipe, Table, base_preset

SUMMARY = (
    "Self-supervised pre-training, measured. Every number stands in a stored record: point at it to see which. Rows "
    "of one table share their pre-training data; several seeds are given as mean ± standard deviation (seeds), one seed "
    "with its 95 % interval over test images."
)
RANKING = (
    "A rank such as 2–4 says what the data can tell: one row is surely better, and the row is not told apart from two "
    "others, because their 95 % intervals overlap. It goes by the benchmarks that at least half of the rows were run on."
)
PLOTTED = 30
"""Rows of a figure at most."""
NOTED = 40
"""Warnings of runs on this page at most; the algorithms' pages have theirs."""


@dataclass(frozen=True)
class Column:
    """A benchmark under one preset, with the metric that stands for it."""

    evaluator: str
    preset: str
    metric: Metric
    scoring: bool
    "False: it describes features and ranks nobody."

    def title(self, evaluators: Mapping[str, Evaluator]) -> str:
        """Head of the column: benchmark, preset if it is not the default, metric."""
        title = benchmark_title(self.evaluator, evaluators)
        unit = f", {self.metric.unit}" if self.metric.unit else ""
        return f"{title}{'' if self.preset == 'default' else f' [{self.preset}]'}\n{self.metric.title}{unit}"


def build(
    records: Sequence[RunRecord], recipes: Mapping[str, Recipe], evaluators: Mapping[str, Evaluator], archive: Archive
) -> list[Document]:
    """The index page: a figure and a table for every data set that something was pre-trained on."""
    groups = group(records)
    parts: list[Table | Plot | str] = []
    by: dict[str, list[Group]] = {}
    for one in groups:
        by.setdefault(one.dataset, []).append(one)
    for dataset, here in sorted(by.items()):
        parts += _section(dataset or "unknown data", here, recipes, evaluators)
    if not groups:
        parts.append("There are no records yet. Make the first: `suite run --algo mocov2 --bench all`")
    return [Document("index", "Model zoo", SUMMARY, parts)]


def columns_of(groups: Sequence[Group], evaluators: Mapping[str, Evaluator]) -> list[Column]:
    """Every benchmark's default and every preset that was measured."""
    found = []
    for name, preset in keys(groups, evaluators):
        results = [] if name in evaluators else [r for one in groups for r in one.results(name, preset)]
        scoring = not (name in evaluators and evaluators[name].diagnostic)
        found.append(Column(name, preset, headline(name, results, evaluators), scoring))
    return found


def _tried(
    columns: Sequence[Column], groups: Sequence[Group], evaluators: Mapping[str, Evaluator]
) -> tuple[Sequence[Column], str]:
    """The columns that somebody tried, and a sentence about the others; all of them when nobody tried any."""
    tried = {key for one in groups for key in one.measured}
    kept = [column for column in columns if (column.evaluator, column.preset) in tried]
    others = [benchmark_title(column.evaluator, evaluators) for column in columns if column not in kept]
    if not kept or not others:
        return columns, ""
    return kept, f"Run on none of these: {', '.join(others)}."


def _section(
    dataset: str, groups: Sequence[Group], recipes: Mapping[str, Recipe], evaluators: Mapping[str, Evaluator]
) -> list[Table | Plot | str]:
    columns, untried = _tried(columns_of(groups, evaluators), groups, evaluators)
    scores = [[score(one, c.evaluator, c.preset, c.metric.name, evaluators, recipes) for c in columns] for one in groups]
    control = [is_control(one, recipes) for one in groups]
    placed = _ranks(scores, columns, control)
    order = sorted(range(len(groups)), key=lambda i: (control[i], *_place(placed[i]), groups[i].recipe, groups[i].preset))
    floors = _untrained(groups, scores, recipes)
    competing = sum(rank is not None for rank in placed)
    rows = []
    several = {key for key, count in Counter((one.recipe, one.preset) for one in groups).items() if count > 1}
    for i in order:
        cells = _row(groups[i], scores[i], recipes, floors.get(groups[i].config.get("arch"), floors.get("")))
        if (groups[i].recipe, groups[i].preset) in several:
            cells[1] = replace(cells[1], text=f"{groups[i].preset}, {groups[i].records[0].weights.arch}")
        rows.append([cells[0], cells[1], rank_cell(placed[i], control[i], competing), *cells[2:]])
    for i, c in enumerate(columns):
        rows = best(rows, i + 3, c.metric.higher_is_better) if c.scoring else rows
    titles = [c.title(evaluators) for c in columns]
    table = Table(
        f"Benchmarks and cost, {dataset}", ["Algorithm", "Preset", "Overall rank\n95 %", *titles, *COLUMNS], rows,
        " ".join([RANKING if competing > 1 else "", *_notes(groups, columns, evaluators), untried]).strip(),
    )  # fmt: skip
    shown = [i for i in order if not control[i]][:PLOTTED]
    plot = _plot(dataset, shown, groups, scores, columns, recipes, evaluators)
    parts: list[Table | Plot | str] = [f"## Pre-trained on {flat(dataset)}", *([plot] if plot else []), table]
    notes = noted(groups, lambda one: f"{flat(one.recipe)} {flat(one.preset)}")
    more = [f"- {len(notes) - NOTED} more warnings stand on the algorithms' pages."] if len(notes) > NOTED else []
    return [*parts, "\n".join([*notes[:NOTED], *more])] if notes else parts


def _place(rank: Rank | None) -> tuple[float, int]:
    return (rank.middle, rank.first) if rank else (float("inf"), 0)


def _ranks(scores: Sequence[Sequence[Score]], columns: Sequence[Column], control: Sequence[bool]) -> list[Rank | None]:
    """The overall rank of every row over the scoring benchmarks; controls have none."""
    rows = [i for i in range(len(scores)) if not control[i]]
    by = [
        ranks([span(scores[i][c]) for i in rows], column.metric.higher_is_better)
        for c, column in enumerate(columns)
        if column.scoring
    ]
    found: list[Rank | None] = [None] * len(scores)
    for i, rank in zip(rows, overall(by, len(rows)), strict=True):
        found[i] = rank
    return found


def _untrained(
    groups: Sequence[Group], scores: Sequence[Sequence[Score]], recipes: Mapping[str, Recipe]
) -> dict[object, tuple[Group, Sequence[Score]]]:
    """Random weights by architecture; under the empty name, those that stand in for any other architecture."""
    found: dict[object, tuple[Group, Sequence[Score]]] = {}
    for one, mine in zip(groups, scores, strict=True):
        if is_control(one, recipes) and not trained(one, recipes):
            found.setdefault(one.config.get("arch"), (one, mine))
            found.setdefault("", (one, mine))
    return found


def _row(
    one: Group, scores: Sequence[Score], recipes: Mapping[str, Recipe], floor: tuple[Group, Sequence[Score]] | None
) -> list[Cell]:  # fmt: skip
    control = is_control(one, recipes)
    kind: CellKind = "control" if control else ""
    cells = [
        Cell(title_of(one, recipes), None, run_hover(one), link=algorithm_page(one.recipe), kind=kind),
        Cell(one.preset, None, f"settings {one.digest[:12]}", kind=kind),
    ]
    for c, found in enumerate(scores):
        low = floor[1][c].mean if floor and not control else None
        over = []
        if floor and found.mean is not None and low is not None:
            over = [f"{signed(found.mean - low, 1)} against {floor[0].recipe} {floor[0].preset}"]
        cells.append(score_cell(one, found, 1, control, over, interval=True))
    return [*cells, *cost_cells(one.records, control, trained(one, recipes))]


def _notes(groups: Sequence[Group], columns: Sequence[Column], evaluators: Mapping[str, Evaluator]) -> list[str]:
    notes = []
    for c in columns:
        name, preset = c.evaluator, c.preset
        prints = {tuple(sorted(r.data.items())) for one in groups for r in one.results(name, preset) if r.data}
        if len(prints) > 1:
            notes.append(f"{name} was measured on {len(prints)} different states of its data: compare with care.")
        if name in evaluators and base_preset(preset) in evaluators[name].selects_on_test:
            notes.append(f"{name} [{preset}] follows a published protocol that selects on test data.")
    return notes


def _plot(
    dataset: str, order: Sequence[int], groups: Sequence[Group], scores: Sequence[Sequence[Score]],
    columns: Sequence[Column], recipes: Mapping[str, Recipe], evaluators: Mapping[str, Evaluator],
) -> Plot | None:  # fmt: skip
    panels = []
    standing = [(one.recipe, mine) for one, mine in zip(groups, scores, strict=True) if is_control(one, recipes)]
    for c, column in enumerate(columns):
        values = [scores[i][c].mean for i in order]
        if all(value is None for value in values) or not column.scoring:
            continue
        controls: dict[str, float] = {}
        for name, mine in standing:
            value = mine[c].mean
            if value is not None:
                controls.setdefault(name, value)
        ends = [scores[i][c].interval for i in order]
        panels.append(Panel(column.title(evaluators), values, ends, controls))
    if not panels:
        return None
    presets = {groups[i].preset for i in order}
    labels = [title_of(groups[i], recipes) + (f" · {groups[i].preset}" if len(presets) > 1 else "") for i in order]
    said = "; ".join(
        f"{panel.title.splitlines()[0]}: "
        + ", ".join(f"{label} {value:.1f}" for label, value in zip(labels, panel.values, strict=True) if value is not None)
        for panel in panels
    )
    title = f"Headline of every benchmark with its 95 % interval, {dataset}"
    return Plot(title, dots(labels, panels), f"Dot plot. {said}.")


PAGE = Page(name="index", title="Model zoo index", build=build)
