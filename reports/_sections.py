# SPDX-License-Identifier: Apache-2.0
"""One benchmark's table on an algorithm's page: our runs, the controls, the published rows and the difference."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports._groups import Group, algorithm_page, natural, run_hover
from reports._published import Figure, published_score
from reports._scores import CellKind, Score, best, fixed, score, score_cell, signed
from reports._zoo import Slot
from suite.record import Result
from suite.spec import Cell, Evaluator, Metric, Recipe, Table, base_preset

DECIMALS = 2
QUALIFIERS = ("_std", "_low", "_high")
"""Endings of metrics that qualify another one: spread and interval over repetitions."""
LEADING = ("Weights", "Preset", "Protocol")


@dataclass(frozen=True)
class Entry:
    """One of our rows: a group under one preset of the evaluator."""

    group: Group
    preset: str
    control: bool = False


@dataclass(frozen=True)
class Section:
    """What one table is built from: everything that one evaluator measured on one data set."""

    title: str
    evaluator: str
    dataset: str
    entries: Sequence[Entry]
    published: Sequence[Figure]
    recipes: Mapping[str, Recipe]
    evaluators: Mapping[str, Evaluator]
    slot: Slot | None = None

    @property
    def known(self) -> Evaluator | None:
        """The evaluator, when it is installed."""
        return self.evaluators.get(self.evaluator)

    def score(self, entry: Entry, metric: str) -> Score:
        """One metric of one of our rows."""
        return score(entry.group, self.evaluator, entry.preset, metric, self.evaluators, self.recipes)


def build_section(section: Section) -> Table:
    """The table of one benchmark; its columns are those of the layout and the metrics that anybody reported."""
    metrics = metrics_of(section)
    rows = [_row(section, entry, metrics) for entry in section.entries if not entry.control]
    if len({row[2].text for row in rows}) == 1:
        for i, metric in enumerate(metrics):
            rows = best(rows, i + len(LEADING), declared(section.known, metric).higher_is_better)
    if not rows and section.slot:
        rows = [_nothing(section, metrics)]
    rows += [_row(section, entry, metrics) for entry in section.entries if entry.control]
    rows += _published_rows(section, metrics)
    columns = [*LEADING, *(column(section.known, metric) for metric in metrics)]
    return Table(section.title, columns, rows, _note(section))


def _nothing(section: Section, metrics: Sequence[str]) -> list[Cell]:
    why = f"no run of this algorithm was evaluated on {section.dataset}"
    return [Cell("ours"), Cell("–", None, why, kind="missing"), Cell("–", None, why, kind="missing"),
            *(Cell("–", None, why, kind="missing") for _ in metrics)]  # fmt: skip


def metrics_of(section: Section) -> list[str]:
    """Metric names: the headline, then the others by family and suffix; spreads belong to the number they qualify."""
    names = [metric.name for metric in section.known.metrics] if section.known else []
    if section.slot:
        # the layout's columns come first and in its order, whatever else was reported follows
        found = _reported(section) - set(section.slot.metrics)
        rest = sorted(found, key=lambda name: _order(name, names))
        return [*(name for name in rest if name in names[:1]), *section.slot.metrics,
                *(name for name in rest if name not in names[:1])]  # fmt: skip
    return sorted(_reported(section) | set(names[:1]), key=lambda name: _order(name, names))


def _reported(section: Section) -> set[str]:
    found = {figure.metric for figure in section.published}
    for entry in section.entries:
        found.update(*(result.metrics for result in entry.group.results(section.evaluator, entry.preset)))
    return {name for name in found if not name.partition(".")[0].endswith(QUALIFIERS)}


def _order(name: str, names: Sequence[str]) -> tuple[bool, int, bool, object, str]:
    base, _, suffix = name.partition(".")
    family = names.index(base) if base in names else len(names)
    return (name not in names[:1], family, bool(suffix), natural(suffix or base), name)


UNDECLARED = {
    "pretrain_px": Metric("pretrain_px", "pre-training", unit="px"),
    "finetune_px": Metric("finetune_px", "fine-tuning", unit="px"),
}
"""Columns that only published tables have."""


def declared(evaluator: Evaluator | None, name: str) -> Metric:
    """The metric that a name such as `top1.k20` belongs to."""
    base = name.partition(".")[0]
    found = next((metric for metric in (evaluator.metrics if evaluator else ()) if metric.name == base), None)
    return found or UNDECLARED.get(base) or Metric(base, base.replace("_", " "))


SUFFIXES = (
    (re.compile(r"k(\d+)"), r"k = \1"),
    (re.compile(r"stage(\d+)"), r"Feature\1"),
    (re.compile(r"pooled"), "AvgPool"),
    (re.compile(r"(\d+)pct"), r"\1% labels"),
)


def column(evaluator: Evaluator | None, name: str) -> str:
    """Head of a metric's column, its second line after a line break."""
    suffix = name.partition(".")[2]
    metric = declared(evaluator, name)
    unit = f", {metric.unit}" if metric.unit else ""
    for pattern, replacement in SUFFIXES:
        if pattern.fullmatch(suffix):
            suffix = pattern.sub(replacement, suffix)
    return f"{suffix}\n{metric.title}{unit}" if suffix else f"{metric.title}\n{metric.unit}".rstrip()


