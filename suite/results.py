# SPDX-License-Identifier: Apache-2.0
"""Published results: one readable JSON file per run that git carries, small arrays beside it, and the merging of both kinds.

`reports/results/<id>.json` is a RunRecord with its results; `reports/results/<id>/` holds predictions of at most 1 MiB a file,
arrays for figures and a training log of at most 256 KiB each. What is larger stays where it was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from suite.errors import UsageError
from suite.reading import json_files, no_collecting, read_arrays, read_log, read_record, safe_part
from suite.record import Result, RunRecord, run_from_json, sound_from_json, to_json, with_results
from suite.render import safe_name
from suite.spec import Archive
from suite.store import LOG, RESULTS, Run, Store, write_bytes

PREDICTIONS_MOST, MOST = 1 << 20, 256 << 10
"""Bytes that are published at most of a file of predictions, which tests need, and of any other."""
STALE = "stale: "
"""Starts the note that marks an old version as known and wanted."""


def stem(run_id: str) -> str:
    """Name of a run's folder. Plain ids stay as they are; others get a hash and cannot lead out of the folder or collide."""
    return safe_name(f"{run_id}/" if run_id.lower().endswith(".json") else run_id)  # `x.json` is the file of the run `x`


def file_name(run_id: str) -> str:
    """Name of a run's published file."""
    return f"{stem(run_id)}.json"


@dataclass(frozen=True)
class Results:
    """All published results under one folder; an Archive of what lies beside them."""

    root: Path

    def path(self, run_id: str) -> Path:
        """The JSON file of a run, existing or not."""
        return self.root / file_name(run_id)

    def folder(self, run_id: str) -> Path:
        """The folder of a run's arrays, existing or not."""
        return self.root / stem(run_id)

    def find(self, run_id: str) -> RunRecord | None:
        """The published record of a run, or None.

        Raises:
            UsageError: it is broken.
        """
        path = self.path(run_id)
        data = read_record(str(path))
        return None if data is None else run_from_json(data, str(path))

    def records(self) -> tuple[list[RunRecord], list[str]]:
        """Every published record, and one line for each file or result that could not be read."""
        records: list[RunRecord] = []
        problems: list[str] = []
        with no_collecting():
            for name in json_files(str(self.root)):
                record, bad = self._read(name)
                problems += bad
                if record is not None:
                    records.append(record)
        return records, problems

    def _read(self, name: str) -> tuple[RunRecord | None, list[str]]:
        path = f"{self.root}/{name}"
        try:
            data = read_record(path)
            if data is None:
                return None, []
            record, problems = sound_from_json(data, path)
        except UsageError as error:
            return None, [str(error)]
        if file_name(record.id) != name:
            return None, [f"{path}: the record calls itself {record.id[:100]!r}"]
        wrong = [key for key, result in record.results.items() if result.key != key]
        if wrong:
            problems += [f"{path}: results.{key[:100]}: the result calls itself {record.results[key].key!r}" for key in wrong]
            record = with_results(record, {key: one for key, one in record.results.items() if key not in wrong})
        return record, problems

    def predictions(self, record: RunRecord, result: Result) -> dict | None:
        """Per-sample arrays of a result; None when there are none or they were too large to publish."""
        return read_arrays(self.folder(record.id), result.predictions)

    def artifact(self, record: RunRecord, result: Result, name: str) -> dict | None:
        """Arrays that an evaluator left for pages; None as for `predictions`."""
        return read_arrays(self.folder(record.id), result.artifacts.get(name, ""))

    def log(self, record: RunRecord) -> list[dict]:
        """Rows of the training log; empty when it was too large to publish."""
        return read_log(self.folder(record.id) / LOG)


@dataclass(frozen=True)
class Outcome:
    """What a publication did."""

    path: Path
    added: tuple[str, ...]
    replaced: tuple[str, ...]
    kept: tuple[str, ...]
    "Keys of results that were published before and are not among the new ones."
    left_out: tuple[str, ...]
    "One line for each file that was too large, or is not there."


def publish(record: RunRecord, results: Results, run: Run | None = None, again: bool = False) -> Outcome:
    """Merge a checked record into the published one: new results replace those of their key, others stay.

    Args:
        record: what `suite.validate.publishable` gave.
        results: where to.
        run: the run's folder, for predictions and log; None: there are none.
        again: start anew where the published record is of other weights.

    Raises:
        UsageError: the published record is of other weights, or broken.
    """
    old = results.find(record.id)
    if old is not None and old.id != record.id:
        raise UsageError(f"{results.path(record.id)}: the record calls itself {old.id[:100]!r}")
    if old is not None and old.weights.sha256 != record.weights.sha256:
        if not again:
            raise UsageError(
                f"{results.path(record.id)} is about other weights ({old.weights.sha256[:12]}, the run has "
                f"{record.weights.sha256[:12]}); --replace drops it and its results"
            )
        old = None
    merged = _merged(old, record)
    left_out = _copy(record, merged, run, results.folder(record.id)) if run is not None else []
    _write(results.path(record.id), to_json(merged).encode())
    before = set(old.results) if old is not None else set()
    new = set(record.results)
    added, replaced, kept = (tuple(sorted(keys)) for keys in (new - before, new & before, before - new))
    return Outcome(results.path(record.id), added, replaced, kept, tuple(left_out))


