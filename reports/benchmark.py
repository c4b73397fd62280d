# SPDX-License-Identifier: Apache-2.0
"""One page per benchmark: the protocol in words, its presets side by side, every algorithm, every published figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from reports._groups import (
    Group,
    algorithm_page,
    benchmark_page,
    benchmark_title,
    evaluator_order,
    group,
    headline,
    is_control,
    run_hover,
    title_of,
)
from reports._pairwise import pairwise_table
from reports._published import Figure, algorithms, figures, known_as
from reports._rank import rank_cell, ranks, span
from reports._scores import CellKind, Score, best, fixed, score, score_cell, signed
from reports._sections import DECIMALS, Entry, Section, column, metrics_of, printed, spread
from reports._zoo import LAYOUT, data_of, slot
from suite.record import RunRecord
from suite.spec import Archive, Cell, Document, Evaluator, Page, Plot, Recipe, Table, base_preset

MOST = 100
"""Rows of one table at most: the best; the index has all."""


def build(
    records: Sequence[RunRecord], recipes: Mapping[str, Recipe], evaluators: Mapping[str, Evaluator], archive: Archive
) -> list[Document]:
    """A document for every evaluator, and for every one that left results but is not installed."""
    groups = group(records)
    by: dict[str, list[Group]] = {}
    for one in groups:
        for name in {name for name, _ in one.measured}:
            by.setdefault(name, []).append(one)
    printed = [f for name in sorted({*algorithms(), *recipes}) for f in figures(name, recipes.get(name))]
    names = sorted({*evaluators, *by}, key=evaluator_order)
    return [
        _document(name, by.get(name, []), [f for f in printed if f.evaluator == name], recipes, evaluators, archive)
        for name in names
    ]


def _document(
    name: str, groups: Sequence[Group], published: Sequence[Figure], recipes: Mapping[str, Recipe],
    evaluators: Mapping[str, Evaluator], archive: Archive,
) -> Document:  # fmt: skip
    known = evaluators.get(name)
    parts: list[Table | Plot | str] = [_protocols(known)] if known else []
    by: dict[str, dict[str, list[Group]]] = {}
    for one in groups:
        for evaluator, preset in one.measured:
            if evaluator == name:
                data = one.data(name, preset) if _succeeded(one, name, preset) else ""
                by.setdefault(data, {}).setdefault(preset, []).append(one)
    for data, presets in sorted(by.items()):
        if data:
            parts += _on(name, data, presets, recipes, evaluators, archive)
    if not any(by):
        parts.append(f"No record has a number of this benchmark yet. Make one: `suite run --algo mocov2 --bench {name}`")
    parts += _published(name, published, recipes, evaluators)
    return Document(benchmark_page(name), benchmark_title(name, evaluators), _summary(known), parts, "Benchmarks")


def _succeeded(one: Group, name: str, preset: str) -> bool:
    return any(result.status == "ok" for result in one.results(name, preset))


def _summary(known: Evaluator | None) -> str:
    if known is None:
        return "This benchmark left results but is not installed here, so its protocol is not known."
    how = "The backbone stays frozen, which is checked afterwards." if known.frozen else "The backbone is trained along."
    head = known.metrics[0]
    text = f"A {known.task} benchmark. {how} Its headline is {head.title}{f' in {head.unit}' if head.unit else ''}"
    text += "." if head.higher_is_better else ", lower is better."
    return text + (" It describes features rather than scoring them and counts in no ranking." if known.diagnostic else "")


def _protocols(known: Evaluator) -> Table:
    """Every preset in words, and the settings in which it differs from the default one."""
    base = asdict(known.presets[known.default])
    rows = []
    for name in sorted(known.presets, key=lambda name: (name != known.default, name)):
        mine = asdict(known.presets[name])
        differs = ", ".join(f"{key} {value}" for key, value in mine.items() if base.get(key) != value)
        peeks = name in known.selects_on_test
        why = "Reproduces a published protocol that selects on test data." if peeks else ""
        rows.append([Cell(f"{name} †" if peeks else name, None, why), Cell(known.describe.get(name, "–")),
                     Cell("–" if name == known.default else differs[:300] or "nothing")])  # fmt: skip
    note = f"Version {known.version} of the evaluator." + (" † selects on test data." if known.selects_on_test else "")
    return Table("Protocols in words", ["Preset", "In words", "Differs from default in"], rows, note)


def _on(
    name: str, data: str, presets: Mapping[str, Sequence[Group]], recipes: Mapping[str, Recipe],
    evaluators: Mapping[str, Evaluator], archive: Archive,
) -> list[Table | Plot | str]:  # fmt: skip
    """What was measured on one data set: a table per preset, the presets beside each other, the pairs."""
    parts: list[Table | Plot | str] = [f"## Measured on {data}"]
    for preset in sorted(presets, key=lambda preset: (preset != "default", preset)):
        parts.append(_leaderboard(name, preset, data, presets[preset], recipes, evaluators))
    if len(presets) > 1:
        parts.append(_side_by_side(name, data, presets, recipes, evaluators))
    if name in evaluators and "default" in presets:
        pairs = pairwise_table(presets["default"], evaluators[name], "default", data, recipes, archive)
        parts += [pairs] if pairs else []
    return parts


def _leaderboard(
    name: str, preset: str, data: str, groups: Sequence[Group], recipes: Mapping[str, Recipe],
    evaluators: Mapping[str, Evaluator],
) -> Table:  # fmt: skip
    results = [result for one in groups for result in one.results(name, preset)]
    head = headline(name, results, evaluators)
    scores = [score(one, name, preset, head.name, evaluators, recipes) for one in groups]
    control = [is_control(one, recipes) for one in groups]
    competing = [i for i in range(len(groups)) if not control[i]]
    placed = dict(zip(competing, ranks([span(scores[i]) for i in competing], head.higher_is_better), strict=True))
    sign = -1 if head.higher_is_better else 1

    def place(i: int) -> tuple[bool, bool, float]:
        mean = scores[i].mean
        return control[i], mean is None, sign * (mean or 0.0)

    order = sorted(range(len(groups)), key=place)
    kept = [i for i in order if control[i]][: MOST // 4]
    kept = [i for i in order if not control[i]][:MOST] + kept
    entries = [Entry(groups[i], preset, control[i]) for i in kept]
    section = Section("", name, data, entries, (), recipes, evaluators)
    metrics = metrics_of(section)
    number = sum(rank is not None for rank in placed.values())
    rows = [[*_who(groups[i], recipes, control[i]), rank_cell(placed.get(i), control[i], number),
             *_numbers(section, entry, metrics)] for i, entry in zip(kept, entries, strict=True)]  # fmt: skip
    rows = best(rows, 3 + metrics.index(head.name), head.higher_is_better) if head.name in metrics else rows
    heads = ["Algorithm", "Preset", "Rank\n95 %", *(column(section.known, metric) for metric in metrics)]
    more = f"The {len(kept)} best of {len(groups)} rows. " if len(kept) < len(groups) else ""
    known = evaluators.get(name)
    said = known.describe.get(base_preset(preset), "") if known else ""
    return Table(f"Protocol {preset}, {data}", heads, rows, more + said)


def _who(one: Group, recipes: Mapping[str, Recipe], control: bool) -> list[Cell]:
    kind: CellKind = "control" if control else ""
    return [Cell(title_of(one, recipes), None, run_hover(one), link=algorithm_page(one.recipe), kind=kind),
            Cell(one.preset, None, f"settings {one.digest[:12]}", kind=kind)]  # fmt: skip


def _numbers(section: Section, entry: Entry, metrics: Sequence[str]) -> list[Cell]:
    found = [(metric, section.score(entry, metric)) for metric in metrics]
    return [score_cell(entry.group, s, DECIMALS, entry.control, spread(m, s), interval=True) for m, s in found]


def _side_by_side(
    name: str, data: str, presets: Mapping[str, Sequence[Group]], recipes: Mapping[str, Recipe],
    evaluators: Mapping[str, Evaluator],
) -> Table:  # fmt: skip
    """The headline under every preset on the same weights and data, and what each gives more than the first."""
    order = sorted(presets, key=lambda preset: (preset != "default", preset))
    groups = list({id(one): one for preset in order for one in presets[preset]}.values())
    head = headline(name, [r for one in groups for preset in order for r in one.results(name, preset)], evaluators)
    rows = []
    for one in groups:
        scores = [score(one, name, preset, head.name, evaluators, recipes) for preset in order]
        if sum(found.mean is not None for found in scores) > 1:
            cells = [score_cell(one, found, DECIMALS, is_control(one, recipes), interval=True) for found in scores]
            gaps = [_gap(scores[0], found, order[0], preset) for found, preset in zip(scores[1:], order[1:], strict=True)]
            rows.append([*_who(one, recipes, is_control(one, recipes)), *cells, *gaps])
    rows = rows[:MOST]
    heads = [*(f"{preset}\n{head.title}" for preset in order), *(f"{p}\n− {order[0]}" for p in order[1:])]
    note = "One row is one set of weights: only the protocol differs between its numbers."
    return Table(f"Presets side by side, {data}", ["Algorithm", "Preset", *heads], rows, note)


def _gap(base: Score, other: Score, base_name: str, other_name: str) -> Cell:
    if base.mean is None or other.mean is None:
        return Cell("–", None, "not measured under both", kind="missing")
    gap = other.mean - base.mean
    hover = f"{fixed(other.mean, DECIMALS)} with {other_name}, {fixed(base.mean, DECIMALS)} with {base_name}"
    return Cell(signed(gap, DECIMALS), gap, hover)


def _published(
    name: str, published: Sequence[Figure], recipes: Mapping[str, Recipe], evaluators: Mapping[str, Evaluator]
) -> list[Table | Plot | str]:
    """Every published figure of this benchmark, a table per data set."""
    usual = next((place.datasets[0] for place in LAYOUT if place.evaluator == name), "")
    by: dict[str, list[Figure]] = {}
    for figure in published:
        by.setdefault(data_of(figure, recipes), []).append(figure)
    parts: list[Table | Plot | str] = ["## Published by others"] if by else []
    for data, found in sorted(by.items(), key=lambda item: (item[0] != usual, item[0])):
        section = Section("", name, data, (), found, recipes, evaluators, slot(name, data))
        metrics = metrics_of(section)
        rows = []
        for algorithm in dict.fromkeys(figure.algorithm for figure in found):
            title = recipes[algorithm].title if algorithm in recipes else known_as(algorithm)
            who = Cell(title, link=algorithm_page(algorithm))
            for line in printed([figure for figure in found if figure.algorithm == algorithm], metrics):
                source, preset, protocol = line.head()
                rows.append([who, preset, protocol, source, *(score_cell(None, one, DECIMALS, False) for one in line.scores)])
        heads = ["Algorithm", "Preset", "Protocol", "Source", *(column(section.known, metric) for metric in metrics)]
        doubts = sorted({figure.note for figure in found if figure.note})
        parts.append(Table(f"Published, {data}", heads, rows, f"* {'; '.join(doubts)}." if doubts else ""))
    return parts


PAGE = Page(name="benchmark", title="One page per benchmark", build=build)