def protocol_cell(evaluator: Evaluator | None, entry: Entry, results: Sequence[Result], kind: CellKind) -> Cell:
    """Preset and what was chosen under it: `default, layer stage4`; † where it selects on test data."""
    chosen = {str(result.selected["layer"]) for result in results if "layer" in result.selected}
    text = entry.preset + (f", {' / '.join(sorted(chosen))}" if chosen else "")
    said = evaluator.describe.get(base_preset(entry.preset), "") if evaluator else ""
    if evaluator is not None and base_preset(entry.preset) in evaluator.selects_on_test:
        return Cell(f"{text} †", None, "\n".join(part for part in ("selects on test data", said) if part), kind=kind)
    return Cell(text, None, said, kind=kind)


def _row(section: Section, entry: Entry, metrics: Sequence[str]) -> list[Cell]:
    one, recipe = entry.group, section.recipes.get(entry.group.recipe)
    kind: CellKind = "control" if entry.control else ""
    results = one.results(section.evaluator, entry.preset)
    link = algorithm_page(one.recipe) if entry.control else ""
    cells = [
        Cell(recipe.title if recipe else one.recipe, None, run_hover(one), link=link, kind=kind),
        Cell(one.preset, None, kind=kind),
        protocol_cell(section.known, entry, results, kind),
    ]
    for metric in metrics:
        found = section.score(entry, metric)
        cells.append(score_cell(one, found, DECIMALS, entry.control, spread(metric, found), interval=True))
    return cells


def spread(metric: str, found: Score) -> list[str]:
    """What an evaluator reported beside a number: `lowshot.k1` has `lowshot_std.k1`, `lowshot_low.k1`, `lowshot_high.k1`."""
    base, dot, suffix = metric.partition(".")
    names = [f"{base}{ending}{dot}{suffix}" for ending in QUALIFIERS]
    if not any(name in r.metrics for r in found.results for name in names):
        return []
    std, low, high = ([r.metrics.get(name) for r in found.results] for name in names)
    spreads = [fixed(value, DECIMALS) for value in std if value is not None]
    ends = [(a, b) for a, b in zip(low, high, strict=True) if a is not None and b is not None]
    said = [f"± {', '.join(spreads)} over repetitions"] if spreads else []
    return said + [f"95 % interval {fixed(a, DECIMALS)} to {fixed(b, DECIMALS)} over repetitions" for a, b in ends]


def _published_rows(section: Section, metrics: Sequence[str]) -> list[list[Cell]]:
    """A row per source, preset and protocol, and under it our difference where exactly that was run."""
    rows = []
    for line in printed(section.published, metrics):
        rows.append([*line.head(), *(score_cell(None, one, DECIMALS, False) for one in line.scores)])
        for entry in section.entries:
            if not line.protocol.startswith("trial ") and not entry.control and _comparable(section, entry, line.preset):
                rows.append(_difference(section, entry, line.source, line.scores, metrics))
    return rows


