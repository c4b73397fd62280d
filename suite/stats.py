# SPDX-License-Identifier: Apache-2.0
"""What a limited number of test images lets one conclude: intervals, paired tests, many comparisons at once.

Sources: Efron and Tibshirani, An Introduction to the Bootstrap, 1993 (chapter 13: percentile interval; 16: tests);
McNemar, Psychometrika 12, 1947 (the same images answered by two networks); Holm, Scandinavian Journal of Statistics 6,
1979 (many comparisons). docs/statistics.md says it in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from suite import metrics
from suite.errors import UsageError

Array: TypeAlias = NDArray[Any]
Arrays = Mapping[str, NDArray[Any]]
"""Per-sample predictions of one kind, see `suite.metrics.PREDICTIONS`."""

CELLS = 500_000
"""Numbers that a chunk of resamples may hold at once: few enough for a processor's cache."""


def interval(
    kind: str, arrays: Arrays, alpha: float = 0.05, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:  # fmt: skip
    """Percentile bootstrap interval of a headline metric over test images.

    Args:
        kind: a key of `suite.metrics.PREDICTIONS`.
        arrays: predictions of that kind on N images.
        alpha: 1 - coverage.
        resamples: how many.
        seed: of the drawing; the same seed gives the same interval.

    Returns:
        Both ends in percent; nan where no resample defines the metric.
    """
    share = narrowed(alpha / 2, metrics.samples(kind, arrays))
    return percentiles(draws(kind, [arrays], resamples, seed)[0], 2 * share)


def headline_interval(arrays: Arrays, reported: float, resamples: int = 1000) -> tuple[tuple[float, float] | None, int]:
    """The 95 % interval of a headline as its evaluator reported it, and the number of test images behind it.

    Where the evaluator's own form of the metric differs from the stored predictions' (COCO reads its precision at 101
    points, we at all), the interval is moved by the difference.

    Returns:
        No interval and 0 for predictions of an unknown kind, or of no image.
    """
    kind = metrics.kind_of(arrays)
    n = 0 if kind is None else metrics.samples(kind, arrays)
    if kind is None or not n:
        return None, 0
    low, high = interval(kind, arrays, resamples=resamples)
    shift = reported - metrics.headline(kind, arrays)
    return ((low + shift, high + shift) if np.isfinite([low, high, shift]).all() else None), n


def percentiles(drawn: Array, alpha: float) -> tuple[float, float]:
    """The middle `1 - alpha` of bootstrap draws, without undefined ones; nan when all are."""
    if not np.isfinite(drawn).any():
        return float("nan"), float("nan")
    low, high = np.nanquantile(drawn, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def draws(kind: str, sides: Sequence[Arrays], resamples: int, seed: int) -> Array:
    """The headline of several networks on the same resamples of the images that they share.

    For top-1 only the patterns of who is right on an image matter, and how often each is drawn is multinomial: that is
    drawn directly, which is the same distribution and takes milliseconds. Patterns are ordered by how often they occur,
    so that neither the order of images nor that of two sides changes a result.

    Args:
        kind: a key of `suite.metrics.PREDICTIONS`.
        sides: predictions of S networks on the same N images.
        resamples: how many, R.
        seed: of the drawing.

    Returns:
        S×R in percent.
    """
    rng, n = np.random.default_rng(seed), metrics.samples(kind, sides[0])
    if kind == "top1":
        right = np.stack([side["pred"] == side["label"] for side in sides])  # S×N
        patterns, times = np.unique(right, axis=1, return_counts=True)  # S×K
        order = np.argsort(times, kind="stable")
        counts = rng.multinomial(n, times[order] / n, size=resamples)  # R×K
        return 100 * (patterns[:, order] @ counts.T) / n
    rows = max(n, *(len(side[name]) for side in sides for name in metrics.PREDICTIONS[kind]))
    chunks = [
        np.stack([metrics.resampled(kind, side, counts) for side in sides]) for counts in _counts(n, rows, resamples, rng)
    ]
    return np.concatenate(chunks, axis=1)


def _counts(n: int, rows: int, resamples: int, rng: np.random.Generator) -> Iterator[Array]:
    """How often each of n images is drawn, r×n per chunk of r resamples; independent of the chunks' size."""
    chunk = max(1, min(resamples, CELLS // rows))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)


def tail(drawn: Array) -> float:
    """One-sided bootstrap p-value: how plausible it is that a drawn quantity is in truth 0 or more.

    The observed sample counts as one of the draws, so that no finite number of them proves anything with certainty
    (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 4.2). Where no draw at all reaches 0,
    the value is smaller than draws can resolve and comes from the normal distribution of their mean and spread.
    """
    known = drawn[np.isfinite(drawn)]
    crossed, spread = np.count_nonzero(known >= 0), float(known.std()) if len(known) else 0.0
    counted = float((1 + crossed) / (1 + len(known)))
    return counted if crossed or spread == 0 else min(counted, float(special.ndtr(known.mean() / spread)))


def expanded(p: float, n: int) -> float:
    """A one-sided bootstrap p-value made honest for few images; of 1,000 and more it stays what it is.

    The spread of bootstrap draws is too small by the square root of (n - 1) / n, and the normal distribution's tails are
    thinner than Student's: Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015.

    Args:
        p: counted from draws.
        n: images that were drawn from.
    """
    if n < 2:
        return 1.0
    return float(special.stdtr(n - 1, special.ndtri(p) * np.sqrt((n - 1) / n))) if 0 < p < 1 else p


def narrowed(alpha: float, n: int) -> float:
    """The share of draws to cut off on a side so that an interval misses with chance `alpha` there; undoes `expanded`."""
    return float(special.ndtr(special.stdtrit(n - 1, alpha) * np.sqrt(n / (n - 1)))) if n > 1 else 0.0


def mcnemar(lost: int, gained: int) -> float:
    """Exact one-sided p-value of losing so many images or more, were each change as likely a gain as a loss.

    Args:
        lost: images that only the first network has right.
        gained: images that only the second has right.
    """
    return float(special.bdtrc(lost - 1, lost + gained, 0.5)) if lost else 1.0


def discordant(base: Arrays, head: Arrays) -> tuple[int, int]:
    """Images that only base, and that only head has right, of `top1` predictions."""
    a, b = base["pred"] == base["label"], head["pred"] == head["label"]
    return int((a & ~b).sum()), int((b & ~a).sum())


def holm(p: ArrayLike) -> Array:
    """Holm's adjusted p-values: each may be compared with alpha, and all together err with chance alpha at most.

    Args:
        p: M p-values, however dependent; nan counts as 1.

    Returns:
        M adjusted values, at most 1.
    """
    p = np.nan_to_num(np.asarray(p, np.float64), nan=1.0)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty_like(p)
    out[order] = np.minimum(stepped, 1.0)
    return out


@dataclass(frozen=True)
class Pair:
    """Two networks on the same images."""

    a: str
    b: str
    difference: float
    "Score of b - score of a, in points."
    p: float
    "Two-sided, of this pair alone."
    adjusted: float
    "After Holm's correction for all pairs."
    significant: bool


def pairwise(predictions: Mapping[str, Arrays], alpha: float = 0.05, resamples: int = 0, seed: int = 0) -> list[Pair]:
    """Which of several networks differ, at a chance of `alpha` that any of the claims is false.

    Top-1 is tested by McNemar's exact test, everything else by the paired bootstrap over images.

    Args:
        predictions: name to predictions, all of one kind and on the same images.
        alpha: family-wise error rate.
        resamples: of the bootstrap; 0: as many as the smallest level of the correction needs.
        seed: of the bootstrap.

    Returns:
        Every pair in the order of the names given.

    Raises:
        UsageError: unknown or unequal kinds, or different images.
    """
    names, sides = list(predictions), list(predictions.values())
    pairs = list(combinations(range(len(names)), 2))
    if not pairs:
        return []
    kind = kind_of_all(sides, ", ".join(names))
    check_alike(", ".join(names), kind, sides)
    scores = [metrics.headline(kind, side) for side in sides]
    drawn = None if kind == "top1" else draws(kind, sides, resamples or enough(alpha / 2, len(pairs)), seed)
    found = []
    for i, j in pairs:
        if drawn is None:
            lost, gained = discordant(sides[i], sides[j])
            one_sided = mcnemar(max(lost, gained), min(lost, gained))
        else:
            one_sided = min(tail(drawn[j] - drawn[i]), tail(drawn[i] - drawn[j]))
            one_sided = expanded(one_sided, metrics.samples(kind, sides[i]))
        found.append(min(1.0, 2 * one_sided))
    adjusted = holm(found)
    return [
        Pair(names[i], names[j], scores[j] - scores[i], p, float(q), bool(q <= alpha))
        for (i, j), p, q in zip(pairs, found, adjusted, strict=True)
    ]


def enough(alpha: float, comparisons: int, least: int = 2000, most: int = 10_000) -> int:
    """Resamples that resolve p-values well below the smallest level that Holm's correction asks for, within reason."""
    return int(np.clip(np.ceil(10 * comparisons / alpha), least, most))


def kind_of_all(sides: Sequence[Arrays], what: str) -> str:
    """The one kind of all these predictions.

    Raises:
        UsageError: unknown or unequal kinds.
    """
    kinds = {metrics.kind_of(side) for side in sides}
    kind = next(iter(kinds)) if len(kinds) == 1 else None
    if kind is None:
        raise UsageError(f"{what}: the stored predictions are of no common kind (valid: {', '.join(metrics.PREDICTIONS)})")
    return kind


TRUTH = {"top1": "label", "mean": "value", "map": "targets", "miou": "confusion", "detection": "n_gt"}
"""Kind to the array that tells the images."""


def check_alike(what: str, kind: str, sides: Sequence[Arrays]) -> None:
    """All sides must have been scored against the same ground truth, image by image.

    Raises:
        UsageError: naming what differs.
    """
    first, *others = (side[TRUTH[kind]] for side in sides)
    if not len(first):
        raise UsageError(f"{what}: the stored predictions hold no image")
    for other in others:
        if len(first) != len(other):
            raise UsageError(f"{what}: {len(first)} test images against {len(other)}; pairing needs the same images")
        if kind == "mean":  # one number per image and no truth beside it
            continue
        a, b = first, other
        if kind == "miou":  # pixels per true class and image, whatever was predicted
            a, b = (x.sum(axis=2, dtype=np.int64) for x in (first, other))
        if a.shape != b.shape or not np.array_equal(a, b):
            raise UsageError(f"{what}: the true labels differ; pairing needs the same images in the same order")
