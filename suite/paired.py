# SPDX-License-Identifier: Apache-2.0
"""Two sides on the same images, with one seed each or several: how far the difference of their scores can be trusted.

Seeds: Welch, Biometrika 34, 1947, with Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946). Why seeds must
count: Bouthillier et al., Accounting for Variance in Machine Learning Benchmarks, MLSys 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from suite import metrics, stats
from suite.stats import Arrays


@dataclass(frozen=True)
class Difference:
    """Two scores, head - base, how sure that is, and the one-sided p-values of both directions."""

    base: float
    head: float
    difference: float
    low: float
    high: float
    "Ends of the interval that misses the true difference with chance `alpha` on either side."
    lower: float = 1.0
    "p-value of `head is in truth not lower`: small means that a drop is real."
    higher: float = 1.0
    "p-value of `head is in truth not higher`."
    samples: int = 0
    "Images; 0 unknown."
    image_error: float = 0.0
    "Standard error from the choice of images."
    seed_error: float = 0.0
    "Standard error from the choice of seeds; 0 when either side has only one."
    seeds: tuple[int, int] = (1, 1)


def measure(
    what: str,
    base: Sequence[Arrays],
    head: Sequence[Arrays],
    *,
    alpha: float = 0.05,
    resamples: int = 2000,
    seed: int = 0,
    matched: bool = False,
) -> tuple[str, Difference]:
    """The difference of two sides from their per-image predictions.

    One seed a side: the percentile interval of the paired bootstrap over images, and for top-1 the exact test of
    McNemar. Two or more seeds on both sides: the seeds' spread counts too, in a t interval.

    Args:
        what: name for error messages.
        base: predictions of every seed of base.
        head: of head, on the same images in the same order.
        alpha: chance of an error on one side of the interval.
        resamples: bootstrap resamples.
        seed: of the drawing.
        matched: whether the seeds of both sides belong together one by one (the same runs, measured twice).

    Returns:
        The kind of predictions and the difference in percent.

    Raises:
        UsageError: unknown or unequal kinds, or different images.
    """
    sides = [*base, *head]
    kind = stats.kind_of_all(sides, what)
    stats.check_alike(what, kind, sides)
    n, seeds = metrics.samples(kind, sides[0]), (len(base), len(head))
    scores = np.array([metrics.headline(kind, side) for side in sides])
    drawn = stats.draws(kind, sides, resamples, seed)  # S×R
    gap = drawn[seeds[0] :].mean(axis=0) - drawn[: seeds[0]].mean(axis=0)
    if min(seeds) > 1:
        error = float(np.nanstd(gap, ddof=1)) if np.isfinite(gap).sum() > 1 else float("nan")
        return kind, over_seeds(scores[: seeds[0]], scores[seeds[0] :], error, alpha=alpha, samples=n, matched=matched)
    a, b = float(scores[: seeds[0]].mean()), float(scores[seeds[0] :].mean())
    lower, higher = (stats.expanded(stats.tail(drop), n) for drop in (gap, -gap))
    if kind == "top1" and seeds == (1, 1):
        lost, gained = stats.discordant(*sides)
        lower, higher = stats.mcnemar(lost, gained), stats.mcnemar(gained, lost)
    low, high = stats.percentiles(gap, 2 * stats.narrowed(alpha, n))
    return kind, Difference(a, b, b - a, low, high, lower, higher, n, float(np.nanstd(gap)), 0.0, seeds)


def over_seeds(
    base: Sequence[float] | NDArray[np.float64],
    head: Sequence[float] | NDArray[np.float64],
    image_error: float,
    *,
    alpha: float = 0.05,
    samples: int = 0,
    matched: bool = False,
) -> Difference:
    """The difference of two sides' means over seeds, by a t interval.

    The variance is that of the seeds' scores (Welch's, or of the pairs' differences when `matched`) plus that of the
    choice of images. The seeds' scores already contain part of the latter: the interval is rather too wide.

    Args:
        base: one score per seed.
        head: one score per seed.
        image_error: standard error of the difference from the choice of images.
        alpha: chance of an error on one side of the interval.
        samples: images behind the scores.
        matched: whether the seeds belong together one by one.
    """
    a, b = np.asarray(base, np.float64), np.asarray(head, np.float64)
    parts = [(b - a)] if matched else [a, b]
    several = min(len(a), len(b)) > 1
    variances = [float(np.var(part, ddof=1)) / len(part) for part in parts] if several else []
    terms = [(v, len(part) - 1) for v, part in zip(variances, parts, strict=False)]
    total = sum(variances) + image_error**2
    squares = sum(v**2 / freedom for v, freedom in terms)
    freedom = total**2 / squares if squares > 0 else np.inf
    gap, error = float(b.mean() - a.mean()), float(np.sqrt(total))
    half = _t_quantile(1 - alpha, freedom) * error
    lower, higher = (_t_below(sign * gap, error, freedom) for sign in (1, -1))
    seeds = (len(a), len(b))
    return Difference(
        float(a.mean()), float(b.mean()), gap, gap - half, gap + half, lower, higher, samples, image_error,
        float(np.sqrt(sum(variances))), seeds,
    )  # fmt: skip


def _t_quantile(level: float, freedom: float) -> float:
    return float(special.ndtri(level) if np.isinf(freedom) else special.stdtrit(freedom, level))


def _t_below(gap: float, error: float, freedom: float) -> float:
    """Chance of a difference as low as this or lower when there is none."""
    if error == 0:
        return 0.0 if gap < 0 else 1.0
    t = gap / error
    return float(special.ndtr(t) if np.isinf(freedom) else special.stdtr(freedom, t))
