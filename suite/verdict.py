# SPDX-License-Identifier: Apache-2.0
"""What a comparison found, and when a difference counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Word = Literal["same", "better", "worse", "inconclusive", "differs"]
"""`differs` is for bytes, function and diagnostics, where no direction is better."""


@dataclass(frozen=True)
class Row:
    """One comparison of the verdict."""

    level: Literal["bytes", "function", "score"]
    what: str
    "`weights`, `features`, or `evaluator/metric`; after a run's name when several runs are compared."
    verdict: Word
    base: float | None = None
    head: float | None = None
    difference: float | None = None
    "head - base, in the metric's unit."
    low: float | None = None
    high: float | None = None
    "Ends of the `1 - 2 alpha` interval of the difference; None: nothing says how noisy the scores are."
    p: float | None = None
    "One-sided p-value of the direction that was seen, corrected for all scores of the verdict."
    lower: float | None = None
    higher: float | None = None
    "Uncorrected p-values of `head is not lower` and `head is not higher`."
    image_error: float = 0.0
    seed_error: float = 0.0
    "Standard errors from the choice of images and of seeds."
    samples: int = 0
    "Images behind the comparison."
    seeds: int = 1
    "Seeds on the side that has fewer."
    needed: int = 0
    "Images with which the verdict would be settled, when it is not."
    needed_seeds: int = 0
    "Seeds a side with which it would be."
    higher_is_better: bool = True
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What `compare` found."""

    base: str
    head: str
    rows: Sequence[Row]
    tolerance: float
    alpha: float
    notes: Sequence[str] = ()
    "What was not compared, and why."

    @property
    def regressed(self) -> bool:
        """Whether any score is worse."""
        return any(row.level == "score" and row.verdict == "worse" for row in self.rows)

    def json(self) -> str:
        """The verdict as stable JSON."""
        from suite import verdict_forms

        return verdict_forms.json_text(self)

    def markdown(self) -> str:
        """The verdict as a comment for a pull request."""
        from suite import verdict_forms

        return verdict_forms.markdown(self)


def judge(rows: Sequence[Row], tolerance: float, alpha: float) -> list[Row]:
    """Verdicts on measured scores, all at once, so that more scores do not mean more false alarms.

    Worse: the drop is real, by a one-sided test at `alpha` with Holm's correction over all scores, and is not shown to
    be within the tolerance. Better: a gain in the same way. Same: shown to be no drop beyond the tolerance. Else
    inconclusive. When nothing differs in truth, the chance that any score is called worse is at most `alpha`.

    Args:
        rows: scores; those with p-values are judged, the others pass through.
        tolerance: drop in points that does not matter.
        alpha: chance of failing without a true difference.
    """
    from suite import stats

    at = [i for i, row in enumerate(rows) if row.lower is not None and row.higher is not None]
    worse, better = (stats.holm([_directed(rows[i])[way] for i in at]) for way in (0, 1))
    out = list(rows)
    for i, p_worse, p_better in zip(at, worse, better, strict=True):
        word = _word(rows[i], float(p_worse), float(p_better), tolerance, alpha)
        settled = _needed(rows[i], tolerance, alpha, len(at)) if word == "inconclusive" else (0, 0)
        dropped = (rows[i].difference or 0.0) * (1 if rows[i].higher_is_better else -1) < 0
        out[i] = replace(
            rows[i], verdict=word, p=float(p_worse if dropped else p_better), needed=settled[0], needed_seeds=settled[1]
        )
    return out


def _directed(row: Row) -> tuple[float, float]:
    """p-values of worse and of better."""
    lower, higher = row.lower or 0.0, row.higher or 0.0
    return (lower, higher) if row.higher_is_better else (higher, lower)


def _gain(row: Row) -> tuple[float, float, float]:
    """Difference and both ends of its interval, upwards for better."""
    gap, low, high = (math.nan if value is None else value for value in (row.difference, row.low, row.high))
    return (gap, low, high) if row.higher_is_better else (-gap, -high, -low)


def _word(row: Row, p_worse: float, p_better: float, tolerance: float, alpha: float) -> Word:
    gap, low, high = _gain(row)
    if math.isnan(gap) or math.isnan(low) or math.isnan(high):
        return "inconclusive"
    if p_worse <= alpha and low < -tolerance:
        return "worse"
    if p_better <= alpha and high > tolerance:
        return "better"
    return "same" if low >= -tolerance else "inconclusive"


POWER = 0.8
"""Chance of a settled verdict with the number of images or seeds that is named."""
MOST = 1000.0
"""How much smaller an error may have to become before naming a number is of no use to anybody."""


def _needed(row: Row, tolerance: float, alpha: float, comparisons: int) -> tuple[int, int]:
    """Images, or seeds a side, that would settle the verdict if the difference stays what it is; 0: cannot be told.

    The verdict becomes `same` once the interval's half-width is below the distance to the tolerance, or `worse` once
    it is below the drop itself, whichever takes less.
    """
    from scipy import special

    gap, *_ = _gain(row)
    if not math.isfinite(gap):
        return 0, 0
    spare = float(special.ndtri(POWER))
    ways = [(gap + tolerance, alpha), (-gap, alpha / comparisons)]
    errors = [room / (float(special.ndtri(1 - level)) + spare) for room, level in ways if room > 0]
    wanted, images, seeds = max(errors, default=0.0), row.image_error, row.seed_error
    if wanted * MOST < math.hypot(images, seeds):  # a difference of next to nothing against no tolerance
        return 0, 0
    if seeds > 0 and wanted > images:
        return 0, math.ceil(row.seeds * seeds**2 / (wanted**2 - images**2))
    return math.ceil(row.samples * (images / wanted) ** 2), 0
