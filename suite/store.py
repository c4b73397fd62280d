# SPDX-License-Identifier: Apache-2.0
"""Run directories: atomic durable writes, one lock per run, and what can be found again.

`runs/<id>/` holds `run.json`, `backbone.safetensors`, `log.jsonl`, `checkpoints/` and `results/<key>.json` with
`results/<key>.npz` (per-sample predictions) beside it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from suite.errors import JobError, SuiteError, UsageError, unknown
from suite.reading import json_files, no_collecting, read_arrays, read_log, read_record, safe_part
from suite.record import Result, RunRecord, result_from_json, run_from_json, to_json, with_results

RUN, WEIGHTS, LOG, RESULTS, CHECKPOINTS = "run.json", "backbone.safetensors", "log.jsonl", "results", "checkpoints"


def write_bytes(path: Path, data: bytes) -> None:
    """Write so that a reader (or a power cut) sees the old file or the new one, never a part.

    Raises:
        JobError: full disk, no permission; names the path.
    """
    with atomic(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well, synced to disk first."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        partial.unlink(missing_ok=True) if partial.parent.is_dir() else None
        raise io_error(path, error) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def io_error(path: Path, error: OSError) -> SuiteError:
    """One line for a full disk or an unwritable place."""
    if error.errno == errno.ENOSPC:
        return JobError(f"cannot write {str(path)!r}: the disk is full; what was written before is kept")
    kind = UsageError if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST) else JobError
    return kind(f"cannot write {str(path)!r}: {os.strerror(error.errno or 0)}")


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    path: Path

    @property
    def id(self) -> str:
        """The run's id is its folder's name."""
        return self.path.name

    @property
    def weights(self) -> Path:
        """The backbone, once pre-training is done."""
        return self.path / WEIGHTS

    @property
    def log(self) -> Path:
        """One JSON line per logged step."""
        return self.path / LOG

    @property
    def checkpoints(self) -> Path:
        """What an interrupted pre-training resumes from."""
        return self.path / CHECKPOINTS

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the lock dies with the process.

        Raises:
            UsageError: another process holds it (its id is named), or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / ".lock", "a+")  # noqa: SIM115  # must outlive this block's first half
        except OSError as error:
            raise io_error(self.path, error) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise UsageError(f"run {self.id!r} is in use by process {file.read().strip() or '?'}") from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def save(self, record: RunRecord) -> None:
        """Write `run.json`; results stay in files of their own."""
        write_bytes(self.path / RUN, to_json(with_results(record, {})).encode())

    def save_result(self, result: Result, arrays: Mapping[str, bytes] | None = None) -> None:
        """Write a result, its arrays (file name to bytes) first, so that a record never names a file that is not there."""
        folder = self.path / RESULTS
        for name, data in (arrays or {}).items():
            write_bytes(folder / name, data)
        write_bytes(folder / f"{result.key}.json", to_json(result).encode())

    def record(self) -> RunRecord | None:
        """The record without results, or None when pre-training has not finished.

        Raises:
            UsageError: the record is corrupted.
        """
        path = f"{self.path}/{RUN}"
        data = read_record(path)
        return None if data is None else run_from_json(data, path)

    def results(self) -> tuple[dict[str, Result], list[str]]:
        """Results by key, and one line for each file that could not be read."""
        found, problems = {}, []
        folder = f"{self.path}/{RESULTS}"
        for name in json_files(folder):
            path = f"{folder}/{name}"
            try:
                data = read_record(path)
                result = None if data is None else result_from_json(data, path)
            except UsageError as error:
                problems.append(str(error))
            else:
                if result is not None:
                    found[result.key] = result
        return found, problems

    def predictions(self, result: Result) -> dict | None:
        """Per-sample arrays of a result, or None when it has none."""
        return self._arrays(result.predictions)

    def artifact(self, result: Result, name: str) -> dict | None:
        """Arrays that a page draws, or None when the result has none of that name."""
        return self._arrays(result.artifacts.get(name, ""))

    def _arrays(self, file: str) -> dict | None:
        return read_arrays(self.path / RESULTS, file)


def arrays_to_bytes(arrays: dict) -> bytes:
    """Compressed .npz bytes of per-sample predictions."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@dataclass(frozen=True)
class Store:
    """All runs under one folder."""

    root: Path

    def run(self, run_id: str) -> Run:
        """The folder of a run, existing or not.

        Raises:
            UsageError: the id could lead elsewhere.
        """
        if not safe_part(run_id):
            raise UsageError(f"run id {run_id[:60]!r} cannot be a folder's name")
        return Run(self.root / run_id)

    def find(self, run_id: str) -> Run:
        """An existing run by id, or by a prefix that only it has.

        Raises:
            UsageError: no such run, or several.
        """
        names = self.names()
        matches = [run_id] if run_id in names else [name for name in names if name.startswith(run_id)]
        if len(matches) > 1:
            raise UsageError(f"run {run_id!r} is ambiguous: {', '.join(matches[:5])}")
        if not matches:
            raise unknown("run", run_id, names)
        return self.run(matches[0])

    def names(self) -> list[str]:
        """Ids of every run folder."""
        if not self.root.is_dir():
            return []
        with os.scandir(self.root) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())

    def records(self) -> tuple[list[RunRecord], list[str]]:
        """Every finished run with its results, and one line for each file that could not be read."""
        records: list[RunRecord] = []
        problems: list[str] = []
        with no_collecting():
            for name in self.names():
                record, bad = self.read(self.run(name))
                problems += bad
                if record is not None:
                    records.append(record)
        return records, problems

    def read(self, run: Run) -> tuple[RunRecord | None, list[str]]:
        """A run's record with its results; None when it has none, or a broken one."""
        try:
            record = run.record()
        except UsageError as error:
            return None, [str(error)]
        results, problems = run.results()
        if record is not None and record.id != run.id:
            return None, [*problems, f"{run.path / RUN}: the record calls itself {record.id!r}"]
        return None if record is None else with_results(record, results), problems

    def predictions(self, record: RunRecord, result: Result) -> dict | None:
        """Per-sample arrays of a result of a run here; None when there are none."""
        return self.run(record.id).predictions(result) if safe_part(record.id) else None

    def artifact(self, record: RunRecord, result: Result, name: str) -> dict | None:
        """Arrays that an evaluator left for pages; None when there are none of that name."""
        return self.run(record.id).artifact(result, name) if safe_part(record.id) else None

    def log(self, record: RunRecord) -> list[dict]:
        """Rows of the training log; a line that a crash cut short ends it."""
        return read_log(self.run(record.id).log) if safe_part(record.id) else []

    def check_space(self, needed: int = 64 << 20) -> None:
        """Refuse to start what could not be written.

        Raises:
            UsageError: the folder cannot be made or written.
            JobError: less than `needed` bytes are free.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise io_error(self.root, error) from error
        if not os.access(self.root, os.W_OK):
            raise UsageError(f"cannot write {str(self.root)!r}: Permission denied")
        free = shutil.disk_usage(self.root).free
        if free < needed:
            raise JobError(f"cannot write {str(self.root)!r}: {free >> 20} MiB free, {needed >> 20} MiB needed")
