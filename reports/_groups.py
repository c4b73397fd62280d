# SPDX-License-Identifier: Apache-2.0
"""What the pages share about runs: groups over seeds, names, and the order of things."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from suite.record import Result, RunRecord
from suite.spec import Evaluator, Metric, Recipe

MODEL_ZOO = ("svm", "linear", "knn", "semi_supervised", "finetune", "detection", "segmentation", "retrieval", "rank", "tsne")
"""The order in which model zoos list their benchmarks; others follow by name."""


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed."""

    recipe: str
    preset: str
    digest: str
    records: tuple[RunRecord, ...]

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings that the runs share."""
        return self.records[0].config

    @property
    def dataset(self) -> str:
        """What the weights were pre-trained on."""
        return str(self.config.get("dataset") or "")

    @cached_property
    def measured(self) -> Mapping[tuple[str, str], Sequence[Result]]:
        """(evaluator, preset) to results over the seeds."""
        found: dict[tuple[str, str], list[Result]] = {}
        for record in self.records:
            for result in record.results.values():
                found.setdefault((result.evaluator, result.preset), []).append(result)
        return found

    def results(self, name: str, preset: str) -> Sequence[Result]:
        """The results of one evaluator's preset over the seeds."""
        return self.measured.get((name, preset), ())

    def data(self, name: str, preset: str) -> str:
        """What one evaluator's preset was run on, see `evaluated_on`."""
        return self.once(("data", name, preset), lambda: evaluated_on(self.results(name, preset)))

    @cached_property
    def versions(self) -> set[int]:
        """Versions of the recipe that the runs were made with."""
        return {record.recipe_version for record in self.records}

    @cached_property
    def seeds(self) -> Mapping[str, int]:
        """Hash of weights to seed."""
        return {record.weights.sha256: record.seed for record in self.records}

    @cached_property
    def _kept(self) -> dict[Hashable, Any]:
        return {}

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """A value that many cells share, made at the first of them."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def group(records: Sequence[RunRecord]) -> list[Group]:
    """Groups of runs by recipe, preset and digest, in that order; seeds ascend inside."""
    found: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record in records:
        found.setdefault((record.recipe, record.preset, record.digest), []).append(record)
    seeds = {key: tuple(sorted(runs, key=lambda run: (run.seed, run.id))) for key, runs in sorted(found.items())}
    return [Group(*key, runs) for key, runs in seeds.items()]


def is_control(one: Group, recipes: Mapping[str, Recipe]) -> bool:
    """Whether a group is a control: random weights, supervised training."""
    return one.recipe in recipes and recipes[one.recipe].control


def notes_of(one: Group) -> list[str]:
    """The warnings that belong to a group's numbers, each once."""
    return list(dict.fromkeys(flat(note) for record in one.records for note in record.notes))


def noted(groups: Sequence[Group], name: Callable[[Group], str]) -> list[str]:
    """List items: every warning once, behind the names of the groups that have it."""
    found: dict[str, dict[str, None]] = {}
    for one in groups:
        for note in notes_of(one):
            found.setdefault(note, {})[name(one)] = None
    return [f"- {_few(list(names))}: {note}" for note, names in found.items()]


def _few(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def flat(text: str) -> str:
    """Text of a record as one line without a paragraph's markup."""
    return " ".join(text.split()).replace("`", "'")


def title_of(one: Group, recipes: Mapping[str, Recipe]) -> str:
    """The algorithm's name as people know it."""
    return recipes[one.recipe].title if one.recipe in recipes else one.recipe


def trained(one: Group, recipes: Mapping[str, Recipe]) -> bool:
    """Whether the recipe trains anything at all."""
    return one.recipe not in recipes or recipes[one.recipe].method is not None


TAKEN = re.compile(r"(index|compare|(bench|run|algorithm)-.*)", re.IGNORECASE | re.DOTALL)


def algorithm_page(name: str) -> str:
    """Name of an algorithm's page: its own, unless another page is called that."""
    return f"algorithm-{name}" if TAKEN.fullmatch(name) else name


def benchmark_page(name: str) -> str:
    """Name of a benchmark's page."""
    return f"bench-{name}"


def run_page(record: RunRecord) -> str:
    """Name of a run's page."""
    return f"run-{record.id}"


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key in which `k2` precedes `k10`, and `pooled` follows every stage."""
    parts = re.findall(r"\d+|\D+", text)
    return [(1, int(part), "") if part.isdecimal() else (2 if part == "pooled" else 0, 0, part) for part in parts]


def evaluator_order(name: str) -> tuple[int, str]:
    """Sort key that follows the model zoos."""
    return (MODEL_ZOO.index(name) if name in MODEL_ZOO else len(MODEL_ZOO), name)


def benchmark_title(name: str, evaluators: Mapping[str, Evaluator]) -> str:
    """The evaluator's title; its name in words when it is not installed."""
    return evaluators[name].title if name in evaluators else name.replace("_", " ").capitalize()


def keys(groups: Sequence[Group], evaluators: Mapping[str, Evaluator]) -> list[tuple[str, str]]:
    """(evaluator, preset) of every known evaluator's default and of everything that was measured, ordered."""
    found = {(name, "default") for name in evaluators}.union(*(one.measured for one in groups))
    return sorted(found, key=lambda key: (evaluator_order(key[0]), key[1] != "default", key[1]))


def headline(name: str, results: Sequence[Result], evaluators: Mapping[str, Evaluator]) -> Metric:
    """The first metric of an evaluator; for one that is not installed, the first it reported."""
    if name in evaluators:
        return evaluators[name].metrics[0]
    reported = sorted({metric for result in results for metric in result.metrics}, key=natural)
    return Metric(reported[0] if reported else name, reported[0] if reported else name, unit="")


def evaluated_on(results: Sequence[Result]) -> str:
    """Names of the data sets behind results (`digits`, or several joined)."""
    names = {key.split("/")[0] for result in results for key in result.data}
    names |= {str(r.config.get("dataset") or "") for r in results if not r.data}
    return " + ".join(sorted(names - {""}))


def run_hover(one: Group) -> str:
    """Where a row comes from: runs, settings digest, architecture."""
    return one.once("hover", lambda: _run_hover(one))


def _run_hover(one: Group) -> str:
    record = one.records[0]
    size = one.config.get("size")
    lines = [f"{one.recipe}, preset {one.preset}, version {record.recipe_version}, settings {one.digest[:12]}"]
    lines.append(f"{record.weights.arch}, {f'{size} px' if size else 'size unknown'} on {one.dataset or 'unknown data'}")
    lines += [f"seed {run.seed}: {run.id}, weights {run.weights.sha256[:12]}" for run in one.records]
    return "\n".join(lines)
