# SPDX-License-Identifier: Apache-2.0
"""The records that this repository publishes: readable, sound, and small."""

from __future__ import annotations

from pathlib import Path

from suite import markers, plugins
from suite.regenerate import build, gather
from suite.results import PREDICTIONS_MOST, Results
from suite.store import Store
from suite.validate import Known, publishable

ROOT = Path(__file__).resolve().parent.parent / "reports" / "results"


def test_every_published_record_is_sound():
    records, unreadable = Results(ROOT).records()
    known = Known(plugins.load_all("recipes"), plugins.load_all("evaluators"))
    assert not unreadable and {record.recipe for record in records} > {"mocov2", "random", "supervised"}
    for record in records:
        publishable(record, known, weights=None, stale=True)  # raises; an older version is no defect of a record


def test_every_published_array_can_be_read():
    archive = Results(ROOT)
    for record in archive.records()[0]:
        assert archive.log(record) or record.recipe == "random", record.id
        named = [result for result in record.results.values() if result.predictions]
        assert named and all(archive.predictions(record, result) is not None for result in named), record.id


def test_published_files_are_small():
    assert max(path.stat().st_size for path in ROOT.rglob("*")) <= PREDICTIONS_MOST


def test_tables_in_the_docs_are_what_the_published_records_say(tmp_path):
    library = gather(Store(tmp_path), Results(ROOT))
    known = Known(plugins.load_all("recipes"), plugins.load_all("evaluators"))
    documents = build(library.records, known, library)
    found = markers.files([ROOT.parent.parent / "docs", ROOT.parent.parent / "README.md"])
    assert "linear.md" in {path.name for path in found}
    for path in found:
        assert markers.rewritten(path, documents) == path.read_bytes(), path.name
