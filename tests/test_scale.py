# SPDX-License-Identifier: Apache-2.0
"""The table of memory and time by number of images: its jobs run, and its last column is the line it says."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests.bench import scale


def test_jobs_run_on_one_set_of_features(tmp_path):
    sent = []
    for job in scale.JOBS:  # the first writes what the others read
        scale.measure(job, tmp_path, 600, 16, SimpleNamespace(send=sent.append))
    assert [cost.seconds > 0 for cost in sent] == [True] * len(scale.JOBS)
    assert scale.stored(tmp_path / "full").shape == (600, 16)


def test_own_memory_is_what_was_allocated(tmp_path, monkeypatch):
    def allocate(root, rows, width):
        held = np.ones(rows * width, np.uint8)
        time.sleep(0.1)
        assert held.all()

    monkeypatch.setitem(scale.JOBS, "allocate", allocate)
    sent = []
    scale.measure("allocate", tmp_path, 100_000, 2000, SimpleNamespace(send=sent.append))
    assert sent[0].own == pytest.approx(200, rel=0.25) or np.isnan(sent[0].own)


def test_table_extrapolates_the_line_through_the_two_largest(monkeypatch):
    monkeypatch.setattr(scale, "JOBS", {"job": None})
    monkeypatch.setattr(
        scale, "costs", lambda rows, width: {"job": scale.Cost(5.0 if rows == 10 else 1 + rows / 1000, 7.0, 8.0)}
    )
    lines = {line[:28].strip(): line[28:].split() for line in scale.table([10, 1000, 2000], 100).splitlines()[2:]}
    assert lines["images"] == ["10", "1,000", "2,000", "1,281,167"]
    assert lines["matrix, MB"] == ["0", "0", "1", "512"]
    assert lines["job, s"] == ["5.0", "2.0", "3.0", "1282.2"]
    assert lines["job, own MB"] == ["7.0"] * 4
