# SPDX-License-Identifier: Apache-2.0
"""What a record must prove before it is published, and which stored versions are no longer current."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from suite import config as configs
from suite.errors import UsageError
from suite.record import Result, RunRecord, with_results
from suite.results import STALE, stale_mark
from suite.spec import Evaluator, Recipe

SHA = re.compile("[0-9a-f]{64}")
ADOPTED = "weights"
"""Preset of a run that is a weights file from elsewhere: its digest is the hash of the weights."""


@dataclass(frozen=True)
class Known:
    """The plug-ins that a record is checked against."""

    recipes: Mapping[str, Recipe]
    evaluators: Mapping[str, Evaluator]


def publishable(record: RunRecord, known: Known, weights: str | None, stale: bool = False) -> tuple[RunRecord, list[str]]:
    """The record with its `ok` results alone, after every check.

    Args:
        record: of any origin.
        known: recipes and evaluators of this installation.
        weights: hash of the weights file that is at hand, None: there is none.
        stale: let older versions through, marked by a note.

    Returns:
        The record, and one line for each thing that could not be checked.

    Raises:
        UsageError: something is wrong; one line that names all of it, a record of nothing but failures included.
    """
    good = {key: result for key, result in record.results.items() if result.status == "ok"}
    record = with_results(record, good)
    problems = [*_record_problems(record, known, weights)]
    if not good:
        problems.append("it has no result to publish")
    for key, result in record.results.items():
        problems += [f"{key}: {problem}" for problem in _result_problems(key, result, record, known)]
    old = list(outdated([replace(record, notes=())], known))
    if old and not stale:
        problems += [f"{one.what} (--stale publishes it, marked)" for one in old]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UsageError(f"{record.id[:120]!r} cannot be published: {'; '.join(problems[:5])}{more}")
    kept = [note for note in record.notes if not note.startswith(STALE)]
    marks = [f"{stale_mark(one.key, one.version)} {one.current} was current when it was published" for one in old]
    return replace(record, notes=(*kept, *marks)), _unproven(record)


@dataclass(frozen=True)
class Old:
    """A stored version that is not the installed one."""

    id: str
    key: str
    "A result's key, or `recipe`."
    version: int
    current: int
    what: str


def outdated(records: Iterable[RunRecord], known: Known) -> Iterator[Old]:
    """Results and runs of another version than the installed one, unless a note marks them as such."""
    for record in records:
        recipe = known.recipes.get(record.recipe)
        if recipe is not None and record.preset != ADOPTED and record.recipe_version != recipe.version:
            yield from _old(record, "recipe", f"pre-trained with version {record.recipe_version} of {record.recipe}",
                            record.recipe_version, recipe.version)  # fmt: skip
        for key, result in record.results.items():
            evaluator = known.evaluators.get(result.evaluator)
            if result.status == "ok" and evaluator is not None and result.version != evaluator.version:
                said = f"{key} measured with version {result.version} of {result.evaluator}"
                yield from _old(record, key, said, result.version, evaluator.version)


def _old(record: RunRecord, key: str, said: str, version: int, current: int) -> Iterator[Old]:
    if not any(note.startswith(stale_mark(key, version)) for note in record.notes):
        yield Old(record.id, key, version, current, f"{said}, the current one is {current}")


def _record_problems(record: RunRecord, known: Known, weights: str | None) -> Iterator[str]:
    if not SHA.fullmatch(record.weights.sha256):
        yield "weights.sha256 is no sha256"
    elif weights is not None and weights != record.weights.sha256:
        yield f"the weights file hashes to {weights[:12]}, the record says {record.weights.sha256[:12]}"
    if not record.weights.arch or record.weights.parameters < 1:
        yield "weights.arch or weights.parameters is empty"
    if not record.created:
        yield "created is empty"
    if record.config.get("seed", record.seed) != record.seed:
        yield f"seed is {record.seed}, its config says {record.config['seed']}"
    recipe = known.recipes.get(record.recipe)
    if record.preset == ADOPTED:
        if record.digest != record.weights.sha256:
            yield "digest is not the hash of the weights"
    elif recipe is None:
        yield f"recipe {record.recipe[:60]!r} is not installed here, so its version and settings cannot be checked"
    elif record.recipe_version > recipe.version:
        yield f"recipe version {record.recipe_version} is newer than the installed {recipe.version}"
    else:
        extra = [(recipe.name, record.recipe_version, fingerprint) for fingerprint in record.data.values()]
        current = record.recipe_version == recipe.version
        yield from _digest_problems(record, current, recipe.presets, extra, "data is empty")


def _result_problems(key: str, result: Result, record: RunRecord, known: Known) -> Iterator[str]:
    if result.key != key:
        yield f"the result calls itself {result.key!r}"
    if result.weights != record.weights.sha256:
        yield f"measured on weights {result.weights[:12]}, the run has {record.weights.sha256[:12]}"
    if not result.created or not result.data or not result.env.packages:
        yield "created, data or env.packages is empty"
    yield from _number_problems(result)
    evaluator = known.evaluators.get(result.evaluator)
    if evaluator is None:
        yield f"evaluator {result.evaluator[:60]!r} is not installed here"
        return
    if result.version > evaluator.version:
        yield f"version {result.version} is newer than the installed {evaluator.version}"
    if evaluator.metrics[0].name not in result.metrics:
        yield f"the headline metric {evaluator.metrics[0].name!r} is missing"
    declared = {metric.name for metric in evaluator.metrics}
    yield from (f"metric {name[:60]!r} is not declared" for name in result.metrics if name.partition(".")[0] not in declared)
    current = result.version == evaluator.version
    yield from _digest_problems(result, current, evaluator.presets, _identities(result, record), "")


def _number_problems(result: Result) -> Iterator[str]:
    for name, value in result.metrics.items():
        if not math.isfinite(value):
            yield f"{name[:60]} is {value}"
    for name, ends in result.intervals.items():
        if name not in result.metrics or len(ends) != 2 or not all(map(math.isfinite, ends)) or ends[0] > ends[1]:
            yield f"the interval of {name[:60]!r} is not a low and a high end of a metric"


def _digest_problems(
    stored: RunRecord | Result, current: bool, presets: Mapping[str, Any], identities: Sequence[tuple], lacking: str
) -> Iterator[str]:
    """The digest must come out again from the stored config and one of the identities; without any, `lacking` is said.

    A config of the current version must also be one that the plug-in takes. It counts as stored and as the plug-in reads it,
    where 5 and 5.0 are one setting; as stored, it survives settings that the plug-in gained since.
    """
    forms = [dict(stored.config)]
    try:
        kind = type(presets.get(stored.preset) or next(iter(presets.values())))
        forms.append(configs.to_dict(configs.from_dict(kind, stored.config)))
    except UsageError as error:
        if current:
            yield f"config: {error}"
    if not SHA.fullmatch(stored.digest):
        yield "digest is missing or no sha256"
    elif not identities:
        yield from [lacking] if lacking else []
    elif not any(configs.digest_of(form, *identity) == stored.digest for form in forms for identity in identities):
        yield f"digest {stored.digest[:12]} does not belong to the stored config, version and data"


def _identities(result: Result, record: RunRecord) -> list[tuple[str, int, str, str]]:
    """What besides the config may stand behind a result's digest: version and the two splits' fingerprints.

    The record names the splits that the evaluator read. Which of them is the training split follows from trying; a split
    that it did not read may be known from the run's other results.
    """
    found = []
    for name in sorted({key.partition("/")[0] for key in result.data}):
        sources = (record.data, *(other.data for other in record.results.values()))
        prints = sorted({value for data in sources for key, value in data.items() if key.partition("/")[0] == name})
        pairs = [(a, b) for a in prints for b in prints if a != b]
        found += [(result.evaluator, result.version, name, f"{a}/{b}") for a, b in pairs]
    return found


def _unproven(record: RunRecord) -> list[str]:
    return [f"{key}: the digest was not checked, the record names one split of its data only"
            for key, result in record.results.items() if not _identities(result, record)]  # fmt: skip
