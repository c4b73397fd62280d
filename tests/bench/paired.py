# SPDX-License-Identifier: Apache-2.0
"""Ratios of speeds measured side by side: short repetitions that alternate, so that a busy machine slows all sides alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

Clock = Callable[[], float]


@dataclass(frozen=True)
class Side:
    """One way to do the work."""

    name: str
    run: Callable[[int], int]
    "Does so many units of work (steps, batches) and returns the number of images that went through."
    stretch: float = 1.0
    "Times the usual seconds, for a side whose every call starts processes."


@dataclass(frozen=True)
class Effort:
    """How long to measure: paired repetitions, and the seconds each should take."""

    repetitions: int = 5
    seconds: float = 1.0
    most: int = 200
    "Units of work in a repetition at most."


@dataclass(frozen=True)
class Row:
    """One comparison: paired speeds of ours and theirs, or why there are none."""

    what: str
    goal: float | None = None
    "Least ratio ours / theirs; None where nothing was promised."
    ours: Sequence[float] = ()
    theirs: Sequence[float] = ()
    why: str = ""
    unit: str = "images/s"

    @property
    def ratios(self) -> list[float]:
        """Ours / theirs of every repetition."""
        return [mine / other for mine, other in zip(self.ours, self.theirs, strict=True)]

    @property
    def verdict(self) -> str:
        """Whether the median ratio reaches the goal."""
        if self.why:
            return f"not measured: {self.why}"
        if self.goal is None:
            return ""
        return "met" if statistics.median(self.ratios) >= self.goal else "not met"

    def cells(self) -> tuple[str, ...]:
        """The row as text: what, ours, theirs, unit, ratio (min to max), goal, verdict."""
        goal = "" if self.goal is None else f">= {self.goal:.2f}"
        if self.why:
            return self.what, "", "", "", "", goal, self.verdict
        ratios = self.ratios
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        speeds = (f"{statistics.median(values):.4g}" for values in (self.ours, self.theirs))
        return self.what, *speeds, self.unit, spread, goal, self.verdict


HEADER = ("ours / theirs", "ours", "theirs", "", "ratio (min to max)", "goal", "")


def measure(sides: Sequence[Side], effort: Effort, clock: Clock = time.perf_counter) -> dict[str, list[float]]:
    """Images per second of every side in every repetition; the order turns round each time."""
    units = {side.name: _units(side, effort, clock) for side in sides}
    speeds: dict[str, list[float]] = {side.name: [] for side in sides}
    for repetition in range(effort.repetitions):
        for side in sides if repetition % 2 == 0 else reversed(sides):
            began = clock()
            images = side.run(units[side.name])
            speeds[side.name].append(images / (clock() - began))
    return speeds


def _units(side: Side, effort: Effort, clock: Clock) -> int:
    """Units of work that take about the wanted time. The first unit warms up: kernels are chosen, buffers allocated."""
    side.run(1)
    wanted, units = effort.seconds * side.stretch, 1
    while True:
        began = clock()
        side.run(units)
        took = max(clock() - began, 1e-9)
        if took >= wanted / 4 or units >= effort.most:
            return max(1, min(effort.most, round(units * wanted / took)))
        units = min(effort.most, 4 * units)


def row(
    what: str, speeds: Mapping[str, list[float]], ours: str, theirs: str, goal: float | None, unit: str = "images/s"
) -> Row:
    """The comparison of two of the measured sides."""
    return Row(what, goal, speeds[ours], speeds[theirs], unit=unit)


def table(rows: Sequence[Row]) -> str:
    """Plain text with aligned columns; numbers to the right."""
    return aligned([HEADER, *(r.cells() for r in rows)], texts={0, 3, len(HEADER) - 1})


def aligned(cells: Sequence[Sequence[str]], texts: Set[int]) -> str:
    """Lines of cells, the first one a header: the columns in `texts` to the left, the others to the right."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(c.ljust(w) if i in texts else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
             for line in cells]  # fmt: skip
    lines.insert(1, "-" * max(len(line.rstrip()) for line in lines))
    return "\n".join(line.rstrip() for line in lines)
