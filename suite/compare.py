# SPDX-License-Identifier: Apache-2.0
"""Two runs, records or weights files against each other: same bytes, same function, same score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.errors import UsageError, unknown
from suite.record import Result, RunRecord, run_from_json, with_results
from suite.store import RUN, Run, Store
from suite.verdict import Row, Verdict, Word, judge, needed

if TYPE_CHECKING:
    from suite.backbone import Backbone
    from suite.spec import Evaluator


@dataclass(frozen=True)
class Side:
    """One of the two things that are compared."""

    name: str
    record: RunRecord | None = None
    weights: Path | None = None
    run: Run | None = None

    def predictions(self, result: Result) -> dict[str, Any] | None:
        """Per-sample predictions of a result, when they are at hand."""
        return self.run.predictions(result) if self.run is not None else None


def compare(
    base: str | Path,
    head: str | Path,
    *,
    store: Path | None = None,
    bench: Sequence[str] = (),
    tolerance: float = 0.5,
    alpha: float = 0.05,
    resamples: int = 2000,
    seed: int = 0,
    function: bool = True,
    evaluators: Mapping[str, Evaluator] | None = None,
    load: Callable[[Path], Backbone] | None = None,
) -> Verdict:
    """Compare at three levels: bytes of the weights, function on a fixed batch, score of every shared result.

    A score is worse when head falls more than `tolerance` below base and the `1 - alpha` interval of the difference
    excludes 0; better in the same way; same when the interval rules out a drop of `tolerance`; else inconclusive.
    Without predictions on both sides there is no interval, and the difference alone decides.

    Args:
        base: run id, run folder, record JSON or weights file to measure against.
        head: the same, to be judged.
        store: folder in which run ids are looked up.
        bench: evaluators to look at; empty: all that both sides have.
        tolerance: drop in points that does not matter.
        alpha: chance that an interval misses the true difference.
        resamples: bootstrap resamples per score.
        seed: of the resampling and of the fixed batch.
        function: whether to load both networks and compare their features.
        evaluators: by name, for the headline metric and its direction; unknown ones fall back to the kind of
            predictions.
        load: reads a weights file; None: `Backbone.load`.

    Raises:
        UsageError: an input that is none of these, nothing in common, or predictions about different images.
    """
    if tolerance < 0 or not 0 < alpha < 1 or resamples < 1:
        raise UsageError(f"tolerance {tolerance}, alpha {alpha}, resamples {resamples}: need >= 0, 0 to 1, >= 1")
    sides = (resolve(base, store), resolve(head, store))
    hashes, networks = _weights(sides, function, load)
    rows = [_bytes(*hashes)]
    if networks is not None:
        rows.append(_function(*networks, _side_length(sides), seed))
    rows += _scores(sides, bench, evaluators or {}, Rule(tolerance, alpha, resamples, seed))
    return Verdict(sides[0].name, sides[1].name, tuple(rows), tolerance, alpha)


def resolve(what: str | Path, store: Path | None = None) -> Side:
    """A run folder, a record's JSON, a weights file, or a run's id (or unique start of one) in `store`.

    Raises:
        UsageError: none of these.
    """
    path = Path(what)
    if path.is_dir() or (path.name == RUN and path.is_file()):
        return _from_run(Run(path if path.is_dir() else path.parent))
    if path.is_file():
        if path.suffix == ".json":
            record = run_from_json(path.read_text(errors="replace"), str(path))
            return Side(record.id, record)
        return Side(path.name, weights=path)
    if store is None or path.suffix or len(path.parts) != 1:
        raise UsageError(f"{str(what)!r} is no run id, run folder, record (.json) or weights file")
    return _from_run(Store(store).find(str(what)))


def _from_run(run: Run) -> Side:
    record = run.record()
    if record is None:
        raise UsageError(f"run {str(run.path)!r} has no record: its pre-training has not finished")
    weights = run.weights if run.weights.is_file() else None
    return Side(record.id, with_results(record, run.results()[0]), weights, run)


def _weights(
    sides: tuple[Side, Side], function: bool, load: Callable[[Path], Backbone] | None
) -> tuple[tuple[str, str], tuple[Backbone, Backbone] | None]:
    """Hashes of both sides' weights, and both networks when their functions are to be compared."""
    records = [side.record.weights.sha256 if side.record else "" for side in sides]
    wanted = function and all(side.weights for side in sides) and (not all(records) or records[0] != records[1])
    if all(records) and not wanted:
        return (records[0], records[1]), None
    from suite.backbone import Backbone

    read = load or Backbone.load
    networks = [read(side.weights) if side.weights else None for side in sides]
    hashes = [record or (net.sha256() if net else "") for record, net in zip(records, networks, strict=True)]
    a, b = networks
    both = (a, b) if function and a is not None and b is not None and hashes[0] != hashes[1] else None
    return (hashes[0], hashes[1]), both


def _bytes(base: str, head: str) -> Row:
    same = base == head
    note = f"sha256 {head[:12]}" if same else f"sha256 {base[:12]} and {head[:12]}"
    return Row("bytes", "weights", "same" if same else "differs", note=note)


def _side_length(sides: tuple[Side, Side]) -> int | None:
    sizes = [side.record.config.get("size") for side in sides if side.record]
    return int(sizes[0]) if sizes and sizes[0] else None


