# SPDX-License-Identifier: Apache-2.0
"""`suite report`: pages, tables inside README and docs, and exports, from every record; or the check that they are current."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from suite import export, fresh, markers, plugins, render
from suite.errors import JobError, UsageError
from suite.reading import no_collecting
from suite.record import RunRecord
from suite.results import Library, Results, gather
from suite.spec import Archive, Document
from suite.store import RUN, Store, write_bytes
from suite.validate import Known, outdated

SHOWN = "records.json"
"""File beside the pages that lists what they show, so that a record that is gone can be named."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """A `report` command line."""

    runs: Path
    pages: Path
    results: Path | None = None
    "Published results, or None."
    docs: tuple[Path, ...] = ()
    "Files and folders of markdown with tables to fill in."
    formats: tuple[str, ...] = ()
    "`json`, `csv`, `latex`: exports beside the pages."
    stamp: str = ""
    "A line for the foot of the first page; empty: pages depend on records alone."


@no_collecting()
def report(asked: Asked, say: Say) -> None:
    """Write what changed: pages, tables between markers, exports.

    Raises:
        UsageError: an unknown format, or a marker that cannot be filled in.
    """
    endings = export.names(asked.formats, asked.pages)
    marked = markers.files(asked.docs)
    inputs = [asked.runs, *([asked.results] if asked.results is not None else [])]
    before = fresh.look(inputs, endings, asked.docs, asked.stamp)
    if not asked.stamp and fresh.unchanged(asked.pages, before, [asked.pages, *marked]):
        say(f"nothing changed: {asked.pages / 'index.html'}")
        return
    library, documents, _ = _documents(asked)
    for problem in library.problems:
        say(f"warning: {problem}")
    written = render.render(documents, asked.pages)
    for path, data in _files(asked, library.records, documents, endings, marked).items():
        if not path.is_file() or path.read_bytes() != data:
            write_bytes(path, data)
    if not library.problems and not asked.stamp:  # a warning is to be given again
        fresh.remember(asked.pages, before, [asked.pages, *marked])
    say(f"pages: {next((path for path in written if path.name == 'index.html'), asked.pages)}")


@no_collecting()
def check(asked: Asked, say: Say) -> None:
    """Write nothing, and say everything that is not as `report` would leave it.

    Raises:
        JobError: a page, table or export differs, a shown record is gone, a record is broken or of an old version.
    """
    if asked.stamp:
        raise UsageError("--stamp and --check exclude each other: a stamped page is never current")
    endings = export.names(asked.formats, asked.pages)
    library, documents, known = _documents(asked)
    wrong = [*library.problems, *_gone(asked.pages, library.records)]
    wrong += [f"{old.id}: {old.what}" for old in outdated(library.records, known)]
    wrong += [f"{path} is not what the records say" for path in render.check(documents, asked.pages)]
    expected = _files(asked, library.records, documents, endings, markers.files(asked.docs))
    wrong += [f"{path} is not what the records say" for path, data in expected.items()
              if not path.is_file() or path.read_bytes() != data]  # fmt: skip
    for line in wrong:
        say(line)
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise JobError(f"the pages are not current: {shown}; run `suite report`")
    say(f"{len(documents)} page(s) are current")


def build(records: Sequence[RunRecord], known: Known, archive: Archive) -> list[Document]:
    """Every page's documents, those of the index first."""
    pages = plugins.load_all("reports")
    order = sorted(pages, key=lambda name: (name != "index", name))
    return [document for name in order
            for document in pages[name].build(records, known.recipes, known.evaluators, archive)]  # fmt: skip


def _documents(asked: Asked) -> tuple[Library, list[Document], Known]:
    """Every record, what all pages make of them, and the plug-ins; the first document is the one that others link back to."""
    library = gather(Store(asked.runs), Results(asked.results) if asked.results is not None else None)
    known = Known(plugins.load_all("recipes"), plugins.load_all("evaluators"))
    documents = build(library.records, known, library)
    if asked.stamp and documents:
        documents[0] = replace(documents[0], parts=[*documents[0].parts, asked.stamp])
    return library, documents, known


def _files(
    asked: Asked, records: Sequence[RunRecord], documents: Sequence[Document], endings: Sequence[str], marked: Sequence[Path]
) -> dict[Path, bytes]:
    """Path to bytes of everything that is written beside the pages themselves."""
    found = {asked.pages / SHOWN: _shown(records)}
    if documents:
        found |= {asked.pages / name: data for name, data in export.exports(documents[0], endings).items()}
    return found | {path: markers.rewritten(path, documents) for path in marked}


def _shown(records: Sequence[RunRecord]) -> bytes:
    shown = {record.id: " ".join(sorted(record.results)) for record in records}
    return (json.dumps({"generated": render.MARK, "records": shown}, indent=1, sort_keys=True) + "\n").encode()


def _gone(pages: Path, records: Sequence[RunRecord]) -> list[str]:
    """One line for each run or result that the pages show and that has no record any more."""
    try:
        shown: Mapping[str, str] = json.loads((pages / SHOWN).read_text())["records"]
        before = {name: set(keys.split()) for name, keys in shown.items()}
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{pages / SHOWN} is not readable"]
    now = {record.id: set(record.results) for record in records}
    lines = [f"the pages show {name}, whose record ({RUN}) is gone" for name in sorted(before.keys() - now.keys())]
    for name in sorted(before.keys() & now.keys()):
        lines += [f"the pages show {key} of {name}, whose record is gone" for key in sorted(before[name] - now[name])]
    return lines
