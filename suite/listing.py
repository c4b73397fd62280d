# SPDX-License-Identifier: Apache-2.0
"""What there is, as lines: recipes, evaluators, data sets, pages, runs; a recipe's card; the state of a data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from suite import config as configs
from suite import plugins
from suite.errors import unknown
from suite.record import Result, RunRecord
from suite.spec import Recipe
from suite.store import Store


def of(what: str, runs: Path) -> list[str]:
    """Lines about recipes, evaluators, datasets, pages or runs.

    Raises:
        UsageError: none of these.
    """
    if what == "recipes":
        return [
            f"{name:16} {recipe.title}; presets: {', '.join(recipe.presets)}"
            for name, recipe in plugins.load_all("recipes").items()
        ]
    if what == "evaluators":
        return [line for evaluator in plugins.load_all("evaluators").values() for line in _presets(evaluator)]
    if what == "pages":
        return [f"{name:16} {page.title}" for name, page in plugins.load_all("reports").items()]
    if what == "datasets":
        from suite.data import card, names

        return [f"{name:16} {card(name).title}; {', '.join(card(name).tasks)}" for name in names()]
    if what == "runs":
        records, problems = Store(runs).records()
        lines = [f"{record.id:48} {len(record.results)} result(s), {_headlines(record)}" for record in records]
        return [*lines, *(f"unreadable: {problem}" for problem in problems)] or [f"no runs in {str(runs)!r}"]
    raise unknown("list", what, ("recipes", "evaluators", "datasets", "pages", "runs"))


def _presets(evaluator: Any) -> list[str]:
    """One line per preset; a protocol that selects on test data says so."""
    lines = [f"{evaluator.name:16} {evaluator.title} ({evaluator.task})"]
    for preset in evaluator.presets:
        marked = " [selects on test data]" if preset in evaluator.selects_on_test else ""
        lines.append(f"  {evaluator.name}:{preset:14} {evaluator.describe.get(preset, '')}{marked}")
    return lines


def _headlines(record: RunRecord) -> str:
    def value(result: Result) -> str:
        return f"{next(iter(result.metrics.values())):.1f}" if result.metrics else result.status

    return ", ".join(f"{key} {value(result)}" for key, result in record.results.items())


def show(name: str, preset: str, overrides: Sequence[str]) -> list[str]:
    """A recipe's card and the settings that a run would use.

    Raises:
        UsageError: unknown recipe, preset or key.
    """
    recipe: Recipe = plugins.load("recipes", name)
    chosen = preset or recipe.default
    if chosen not in recipe.presets:
        raise unknown(f"preset of {recipe.name}", chosen, recipe.presets)
    config = configs.override(recipe.presets[chosen], overrides)
    before, after = _flat(configs.to_dict(recipe.presets[chosen])), _flat(configs.to_dict(config))
    lines = [f"{recipe.title}: {recipe.paper.title}", f"  {recipe.paper.authors}. {recipe.paper.venue}. {recipe.paper.url}",
             f"  presets: {', '.join(recipe.presets)}", f"{recipe.name} {chosen}:"]  # fmt: skip
    lines += [
        f"  {key} = {json.dumps(value)}{'  (override)' if before.get(key) != value else ''}" for key, value in after.items()
    ]
    for published in recipe.reference.get(chosen, ()):
        lines.append(f"  published {published.metric} {published.value} ({published.source}) {published.note}".rstrip())
    return lines


def _flat(raw: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in raw.items():
        if isinstance(value, dict) and value and key != "arch_options":
            out.update(_flat(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value
    return out


def check_data(name: str, root: Path | None) -> tuple[list[str], bool]:
    """What `suite.data.check` found, as lines, and whether the set is complete."""
    from suite.data.check import check

    found = check(name, root)
    short = {split: wanted for split, wanted in found.expected.items() if found.totals.get(split, 0) != wanted}
    lines = [f"{split}: {count} images" + (f", {short[split]} expected" if split in short else "")
             for split, count in found.totals.items()]  # fmt: skip
    lines += [f"{problem.file}: {problem.reason}" for problem in found.problems]
    if found.ok and not short:
        return [*lines, f"{name}: complete"], True
    wrong = [f"{len(found.problems)} problem(s)"] if found.problems else []
    wrong += [f"{len(short)} split(s) of another size than the published set"] if short else []
    return [*lines, f"{name}: {' and '.join(wrong)}. {found.how_to_obtain}"], False
