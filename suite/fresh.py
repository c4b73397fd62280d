# SPDX-License-Identifier: Apache-2.0
"""Whether anything changed since the pages were made: a stamp over every file that goes into them or came out.

As version control does, a file counts as unchanged when its size, times and place on disk are. The stamp lies in the cache,
never beside the pages, and `suite report --check` does not use it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from suite.data.cache import cache_dir
from suite.errors import SuiteError
from suite.store import CHECKPOINTS, WEIGHTS, write_bytes

PACKAGES = ("suite", "recipes", "evaluators", "reports")
SKIP = {CHECKPOINTS, "work", "tensorboard", "__pycache__", WEIGHTS}
"""Names that hold nothing a page shows."""
RACY = 2_000_000_000
"""Nanoseconds: what changed this shortly before the stamp could change again within the clock's step."""


@dataclass(frozen=True)
class Look:
    """What the inputs were like at one moment."""

    signature: str
    settled: bool
    "False: something had changed so shortly before that it could change again within the clock's step."


def look(inputs: Sequence[Path], *also: object) -> Look:
    """The state of every input file, the program itself and `also`; taken before reading, so that later edits differ."""
    here = Path(__file__).resolve().parent.parent
    digest, youngest = _summed([*inputs, *(here / name for name in PACKAGES)])
    text = hashlib.sha256(repr((digest, also, _versions())).encode(errors="surrogateescape")).hexdigest()
    return Look(text, time.time_ns() - youngest > RACY)


def unchanged(pages: Path, before: Look, outputs: Sequence[Path]) -> bool:
    """Whether inputs and outputs are as `remember` saw them."""
    place = _place(pages)
    return place.is_file() and place.read_text() == f"{before.signature} {_summed(outputs)[0]}"


def remember(pages: Path, before: Look, outputs: Sequence[Path]) -> None:
    """Note that the outputs are current; a cache that cannot be written only costs time."""
    try:
        if before.settled:
            write_bytes(_place(pages), f"{before.signature} {_summed(outputs)[0]}".encode())
        else:
            _place(pages).unlink(missing_ok=True)
    except (OSError, SuiteError):
        return


def _summed(paths: Sequence[Path]) -> tuple[str, int]:
    """Hash over name, size, times and place of every file at or under the paths, and when the youngest changed."""
    digest, youngest = hashlib.sha256(), 0
    for root in paths:
        digest.update(f"\n{root}\n".encode(errors="surrogateescape"))
        for path, stat in _walk(str(root)):
            facts = (path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
            digest.update(repr(facts).encode(errors="surrogateescape"))
            youngest = max(youngest, stat.st_mtime_ns, stat.st_ctime_ns)
    return digest.hexdigest(), youngest


def _walk(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every file at or under a path with its facts, in order of name; what vanishes meanwhile is left out."""
    try:
        with os.scandir(root) as entries:
            seen = (entry for entry in entries if entry.name not in SKIP and not entry.name.startswith("."))
            inside = sorted(seen, key=lambda entry: entry.name)
    except NotADirectoryError:
        yield root, os.stat(root)
        return
    except OSError:
        return
    for entry in inside:
        if entry.is_dir():
            yield from _walk(entry.path)
        else:
            try:
                yield entry.path, entry.stat()
            except OSError:
                continue


def _versions() -> list[str]:
    points = sorted(str(point) for group in PACKAGES for point in metadata.entry_points(group=f"suite.{group}"))
    return [sys.version, *(metadata.version(name) for name in ("jinja2", "matplotlib", "numpy")), *points]


def _place(pages: Path) -> Path:
    return cache_dir() / "pages" / f"{hashlib.sha256(os.fsencode(pages.resolve())).hexdigest()[:16]}.stamp"