def _merged(old: RunRecord | None, new: RunRecord) -> RunRecord:
    if old is None:
        return with_results(new, new.results)
    kept = {key: result for key, result in old.results.items() if key not in new.results}
    marks = tuple(note for note in old.notes if any(note.startswith(stale_mark(key, one.version)) for key, one in kept.items()))
    notes = tuple(dict.fromkeys([*new.notes, *marks]))
    return with_results(replace(new, notes=notes), {**kept, **new.results})


def stale_mark(key: str, version: int) -> str:
    """Start of the note that marks a result (or `recipe`) of this version as stale and published all the same."""
    return f"{STALE}{key} version {version},"


def _copy(record: RunRecord, merged: RunRecord, run: Run, folder: Path) -> list[str]:
    """Copy what is small enough; remove what no result names any more. Returns a line for each file that stays away."""
    wanted = {
        name: (run.path / RESULTS / name, PREDICTIONS_MOST if name == one.predictions else MOST)
        for one in record.results.values()
        for name in files_of(one)
    }
    wanted[LOG] = (run.log, MOST)
    left_out = []
    for name, (source, most) in sorted(wanted.items()):
        target = folder / name
        size = source.stat().st_size if source.is_file() else None
        if size is not None and size <= most:
            _write(target, source.read_bytes())
            continue
        target.unlink(missing_ok=True)  # an older one would be of another measurement
        if size is not None:
            left_out.append(f"{name}: {size / 2**20:.1f} MiB, not published (the limit is {most / 2**20:g} MiB)")
        elif name != LOG:
            left_out.append(f"{name}: not in the run's folder")
    named = {name for one in merged.results.values() for name in files_of(one)} | {LOG}
    for path in folder.glob("*.npz") if folder.is_dir() else ():
        if path.name not in named:
            path.unlink()
    return left_out


def files_of(result: Result) -> list[str]:
    """Names of the array files of a result; a name that is no file's name is left out."""
    return [name for name in (result.predictions, *result.artifacts.values()) if safe_part(name) and name.endswith(".npz")]


def _write(path: Path, data: bytes) -> None:
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)


@dataclass(frozen=True)
class Library:
    """Records of run folders and of published files as one, and the Archive that each part of them came from."""

    records: list[RunRecord]
    problems: list[str]
    origins: Mapping[tuple[str, str], Archive] = field(default_factory=dict)
    "(run id, result key) to where the result was read; the key is empty for the run itself."

    def predictions(self, record: RunRecord, result: Result) -> Mapping | None:
        """Per-sample arrays of a result, from where the result itself was read; broken ones join the problems."""
        origin = self.origins.get((record.id, result.key))
        return self._read(lambda: origin.predictions(record, result)) if origin is not None else None

    def artifact(self, record: RunRecord, result: Result, name: str) -> Mapping | None:
        """Arrays that an evaluator left for pages, as for `predictions`."""
        origin = self.origins.get((record.id, result.key))
        return self._read(lambda: origin.artifact(record, result, name)) if origin is not None else None

    def log(self, record: RunRecord) -> Sequence[Mapping]:
        """Rows of the training log."""
        origin = self.origins.get((record.id, ""))
        return origin.log(record) if origin is not None else []

    def _read(self, read: Callable[[], Mapping | None]) -> Mapping | None:
        try:
            return read()
        except UsageError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None


def gather(store: Store, results: Results | None = None) -> Library:
    """Every record of the run folders and of the published files.

    A run that is in both is shown once. Same weights: its results are united, and of two with one key the one created later
    counts (the run folder's, if at the same time). Other weights: the record created later counts, with its results alone.
    """
    found, problems = store.records()
    own = {record.id: record for record in found}
    origins: dict[tuple[str, str], Archive] = {(one.id, key): store for one in found for key in ("", *one.results)}
    published, more = results.records() if results is not None else ([], [])
    for other in published:
        assert results is not None
        mine = own.get(other.id)
        if mine is None or (mine.weights.sha256 != other.weights.sha256 and other.created > mine.created):
            own[other.id] = other
            origins |= {(other.id, key): results for key in ("", *other.results)}
        elif mine.weights.sha256 == other.weights.sha256:
            newer = {key: one for key, one in other.results.items() if _newer(one, mine.results.get(key))}
            own[other.id] = with_results(mine, {**mine.results, **newer})
            origins |= {(other.id, key): results for key in newer}
    return Library([own[name] for name in sorted(own)], problems + more, origins)


def _newer(one: Result, than: Result | None) -> bool:
    return than is None or than.status != "ok" or one.created > than.created
