# SPDX-License-Identifier: Apache-2.0
"""Ten thousand records: what a page leaves out it says. `python -m tests.bench.records` measures the seconds."""

from __future__ import annotations

import json
import re

import pytest

from suite.cells import SHOWN
from suite.render import render
from tests.report_samples import build, many_records


@pytest.mark.slow
def test_ten_thousand_records_stand_in_the_index(tmp_path):
    found = many_records(10_000)
    render(build(found), tmp_path)
    data = re.search(r'class="rows">(.*?)</script>', (tmp_path / "index.html").read_text(), re.DOTALL)[1]
    groups = {(run.recipe, run.preset, run.digest) for run in found}
    beyond = sum(map(len, json.loads(data)["bodies"]))
    assert beyond + SHOWN == len(groups), "every group of runs stands in the index"
    assert "for the 30 newest of 10000 runs" in "".join(path.read_text() for path in tmp_path.glob("run-*.md"))
    assert "newest of" in (tmp_path / "mocov2.md").read_text()
    assert re.search(r"The \d+ best of [\d,]+ rows", (tmp_path / "bench-knn.md").read_text())
