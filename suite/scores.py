# SPDX-License-Identifier: Apache-2.0
"""The shared results of two sides, measured: differences with what is known of their noise, not judged yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from suite.errors import UsageError, unknown
from suite.record import Result
from suite.sides import Entry, Side
from suite.verdict import Row, Word

if TYPE_CHECKING:
    from suite.paired import Difference
    from suite.spec import Evaluator


@dataclass(frozen=True)
class Match:
    """Runs of both sides that are compared as one thing: each side's are seeds of the same experiment."""

    name: str
    "Empty when there is only one match."
    base: tuple[Entry, ...]
    head: tuple[Entry, ...]

    @property
    def same_runs(self) -> bool:
        """Whether both sides hold the same runs in the same order."""
        return [entry.record.id for entry in self.base] == [entry.record.id for entry in self.head]


@dataclass(frozen=True)
class Rule:
    """How scores are measured."""

    alpha: float
    resamples: int
    seed: int
    evaluators: Mapping[str, Evaluator]


def wanted(sides: tuple[Side, Side], found: Sequence[Match], bench: Sequence[str]) -> Iterator[tuple[Match, str]]:
    """Every result that either side has and that was asked for."""
    if not all(side.entries for side in sides):
        if bench:
            raise UsageError(f"bench {', '.join(bench)}: a plain weights file has no results; evaluate it first")
        return
    known = {key for side in sides for entry in side.entries for key in entry.record.results}
    for name in bench:
        if name != "all" and not any(name in (key, key.split(".")[0]) for key in known):
            raise unknown("benchmark in these records", name, known)
    for one in found:
        keys = {key for entry in (*one.base, *one.head) for key in entry.record.results}
        for key in sorted(keys):
            if not bench or {"all", key, key.split(".")[0]} & set(bench):
                yield one, key


Results = Sequence[tuple[Entry, Result]]
"""One side's good results of one key, a run each."""


def measure(one: Match, key: str, rule: Rule) -> Row:
    """One result of both sides, measured but not judged; or the row that says why it cannot be."""
    prefix = f"{one.name} " if one.name else ""
    problem = _problem(one, key)
    if problem is not None:
        return Row("score", prefix + key, problem[0], note=problem[1])
    bases, heads = _usable(one, key)
    metric, higher, judged = _headline(bases[0][1], heads[0][1], rule.evaluators)
    what = f"{prefix}{key}/{metric}"
    if not judged:
        return _plain(what, metric, bases, heads, higher, "describes the features, is not judged")
    a, b = ([entry.read(result) for entry, result in side] for side in (bases, heads))
    left, right = ([arrays for arrays in side if arrays is not None] for side in (a, b))
    if len(left) < len(a) or len(right) < len(b):
        return _unpaired(what, metric, bases, heads, higher, one.same_runs, rule)
    from suite import paired

    kind, gap = paired.measure(
        what, left, right, alpha=rule.alpha, resamples=rule.resamples, seed=rule.seed, matched=one.same_runs
    )
    return _row(what, gap, higher, f"paired over {gap.samples:,} images ({kind})")


def _row(what: str, gap: Difference, higher: bool, note: str) -> Row:
    seeds = min(gap.seeds)
    if gap.seeds != (1, 1):
        note += f", {gap.seeds[0]} and {gap.seeds[1]} seeds"
        note += "" if seeds > 1 else "; how much seeds differ is not counted, for lack of a second one"
    return Row(
        "score", what, "inconclusive", gap.base, gap.head, gap.difference, gap.low, gap.high, None, gap.lower, gap.higher,
        gap.image_error, gap.seed_error, gap.samples, seeds, higher_is_better=higher, note=note,
    )  # fmt: skip


def _plain(what: str, metric: str, bases: Results, heads: Results, higher: bool, note: str, judged: bool = False) -> Row:
    """Two scores of which nothing says how noisy they are, or which are no scores at all."""
    a, b = fmean(_values(bases, metric)), fmean(_values(heads, metric))
    word: Word = "inconclusive" if judged else "same" if a == b else "differs"
    return Row("score", what, word, a, b, b - a, higher_is_better=higher, note=note)


