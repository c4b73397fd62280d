# SPDX-License-Identifier: Apache-2.0
"""The model zoo's index: every algorithm, the headline of every benchmark, what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reports._cost import COLUMNS, cost_cells
from reports._plots import Panel, dots
from reports._tables import (
    CellKind,
    Group,
    Score,
    benchmark_title,
    best,
    flat,
    group,
    headline,
    is_control,
    keys,
    notes_of,
    results_of,
    run_hover,
    score,
    score_cell,
    signed,
    title_of,
    trained,
)
from suite.record import RunRecord
from suite.spec import Archive, Cell, Document, Evaluator, Metric, Page, Plot, Recipe, Table

SUMMARY = (
    "Self-supervised pre-training, measured. Every number stands in a stored record: point at it to see which. Rows "
    "of one table share their pre-training data; several seeds are given as mean ± standard deviation (seeds)."
)
PLOTTED = 30
"""Rows of a figure at most."""


def build(
    records: Sequence[RunRecord], recipes: Mapping[str, Recipe], evaluators: Mapping[str, Evaluator], archive: Archive
) -> list[Document]:
    """The index page: a figure and a table for every data set that something was pre-trained on."""
    groups = group(records)
    parts: list[Table | Plot | str] = []
    for dataset in sorted({one.dataset for one in groups}):
        here = [one for one in groups if one.dataset == dataset]
        parts += _section(dataset or "unknown data", here, recipes, evaluators)
    if not groups:
        parts.append("There are no records yet. Make the first: `suite run --algo mocov2 --bench all`")
    return [Document("index", "Model zoo", SUMMARY, parts)]


def _section(
    dataset: str, groups: Sequence[Group], recipes: Mapping[str, Recipe], evaluators: Mapping[str, Evaluator]
) -> list[Table | Plot | str]:
    columns = [
        (name, preset, headline(name, [r for one in groups for r in results_of(one, name, preset)], evaluators))
        for name, preset in keys(groups, evaluators)
    ]
    scores = [
        [score(one, name, preset, metric.name, evaluators, recipes) for name, preset, metric in columns] for one in groups
    ]
    control = [is_control(one, recipes) for one in groups]
    scoring = [not (name in evaluators and evaluators[name].diagnostic) for name, _, _ in columns]
    ranks = _mean_ranks(scores, [metric for _, _, metric in columns], control, scoring)
    order = sorted(range(len(groups)), key=lambda i: (control[i], ranks[i], groups[i].recipe, groups[i].preset))
    rows = [_row(groups[i], scores[i], columns, recipes, _random(groups, scores, recipes)) for i in order]
    for i, (_, _, metric) in enumerate(columns):
        rows = best(rows, i + 2, metric.higher_is_better)
    titles = [_title(name, preset, metric, evaluators) for name, preset, metric in columns]
    table = Table(
        f"Benchmarks and cost, {dataset}", ["Algorithm", "Preset", *titles, *COLUMNS], rows,
        _note(groups, columns, evaluators),
    )  # fmt: skip
    plot = _plot(dataset, [i for i in order if not control[i]][:PLOTTED], groups, scores, columns, recipes, evaluators)
    notes = [f"- {flat(one.recipe)} {flat(one.preset)}: {note}" for one in groups for note in notes_of(one)]
    parts: list[Table | Plot | str] = [f"## Pre-trained on {flat(dataset)}", *([plot] if plot else []), table]
    return [*parts, "\n".join(notes)] if notes else parts


def _title(name: str, preset: str, metric: Metric, evaluators: Mapping[str, Evaluator]) -> str:
    title = benchmark_title(name, evaluators)
    unit = f", {metric.unit}" if metric.unit else ""
    return f"{title}{'' if preset == 'default' else f' [{preset}]'}\n{metric.title}{unit}"


def _mean_ranks(
    scores: Sequence[Sequence[Score]], metrics: Sequence[Metric], control: Sequence[bool], scoring: Sequence[bool]
) -> list[float]:
    """Mean over scoring benchmarks of each row's rank among rows that are no controls; rows without a number come last."""
    ranks: list[list[float]] = [[] for _ in scores]
    for c, metric in enumerate(metrics):
        known = [(i, row[c].mean) for i, row in enumerate(scores) if scoring[c] and not control[i]]
        values = [(i, value if metric.higher_is_better else -value) for i, value in known if value is not None]
        for i, value in values:
            ranks[i].append(1 + sum(other > value for _, other in values))
    return [sum(found) / len(found) if found else float("inf") for found in ranks]


