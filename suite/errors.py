# SPDX-License-Identifier: Apache-2.0
"""The two kinds of error a user may see, each one line, and the did-you-mean message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SuiteError(Exception):
    """Base of the errors that the command line shows as one line, without a traceback."""

    exit_code = 1


class UsageError(SuiteError):
    """A wrong call or bad input: unknown name, wrong value, missing data, unreadable file. Exit code 2."""

    exit_code = 2


class JobError(SuiteError):
    """A job that was asked for correctly and failed: divergence, full disk, failed evaluator. Exit code 1."""


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most similar to `name`, or None when nothing is close."""
    lowered = {choice.lower(): choice for choice in choices}
    match = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    return lowered[match[0]] if match else None


def unknown(kind: str, name: object, choices: Iterable[str]) -> UsageError:
    """One line naming the thing, the value, the nearest match and the valid choices."""
    choices = sorted(choices)
    if len(choices) > 40:
        shown = ", ".join(difflib.get_close_matches(str(name), choices, n=8, cutoff=0.0)) + f", … {len(choices)} in all"
    else:
        shown = ", ".join(choices)
    near = nearest(str(name), choices)
    hint = f"; did you mean {near!r}?" if near else ""
    return UsageError(f"unknown {kind} {str(name)!r}{hint} (valid: {shown or 'none'})")
