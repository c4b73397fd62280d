# SPDX-License-Identifier: Apache-2.0
"""Feature matrices on disk: written a block of rows at a time, read memory-mapped, shared by processes, bounded.

An entry is one file, an ordinary `.npy` of N×d float32 followed by a footer with its length and a checksum, so that it appears,
is replaced and goes as a whole. Every mapped array holds a shared lock on its file for as long as it lives; locks die with
their process, and what is locked is neither removed nor taken for the leftover of a process that died.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from suite.errors import JobError
from suite.store import io_error

FOOTER = struct.Struct("<8sQI")
"""Magic, length of the `.npy` in bytes, CRC-32."""
HEADER = 128
"""Bytes that numpy puts before a matrix."""
MAGIC = b"features"
CHUNK, CHUNKS = 1 << 20, 64


@dataclass(frozen=True)
class FeatureStore:
    """A folder of feature matrices that several processes may use at once.

    The bound holds for what no process has mapped: entries in use stay, and so does one that is larger than the bound, until
    the first write or `trim` after its last user has gone.

    Attributes:
        root: folder.
        limit: bytes it may hold.
    """

    root: Path
    limit: int = 8 << 30

    def get(self, key: str) -> np.ndarray | None:
        """A read-only memory-mapped matrix N×d, or None when it is not there or damaged (then it is removed).

        Length, header and checksum are verified: of all bytes up to 64 MiB, of 64 evenly spaced mebibytes beyond.
        """
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                _verify(file)
                with contextlib.suppress(OSError):  # somebody else's folder: readable, but its times are not ours to set
                    os.utime(file.fileno())
                return _mapped(file)
        except OSError:
            return None
        except ValueError:
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def put(self, key: str, features: np.ndarray) -> np.ndarray:
        """Write a matrix N×d that is in memory, and map it; see `create` for the errors."""
        step = max(1, CHUNK // max(1, features[:1].nbytes))
        blocks = ({"": features[i : i + step]} for i in range(0, len(features), step))
        return self.create({"": key}, len(features), blocks)[""]

    def create(
        self, keys: Mapping[str, str], rows: int, blocks: Iterable[Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Write entries a block of rows at a time; each appears when all are whole, nothing stays of a failed attempt.

        Args:
            keys: key of every name in the blocks.
            rows: N, of every entry.
            blocks: consecutive rows, n×d by name; the same names in all.

        Returns:
            The mapped entries by name.

        Raises:
            JobError: full disk.
            UsageError: the folder cannot be written.
            ValueError: the blocks do not have N rows in all.
        """
        parts: dict[str, IO[bytes]] = {}
        done = 0
        try:
            for block in blocks:
                with _one_line(self.root):
                    if not parts:
                        self._begin(parts, keys, rows, block)
                    for name, file in parts.items():
                        file.write(np.ascontiguousarray(block[name], dtype="<f4").data)
                        file.flush()  # or a forked worker would have a copy of what is still buffered
                done += len(next(iter(block.values())))
            if done != rows or not parts:
                raise ValueError(f"{done} rows of features for {rows} images")
            with _one_line(self.root):
                for file in parts.values():
                    _seal(file)
                return {name: self._publish(keys[name], parts.pop(name)) for name in list(parts)}
        finally:
            for name, file in parts.items():
                self._partial(keys[name]).unlink(missing_ok=True)
                file.close()

    def trim(self, needed: int = 0) -> None:
        """Remove least recently used entries that nobody has mapped until `needed` more bytes fit the bound and the disk.

        Also removes what processes that died have left.
        """
        entries = []
        for path in self.root.glob("*.npy"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                entries.append((status.st_mtime_ns, status.st_size, path))
        for leftover in (*self.root.glob(".*.partial"), *self.root.glob(".*.lock")):
            _remove_unlocked(leftover)
        excess = sum(size for _, size, _ in entries) + needed - self.limit
        if needed:
            excess = max(excess, needed - shutil.disk_usage(self.root).free)
        for _, size, path in sorted(entries):
            if excess <= 0:
                break
            if _remove_unlocked(path):
                excess -= size

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a name for this process, after waiting for the process that holds it.

        Raises:
            UsageError: the folder cannot be written.
        """
        path = self.root / f".{name}.lock"
        with _one_line(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            file = _exclusive(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while held: whoever waits for this file sees that it has gone and makes its own
            fcntl.flock(file, fcntl.LOCK_UN)  # closing alone would leave it to workers forked meanwhile
            file.close()

    def _path(self, key: str) -> Path:
        return self.root / f"{key}.npy"

    def _partial(self, key: str) -> Path:
        return self.root / f".{key}.partial"

    def _begin(
        self, parts: dict[str, IO[bytes]], keys: Mapping[str, str], rows: int, block: Mapping[str, np.ndarray]
    ) -> None:  # fmt: skip
        """Make room, then a file with a header for every entry."""
        self.root.mkdir(parents=True, exist_ok=True)
        needed = sum(HEADER + 4 * rows * block[name].shape[1] + FOOTER.size for name in keys)
        self.trim(needed)
        free = shutil.disk_usage(self.root).free
        if free < needed:
            raise JobError(f"cannot write {str(self.root)!r}: {free >> 20} MiB free, features need {-(-needed >> 20)} MiB")
        for name, key in keys.items():
            file = parts[name] = _exclusive(self._partial(key))
            file.truncate(0)
            shape = (rows, block[name].shape[1])
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})

    def _publish(self, key: str, file: IO[bytes]) -> np.ndarray:
        """Give a whole entry its name; the lock of its writer becomes that of its first reader."""
        with file:
            os.replace(self._partial(key), self._path(key))
            fcntl.flock(file, fcntl.LOCK_SH)
            return _mapped(file)


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise io_error(path, error) from error


def _exclusive(path: Path) -> IO[bytes]:
    """Open a file that only this process has locked; waits for the process that has it."""
    while True:
        file = open(path, "a+b")  # noqa: SIM115  # the caller closes it
        fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # its owner has renamed or removed it meanwhile


def _remove_unlocked(path: Path) -> bool:
    """Remove a file unless a process has it locked."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            return True
    except OSError:
        return False


def _seal(file: IO[bytes]) -> None:
    """Append the footer and wait until all is on disk."""
    end = file.seek(0, os.SEEK_END)
    file.write(FOOTER.pack(MAGIC, end, _checksum(file, end)))  # the file is in append mode
    file.flush()
    os.fsync(file.fileno())


def _verify(file: IO[bytes]) -> None:
    """Raise ValueError for a file that is not as `_seal` left it."""
    end = file.seek(0, os.SEEK_END) - FOOTER.size
    if end < 0:
        raise ValueError("truncated")
    file.seek(end)
    if FOOTER.unpack(file.read(FOOTER.size)) != (MAGIC, end, _checksum(file, end)):
        raise ValueError("damaged")


def _checksum(file: IO[bytes], end: int) -> int:
    """CRC-32 of the first `end` bytes, or of evenly spaced chunks of them, the header's among them, when there are many."""
    count = -(-end // CHUNK)
    crc = 0
    for i in np.linspace(0, count - 1, CHUNKS).astype(int).tolist() if count > CHUNKS else range(count):
        file.seek(i * CHUNK)
        crc = zlib.crc32(file.read(min(CHUNK, end - i * CHUNK)), crc)
    return crc


def _mapped(file: IO[bytes]) -> np.ndarray:
    """Map a verified entry; the mapping keeps the file's lock after the file is closed, as it duplicates the descriptor."""
    file.seek(0)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return np.memmap(file, dtype, "r", file.tell(), shape)  # type: ignore[call-overload]  # any binary file will do