def _random(
    groups: Sequence[Group], scores: Sequence[Sequence[Score]], recipes: Mapping[str, Recipe]
) -> list[tuple[Group, Sequence[Score]]]:
    pairs = zip(groups, scores, strict=True)
    return [(one, found) for one, found in pairs if is_control(one, recipes) and not trained(one, recipes)]


def _row(
    one: Group, scores: Sequence[Score], columns: Sequence[tuple[str, str, Metric]], recipes: Mapping[str, Recipe],
    untrained: Sequence[tuple[Group, Sequence[Score]]],
) -> list[Cell]:  # fmt: skip
    control = is_control(one, recipes)
    kind: CellKind = "control" if control else ""
    same = [pair for pair in untrained if pair[0].config.get("arch") == one.config.get("arch")] or list(untrained)
    cells = [
        Cell(title_of(one, recipes), None, run_hover(one), link=one.recipe, kind=kind),
        Cell(one.preset, None, f"settings {one.digest[:12]}", kind=kind),
    ]
    for c, found in enumerate(scores):
        floor = same[0][1][c].mean if same and not control else None
        over = []
        if found.mean is not None and floor is not None:
            over = [f"{signed(found.mean - floor, 1)} against {same[0][0].recipe} {same[0][0].preset}"]
        cells.append(score_cell(one, found, 1, control, over))
    return [*cells, *cost_cells(one, control, trained(one, recipes))]


def _note(groups: Sequence[Group], columns: Sequence[tuple[str, str, Metric]], evaluators: Mapping[str, Evaluator]) -> str:
    notes = []
    for name, preset, _ in columns:
        prints = {tuple(sorted(r.data.items())) for one in groups for r in results_of(one, name, preset) if r.data}
        if len(prints) > 1:
            notes.append(f"{name} was measured on {len(prints)} different states of its data: compare with care.")
        if name in evaluators and preset in evaluators[name].selects_on_test:
            notes.append(f"{name} [{preset}] follows a published protocol that selects on test data.")
    return " ".join(notes)


def _plot(
    dataset: str, order: Sequence[int], groups: Sequence[Group], scores: Sequence[Sequence[Score]],
    columns: Sequence[tuple[str, str, Metric]], recipes: Mapping[str, Recipe], evaluators: Mapping[str, Evaluator],
) -> Plot | None:  # fmt: skip
    panels = []
    for c, (name, preset, metric) in enumerate(columns):
        values = [scores[i][c].mean for i in order]
        if all(value is None for value in values) or (name in evaluators and evaluators[name].diagnostic):
            continue
        controls: dict[str, float] = {}
        for i, one in enumerate(groups):
            value = scores[i][c].mean
            if is_control(one, recipes) and value is not None:
                controls.setdefault(one.recipe, value)
        title = _title(name, preset, metric, evaluators)
        panels.append(Panel(title, values, [scores[i][c].std for i in order], controls))
    if not panels:
        return None
    presets = {groups[i].preset for i in order}
    labels = [title_of(groups[i], recipes) + (f" · {groups[i].preset}" if len(presets) > 1 else "") for i in order]
    said = "; ".join(
        f"{panel.title.splitlines()[0]}: "
        + ", ".join(f"{label} {value:.1f}" for label, value in zip(labels, panel.values, strict=True) if value is not None)
        for panel in panels
    )
    return Plot(f"Headline of every benchmark, {dataset}", dots(labels, panels), f"Dot plot. {said}.")


PAGE = Page(name="index", title="Model zoo index", build=build)
