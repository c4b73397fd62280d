# SPDX-License-Identifier: Apache-2.0
"""One page per algorithm, as model zoos have it: a table per benchmark, controls and published figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reports._cost import COLUMNS, cost_cells
from reports._groups import (
    Group,
    algorithm_page,
    benchmark_title,
    evaluator_order,
    flat,
    group,
    is_control,
    noted,
    run_hover,
    run_page,
    trained,
)
from reports._published import Figure, algorithms, figures, known_as
from reports._sections import Entry, Section, build_section
from reports._zoo import LAYOUT, data_of, slot
from suite.record import RunRecord
from suite.spec import Archive, Cell, Document, Evaluator, Page, Plot, Recipe, Table

MOST = 12
"""Groups of runs on one page at most: the newest; the index has all."""
CONTROLS = 2
"""Groups of one control, data set and network beside them."""


def build(
    records: Sequence[RunRecord], recipes: Mapping[str, Recipe], evaluators: Mapping[str, Evaluator], archive: Archive
) -> list[Document]:
    """A document for every recipe, and for every algorithm that left records or has published figures."""
    groups = group(records)
    by: dict[str, list[Group]] = {}
    for one in groups:
        by.setdefault(one.recipe, []).append(one)
    controls = _newest_controls([one for one in groups if is_control(one, recipes)])
    names = sorted({*recipes, *by, *algorithms()})
    return [_document(name, by.get(name, []), controls, recipes, evaluators) for name in names]


def _document(
    name: str, ours: Sequence[Group], controls: Sequence[Group], recipes: Mapping[str, Recipe],
    evaluators: Mapping[str, Evaluator],
) -> Document:  # fmt: skip
    recipe, published = recipes.get(name), figures(name, recipes.get(name))
    kept = _newest(ours)
    beside = _beside(kept, [one for one in controls if one.recipe != name])
    parts: list[Table | Plot | str] = [*_about(name, recipe), *_runs(kept, len(ours), recipes)]
    measured = _measured(kept, beside, published, recipes, evaluators)
    if measured:
        parts += ["## Measured here", *(build_section(section) for section in measured), *_not_run(kept, evaluators)]
    parts.append("## Model zoo")
    parts += [build_section(section) for section in _layout(kept, beside, published, recipes, evaluators)]
    parts += [build_section(section) for section in _only_published(published, measured, recipes, evaluators)]
    parts += ["## Settings", _settings(kept)] if kept else []
    title = recipe.title if recipe else known_as(name)
    return Document(algorithm_page(name), title, _summary(recipe, ours, published), parts, "Algorithms")


def _network(one: Group) -> tuple[str, str, int]:
    """Data set, architecture and size: controls are to be compared with their like."""
    return one.dataset, one.records[0].weights.arch, one.records[0].weights.parameters


def _newest_controls(controls: Sequence[Group]) -> list[Group]:
    """The newest few of every control, data set and network: enough to stand beside other rows."""
    by: dict[tuple[str, tuple[str, str, int]], list[Group]] = {}
    for one in controls:
        by.setdefault((one.recipe, _network(one)), []).append(one)
    return [one for found in by.values() for one in _newest(found, CONTROLS)]


def _beside(ours: Sequence[Group], controls: Sequence[Group]) -> list[Group]:
    """Controls on our data: those of our networks, or any where a control has none of them."""
    here = [one for one in controls if one.dataset in {mine.dataset for mine in ours}]
    networks = {_network(one) for one in ours}
    like = {one.recipe for one in here if _network(one) in networks}
    return [one for one in here if _network(one) in networks or one.recipe not in like]


def _newest(ours: Sequence[Group], most: int = MOST) -> list[Group]:
    """So many groups at most, the newest, in their usual order."""
    if len(ours) <= most:
        return list(ours)
    age = sorted(range(len(ours)), key=lambda i: (max(run.created for run in ours[i].records), ours[i].digest))
    return [ours[i] for i in sorted(age[-most:])]


def _entries(one: Group, evaluator: str, control: bool) -> list[tuple[str, Entry]]:
    """(data set, row) per preset that was run; the default one without data when none was."""
    presets = sorted({preset for name, preset in one.measured if name == evaluator}, key=lambda p: (p != "default", p))
    return [(one.data(evaluator, preset), Entry(one, preset, control)) for preset in presets or ["default"]]


def _sorted_entries(
    ours: Sequence[Group], controls: Sequence[Group], evaluator: str
) -> dict[str, list[Entry]]:  # fmt: skip
    """Data set to rows. Rows without data (skipped, not run) stand where the others of their evaluator do."""
    by: dict[str, list[Entry]] = {}
    for one, control in [*((one, False) for one in ours), *((one, True) for one in controls)]:
        for data, entry in _entries(one, evaluator, control):
            by.setdefault(data, []).append(entry)
    homes = sorted(data for data in by if data and slot(evaluator, data) is None)
    if homes and "" in by:
        by[homes[0]] += by.pop("")
        by[homes[0]].sort(key=lambda entry: entry.control)
    return by


def _measured(
    ours: Sequence[Group], controls: Sequence[Group], published: Sequence[Figure], recipes: Mapping[str, Recipe],
    evaluators: Mapping[str, Evaluator],
) -> list[Section]:  # fmt: skip
    """Tables of what model zoos have no place for: the embedded pictures, other people's data, other benchmarks."""
    sections = []
    names = {name for one in ours for name, _ in one.measured} | (set(evaluators) if ours else set())
    for name in sorted(names - set(_without(ours, evaluators)), key=evaluator_order):
        title = benchmark_title(name, evaluators)
        for data, entries in sorted(_sorted_entries(ours, controls, name).items()):
            if slot(name, data) is None and any(not entry.control for entry in entries):
                wanted = [figure for figure in published if figure.evaluator == name and data_of(figure, recipes) == data]
                label = f"{title}, {data}" if data else title
                sections.append(Section(label, name, data, entries, wanted, recipes, evaluators))
    return sections


