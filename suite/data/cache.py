# SPDX-License-Identifier: Apache-2.0
"""Where generated and derived files live, and how they are written so that no reader sees half of one."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from suite.errors import UsageError


def cache_dir(cache: Path | None = None) -> Path:
    """The cache folder: `cache` when given, else `$SUITE_CACHE`, else `~/.cache/ssl-suite`. Not created here."""
    if cache is not None:
        return Path(cache)
    named = os.environ.get("SUITE_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "ssl-suite"


@functools.cache
def process_dir() -> Path:
    """A private folder that is removed when the process ends, for machines whose cache cannot be written."""
    folder = Path(tempfile.mkdtemp(prefix="ssl-suite-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and takes the name `path`.

    Raises:
        OSError: the folder cannot be written or is full; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        _flush(name)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the name `path`.

    When another process was first, its folder stays and ours is dropped: both hold the same thing.

    Raises:
        OSError: the parent cannot be written or is full; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    folder.chmod(0o755)
    try:
        yield folder
        try:
            os.rename(folder, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_folder(root: Path | str | None, name: str, layout: str, obtain: str) -> Path:
    """The data root as an existing, non-empty, absolute folder; `name` may be empty when the set is not known yet.

    Raises:
        UsageError: no root given, no such folder, not a folder, or nothing in it.
    """
    if root is None:
        raise UsageError(
            f"data set {name!r} needs --dataset-root DIR (or --data-root {name}=DIR) holding {layout}; to obtain it: {obtain}"
        )
    folder, what = Path(root).expanduser(), f"data root {str(root)!r}" + (f" for {name!r}" if name else "")
    if not folder.exists():
        raise UsageError(f"{what}: no such folder (expected: {layout})")
    if not folder.is_dir():
        raise UsageError(f"{what}: a file, not a folder (expected: {layout})")
    try:
        empty = next(os.scandir(folder), None) is None
    except OSError as error:
        raise UsageError(f"{what}: {error.strerror}") from error
    if empty:
        raise UsageError(f"{what}: the folder is empty (expected: {layout})")
    return folder.absolute()


def _flush(name: str) -> None:
    descriptor = os.open(name, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
