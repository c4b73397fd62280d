# SPDX-License-Identifier: Apache-2.0
"""Ranks with intervals: how many rows are surely better, how many surely worse, and what cannot be told apart."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from reports._scores import Score
from suite.spec import Cell


@dataclass(frozen=True)
class Rank:
    """The ranks that a row may have."""

    first: int
    last: int
    middle: float = 0.0
    "What rows are sorted by: a smaller number is a better row."

    @property
    def text(self) -> str:
        """`3`, or `2–5` when rows cannot be told apart."""
        return str(self.first) if self.first == self.last else f"{self.first}–{self.last}"


def span(one: Score) -> tuple[float, float] | None:
    """The interval of a score; without one, its value counts as exact."""
    if one.mean is None:
        return None
    return one.interval or (one.mean, one.mean)


def ranks(spans: Sequence[tuple[float, float] | None], higher: bool = True) -> list[Rank | None]:
    """A rank per interval: 1 + the number entirely better, to n − the number entirely worse; None stays None.

    Intervals that overlap leave the order open, so equal rows share their rank.
    """
    better = [None if s is None else (s if higher else (-s[1], -s[0])) for s in spans]
    known = [s for s in better if s is not None]
    lows, highs = sorted(low for low, _ in known), sorted(high for _, high in known)
    found: list[Rank | None] = []
    for s in better:
        if s is None:
            found.append(None)
            continue
        above, below = len(lows) - bisect_right(lows, s[1]), bisect_left(highs, s[0])
        found.append(Rank(1 + above, len(known) - below, -(s[0] + s[1]) / 2))
    return found


def overall(columns: Sequence[Sequence[Rank | None]], rows: int) -> list[Rank | None]:
    """A rank per row from its ranks in several benchmarks: rows whose mean rank intervals overlap are tied.

    Benchmarks that fewer than half of the rows have do not count, unless there are no others: whoever runs more than the rest
    gains nothing by it. A row that a counting benchmark has no number of stands last there: nobody gains by leaving it out.
    """
    spans: list[tuple[float, float] | None] = []
    present = [sum(rank is not None for rank in column) for column in columns]
    known = [column for column, count in zip(columns, present, strict=True) if 2 * count >= rows and count]
    known = known or [column for column, count in zip(columns, present, strict=True) if count]
    for i in range(rows):
        mine = [column[i] for column in known]
        if not any(rank is not None for rank in mine):
            spans.append(None)
            continue
        firsts = [rank.first if rank else rows for rank in mine]
        lasts = [rank.last if rank else rows for rank in mine]
        spans.append((sum(firsts) / len(firsts), sum(lasts) / len(lasts)))
    return ranks(spans, higher=False)


def rank_cell(rank: Rank | None, control: bool, of: int, why: str = "no number to rank by") -> Cell:
    """The cell of a rank."""
    if control:
        return Cell("–", None, "controls are not ranked", kind="missing")
    if rank is None:
        return Cell("–", None, why, kind="missing")
    tied = rank.last - rank.first
    said = f"of {of}: {rank.first - 1} surely better, {of - rank.last} surely worse"
    said += f"\ntied with {tied} other{'s' if tied > 1 else ''}: the 95 % intervals overlap" if tied else ""
    return Cell(rank.text, rank.first + (rank.last - rank.first) / 1000, said)
