# SPDX-License-Identifier: Apache-2.0
"""One page per algorithm, as model zoos have it: a table per benchmark, controls and published figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reports._cost import COLUMNS, cost_cells
from reports._published import Figure, figures
from reports._sections import Section, build_section
from reports._tables import Group, evaluator_order, flat, group, is_control, notes_of, run_hover, trained
from suite.record import RunRecord
from suite.spec import Archive, Cell, Document, Evaluator, Page, Plot, Recipe, Table


def build(
    records: Sequence[RunRecord], recipes: Mapping[str, Recipe], evaluators: Mapping[str, Evaluator], archive: Archive
) -> list[Document]:
    """A document for every recipe, and for every recipe that left records but is not installed."""
    groups = group(records)
    names = sorted({*recipes, *(one.recipe for one in groups)})
    return [_document(name, groups, recipes, evaluators) for name in names]


def _document(
    name: str, groups: Sequence[Group], recipes: Mapping[str, Recipe], evaluators: Mapping[str, Evaluator]
) -> Document:
    recipe = recipes.get(name)
    ours = [one for one in groups if one.recipe == name]
    datasets = {one.dataset for one in ours}
    controls = [o for o in groups if o.recipe != name and is_control(o, recipes) and o.dataset in datasets]
    published = figures(name, recipe)
    parts: list[Table | Plot | str] = [*_about(name, recipe), *_runs(ours, recipes)]
    measured = {result.evaluator for one in ours for record in one.records for result in record.results.values()}
    wanted = measured | {figure.evaluator for figure in published} | (set(evaluators) if ours else set())
    for evaluator in sorted(wanted, key=evaluator_order):
        relevant = [figure for figure in published if figure.evaluator == evaluator]
        section = Section(evaluator, ours, controls, relevant, recipes, evaluators)
        parts.append(build_section(section))
    parts += [_settings(ours)] if ours else []
    if not wanted:
        parts.append("Nothing was measured yet, and no published figures are known.")
    title = recipe.title if recipe else name
    return Document(name, title, _summary(recipe, ours, published), parts)


def _summary(recipe: Recipe | None, ours: Sequence[Group], published: Sequence[Figure]) -> str:
    if recipe is None:
        return "This algorithm left records but is not installed here, so nothing more is known about it."
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


def _runs(ours: Sequence[Group], recipes: Mapping[str, Recipe]) -> list[Table | Plot | str]:
    if not ours:
        return ["This algorithm has no records yet."]
    parts: list[Table | Plot | str] = []
    notes = [f"- {flat(one.preset)}: {note}" for one in ours for note in notes_of(one)]
    parts += ["\n".join(notes)] if notes else []
    rows = []
    for one in ours:
        seeds = ", ".join(str(record.seed) for record in one.records)
        first = Cell(one.preset, None, run_hover(one))
        rows.append([first, Cell(one.dataset), Cell(one.records[0].weights.arch), Cell(seeds),
                     *cost_cells(one, False, trained(one, recipes))])  # fmt: skip
    return [*parts, Table("Runs and cost", ["Preset", "Pre-trained on", "Backbone", "Seeds", *COLUMNS], rows)]


def _settings(ours: Sequence[Group]) -> Table:
    """The resolved settings of every group, one row per setting; rows that differ between groups come first."""
    flat = [_flatten(one.config) for one in ours]
    names = list(dict.fromkeys(key for config in flat for key in config))
    differs = {key: len({config.get(key) for config in flat}) > 1 for key in names}
    names.sort(key=lambda key: not differs[key])
    many = len({one.preset for one in ours}) < len(ours)
    heads = [f"{one.preset} {one.digest[:6]}" if many else one.preset for one in ours]
    rows = [[Cell(key), *(Cell(config.get(key, "–")) for config in flat)] for key in names]
    return Table("Settings", ["Setting", *heads], rows)


def _flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if key in ("seed", "workers", "compare"):
            continue
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = "none" if value is None else str(value)
    return flat


PAGE = Page(name="algorithm", title="One page per algorithm", build=build)