def _function(base: Backbone, head: Backbone, size: int | None, seed: int, images: int = 16) -> Row:
    """Pooled features of both networks on one fixed batch of smooth noise."""
    import torch
    from torch.nn.functional import interpolate

    if base.dim != head.dim:
        return Row("function", "features", "differs", note=f"{base.dim} and {head.dim} dimensions")
    generator = torch.Generator().manual_seed(seed)
    side = size or base.input_side()
    coarse = torch.randn(images, 3, 8, 8, generator=generator)
    batch = interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)  # N×3×S×S
    with torch.no_grad():
        a, b = (net.eval()(batch).double() for net in (base, head))  # N×d each
    gap, scale = (a - b).abs(), a.abs().mean().clamp_min(1e-12)
    largest, mean = float(gap.max() / scale), float(gap.mean() / scale)
    cosine = float(torch.cosine_similarity(a, b, dim=1).mean())
    note = f"relative difference {mean:.2g} on average, {largest:.2g} at most; cosine {cosine:.6f}"
    return Row("function", "features", "same" if largest < 1e-5 else "differs", note=note)


@dataclass(frozen=True)
class Rule:
    """When a difference counts."""

    tolerance: float
    alpha: float
    resamples: int
    seed: int


def _scores(sides: tuple[Side, Side], bench: Sequence[str], evaluators: Mapping[str, Evaluator], rule: Rule) -> list[Row]:
    base, head = (side.record.results if side.record else {} for side in sides)
    if not all(side.record for side in sides):
        if bench:
            raise UsageError(f"bench {', '.join(bench)}: a plain weights file has no results; evaluate it first")
        return []
    known = {key for results in (base, head) for key in results}
    for name in bench:
        if not any(key == name or key.split(".")[0] == name for key in known):
            raise unknown("benchmark in these records", name, known)
    wanted = [key for key in sorted(known) if not bench or key in bench or key.split(".")[0] in bench]
    rows = [_score(key, sides, base.get(key), head.get(key), evaluators, rule) for key in wanted]
    if rows and not any(row.difference is not None or row.verdict == "worse" for row in rows) and bench:
        raise UsageError(f"{sides[0].name} and {sides[1].name} have no score in common for {', '.join(bench)}")
    return rows


def _score(
    key: str, sides: tuple[Side, Side], base: Result | None, head: Result | None,
    evaluators: Mapping[str, Evaluator], rule: Rule,
) -> Row:  # fmt: skip
    problem = _problem(key, base, head)
    if problem is not None or base is None or head is None:
        return problem or Row("score", key, "inconclusive")
    arrays = [side.predictions(result) for side, result in zip(sides, (base, head), strict=True)]
    metric, higher = _headline(base, head, evaluators)
    what = f"{key}/{metric}"
    if arrays[0] is None or arrays[1] is None:
        return _unpaired(what, base.metrics[metric], head.metrics[metric], higher, rule)
    from suite import paired

    kind, found = paired.bootstrap(what, arrays[0], arrays[1], rule.alpha, rule.resamples, rule.seed)
    word = judge(found.difference, found.low, found.high, rule.tolerance, higher)
    return Row(
        "score", what, word, found.base, found.head, found.difference, found.low, found.high, found.samples,
        needed(found.low, found.high, found.samples, rule.tolerance) if word == "inconclusive" else 0,
        f"paired over {found.samples:,} images ({kind})",
    )  # fmt: skip


def _problem(key: str, base: Result | None, head: Result | None) -> Row | None:
    """The row when the two results cannot be compared."""
    if base is None or head is None:
        return Row("score", key, "inconclusive", note=f"not run on {'base' if base is None else 'head'}")
    if base.status != "ok":
        return Row("score", key, "inconclusive", note=f"{base.status} on base: {base.why}")
    if head.status == "failed":
        return Row("score", key, "worse", note=f"failed on head: {head.why}")
    if head.status != "ok":
        return Row("score", key, "inconclusive", note=f"{head.status} on head: {head.why}")
    for name in ("version", "config", "data"):
        if getattr(base, name) != getattr(head, name):
            return Row("score", key, "inconclusive", note=f"measured with another {name}; evaluate both anew")
    return None


FALLBACK = ("top1", "ap50", "map", "miou")
"""Headlines to look for when an evaluator is not known here."""


def _headline(base: Result, head: Result, evaluators: Mapping[str, Evaluator]) -> tuple[str, bool]:
    shared = [name for name in base.metrics if name in head.metrics]
    known = evaluators.get(base.evaluator)
    if known is not None and known.metrics[0].name in shared:
        return known.metrics[0].name, known.metrics[0].higher_is_better
    found = [name for name in (*FALLBACK, *sorted(shared)) if name in shared]
    if not found:
        raise UsageError(f"{base.evaluator}: the two results share no metric")
    return found[0], True


def _unpaired(what: str, base: float, head: float, higher: bool, rule: Rule) -> Row:
    gain = (head - base) * (1 if higher else -1)
    word: Word = "worse" if gain < -rule.tolerance else "better" if gain > rule.tolerance else "same"
    return Row("score", what, word, base, head, head - base, note="no predictions on both sides: the difference alone")
