# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM as something that a loop looks at between steps."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from suite.errors import SuiteError


class Interrupted(SuiteError):
    """Ctrl-C or SIGTERM arrived and everything was saved."""

    exit_code = 130


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM for the loop to see between steps; a second Ctrl-C interrupts at once."""
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are its business
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
