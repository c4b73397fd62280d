# SPDX-License-Identifier: Apache-2.0
"""One page per run: where it comes from, what it was set to, how it went, what its features look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reports._cost import duration
from reports._figures import bars, confusion, curves, gallery, scatter
from reports._groups import (
    Group,
    algorithm_page,
    benchmark_page,
    benchmark_title,
    evaluated_on,
    evaluator_order,
    flat,
    headline,
    run_page,
)
from reports._scores import chosen, finite, score, score_cell
from reports.algorithm import flatten
from suite.kept import kept
from suite.record import Result, RunRecord
from suite.spec import Archive, Cell, Document, Evaluator, Page, Plot, Recipe, Table

MOST = 100
"""Runs with a page of their own: the newest. The others stand in the tables and in the comparison."""
DRAWN = 30
"""Runs whose figures are drawn: the newest of those. Drawing is what takes the time."""


def build(
    records: Sequence[RunRecord], recipes: Mapping[str, Recipe], evaluators: Mapping[str, Evaluator], archive: Archive
) -> list[Document]:
    """A document for each of the newest runs."""
    newest = sorted(records, key=lambda record: (record.created, record.id), reverse=True)[:MOST]
    drawn = {record.id for record in newest[:DRAWN]}
    shown = sorted(newest, key=lambda record: record.id)
    return [_document(one, len(records), one.id in drawn, recipes, evaluators, archive) for one in shown]


def _document(
    record: RunRecord, count: int, drawn: bool, recipes: Mapping[str, Recipe], evaluators: Mapping[str, Evaluator],
    archive: Archive,
) -> Document:  # fmt: skip
    recipe = recipes.get(record.recipe)
    title = f"{recipe.title if recipe else record.recipe}, {flat(record.preset)}, seed {record.seed}"
    size = record.config.get("size")
    summary = (
        f"{record.weights.arch} pre-trained on {record.config.get('dataset') or 'unknown data'}"
        f"{f' at {size} pixels' if size else ''}: one set of weights and everything measured on it."
    )
    results = sorted(record.results.values(), key=lambda one: (evaluator_order(one.evaluator), one.preset))
    notes = [f"- {flat(note)}" for note in record.notes]
    parts: list[Table | Plot | str] = ["\n".join(notes)] if notes else []
    parts += [_results(record, results, recipes, evaluators)]
    parts += _figures(record, results, evaluators, archive) if drawn else [
        f"Figures are drawn for the {DRAWN} newest of {count} runs; this is not one of them."
    ]  # fmt: skip
    parts += [*_time(record, results, evaluators, drawn), _provenance(record), _config(record)]
    return Document(run_page(record), title, summary, parts, "Runs")


def _results(
    record: RunRecord, results: Sequence[Result], recipes: Mapping[str, Recipe], evaluators: Mapping[str, Evaluator]
) -> Table:  # fmt: skip
    alone = Group(record.recipe, record.preset, record.digest, (record,))
    rows = []
    for result in results:
        head = headline(result.evaluator, [result], evaluators)
        found = score(alone, result.evaluator, result.preset, head.name, evaluators, recipes)
        others = ", ".join(f"{name} {value:.2f}" for name, value in sorted(result.metrics.items())
                           if name != head.name and finite(value))  # fmt: skip
        selected = chosen(result)
        rows.append([
            Cell(benchmark_title(result.evaluator, evaluators), link=benchmark_page(result.evaluator)),
            Cell(result.preset),
            Cell(evaluated_on([result]) or "–"),
            Cell(head.title + (f", {head.unit}" if head.unit else "")),
            score_cell(alone, found, 2, False, interval=True),
            Cell(f"{result.samples:,}", float(result.samples)) if result.samples
            else Cell("–", None, "no per-image predictions", kind="missing"),
            Cell(_short(selected) or "–", None, selected),
            Cell(_short(others) or "–", None, others),
        ])  # fmt: skip
    heads = ["Benchmark", "Protocol", "Data", "Headline", "Value\n[95 %]", "Test images", "Chosen", "Further metrics"]
    return Table("Results", heads, rows)


def _short(text: str, longest: int = 60) -> str:
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def _figures(
    record: RunRecord, results: Sequence[Result], evaluators: Mapping[str, Evaluator], archive: Archive
) -> list[Table | Plot | str]:
    """Curves, confusion matrix, nearest neighbours and projection, and a word for each that cannot be drawn."""
    parts: list[Table | Plot | str] = ["## How it went"]
    log = [row for row in archive.log(record) if isinstance(row, Mapping)]
    drawn = kept(curves, log) if log else None
    parts.append(drawn or "No training log lies beside this record, so there are no curves.")
    parts.append("## What the features know")
    shown = [plot for plot in (_confusion(results, record, evaluators, archive), _gallery(results, record, evaluators, archive),
                               _projection(results, record, evaluators, archive)) if plot]  # fmt: skip
    missing = "No per-image predictions, gallery or projection lie beside this record, so there is nothing to draw."
    return [*parts, *shown] if shown else [*parts, missing]


def _confusion(
    results: Sequence[Result], record: RunRecord, evaluators: Mapping[str, Evaluator], archive: Archive
) -> Plot | None:
    """Of the first result that kept classes: linear before kNN before others."""
    order = sorted(results, key=lambda one: ("linear", "knn").index(one.evaluator) if one.evaluator in ("linear", "knn") else 2)
    for result in order:
        arrays = archive.predictions(record, result) if result.status == "ok" else None
        if arrays is not None and {"label", "pred"} <= set(arrays):
            where = f"{benchmark_title(result.evaluator, evaluators)} [{result.preset}], {evaluated_on([result])}"
            return kept(confusion, arrays["label"], arrays["pred"], where)
    return None


def _artifact(results: Sequence[Result], record: RunRecord, archive: Archive, name: str) -> tuple[Result, Any] | None:
    for result in results:
        if name in result.artifacts:
            arrays = archive.artifact(record, result, name)
            if arrays is not None:
                return result, arrays
    return None


def _gallery(
    results: Sequence[Result], record: RunRecord, evaluators: Mapping[str, Evaluator], archive: Archive
) -> Plot | None:
    """`gallery`: queries Q, neighbours Q×k and right Q×k as indices into thumbs n×h×w×3 of bytes."""
    found = _artifact(results, record, archive, "gallery")
    if found is None or not {"queries", "neighbours", "right", "thumbs"} <= set(found[1]):
        return None
    return kept(gallery, found[1], evaluated_on([found[0]]))


def _projection(
    results: Sequence[Result], record: RunRecord, evaluators: Mapping[str, Evaluator], archive: Archive
) -> Plot | None:
    for name, title in (("tsne", "t-SNE"), ("umap", "UMAP")):
        found = _artifact(results, record, archive, name)
        if found is not None and {"xy", "label"} <= set(found[1]):
            said = f"{title} of the features, {evaluated_on([found[0]])}"
            return kept(scatter, found[1]["xy"], found[1]["label"], said)
    return None


def _time(
    record: RunRecord, results: Sequence[Result], evaluators: Mapping[str, Evaluator], drawn: bool
) -> list[Table | Plot | str]:
    """Seconds of every phase."""
    phases = [("Pre-training", record.seconds)] if record.seconds else []
    phases += [(f"{benchmark_title(r.evaluator, evaluators)}{'' if r.preset == 'default' else f' [{r.preset}]'}", r.seconds)
               for r in results if r.seconds]  # fmt: skip
    if not phases:
        return []
    total = sum(seconds for _, seconds in phases)
    rows = [[Cell(name), Cell(duration(s), s), Cell(f"{100 * s / total:.0f}", 100 * s / total)] for name, s in phases]
    plot = kept(bars, phases, duration) if drawn and len(phases) > 1 else None
    return [*([plot] if plot else []), Table("Time per phase", ["Phase", "Time", "Share\n%"], rows)]


def _provenance(record: RunRecord) -> Table:
    env = record.env
    packages = ", ".join(f"{name} {version}" for name, version in sorted(env.packages.items()))
    device = ", ".join(part for part in (env.device, f"{env.threads} threads" if env.threads else "") if part)
    pairs = [
        ("run", record.id, ""),
        ("algorithm", f"{record.recipe}, version {record.recipe_version}", algorithm_page(record.recipe)),
        ("settings digest", record.digest, ""), ("seed", str(record.seed), ""), ("weights", record.weights.sha256, ""),
        ("weights come from", record.weights.source, ""),
        ("backbone", f"{record.weights.arch}, {record.weights.parameters:,} parameters", ""),
        *((f"data {name}", fingerprint, "") for name, fingerprint in sorted(record.data.items())),
        ("device", device, ""), ("python", env.python, ""), ("platform", env.platform, ""), ("packages", packages, ""),
        ("suite", " ".join(part for part in (env.suite, env.git) if part), ""), ("record schema", str(record.schema), ""),
        ("steps", f"{record.steps:,}" if record.steps else "", ""),
        ("last loss", f"{record.loss:.4f}" if record.loss is not None else "", ""),
        ("feature spread at the end", f"{record.feature_std:.3f}" if record.feature_std is not None else "", ""),
        ("feature rank at the end", f"{record.feature_rank:.1f}" if record.feature_rank is not None else "", ""),
    ]  # fmt: skip
    rows = [[Cell(name), Cell(text, link=link)] for name, text, link in pairs if text]
    return Table("Provenance", ["What", "Value"], rows)


def _config(record: RunRecord) -> Table:
    rows = [[Cell(key), Cell(value)] for key, value in flatten(record.config).items()]
    return Table("Settings", ["Setting", "Value"], rows)


PAGE = Page(name="run", title="One page per run", build=build)
