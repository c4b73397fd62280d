# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.bench.records`: seconds to read, build and render the pages of many synthetic records."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from suite import plugins, render
from suite.record import RunRecord, to_json
from suite.results import Results, file_name
from suite.spec import Archive, Document
from suite.store import RESULTS, RUN, Store
from tests import report_samples

ALGORITHMS, SEEDS = 40, 5


def synthetic(count: int) -> Iterator[RunRecord]:
    """Records of 40 algorithms, each in several settings of 5 seeds, with four results each."""
    draw = random.Random(0)
    for i in range(count):
        setting, seed = divmod(i, SEEDS)
        name = f"algorithm{setting % ALGORITHMS:02d}"
        made = report_samples.record(name, seed, draw.gauss(60, 8), preset=f"digits{setting // ALGORITHMS:03d}")
        yield replace(made, digest=f"{setting:08d}" * 8, created="2026-01-01T00:00:00Z")


def write(records: Iterator[RunRecord], runs: Path, published: Path) -> None:
    """The same records as run folders and as published files, without the care for power cuts that the suite itself takes."""
    published.mkdir(parents=True)
    for record in records:
        folder = runs / record.id / RESULTS
        folder.mkdir(parents=True)
        for key, result in record.results.items():
            (folder / f"{key}.json").write_text(to_json(result))
        (folder.parent / RUN).write_text(to_json(replace(record, results={})))
        (published / file_name(record.id)).write_text(to_json(record))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the call returned."""
    began = time.perf_counter()
    found = call()
    return time.perf_counter() - began, found


def build(records: Sequence[RunRecord], archive: Archive) -> list[Document]:
    """Every page's documents, as `suite report` makes them."""
    pages, recipes, evaluators = (plugins.load_all(kind) for kind in ("reports", "recipes", "evaluators"))
    order = sorted(pages, key=lambda name: (name != "index", name))
    return [document for name in order for document in pages[name].build(records, recipes, evaluators, archive)]


def table(count: int) -> str:
    """Seconds of every step for so many records."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write(synthetic(count), root / "runs", root / "published")
        results = Results(root / "published")
        folders, (found, problems) = timed(Store(root / "runs").records)
        files, again = timed(results.records)
        assert len(found) == count and not problems and again == (found, problems), "both forms hold the same records"
        loading, _ = timed(lambda: [plugins.load_all(kind) for kind in ("reports", "recipes", "evaluators")])
        building, documents = timed(lambda: build(found, results))
        rendering, written = timed(lambda: render.render(documents, root / "pages"))
        unchanged, _ = timed(lambda: render.render(documents, root / "pages"))
    rows = {
        "read run folders": folders, "read published files": files, "load plug-ins": loading,
        f"build {len(documents)} documents": building, f"render {len(written)} files": rendering,
        "render again, unchanged": unchanged, "published files to pages": files + loading + building + rendering,
    }  # fmt: skip
    return "\n".join([f"{count:,} records", *(f"{what:28}{seconds:8.2f} s" for what, seconds in rows.items())])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code says nothing about speed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.records", description=__doc__)
    parser.add_argument("--records", type=int, default=10_000, help="how many")
    print(table(parser.parse_args(arguments).records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
