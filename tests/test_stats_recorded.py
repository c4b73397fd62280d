# SPDX-License-Identifier: Apache-2.0
"""Evaluators leave intervals in their results, and the gate runs on weights files that nobody has evaluated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from suite import metrics, stats
from suite.benchmarks import Benchmarks, benchmark
from suite.cli import main
from suite.data import Sources
from suite.progress import Reporter
from suite.run import Options, prepare, pretrain
from suite.store import Store
from tests.bench import __main__ as command
from tests.bench import gate


@pytest.fixture
def few(monkeypatch):
    """A few hundred pictures of the embedded set."""
    whole = Sources.load

    def load(self, name, split, reporter=None):
        images = whole(self, name, split, reporter)
        return replace(images.subset(np.arange(0, len(images), 8)), fingerprint=images.fingerprint)

    monkeypatch.setattr(Sources, "load", load)


@pytest.fixture
def random_run(tmp_path):
    job = prepare("random", "tiny", [], 0, "", {})
    run = Store(tmp_path / "runs").run(job.id)
    return run, pretrain(job, run, Options(), Reporter())


def test_results_carry_the_interval_of_their_headline(random_run, few, tmp_path):
    run, record = random_run
    chosen = Benchmarks.parse("knn,retrieval,rank")
    results = benchmark(run, record, chosen, Sources("digits"), Store(tmp_path / "runs"), Options(), Reporter())
    for (plugin, _), result in zip(chosen.chosen, results, strict=True):
        headline = plugin.metrics[0].name
        if plugin.name == "rank":  # no predictions, no interval
            assert (result.intervals, result.samples) == ({}, 0)
            continue
        arrays = run.predictions(result)
        kind = metrics.kind_of(arrays)
        ((name, (low, high)),) = result.intervals.items()
        assert name == headline and low < result.metrics[headline] < high
        assert result.samples == metrics.samples(kind, arrays)
        assert [low, high] == pytest.approx(stats.interval(kind, arrays, resamples=1000))
    assert run.results()[0]["knn"].intervals == {"top1": list(results[0].intervals["top1"])}


def test_the_gate_evaluates_weights_files_and_names_what_broke(random_run, few, tmp_path, monkeypatch, capfd):
    run, _ = random_run
    monkeypatch.chdir(tmp_path)
    files = [gate.damaged(run.weights, tmp_path, change) for change in gate.CHANGES]
    hashes = {path.read_bytes() for path in (run.weights, *files)}
    assert len(hashes) == 4
    call = ["compare", str(run.weights), str(files[2]), "--bench", "knn", "--runs", "new", "--json", "verdict.json"]
    assert main(call) in (0, 1)
    raw = json.loads(Path("verdict.json").read_text())
    assert [(row["level"], row["what"]) for row in raw["rows"]] == [
        ("bytes", "weights"), ("function", "features"), ("score", "knn/top1"),
    ]  # fmt: skip
    assert raw["rows"][0]["verdict"] == "differs" and "cosine 0.99" in raw["rows"][1]["note"]
    assert capfd.readouterr().err.count("kept") == 0
    main(call)
    assert capfd.readouterr().err.count("kept") == 2  # what is there is not measured again


def test_the_simulation_prints_rates_with_their_own_error(monkeypatch, capsys):
    worlds = (gate.World("nothing", 300, disagreement=0.1, goal=0.05), gate.World("a lot", 3000, 0.7, 0.1, 9.0, goal=0.95))
    monkeypatch.setattr(gate, "WORLDS", worlds)
    assert command.main(["gate", "--pairs", "30"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("30 simulated pairs a line, alpha 0.05, tolerance 0.5")
    assert "100.0 ± 3.3 %" in lines[4] and ">= 95 %  met" in lines[4] and "<= 5 %" in lines[3]
    monkeypatch.setattr(gate, "WORLDS", (replace(worlds[1], drop=0.0001, goal=0.95),))
    assert command.main(["gate", "--pairs", "30"]) == 1  # a promise that is not kept is said