def _without(ours: Sequence[Group], evaluators: Mapping[str, Evaluator]) -> list[str]:
    """Benchmarks that nobody tried on any of these runs."""
    tried = {name for one in ours for name, _ in one.measured}
    return [name for name in sorted(evaluators, key=evaluator_order) if name not in tried]


def _not_run(ours: Sequence[Group], evaluators: Mapping[str, Evaluator]) -> list[str]:
    missing = [benchmark_title(name, evaluators) for name in _without(ours, evaluators)]
    return [f"Not run on any of these weights: {', '.join(missing)}."] if missing else []


def _layout(
    ours: Sequence[Group], controls: Sequence[Group], published: Sequence[Figure], recipes: Mapping[str, Recipe],
    evaluators: Mapping[str, Evaluator],
) -> list[Section]:  # fmt: skip
    """The model zoo's tables, each with what we measured and what others published."""
    sections = []
    sorted_by = {name: _sorted_entries(ours, controls, name) for name in {place.evaluator for place in LAYOUT}}
    for place in LAYOUT:
        entries = [entry for data in place.datasets for entry in sorted_by[place.evaluator].get(data, ())]
        wanted = [f for f in published if place.holds(f.evaluator, data_of(f, recipes))]
        sections.append(
            Section(place.title, place.evaluator, place.datasets[0], entries, wanted, recipes, evaluators, place)
        )  # fmt: skip
    return sections


def _only_published(
    published: Sequence[Figure], measured: Sequence[Section], recipes: Mapping[str, Recipe], evaluators: Mapping[str, Evaluator]
) -> list[Section]:  # fmt: skip
    """Published figures on data that neither the layout nor our own tables have, such as Imagenette."""
    have = {(section.evaluator, section.dataset) for section in measured}
    by: dict[tuple[str, str], list[Figure]] = {}
    for figure in published:
        key = (figure.evaluator, data_of(figure, recipes))
        if slot(*key) is None and key not in have:
            by.setdefault(key, []).append(figure)
    return [
        Section(f"{benchmark_title(name, evaluators)}, {data}", name, data, (), by[name, data], recipes, evaluators)
        for name, data in sorted(by, key=lambda key: (key[1], evaluator_order(key[0])))
    ]


def _summary(recipe: Recipe | None, ours: Sequence[Group], published: Sequence[Figure]) -> str:
    if recipe is None and ours:
        return "This algorithm left records but is not installed here, so nothing more is known about it."
    if recipe is None:
        sources = ", ".join(sorted({figure.source for figure in published}))
        return f"There is no recipe for this algorithm here. What others published about it: {sources}."
    if recipe.paper.summary:
        return recipe.paper.summary
    return f"{recipe.paper.title} ({recipe.paper.venue})." if recipe.paper.title else recipe.title


def _about(name: str, recipe: Recipe | None) -> list[str]:
    if recipe is None:
        return []
    paper = recipe.paper
    cited = ". ".join(part for part in (paper.authors, paper.title, paper.venue) if part)
    parts = [f"{cited}. {paper.url}".strip()] if cited else []
    parts += [f"    suite run --algo {name} --bench all"]
    if recipe.batch_dependent:
        parts.append(f"- The objective depends on the batch on each device: {recipe.batch_dependent}")
    return parts


def _runs(kept: Sequence[Group], count: int, recipes: Mapping[str, Recipe]) -> list[Table | Plot | str]:
    if not kept:
        return ["This algorithm has no records yet."]
    parts: list[Table | Plot | str] = []
    if count > len(kept):
        parts.append(f"- This page shows the {len(kept)} newest of {count} groups of runs; the index has all of them.")
    notes = noted(kept, lambda one: flat(one.preset))
    parts += ["\n".join(notes)] if notes else []
    rows = []
    for one in kept:
        for record in one.records:
            first = Cell(one.preset, None, run_hover(one), link=run_page(record))
            rows.append([first, Cell(str(record.seed), float(record.seed)), Cell(one.dataset), Cell(record.weights.arch),
                         *cost_cells([record], False, trained(one, recipes))])  # fmt: skip
    return [*parts, Table("Runs and cost", ["Run", "Seed", "Pre-trained on", "Backbone", *COLUMNS], rows)]


def _settings(ours: Sequence[Group]) -> Table:
    """The resolved settings of every group, one row per setting; rows that differ between groups come first."""
    flat = [flatten(one.config) for one in ours]
    names = list(dict.fromkeys(key for config in flat for key in config))
    differs = {key: len({config.get(key) for config in flat}) > 1 for key in names}
    names.sort(key=lambda key: not differs[key])
    many = len({one.preset for one in ours}) < len(ours)
    heads = [f"{one.preset} {one.digest[:6]}" if many else one.preset for one in ours]
    rows = [[Cell(key), *(Cell(config.get(key, "–")) for config in flat)] for key in names]
    return Table("Resolved settings", ["Setting", *heads], rows)


def flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Dotted names and printed values of nested settings, without those that do not change what is measured."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if key in ("seed", "workers", "compare"):
            continue
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = "none" if value is None else str(value)
    return flat


PAGE = Page(name="algorithm", title="One page per algorithm", build=build)
