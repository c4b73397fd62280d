# SPDX-License-Identifier: Apache-2.0
"""Figures that were drawn before, kept in the cache by what they were drawn from: drawing is most of the time of a page."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from suite.data.cache import cache_dir
from suite.errors import SuiteError
from suite.spec import Plot
from suite.store import write_bytes

MOST = 1000
"""Figures kept; the ones not looked at for longest go first."""


def kept(draw: Callable[..., Plot | None], *inputs: Any) -> Plot | None:
    """What `draw(*inputs)` gives, read back where the same inputs were drawn by the same program before.

    Args:
        draw: its result depends on its inputs alone, and on the program: its own module and the helpers beside it.
        inputs: arrays, mappings and plain values.
    """
    place = cache_dir() / "figures" / f"{_key(draw, inputs)}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):  # not there, cut short, or not ours
        found = json.loads(place.read_text())
        plot = None if found is None else Plot(*map(str, found))
        os.utime(place)
        return plot
    plot = draw(*inputs)
    with contextlib.suppress(OSError, SuiteError):  # a cache that cannot be written only costs time
        write_bytes(place, json.dumps(None if plot is None else [plot.title, plot.svg, plot.alt]).encode())
        _trim(place.parent)
    return plot


def _trim(folder: Path) -> None:
    files = list(folder.glob("*.json"))
    if len(files) > MOST:
        for path in sorted(files, key=lambda path: path.stat().st_mtime)[: len(files) - MOST]:
            path.unlink(missing_ok=True)


def _key(draw: Callable[..., Any], inputs: tuple[Any, ...]) -> str:
    digest = hashlib.sha256(f"{_program(draw.__module__)} {draw.__qualname__}".encode())
    for value in inputs:
        _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for name in sorted(value):
            digest.update(f"\n{name}: ".encode(errors="surrogatepass"))
            _feed(digest, value[name])
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif callable(value):
        digest.update(value.__qualname__.encode())
    else:
        digest.update(repr(value).encode(errors="surrogatepass"))


@cache
def _program(module: str) -> str:
    """Hash of what draws: the module, its package's helpers (`_*.py`), and the libraries under them."""
    digest = hashlib.sha256(" ".join(metadata.version(name) for name in ("matplotlib", "numpy")).encode())
    own = Path(str(sys.modules[module].__file__))
    for path in sorted({own, *own.parent.glob("_*.py")}):
        digest.update(path.read_bytes())
    return digest.hexdigest()
