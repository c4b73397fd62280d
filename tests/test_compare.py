# SPDX-License-Identifier: Apache-2.0
"""The gate: verdicts, intervals with the coverage they claim, and inputs of every kind."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from suite import metrics, paired
from suite.compare import compare, judge
from suite.errors import UsageError
from suite.record import to_json
from suite.store import Run, arrays_to_bytes
from tests.report_samples import EVALUATORS, record, result

N = 2000


def answers(right, seed=0, classes=10):
    """Labels, and predictions that are right where `right` says."""
    label = np.random.default_rng(seed).integers(0, classes, len(right))
    return {"label": label, "pred": np.where(right, label, (label + 1) % classes)}


def make_run(root, arrays, name="linear", run_id="a", **more):
    """A run folder with one result and its predictions (None: none stored)."""
    made = replace(record("mocov2", results=[]), id=run_id)
    run = Run(root / run_id)
    run.save(replace(made, weights=replace(made.weights, sha256=run_id * 8)))
    metric = {"top1": "top1", "map": "map", "miou": "miou", "detection": "ap50"}
    value = 50.0 if arrays is None else metrics.headline(metrics.kind_of(arrays), arrays)
    key = "top1" if arrays is None else metric[metrics.kind_of(arrays)]
    one = result(name, run_id * 8, {key: value} | more.pop("metrics", {}), **more)
    one = replace(one, predictions=f"{one.key}.npz" if arrays is not None else "")
    run.save_result(one, None if arrays is None else {one.predictions: arrays_to_bytes(arrays)})
    return run.path


def scores(verdict):
    return [row for row in verdict.rows if row.level == "score"]


def planted(drop=0, flips=0):
    """Head predictions: `drop` images lost, and `flips` more exchanged evenly."""
    base = np.random.default_rng(1).random(N) < 0.7
    head = base.copy()
    good, bad = np.flatnonzero(base), np.flatnonzero(~base)
    head[good[: drop + flips]] = False
    head[bad[:flips]] = True
    return answers(base), answers(head)


@pytest.mark.parametrize(
    "drop, flips, word", [(0, 0, "same"), (0, 3, "same"), (40, 0, "worse"), (60, 60, "worse"), (0, 150, "inconclusive")]
)
def test_verdict_on_planted_changes(tmp_path, drop, flips, word):
    a, b = planted(drop, flips)
    verdict = compare(make_run(tmp_path, a), make_run(tmp_path, b, run_id="b"), function=False)
    (row,) = scores(verdict)
    assert row.verdict == word
    assert verdict.regressed == (word == "worse")
    assert row.difference == pytest.approx(-100 * drop / N)
    assert row.low <= row.difference <= row.high
    assert row.samples == N
    assert (row.needed > N) == (word == "inconclusive")


def test_a_gain_is_better_and_swapping_sides_swaps_the_verdict(tmp_path):
    a, b = planted(drop=40)
    verdict = compare(make_run(tmp_path, b), make_run(tmp_path, a, run_id="b"), function=False)
    assert scores(verdict)[0].verdict == "better"
    assert not verdict.regressed


@pytest.mark.parametrize(
    "difference, low, high, higher, word",
    [
        (-1.0, -1.5, -0.5, True, "worse"),
        (-1.0, -1.5, -0.5, False, "better"),
        (-0.3, -0.4, -0.2, True, "same"),
        (-0.4, -0.7, -0.1, True, "inconclusive"),
        (0.1, -0.9, 1.1, True, "inconclusive"),
        (0.4, -0.3, 1.1, True, "same"),
        (float("nan"), float("nan"), float("nan"), True, "inconclusive"),
    ],
)
def test_rule(difference, low, high, higher, word):
    assert judge(difference, low, high, 0.5, higher) == word


def test_top1_counts_are_the_bootstrap_of_listed_images():
    a, b = planted(drop=30, flips=60)
    _, found = paired.bootstrap("x", a, b, resamples=4000)
    rng = np.random.default_rng(0)
    listed = []
    for _ in range(1500):
        drawn = rng.integers(0, N, N)
        listed.append(metrics.headline("top1", b, drawn) - metrics.headline("top1", a, drawn))
    assert [found.low, found.high] == pytest.approx(np.quantile(listed, [0.025, 0.975]), abs=0.15)


def test_interval_covers_the_true_difference_as_often_as_it_says():
    rng, covered, trials = np.random.default_rng(5), 0, 400
    for trial in range(trials):
        u = rng.random(600)
        a, b = u < 0.70, (u < 0.66) | (u > 0.97)  # truth: 70 and 69, paired
        _, found = paired.bootstrap("x", answers(a), answers(b), resamples=500, seed=trial)
        covered += found.low <= -1.0 <= found.high
    assert 0.92 <= covered / trials <= 0.98


def test_no_true_difference_fails_rarely_and_a_true_drop_is_caught():
    rng, false_alarms, caught, trials = np.random.default_rng(6), 0, 0, 200
    for trial in range(trials):
        u = rng.random(10_000)
        base = u < 0.7
        for lost, bucket in ((0.02, "none"), (0.03, "drop")):
            head = (u < 0.7 - lost) | (u > 0.98)
            _, found = paired.bootstrap("x", answers(base), answers(head), resamples=400, seed=trial)
            worse = judge(found.difference, found.low, found.high, 0.5) == "worse"
            false_alarms += worse and bucket == "none"
            caught += worse and bucket == "drop"
    assert false_alarms / trials <= 0.05
    assert caught / trials >= 0.95


def segmentation(quality, seed=0, n=60, classes=4):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(5, 60, (n, classes))
    hit = (pixels * quality).astype(int)
    confusion = np.zeros((n, classes, classes), np.int32)
    for c in range(classes):
        confusion[:, c, c] = hit[:, c]
        confusion[:, c, (c + 1) % classes] = pixels[:, c] - hit[:, c]
    return {"confusion": confusion}


def multilabel(noise, seed=0, n=300, classes=5):
    rng = np.random.default_rng(seed)
    targets = rng.choice([-1, 1], (n, classes)).astype(np.int8)
    return {"targets": targets, "scores": (targets + rng.normal(size=(n, classes)) * noise).astype(np.float32)}


def detector(recall, seed=0, n=80):
    rng = np.random.default_rng(seed)
    n_gt = rng.integers(1, 4, (n, 2))
    image = np.repeat(np.arange(n), 6)
    cls = np.tile([0, 0, 0, 1, 1, 1], n)
    slot = np.tile([0, 1, 2, 0, 1, 2], n)
    draw = rng.random(len(image))
    tp = (slot < n_gt[image, cls]) & (draw < recall)
    score = np.where(tp, 0.5, 0.2) + 0.3 * rng.random(len(image))
    return {"image": image, "cls": cls, "score": score, "tp": tp, "ignored": np.zeros_like(tp), "n_gt": n_gt}


@pytest.mark.parametrize(
    "name, base, head",
    [
        ("svm", multilabel(0.8), multilabel(2.0)),
        ("segmentation", segmentation(0.9), segmentation(0.7)),
        ("detection", detector(0.9), detector(0.6)),
    ],
)
def test_other_kinds_of_predictions_regress_too(tmp_path, name, base, head):
    one, two = make_run(tmp_path, base, name), make_run(tmp_path, head, name, "b")
    assert compare(one, two, function=False, resamples=200).regressed
    same = compare(one, one, function=False, resamples=50)
    assert [(row.verdict, row.low, row.high) for row in scores(same)] == [("same", 0.0, 0.0)]


def test_other_images_are_refused(tmp_path):
    a, _ = planted()
    shuffled = {name: array[::-1] for name, array in a.items()}
    shorter = {name: array[:-1] for name, array in a.items()}
    base = make_run(tmp_path, a)
    with pytest.raises(UsageError, match="labels differ"):
        compare(base, make_run(tmp_path, shuffled, run_id="b"), function=False)
    with pytest.raises(UsageError, match="2000 test images against 1999"):
        compare(base, make_run(tmp_path, shorter, run_id="c"), function=False)


def test_records_without_predictions_are_judged_by_the_difference(tmp_path):
    base, head = record("mocov2", level=60.0), record("mocov2", seed=1, level=58.0)
    for name, one in (("a", base), ("b", head)):
        (tmp_path / f"{name}.json").write_text(to_json(one))
    verdict = compare(tmp_path / "a.json", tmp_path / "b.json", evaluators=EVALUATORS)
    by = {row.what: row for row in scores(verdict)}
    assert by["linear/top1"].verdict == "worse"
    assert by["linear/top1"].low is None
    assert by["detection"].note == "skipped on base: mmdet is not installed"
    assert compare(tmp_path / "a.json", tmp_path / "b.json", tolerance=5, bench=["linear"]).regressed is False


def test_what_cannot_be_compared_says_why(tmp_path):
    a, b = planted(drop=100)
    base = make_run(tmp_path, a)
    newer = make_run(tmp_path, b, run_id="b", version=2)
    (row,) = scores(compare(base, newer, function=False))
    assert (row.verdict, row.note) == ("inconclusive", "measured with another version; evaluate both anew")
    failed = make_run(tmp_path, None, run_id="c", status="failed", why="ran out of memory")
    verdict = compare(base, failed, function=False)
    assert verdict.regressed
    assert "ran out of memory" in verdict.markdown()


def test_markdown_and_json_say_the_same(tmp_path):
    a, b = planted(drop=40)
    verdict = compare(make_run(tmp_path, a), make_run(tmp_path, b, run_id="b"), function=False)
    text, raw = verdict.markdown(), json.loads(verdict.json())
    assert text.startswith("### Regression: b against a\n")
    assert "−2.00" in text and "**worse**" in text
    assert raw["regressed"] is True
    assert raw["rows"][1]["difference"] == pytest.approx(-2.0)
    assert verdict.json() == compare(tmp_path / "a", tmp_path / "b", function=False).json()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"base": "nothing-here"}, "is no run id, run folder"),
        ({"alpha": 0.0}, "alpha"),
        ({"bench": ["lineal"]}, "did you mean 'linear'"),
    ],
)
def test_wrong_calls_are_one_line(tmp_path, arguments, message):
    run = make_run(tmp_path, planted()[0])
    with pytest.raises(UsageError, match=message) as caught:
        compare(**({"base": run, "head": run, "function": False} | arguments))
    assert "\n" not in str(caught.value)


def test_runs_are_found_by_the_start_of_their_id(tmp_path):
    make_run(tmp_path, planted()[0], run_id="abc")
    assert compare("ab", "abc", store=tmp_path).rows[0].verdict == "same"


def test_function_of_two_networks(tmp_path):
    torch = pytest.importorskip("torch")
    from suite.backbone import Backbone

    torch.manual_seed(0)
    net = Backbone("resnet10t")
    net.save(tmp_path / "a.safetensors")
    net.save(tmp_path / "same.safetensors")
    with torch.no_grad():
        next(iter(net.net.parameters())).mul_(1.05)
    net.save(tmp_path / "b.safetensors")
    same = compare(tmp_path / "a.safetensors", tmp_path / "same.safetensors")
    assert [(row.level, row.verdict) for row in same.rows] == [("bytes", "same")]
    rows = compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors").rows
    assert [(row.level, row.verdict) for row in rows] == [("bytes", "differs"), ("function", "differs")]
    assert "cosine" in rows[1].note
