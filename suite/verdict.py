# SPDX-License-Identifier: Apache-2.0
"""What a comparison found, when a difference counts, and how it is told to people and programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Word = Literal["same", "better", "worse", "inconclusive", "differs"]
"""`differs` is for bytes and function, where no direction is better."""


@dataclass(frozen=True)
class Row:
    """One comparison of the verdict."""

    level: Literal["bytes", "function", "score"]
    what: str
    "`weights`, `features`, or `evaluator/metric`."
    verdict: Word
    base: float | None = None
    head: float | None = None
    difference: float | None = None
    "head - base, in the metric's unit."
    low: float | None = None
    high: float | None = None
    "Ends of the confidence interval of the difference; None: not paired, so unknown."
    samples: int = 0
    "Images behind a paired comparison."
    needed: int = 0
    "Images at which the interval would be narrow enough to tell, when it is not."
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What `compare` found."""

    base: str
    head: str
    rows: Sequence[Row]
    tolerance: float
    alpha: float

    @property
    def regressed(self) -> bool:
        """Whether any score is worse."""
        return any(row.level == "score" and row.verdict == "worse" for row in self.rows)

    def json(self) -> str:
        """The verdict as stable JSON."""
        raw = {**asdict(self), "regressed": self.regressed}
        return json.dumps(raw, indent=2, ensure_ascii=False, default=list) + "\n"

    def markdown(self) -> str:
        """The verdict as a comment for a pull request."""
        from suite.markup import markdown_text as plain

        lines = [
            f"### {'Regression' if self.regressed else 'No regression'}: {plain(self.head)} against {plain(self.base)}",
            "",
            f"| | base | head | difference | {100 * (1 - self.alpha):g} % interval | verdict |",
            "| --- | ---: | ---: | ---: | :---: | --- |",
        ]
        for row in self.rows:
            interval = "" if row.low is None or row.high is None else f"{_signed(row.low)} … {_signed(row.high)}"
            verdict = f"**{row.verdict}**" if row.verdict == "worse" else row.verdict
            more = f"; about {row.needed:,} images would tell" if row.needed else ""
            note = f" ({plain(row.note + more)})" if row.note else ""
            cells = [plain(row.what), _number(row.base), _number(row.head), _signed(row.difference), interval]
            lines.append("| " + " | ".join([*cells, verdict + note]) + " |")
        lines += [
            "",
            f"Worse: a drop of more than {self.tolerance:g} points whose interval excludes 0. Same: the interval rules "
            "out such a drop. Intervals: paired bootstrap over the test images.",
        ]
        return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}".replace("-", "−")


def judge(difference: float, low: float, high: float, tolerance: float, higher: bool = True) -> Word:
    """The verdict on a difference (head - base) and its confidence interval."""
    if not higher:
        difference, low, high = -difference, -high, -low
    if math.isnan(difference):
        return "inconclusive"
    if high < 0 and difference < -tolerance:
        return "worse"
    if low > 0 and difference > tolerance:
        return "better"
    return "same" if low >= -tolerance else "inconclusive"


def needed(low: float, high: float, samples: int, tolerance: float) -> int:
    """Images at which the interval of a vanishing difference would just fit into the tolerance."""
    half = (high - low) / 2
    if tolerance == 0 or not math.isfinite(half):
        return 0
    return math.ceil(samples * (half / tolerance) ** 2)