@dataclass(frozen=True)
class Line:
    """A row of a published table, in the shape that our own rows have: a score per metric."""

    source: str
    preset: str
    protocol: str
    where: str
    scores: Sequence[Score]

    def head(self) -> list[Cell]:
        """The cells before the numbers."""
        return [Cell(self.source, None, self.where, kind="published"), Cell(self.preset, kind="published"),
                Cell(self.protocol or "–", kind="published")]  # fmt: skip


def printed(figures: Sequence[Figure], metrics: Sequence[str]) -> list[Line]:
    """Figures as rows: one per preset, protocol and source; sources that print the same digits share one."""
    lines = []
    for (preset, protocol), sources in _by_row(figures).items():
        for label, found in _merged(sources):
            scores = [published_score([figure for figure in found if figure.metric == metric]) for metric in metrics]
            lines.append(Line(label, preset, protocol, "\n".join(dict.fromkeys(figure.where for figure in found)), scores))
    return lines


def _by_row(figures: Sequence[Figure]) -> dict[tuple[str, str], dict[str, list[Figure]]]:
    by: dict[tuple[str, str], dict[str, list[Figure]]] = {}
    for figure in figures:
        by.setdefault((figure.preset, figure.protocol), {}).setdefault(figure.source, []).append(figure)
    return by


def _merged(sources: Mapping[str, Sequence[Figure]]) -> list[tuple[str, list[Figure]]]:
    """Sources that print the same digits share a row: `MMSelfSup 0.x, 1.x`."""
    same: dict[frozenset[tuple[str, str]], list[str]] = {}
    for source, found in sources.items():
        same.setdefault(frozenset((figure.metric, figure.text) for figure in found), []).append(source)
    merged = []
    for names in same.values():
        project = names[0].rpartition(" ")[0]
        label = ", ".join([names[0], *(name.removeprefix(f"{project} ") if project else name for name in names[1:])])
        merged.append((label, [figure for name in names for figure in sources[name]]))
    return merged


def _comparable(section: Section, entry: Entry, preset: str) -> bool:
    one, recipe = entry.group, section.recipes.get(entry.group.recipe)
    if recipe is None or preset not in (one.preset, one.config.get("compare")) or preset not in recipe.presets:
        return False
    return one.dataset == recipe.presets[preset].dataset and bool(one.results(section.evaluator, entry.preset))


def _difference(
    section: Section, entry: Entry, source: str, theirs: Sequence[Score], metrics: Sequence[str]
) -> list[Cell]:  # fmt: skip
    cells = []
    for metric, their in zip(metrics, theirs, strict=True):
        ours = section.score(entry, metric)
        if their.mean is not None and ours.mean is not None and " / " not in their.printed:
            gap = ours.mean - their.mean
            cells.append(Cell(signed(gap, DECIMALS), gap, f"ours {fixed(ours.mean, DECIMALS)}", kind="published"))
        else:
            why = "several figures are published" if " / " in their.printed else "nothing to compare"
            cells.append(Cell("–", None, why, kind="missing"))
    head = [Cell("ours − published", None, source, kind="published"), Cell(entry.group.preset, kind="published")]
    return [*head, Cell(entry.preset, kind="published"), *cells]


def _note(section: Section) -> str:
    notes = []
    known = section.known
    for preset in sorted({entry.preset for entry in section.entries}):
        text = known.describe.get(base_preset(preset)) if known else None
        if text:
            notes.append(f"{preset}: {text}.")
        if known and base_preset(preset) in known.selects_on_test:
            notes.append(f"† {preset} follows a published protocol that selects on test data.")
    doubts = sorted({figure.note for figure in section.published if figure.note})
    if doubts:
        notes.append("* " + "; ".join(doubts) + ".")
    return " ".join(notes)
