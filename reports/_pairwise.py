# SPDX-License-Identifier: Apache-2.0
"""Which rows of a benchmark really differ: every pair on the same test images, corrected for their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reports._groups import Group, flat, title_of
from reports._scores import fixed, score, signed
from suite.errors import UsageError
from suite.spec import Archive, Cell, Evaluator, Recipe, Table

ALPHA = 0.05
MOST = 40
"""Rows that are compared at most: predictions of more would have to be read."""


def pairwise_table(
    groups: Sequence[Group], evaluator: Evaluator, preset: str, dataset: str, recipes: Mapping[str, Recipe], archive: Archive
) -> Table | str | None:
    """Every pair of rows that kept predictions, by their first seed; a sentence when there are too many; None without."""
    if len(groups) > MOST:
        return f"Pairs are tested for up to {MOST} rows; there are {len(groups):,} here."
    contenders = _predictions(groups, evaluator, preset, recipes, archive)
    if len(contenders) < 2:
        return None
    try:
        pairs = _compare(contenders)
    except UsageError as error:
        return f"Pairs could not be tested: {flat(str(error))}"
    rows = [
        [Cell(a), Cell(b), Cell(signed(difference, 2), difference), _p(p), _p(adjusted), Cell("differ" if significant else "–")]
        for a, b, difference, p, adjusted, significant in pairs
    ]
    note = (
        f"Each pair is tested on the same test images, first seeds only. The corrected p counts all {len(rows)} pairs: below "
        f"{ALPHA:g} the two differ by more than the choice of test images explains. It says nothing about other seeds."
    )
    title = f"Which differences are real, {dataset}"
    return Table(title, ["A", "B", "B − A\npoints", "p", "p\ncorrected", "Verdict"], rows, note) if rows else None


def _compare(contenders: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, float, float, float, bool]]:
    """(a, b, b − a, p, corrected p, significant) of every pair; the one place that knows the statistics module."""
    from suite.stats import pairwise  # brings scipy, which listing the pages does not need

    return [(pair.a, pair.b, pair.difference, pair.p, pair.adjusted, pair.significant) for pair in pairwise(contenders, ALPHA)]


def _predictions(
    groups: Sequence[Group], evaluator: Evaluator, preset: str, recipes: Mapping[str, Recipe], archive: Archive
) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    sizes = set()
    several = len({one.recipe for one in groups}) < len(groups)
    for one in groups:
        measured = score(one, evaluator.name, preset, evaluator.metrics[0].name, {evaluator.name: evaluator}, recipes)
        if not measured.results or measured.stale:
            continue
        result = measured.results[0]
        record = next(run for run in one.records if result in run.results.values())
        arrays = archive.predictions(record, result)
        if arrays is not None:
            label = f"{title_of(one, recipes)} {one.preset}" if several else title_of(one, recipes)
            found[label if label not in found else f"{label} {one.digest[:6]}"] = arrays
            sizes.add(tuple(sorted(result.data.items())))
    return found if len(sizes) == 1 else {}


def _p(value: float) -> Cell:
    return Cell("< 0.001" if value < 0.001 else fixed(value, 3), value)
