# SPDX-License-Identifier: Apache-2.0
"""Any two runs beside each other: headlines, costs and settings, chosen by the reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reports._groups import benchmark_title, evaluated_on, evaluator_order, natural, run_page
from reports._scores import finite
from reports.algorithm import flatten
from suite.record import RunRecord
from suite.spec import Archive, Document, Evaluator, Page, Recipe, Versus

SUMMARY = (
    "Two runs side by side: what was measured on both, what they cost, and where their settings differ. A difference "
    "here is plain subtraction; whether it is more than noise, `suite compare A B` says, on the same test images."
)
DETAILED = 500
"""Up to so many runs are listed with every metric and setting; more of them with headlines and costs only."""
COSTS = (
    ("images per second", lambda run: round(run.images_per_second, 1) or None),
    ("seconds", lambda run: round(run.seconds, 1) or None),
    ("peak memory, MB", lambda run: round(run.peak_memory_mb, 1) or None),
    ("parameters, millions", lambda run: round(run.weights.parameters / 1e6, 3) or None),
    ("steps", lambda run: run.steps or None),
)


def build(
    records: Sequence[RunRecord], recipes: Mapping[str, Recipe], evaluators: Mapping[str, Evaluator], archive: Archive
) -> list[Document]:
    """One document in which any two runs can be chosen."""
    if len(records) < 2:
        return []
    runs = sorted(records, key=lambda record: record.id)
    detailed = len(runs) <= DETAILED
    described = [_values(run, evaluators, detailed) for run in runs]
    keys = sorted({key for one in described for key in one}, key=_order)
    rows = [(heading, label) for _, heading, label in keys]
    values = [[one.get(key) for key in keys] for one in described]
    part = Versus("Compare two runs", [run.id for run in runs], [run_page(run) for run in runs], rows, values)
    few = [] if detailed else [f"There are {len(runs):,} runs, more than {DETAILED}: headlines and costs only, no settings."]
    return [Document("compare", "Compare runs", SUMMARY, [*few, part])]


Key = tuple[tuple[int, str], str, str]


def _order(key: Key) -> tuple[tuple[int, str], str, list[tuple[int, int, str]]]:
    return key[0], key[1], natural(key[2])


def _values(run: RunRecord, evaluators: Mapping[str, Evaluator], detailed: bool) -> dict[Key, float | str | None]:
    """Everything that is said about a run, by place, heading and label."""
    found: dict[Key, float | str | None] = {}
    for result in run.results.values():
        known = evaluators.get(result.evaluator)
        heading = benchmark_title(result.evaluator, evaluators)
        heading += f", {evaluated_on([result])}" if result.data else ""
        first = known.metrics[0].name if known else min(result.metrics, default="")
        for name, value in result.metrics.items() if detailed else ((first, result.metrics.get(first)),):
            label = name if result.preset == "default" else f"{name} [{result.preset}]"
            if value is not None and finite(value):
                found[evaluator_order(result.evaluator), heading, label] = round(float(value), 3)
    for name, cost in COSTS:
        found[(90, "cost"), "Cost", name] = cost(run)
    if detailed:
        settings = {"algorithm": run.recipe, "preset": run.preset, "seed": str(run.seed), **flatten(run.config)}
        found |= {((91, "settings"), "Settings", name): value[:200] for name, value in settings.items()}
    return found


PAGE = Page(name="compare", title="Compare two runs", build=build)
