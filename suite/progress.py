# SPDX-License-Identifier: Apache-2.0
"""Progress as a person wants it: bars with rate and time left on a terminal, plain lines in a log, nothing when quiet."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


class Task:
    """One bar. `advance(n)` moves it; keyword values are shown beside it."""

    def __init__(self, what: str, total: int, show: Callable[[Task], None], unit: str, start: int) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, start
        self.begin, self.start, self.values = time.monotonic(), start, ""
        self._show = show

    def __call__(self, n: int = 1, **values: str) -> None:
        """Count `n` more."""
        self.done += n
        if values:
            self.values = " ".join(f"{key} {value}" for key, value in values.items())
        self._show(self)

    @property
    def rate(self) -> float:
        """Units per second since the bar began."""
        return (self.done - self.start) / max(1e-9, time.monotonic() - self.begin)

    @property
    def eta(self) -> str:
        """Time left as m:ss or h:mm:ss."""
        left = int((self.total - self.done) / self.rate) if self.done > self.start else 0
        minutes, seconds = divmod(left, 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


class Reporter:
    """Shows progress on a rich console, or nothing without one."""

    def __init__(self, console: Console | None = None, every: float = 10.0) -> None:
        self.console, self.every = console, every

    def say(self, text: str) -> None:
        """One line."""
        if self.console is not None:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def task(self, what: str, total: int, unit: str = "it", start: int = 0) -> Iterator[Task]:
        """A bar for `total` units of work, of which `start` are done."""
        if self.console is None:
            yield Task(what, total, lambda task: None, unit, start)
        elif self.console.is_terminal:
            with self._bar(what, total, unit, start) as task:
                yield task
        else:
            yield Task(what, total, self._line(), unit, start)

    def _line(self) -> Callable[[Task], None]:
        last = time.monotonic()

        def show(task: Task) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= self.every and task.done < task.total:
                last = now
                self.say(
                    f"  {task.what}: {task.done}/{task.total} {task.unit}, {task.rate:.1f} {task.unit}/s, "
                    f"{task.eta} left {task.values}".rstrip()
                )

        return show

    @contextlib.contextmanager
    def _bar(self, what: str, total: int, unit: str, start: int) -> Iterator[Task]:
        from rich.progress import BarColumn, Progress, TextColumn

        columns = ("  {task.description}", BarColumn(bar_width=30), "{task.completed:.0f}/{task.total:.0f}")
        bar = Progress(
            *(c if isinstance(c, BarColumn) else TextColumn(c) for c in (*columns, "{task.fields[info]}")),
            console=self.console,
            transient=True,
        )
        with bar:
            handle = bar.add_task(what, total=total, completed=start, info="")

            def show(task: Task) -> None:
                info = f"{task.rate:.1f} {unit}/s, {task.eta} left {task.values}"
                bar.update(handle, completed=task.done, info=info)

            yield Task(what, total, show, unit, start)
