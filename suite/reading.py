# SPDX-License-Identifier: Apache-2.0
"""Reading of files that may be absent, broken, or written by somebody else."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from suite.errors import UsageError

MOST = 64 << 20
"""Bytes that a record's file may have: more is no record."""


def read_record(path: str) -> bytes | None:
    """Bytes of a record's file, None when there is none.

    Raises:
        UsageError: unreadable, or far too large.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= MOST:
                return file.readall()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({os.strerror(error.errno or 0)})") from None
    raise UsageError(f"{path}: larger than {MOST >> 20} MiB")


def read_arrays(folder: Path, file: str) -> dict | None:
    """Arrays of an .npz file that a record names, None where it is not there; the name cannot lead out of the folder.

    Raises:
        UsageError: as `parse_arrays`.
    """
    name = Path(file).name
    if not file or not safe_part(name) or not (folder / name).is_file():
        return None
    return parse_arrays((folder / name).read_bytes(), str(folder / name))


def parse_arrays(data: bytes, where: str) -> dict:
    """Arrays of an .npz file's bytes; nothing in them is run.

    Raises:
        UsageError: they are something else.
    """
    import numpy as np

    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        pointer = data.startswith(b"version https://git-lfs")
        what = "a git LFS pointer: fetch the file" if pointer else type(error).__name__
        raise UsageError(f"{where}: not readable as arrays ({what})") from None


def safe_part(name: str) -> bool:
    """Whether a name is that of something directly inside a folder, on any file system."""
    plain = not any(mark in name for mark in ("/", "\\", "\0"))
    return plain and name not in ("", ".", "..") and len(name.encode(errors="surrogatepass")) <= 255


@contextlib.contextmanager
def no_collecting() -> Iterator[None]:
    """Python's collector rests while many objects are made of which none is garbage: its passes cost as much as reading."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def json_files(folder: str) -> list[str]:
    """Names of the JSON files in a folder, sorted; none where there is no folder."""
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(".json") and not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_log(path: Path) -> list[dict]:
    """Rows of a training log; a line that a crash cut short ends it."""
    rows: list[dict] = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            break
    return rows