def _values(side: Results, metric: str) -> list[float]:
    return [float(result.metrics[metric]) for _, result in side]


NORMAL_95 = 1.959964
"""Half-width of a 95 % interval in standard errors."""


def _unpaired(what: str, metric: str, bases: Results, heads: Results, higher: bool, matched: bool, rule: Rule) -> Row:
    """Without predictions on both sides: from the records' own intervals, or from seeds alone."""
    from suite import paired

    errors = [_error(side, metric) for side in (bases, heads)]
    known = None not in errors
    if not known and min(len(bases), len(heads)) < 2:
        note = "no predictions and no interval on both sides: the difference may be noise"
        return _plain(what, metric, bases, heads, higher, note, judged=True)
    # Both sides are taken for independent, which overstates the error on images that they share: no false alarms.
    error = sum(error**2 for error in errors if error is not None) ** 0.5 if known else 0.0
    samples = min(result.samples for _, result in (*bases, *heads)) if known else 0
    a, b = _values(bases, metric), _values(heads, metric)
    gap = paired.over_seeds(a, b, error, alpha=rule.alpha, samples=samples, matched=matched)
    return _row(what, gap, higher, "not paired: from the records' intervals" if known else "from seeds alone")


def _error(side: Results, metric: str) -> float | None:
    """Standard error of a side's score from the choice of images, None when a record does not tell."""
    ends = [result.intervals.get(metric) for _, result in side]
    widths = [pair[1] - pair[0] for pair in ends if pair is not None]
    # Seeds share the images, so that more of them do not make this error smaller.
    return fmean((width / 2 / NORMAL_95) ** 2 for width in widths) ** 0.5 if len(widths) == len(side) else None


def _usable(one: Match, key: str) -> tuple[Results, Results]:
    """The runs of both sides that have a good result; of the same runs, those that have it on both sides."""
    a, b = ({entry.record.id: (entry, entry.record.results[key]) for entry in entries if key in entry.record.results}
            for entries in (one.base, one.head))  # fmt: skip
    good = [{name for name, (_, result) in side.items() if result.status == "ok"} for side in (a, b)]
    if one.same_runs:
        good = [good[0] & good[1]] * 2
    return [a[name] for name in a if name in good[0]], [b[name] for name in b if name in good[1]]


def _problem(one: Match, key: str) -> tuple[Word, str] | None:
    """Verdict and reason when a result of both sides cannot be compared."""
    sides = [[entry.record.results.get(key) for entry in entries] for entries in (one.base, one.head)]
    base, head = ([result for result in side if result is not None] for side in sides)
    if not base or not head:
        return "inconclusive", f"not run on {'head' if base else 'base'}"
    good = [[result for result in side if result.status == "ok"] for side in (base, head)]
    failed = next((result for result in head if result.status == "failed"), None)
    if failed is not None and good[0]:
        return "worse", f"failed on head: {failed.why}"
    for where, side, some in (("base", base, good[0]), ("head", head, good[1])):
        if not some:
            return "inconclusive", f"{side[0].status} on {where}: {side[0].why}"
    first = good[0][0]
    for name, words in (("version", "another version"), ("data", "other data"), ("digest", "other settings")):
        if any(getattr(result, name) != getattr(first, name) for result in (*good[0], *good[1])):
            return "inconclusive", f"measured with {words}; evaluate both anew"
    if not all(_usable(one, key)):
        return "inconclusive", "no run has it on both sides"
    return None


FALLBACK = ("top1", "ap50", "map", "miou")
"""Headlines to look for when an evaluator is not known here."""


def _headline(base: Result, head: Result, evaluators: Mapping[str, Evaluator]) -> tuple[str, bool, bool]:
    """Name of the headline metric, whether more of it is better, and whether it is a score at all."""
    shared = [name for name in base.metrics if name in head.metrics]
    known = evaluators.get(base.evaluator)
    if known is not None and known.metrics[0].name in shared:
        return known.metrics[0].name, known.metrics[0].higher_is_better, not known.diagnostic
    found = [name for name in (*FALLBACK, *sorted(shared)) if name in shared]
    if not found:
        raise UsageError(f"{base.evaluator}: the two results share no metric")
    return found[0], True, True
