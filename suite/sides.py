# SPDX-License-Identifier: Apache-2.0
"""What the two arguments of a comparison may be, read into records with their per-image predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from suite import revision
from suite.errors import UsageError
from suite.reading import parse_arrays, read_arrays
from suite.record import Result, RunRecord, run_from_json, with_results
from suite.store import RUN, Run, Store

Reader = Callable[[Result], "dict[str, Any] | None"]


@dataclass(frozen=True)
class Entry:
    """One run of a side."""

    record: RunRecord
    read: Reader
    "Per-image predictions of one of its results, None when they are not at hand."
    weights: Path | None = None

    @property
    def family(self) -> str:
        """The run's id without its seed: runs of one family differ in nothing else."""
        return self.record.id.removesuffix(f"-s{self.record.seed}")


@dataclass(frozen=True)
class Side:
    """One of the two things that are compared."""

    name: str
    entries: tuple[Entry, ...] = ()
    weights: Path | None = None
    "A plain weights file."
    listed: bool = False
    "Whether the user named every entry, as the seeds of one thing."
    problems: tuple[str, ...] = field(default=())
    "One line for each record that could not be read."

    @property
    def families(self) -> int:
        """How many different things this side holds."""
        return 1 if self.listed else len({entry.family for entry in self.entries})


def resolve(what: str | Path, store: Path | None = None, repository: Path = Path(".")) -> Side:
    """A run, a record, a weights file, a folder of runs or of published results, a git revision, or a list of runs.

    Args:
        what: a run's id, or a start of it that only it, or only runs that differ in their seed, have; a run folder; a
            record's JSON; a weights file; a folder of run folders or of published records; `REV`, `REV:folder` or
            `REV:folder/<id>` for published records at a git revision; several runs joined by commas, as seeds of one side.
        store: folder in which run ids are looked up.
        repository: in which git looks revisions up.

    Raises:
        UsageError: none of these, or an unreadable record.
    """
    text, path = str(what), Path(what)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _file(path)
    if "," in text:
        parts = [resolve(part.strip(), store, repository) for part in text.split(",") if part.strip()]
        entries = tuple(entry for part in parts for entry in part.entries)
        if any(part.weights for part in parts):
            raise UsageError(f"{text!r}: a list may not hold plain weights files; evaluate them with --bench")
        return Side(text, entries, listed=True)
    in_store = store is not None and len(path.parts) == 1 and not text.startswith(".")
    if in_store and store is not None and any(name.startswith(text) for name in Store(store).names()):
        return _stored(text, Store(store))
    if revision.is_revision(text, repository):
        return _revision(text, repository)
    if in_store and store is not None and not path.suffix and ":" not in text:
        Store(store).find(text)  # says which runs there are
    raise UsageError(f"{text!r} is no run id, run folder, record (.json), weights file, folder of results or git revision")


def _folder(path: Path) -> Side:
    if (path / RUN).is_file():
        return _run(Run(path))
    if (path / "results").is_dir() or (path / "checkpoints").is_dir():
        raise UsageError(f"run {str(path)!r} has no record: its pre-training has not finished")
    records: list[Entry] = []
    problems: list[str] = []
    for file in sorted(path.glob("*.json")):
        try:
            records += _file(file).entries
        except UsageError as error:
            problems.append(str(error))
    runs = [Run(child) for child in sorted(path.iterdir()) if (child / RUN).is_file()] if not records else []
    for run in runs:
        try:
            records += _run(run).entries
        except UsageError as error:
            problems.append(str(error))
    if not records:
        raise UsageError(f"{str(path)!r} holds no run and no record" + (f": {problems[0]}" if problems else ""))
    return Side(str(path), tuple(records), problems=tuple(problems))


def _file(path: Path) -> Side:
    if path.name == RUN:
        return _run(Run(path.parent))
    if path.suffix != ".json":
        return Side(path.name, weights=path)
    record = run_from_json(path.read_text(errors="replace"), str(path))
    # Published records keep their arrays in a folder of their own name.
    return Side(record.id, (Entry(record, partial(_beside, path.with_suffix(""))),))


def _beside(folder: Path, result: Result) -> dict[str, Any] | None:
    return read_arrays(folder, result.predictions)


def _run(run: Run) -> Side:
    record = run.record()
    if record is None:
        raise UsageError(f"run {str(run.path)!r} has no record: its pre-training has not finished")
    results, problems = run.results()
    weights = run.weights if run.weights.is_file() else None
    entry = Entry(with_results(record, results), partial(_beside, run.path / "results"), weights)
    return Side(record.id, (entry,), problems=tuple(problems))


def _stored(text: str, store: Store) -> Side:
    """A run by id or the start of it; several runs when they differ in nothing but the seed."""
    names = [name for name in store.names() if name.startswith(text)]
    if text in names or len(names) == 1:
        return _run(store.find(text))
    sides = [_run(store.run(name)) for name in names if store.run(name).record() is not None]
    entries = tuple(entry for side in sides for entry in side.entries)
    if len({entry.family for entry in entries}) != 1:
        store.find(text)  # says that it is ambiguous
    return Side(entries[0].family, entries, problems=tuple(line for side in sides for line in side.problems))


def _revision(text: str, repository: Path) -> Side:
    tree = revision.tree(text, repository)
    files = sorted(name for name in tree.blobs if name.endswith(".json") and "/" not in name)
    entries, problems = [], []
    for name, data in tree.read_all(files).items():
        try:
            record = run_from_json(data.decode(errors="replace"), f"{text} {name}")
        except UsageError as error:
            problems.append(str(error))
            continue
        entries.append(Entry(record, partial(_at_revision, tree, name.removesuffix(".json"))))
    if not entries:
        raise UsageError(f"{text!r}: no record there can be read: {problems[0]}")
    return Side(text, tuple(entries), problems=tuple(problems))


def _at_revision(tree: revision.Tree, folder: str, result: Result) -> dict[str, Any] | None:
    data = tree.read(f"{folder}/{Path(result.predictions).name}") if result.predictions else None
    return None if data is None else parse_arrays(data, f"{tree.name} {folder}/{result.predictions}")


def only(side: Side, ids: set[str]) -> Side:
    """The side without the runs of other ids."""
    return replace(side, entries=tuple(entry for entry in side.entries if entry.record.id in ids))
