# SPDX-License-Identifier: Apache-2.0
"""Two runs, records, weights files or sets of published results against each other: same bytes, function, score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from suite import scores
from suite.errors import UsageError
from suite.scores import Match
from suite.sides import Entry, Side, only, resolve
from suite.verdict import Row, Verdict, Word, judge

if TYPE_CHECKING:
    from suite.backbone import Backbone
    from suite.spec import Evaluator


def compare(
    base: str | Path,
    head: str | Path,
    *,
    store: Path | None = None,
    repository: Path = Path("."),
    bench: Sequence[str] = (),
    tolerance: float = 0.5,
    alpha: float = 0.05,
    resamples: int = 0,
    seed: int = 0,
    function: bool = True,
    evaluators: Mapping[str, Evaluator] | None = None,
    load: Callable[[Path], Backbone] | None = None,
) -> Verdict:
    """Compare at three levels: bytes of the weights, function on a fixed batch, score of every shared result.

    Scores are judged by `suite.verdict.judge`: with no true difference, any of them is called worse with chance `alpha`
    at most, however many there are.

    Args:
        base: what to measure against; see `suite.sides.resolve`.
        head: the same, to be judged.
        store: folder in which run ids are looked up.
        repository: in which git revisions are looked up.
        bench: results to look at, `evaluator`, `evaluator:preset` or `all`; empty: all that both sides have.
        tolerance: drop in points that does not matter.
        alpha: chance of a false alarm.
        resamples: bootstrap resamples per score; 0: as many as the number of scores asks for.
        seed: of the resampling and of the fixed batch.
        function: whether to load both networks and compare their features.
        evaluators: by name, for the headline metric and its direction; unknown ones fall back to their only metric.
        load: reads a weights file; None: `Backbone.load`.

    Raises:
        UsageError: an input that cannot be read, a benchmark that neither side has, or predictions about different images.
    """
    if not 0 <= tolerance < float("inf") or not 0 < alpha < 0.5 or resamples < 0:
        raise UsageError(f"tolerance {tolerance}, alpha {alpha}, resamples {resamples}: need >= 0, 0 to 0.5, >= 0")
    sides = (resolve(base, store, repository), resolve(head, store, repository))
    found, notes = matches(*sides)
    hashes, networks = _weights(sides, found, function, load)
    rows = [_bytes(hashes)] if hashes else []
    if networks is not None:
        rows.append(_function(*networks, _side_length(found), seed))
    wanted = list(scores.wanted(sides, found, [name.replace(":", ".") for name in bench]))
    if wanted and not resamples:
        from suite import stats

        resamples = stats.enough(alpha, len(wanted))
    rule = scores.Rule(alpha, resamples, seed, evaluators or {})
    measured = [scores.measure(one, key, rule) for one, key in wanted]
    if bench and not any(row.difference is not None or row.verdict == "worse" for row in measured):
        raise UsageError(f"{sides[0].name} and {sides[1].name} have no score in common for {', '.join(bench)}")
    rows += judge(measured, tolerance, alpha)
    return Verdict(sides[0].name, sides[1].name, tuple(rows), tolerance, alpha, tuple(notes))


def matches(base: Side, head: Side) -> tuple[list[Match], list[str]]:
    """Which runs are compared with which, and one line for each that is not.

    Two experiments (of one or several seeds) are compared whatever they are called; sets of several, run by run of the
    same id, the seeds of an experiment together.
    """
    notes = [*base.problems, *head.problems]
    if not base.entries or not head.entries:
        return [], notes
    if base.families == 1 and head.families == 1:
        return [Match("", _sorted(base), _sorted(head))], notes
    ids = [{entry.record.id for entry in side.entries} for side in (base, head)]
    for where, lost in (("base", ids[0] - ids[1]), ("head", ids[1] - ids[0])):
        notes += [f"{name}: only in {where}" for name in sorted(lost)[:20]]
        notes += [f"and {len(lost) - 20} more: only in {where}"] if len(lost) > 20 else []
    shared = ids[0] & ids[1]
    families: dict[str, tuple[list[Entry], list[Entry]]] = {}
    for i, side in enumerate((base, head)):
        for entry in _sorted(only(side, shared)):
            families.setdefault(entry.family, ([], []))[i].append(entry)
    return [Match(name, tuple(a), tuple(b)) for name, (a, b) in sorted(families.items()) if a and b], notes


def _sorted(side: Side) -> tuple[Entry, ...]:
    return tuple(sorted(side.entries, key=lambda entry: (entry.record.seed, entry.record.id)))


def _weights(
    sides: tuple[Side, Side], found: Sequence[Match], function: bool, load: Callable[[Path], Backbone] | None
) -> tuple[list[tuple[str, str]], tuple[Backbone, Backbone] | None]:
    """Hashes of both sides' weights in pairs, and both networks when their functions are to be compared."""
    if len(found) > 1 or any(len(one.base) != 1 or len(one.head) != 1 for one in found):
        pairs = [pair for one in found for pair in zip(one.base, one.head, strict=False)]
        return [(a.record.weights.sha256, b.record.weights.sha256) for a, b in pairs], None
    entries = [side.entries[0] if len(side.entries) == 1 else None for side in sides]
    if found:
        entries = [found[0].base[0], found[0].head[0]]
    hashes = [entry.record.weights.sha256 if entry else "" for entry in entries]
    files = [entry.weights if entry else side.weights for entry, side in zip(entries, sides, strict=True)]
    if not all(hash_ or file for hash_, file in zip(hashes, files, strict=True)):
        return [], None
    wanted = function and all(files) and (not all(hashes) or hashes[0] != hashes[1])
    if all(hashes) and not wanted:
        return [(hashes[0], hashes[1])], None
    from suite.backbone import Backbone

    read = load or Backbone.load
    a, b = (read(file) if file else None for file in files)
    hashes = [hash_ or (net.sha256() if net else "") for hash_, net in zip(hashes, (a, b), strict=True)]
    both = (a, b) if function and a is not None and b is not None and hashes[0] != hashes[1] else None
    return [(hashes[0], hashes[1])], both


def _bytes(hashes: Sequence[tuple[str, str]]) -> Row:
    same = sum(a == b for a, b in hashes)
    word: Word = "same" if same == len(hashes) else "differs"
    if len(hashes) > 1:
        return Row("bytes", "weights", word, note=f"{same} of {len(hashes)} runs have the same")
    ((a, b),) = hashes
    return Row("bytes", "weights", word, note=f"sha256 {b[:12]}" if same else f"sha256 {a[:12]} and {b[:12]}")


def _side_length(found: Sequence[Match]) -> int | None:
    size = found[0].base[0].record.config.get("size") if found else None
    return int(size) if size else None


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
