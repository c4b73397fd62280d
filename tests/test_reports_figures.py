# SPDX-License-Identifier: Apache-2.0
"""Figures of a run: drawn from what lies beside its record, the same bytes every time, and what cannot be drawn is said."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from reports import _figures, run
from suite.render import render
from suite.spec import Plot
from suite.testing import EMPTY
from tests.report_samples import EVALUATORS, RECIPES, record

LOG = [{"step": 8 * i, "epoch": i / 10, "loss": 6.0 / (i + 1), "lr": 0.1 * i, "feature_rank": 3.0 + i} for i in range(900)]
LABEL = np.repeat(np.arange(3), 20)
PRED = np.where(np.arange(60) % 20 < 5, (LABEL + 1) % 3, LABEL)


def archive(**arrays):
    """An archive with a log, top-1 predictions of every result, and artifacts by name."""
    return SimpleNamespace(
        log=lambda one: LOG,
        predictions=lambda one, result: {"kind": "top1", "label": LABEL, "pred": PRED},
        artifact=lambda one, result, name: arrays.get(name),
    )


def made(**artifacts):
    one = record("mocov2")
    names = {name: f"{name}.npz" for name in artifacts}
    results = {key: replace(result, artifacts=names, seconds=2.0) for key, result in one.results.items()}
    return replace(one, results=results)


def thumbs():
    drawn = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)
    near = np.arange(6).reshape(2, 3) + 2
    return {"thumbs": drawn, "queries": np.array([0, 1]), "neighbours": near, "right": near % 2 == 0}


def plots(document):
    return {part.title: part for part in document.parts if isinstance(part, Plot)}


def test_run_page_draws_everything_that_lies_beside_its_record():
    points = {"xy": np.random.default_rng(1).normal(size=(40, 2)), "label": np.arange(40) % 4}
    beside = archive(tsne=points, gallery=thumbs())
    one = made(tsne=1, gallery=1)
    document = run.build([one], RECIPES, EVALUATORS, beside)[0]
    found = plots(document)
    assert list(found) == [
        "Training curves", "Confusion matrix, Linear probe [default], digits", "Nearest neighbours, digit-scenes",
        "t-SNE of the features, digit-scenes", "Where the time went",
    ]  # fmt: skip
    assert "75.0 % of all are right" in found["Confusion matrix, Linear probe [default], digits"].alt
    assert "3 of 6 neighbours shown are of the query's class" in found["Nearest neighbours, digit-scenes"].alt
    assert "Loss from 3.67 to 0.00667" in found["Training curves"].alt
    for plot in found.values():
        assert ET.fromstring(plot.svg).tag.endswith("svg")
        assert "<metadata" not in plot.svg and not re.search(r"\d{4}-\d\d-\d\dT", plot.svg)
    assert plots(run.build([one], RECIPES, EVALUATORS, beside)[0]) == found


def test_run_page_says_what_it_cannot_draw():
    said = [part for part in run.build([record("mocov2")], RECIPES, EVALUATORS, EMPTY)[0].parts if isinstance(part, str)]
    assert "No training log lies beside this record, so there are no curves." in said
    assert any(part.startswith("No per-image predictions, gallery or projection") for part in said)


def test_only_the_newest_runs_have_pages_and_figures(monkeypatch):
    monkeypatch.setattr(run, "MOST", 3)
    monkeypatch.setattr(run, "DRAWN", 1)
    runs = [record("mocov2", seed, created=f"2026-01-0{seed + 1}") for seed in range(5)]
    documents = run.build(runs, RECIPES, EVALUATORS, archive())
    assert [one.name for one in documents] == [f"run-mocov2-digits-{seed}" for seed in (2, 3, 4)]
    assert [bool(plots(one)) for one in documents] == [False, False, True]
    assert "Figures are drawn for the 1 newest of 5 runs; this is not one of them." in documents[0].parts


def test_long_logs_are_averaged_and_broken_rows_left_out():
    epochs, values = _figures._series(LOG, "lr")
    assert len(epochs) == 300 and values[0] == pytest.approx(0.1) and epochs[-1] == pytest.approx(89.9)
    rows = [
        {"epoch": 0, "loss": 1.0},
        {"epoch": 1, "loss": float("nan")},
        {"epoch": 2, "loss": None},
        {"epoch": 3, "loss": 2.0},
    ]
    assert _figures._series(rows, "loss") == ([0.0, 3.0], [1.0, 2.0])
    assert _figures.curves([{"epoch": 1}]) is None


def test_confusion_of_many_classes_shows_those_mistaken_most():
    label = np.repeat(np.arange(100), 10)
    pred = np.where(label >= 90, 0, label)
    plot = _figures.confusion(label, pred, "x")
    assert "the 30 classes of 100 mistaken most often" in plot.alt
    assert "100 % of class 90 are taken for class 0" in plot.alt
    assert _figures.confusion(np.array([-1, 2]), np.array([0, 1]), "x") is None, "unlabelled images"


@pytest.mark.parametrize(
    "broken", [{"thumbs": np.zeros((3, 4))}, {"neighbours": np.full((2, 3), 99)}, {"queries": np.array([-1, 0])}]
)
def test_broken_galleries_are_not_drawn(broken):
    assert _figures.gallery(thumbs() | broken, "x") is None


def test_figures_follow_the_theme_of_the_page(tmp_path):
    render(run.build([made()], RECIPES, EVALUATORS, archive()), tmp_path)
    page = (tmp_path / "run-mocov2-digits-0.html").read_text()
    assert "var(--accent)" in page and "#040404" not in page
    assert "@media (prefers-color-scheme:dark)" in (tmp_path / "run-mocov2-digits-0-1.svg").read_text()
