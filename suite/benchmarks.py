# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of a command: which, with what settings, on what data, and their results on a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from suite import measure, plugins
from suite.backbone import read_metadata
from suite.bench import Place
from suite.data import Sources
from suite.features import FeatureStore
from suite.progress import Reporter
from suite.record import Result, RunRecord
from suite.run import Options
from suite.spec import Evaluator, base_preset
from suite.store import Run, Store


@dataclass
class Benchmarks:
    """Which evaluators to run, with their presets and overrides."""

    chosen: list[tuple[Evaluator, str]] = field(default_factory=list)
    assignments: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, assignments: Mapping[str, list[str]] | None = None) -> Benchmarks:
        """From `all`, or a list such as `knn,linear:moco`.

        Raises:
            UsageError: unknown evaluator or preset.
        """
        chosen: list[tuple[Evaluator, str]] = []
        for item in filter(None, (part.strip() for part in text.split(","))):
            name, _, preset = item.partition(":")
            for plugin in plugins.load_all("evaluators").values() if name == "all" else [plugins.load("evaluators", name)]:
                measure.resolve(plugin, preset or plugin.default, (assignments or {}).get(plugin.name, ()))
                chosen.append((plugin, preset or plugin.default))
        return cls(chosen, dict(assignments or {}))

    def require(self, where: Sources) -> None:
        """UsageError for a data set that the command itself asks for, by `@name` or `dataset=name`, and that is not there."""
        for plugin, preset in self.chosen:
            wanted = measure.resolve(plugin, preset, self.assignments.get(plugin.name, ())).dataset
            if wanted != plugin.presets[base_preset(preset)].dataset:
                where.require(wanted)


def split_assignments(assignments: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Separate `knn.temperature=0.1` (an evaluator's setting) from `optim.lr=0.1` (the recipe's)."""
    names = plugins.find("evaluators")
    recipe: list[str] = []
    evaluators: dict[str, list[str]] = {}
    for assignment in assignments:
        head, dot, rest = assignment.partition(".")
        if dot and head in names and "=" not in head:
            evaluators.setdefault(head, []).append(rest)
        else:
            recipe.append(assignment)
    return recipe, evaluators


def benchmark(
    run: Run, record: RunRecord, benchmarks: Benchmarks, where: Sources, store: Store, options: Options, reporter: Reporter
) -> list[Result]:
    """Run the evaluators on a finished run's weights; what is current already is not computed again."""
    place = Place(
        sources=where, store=FeatureStore(store.root / ".features", options.feature_bytes),
        size=int(read_metadata(run.weights).get("size", "224")), reporter=reporter,
        workers=int(record.config.get("workers", 0)),
    )  # fmt: skip
    orders = [
        measure.order(plugin, preset, record.weights.sha256, where, benchmarks.assignments.get(plugin.name, ()))
        for plugin, preset in benchmarks.chosen
    ]
    kept = {wanted.key: None if options.again else measure.current(wanted, run) for wanted in orders}
    missing = [wanted for wanted in orders if kept[wanted.key] is None]
    results = []
    for wanted in orders:
        old = kept[wanted.key]
        results.append(old or measure.evaluate(wanted, run, place, together=missing, debug=options.debug))
        reporter.say(describe(wanted.evaluator, results[-1], computed=old is None))
    place.store.trim()
    return results


def describe(evaluator: Evaluator, result: Result, computed: bool) -> str:
    """One line about a result."""
    if result.status != "ok":
        return f"  {result.key}: {result.status}: {result.why}"
    metric = evaluator.metrics[0]
    cost = f"{result.seconds:.1f} s" if computed else "kept"
    return f"  {result.key}: {evaluator.title} {metric.title} {result.metrics[metric.name]:.1f} {metric.unit} ({cost})"
