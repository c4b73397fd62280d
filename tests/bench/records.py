# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.bench.records`: seconds to read, build and render the pages of many synthetic records."""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from suite import fresh, plugins, regenerate, render
from suite.reading import no_collecting
from suite.record import RunRecord, to_json
from suite.results import Results, file_name
from suite.store import RESULTS, RUN, Store
from suite.validate import Known
from tests import report_samples
from tests.bench.paired import Effort, Row

ALGORITHMS, SEEDS, MANY = 40, 5, 10_000
TOTAL = "published files to pages"


def synthetic(count: int) -> Iterator[RunRecord]:
    """Records of 40 algorithms, each in several settings of 5 seeds, with four results each."""
    draw, base = random.Random(0), report_samples.record("algorithm", 0, 0.0)
    for i in range(count):
        setting, seed = divmod(i, SEEDS)
        name, preset = f"algorithm{setting % ALGORITHMS:02d}", f"digits{setting // ALGORITHMS:03d}"
        sha, level = hashlib.sha256(f"{i}".encode()).hexdigest(), draw.gauss(60, 8)
        results = {
            key: replace(one, weights=sha, metrics={metric: level + value for metric, value in one.metrics.items()})
            for key, one in base.results.items()
        }
        yield replace(
            base, id=f"{name}-{preset}-s{seed}", recipe=name, preset=preset, seed=seed, digest=f"{setting:08d}" * 8,
            weights=replace(base.weights, sha256=sha), results=results, created="2026-01-01T00:00:00Z",
        )  # fmt: skip


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


@no_collecting()
def measure(count: int) -> dict[str, float]:
    """Seconds of every step for so many records, the collector resting as in `suite report`."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write(synthetic(count), root / "runs", root / "published")
        results = Results(root / "published")
        folders, (found, problems) = timed(Store(root / "runs").records)
        files, again = timed(results.records)
        assert len(found) == count and not problems and again == (found, problems), "both forms hold the same records"
        del again
        loading, known = timed(lambda: Known(plugins.load_all("recipes"), plugins.load_all("evaluators")))
        building, documents = timed(lambda: regenerate.build(found, known, results))
        rendering, written = timed(lambda: render.render(documents, root / "pages"))
        unchanged, _ = timed(lambda: render.render(documents, root / "pages"))
        looking, _ = timed(lambda: fresh.look([root / "runs", root / "published"]))
    return {
        "read run folders": folders, "read published files": files, "load plug-ins": loading,
        f"build {len(documents)} documents": building, f"render {len(written)} files": rendering,
        "render again, unchanged": unchanged, "see that nothing changed": looking,
        TOTAL: files + building + rendering,
    }  # fmt: skip


def rows(images: Any, effort: Effort) -> list[Row]:
    """Records per second from published files to written pages, against the 10,000 in 10 s that were promised."""
    count = 200 if effort.most == 1 else MANY
    seconds = measure(count)[TOTAL]
    goal = 1.0 if count == MANY else None  # a few records cost what the pages cost anyway
    return [Row(f"{count:,} records to pages / promised", goal, [count / seconds], [MANY / 10], unit="records/s")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code says nothing about speed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.records", description=__doc__)
    parser.add_argument("--records", type=int, default=MANY, help="how many")
    count = parser.parse_args(arguments).records
    seconds = measure(count)
    print("\n".join([f"{count:,} records", *(f"{what:34}{value:8.2f} s" for what, value in seconds.items())]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
