# SPDX-License-Identifier: Apache-2.0
"""The gate: verdicts, error rates, seeds, and what cannot be compared."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite import paired
from suite.compare import compare
from suite.errors import UsageError
from suite.record import to_json
from suite.verdict import Row, judge
from tests.bench.gate import World, simulate
from tests.prediction_samples import N, answers, detector, make_run, multilabel, planted, scores, segmentation
from tests.report_samples import EVALUATORS, record, result


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


def row(difference, half, error=None, higher=True):
    """A score whose interval is this wide, with the p-values of a normal difference."""
    from scipy.stats import norm

    error = half / norm.ppf(0.95) if error is None else error
    return Row(
        "score", "x", "inconclusive", 0, difference, difference, difference - half, difference + half,
        lower=norm.cdf(difference / error), higher=norm.cdf(-difference / error), image_error=error, samples=1000,
        higher_is_better=higher,
    )  # fmt: skip


@pytest.mark.parametrize(
    "difference, half, higher, word",
    [
        (-1.0, 0.5, True, "worse"),
        (-1.0, 0.5, False, "better"),
        (-0.3, 0.1, True, "same"),  # a real drop, and one that does not matter
        (-0.4, 0.3, True, "worse"),  # a real drop that may matter
        (-0.4, 0.5, True, "inconclusive"),
        (0.1, 1.0, True, "inconclusive"),
        (0.4, 0.7, True, "same"),
        (float("nan"), float("nan"), True, "inconclusive"),
    ],
)
def test_rule(difference, half, higher, word):
    assert judge([row(difference, half, higher=higher)], 0.5, 0.05)[0].verdict == word


def test_more_scores_need_a_clearer_drop():
    drop, nothing = row(-1.0, 0.9), row(0.0, 0.9)
    assert judge([drop], 0.5, 0.05)[0].verdict == "worse"
    assert judge([drop] + [nothing] * 9, 0.5, 0.05)[0].verdict == "inconclusive"
    clear = judge([row(-1.0, 0.4)] + [nothing] * 9, 0.5, 0.05)[0]
    assert clear.verdict == "worse" and clear.p == pytest.approx(10 * clear.lower)
    passed = Row("score", "y", "worse", note="failed on head: no memory")
    assert judge([passed, drop], 0.5, 0.05)[0] == passed


ROWS = st.lists(st.tuples(st.floats(-3, 3), st.floats(0.01, 2)), min_size=1, max_size=6)


@settings(deadline=None)
@given(ROWS, st.floats(0, 1), st.sampled_from([0.01, 0.05]))
def test_better_is_worse_with_the_sides_swapped(found, tolerance, alpha):
    from scipy.stats import norm

    halves = [(gap, error * norm.ppf(1 - alpha), error) for gap, error in found]
    forth = judge([row(gap, half, error) for gap, half, error in halves], tolerance, alpha)
    back = judge([row(-gap, half, error) for gap, half, error in halves], tolerance, alpha)
    turned = judge([row(-gap, half, error, higher=False) for gap, half, error in halves], tolerance, alpha)
    swap = {"better": "worse", "worse": "better"}
    for a, b, c in zip(forth, back, turned, strict=True):
        assert swap.get(a.verdict) == b.verdict if a.verdict in swap else b.verdict not in swap
        assert c.verdict == a.verdict and c.p == pytest.approx(a.p)


@settings(deadline=None)
@given(ROWS, st.floats(0.01, 1))
def test_the_number_of_images_named_settles_the_verdict_four_times_in_five(found, tolerance):
    """With that many images the difference exceeds its bound in 80 % of repetitions, by the normal distribution."""
    from scipy.stats import norm

    for judged in judge([row(gap, error * norm.ppf(0.95), error) for gap, error in found], tolerance, 0.05):
        if judged.needed:
            error = judged.image_error * (1000 / judged.needed) ** 0.5
            same = norm.cdf((judged.difference + tolerance) / error - norm.ppf(0.95))
            worse = norm.cdf(-judged.difference / error - norm.ppf(1 - 0.05 / len(found)))
            assert max(same, worse) == pytest.approx(0.8, abs=0.03)
        else:
            assert judged.verdict != "inconclusive" or abs(judged.difference) < 0.01


def test_interval_covers_the_true_difference_as_often_as_it_says():
    rng, missed, trials = np.random.default_rng(5), np.zeros(2), 600
    for trial in range(trials):
        u = rng.random(600)
        a, b = u < 0.70, (u < 0.66) | (u > 0.97)  # truth: 70 and 69, paired
        _, found = paired.measure("x", [answers(a)], [answers(b)], resamples=500, seed=trial)
        missed += found.low > -1.0, found.high < -1.0
    assert (missed / trials <= 0.05 + 0.025).all() and (missed / trials >= 0.05 - 0.025).all()


@pytest.mark.parametrize(
    "world",
    [
        World("independent errors", 500),
        World("few changes", 10_000, disagreement=0.02),
        World("six scores", 500, disagreement=0.1, scores=6),
        World("mAP", 100, kind="map"),
        World("mIoU", 60, kind="miou"),
        World("seeds", 500, disagreement=0.1, seeds=3, spread=1.0),
    ],
    ids=lambda world: world.what,
)
def test_no_true_difference_fails_at_most_alpha_of_the_time(world):
    pairs = 250 if world.kind == "top1" else 60
    assert simulate(world, pairs).rate <= 0.05 + 2.5 * (0.05 * 0.95 / pairs) ** 0.5


@pytest.mark.parametrize("disagreement, scores", [(0.02, 1), (0.08, 1), (0.05, 4)])
def test_a_point_lost_on_10_000_images_is_caught(disagreement, scores):
    found = simulate(World("drop", 10_000, disagreement=disagreement, drop=1.0, scores=scores), 150)
    assert found.rate >= 0.95 - 2.5 * (0.05 * 0.95 / 150) ** 0.5
    assert found.words["worse"] == found.failed  # and it is the score that dropped which is named


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


def written(path, *records):
    """Records as the files that are published."""
    path.mkdir(exist_ok=True)
    for one in records:
        (path / f"{one.id}.json").write_text(to_json(one))
    return path


def single(name, level, seed=0, half=None, **more):
    """A record with one result, with an interval of this half-width."""
    noise = {} if half is None else {"intervals": {"top1": [level - half, level + half]}, "samples": 1000}
    return record(name, seed, results=[result("linear", f"{name}{seed}", {"top1": level}, **noise)], **more)


def test_records_without_predictions_are_judged_by_their_intervals(tmp_path):
    base = written(tmp_path / "a", single("mocov2", 60.0, half=1.0)) / "mocov2-digits-0.json"
    head = written(tmp_path / "b", single("simclr", 57.0, half=1.0)) / "simclr-digits-0.json"
    (found,) = scores(compare(base, head, evaluators=EVALUATORS))
    error = 2**0.5 / 1.959964
    assert found.verdict == "worse" and "not paired" in found.note and found.samples == 1000
    assert [found.low, found.high] == pytest.approx([-3 - 1.645 * error, -3 + 1.645 * error], abs=0.01)
    assert scores(compare(base, head, tolerance=5))[0].verdict == "same"


def test_a_difference_of_which_nothing_says_how_noisy_it_is_fails_nobody(tmp_path):
    base, head = record("mocov2", level=60.0), record("mocov2", seed=1, level=58.0)
    for name, one in (("a", base), ("b", head)):
        (tmp_path / f"{name}.json").write_text(to_json(one))
    verdict = compare(tmp_path / "a.json", tmp_path / "b.json", evaluators=EVALUATORS)
    by = {row.what: row for row in scores(verdict)}
    assert by["linear/top1"].verdict == "inconclusive" and "may be noise" in by["linear/top1"].note
    assert by["linear/top1"].difference == pytest.approx(-1.2) and by["linear/top1"].low is None
    assert by["detection"].note == "skipped on base: mmdet is not installed"
    assert not verdict.regressed


def test_seeds_of_both_sides_are_used(tmp_path):
    for seed, level in enumerate((60.0, 60.4, 59.9)):
        written(tmp_path / "a", single("mocov2", level, seed, digest="one"))
        written(tmp_path / "b", single("simclr", level - 3, seed, digest="two"))
        written(tmp_path / "c", single("simclr", level - 0.1 + 2 * (seed - 1), seed, digest="two"))
    lists = [",".join(str(path) for path in sorted((tmp_path / name).iterdir())) for name in "abc"]
    (drop,), (noise,) = (scores(compare(lists[0], lists[i])) for i in (1, 2))
    assert drop.verdict == "worse" and "from seeds alone, 3 and 3 seeds" in drop.note
    assert drop.difference == pytest.approx(-3) and drop.seed_error == pytest.approx(0.2160, abs=1e-3)
    assert noise.verdict == "inconclusive" and noise.needed_seeds > 3 and not noise.needed


def test_seeds_with_predictions_count_images_and_seeds(tmp_path):
    rng, u = np.random.default_rng(0), np.random.default_rng(1).random(N)
    for seed in range(3):
        for name, level in (("a", 0.7), ("b", 0.6)):
            right = u < level + 0.01 * rng.normal()
            make_run(tmp_path, answers(right), run_id=f"{name}-s{seed}", seed=seed)
    (found,) = scores(compare("a", "b", store=tmp_path, function=False))
    assert found.verdict == "worse" and found.note == "paired over 2,000 images (top1), 3 and 3 seeds"
    assert found.image_error == pytest.approx(100 * (0.1 * 0.9 / N) ** 0.5, rel=0.2) and found.seed_error > 0
    (one,) = scores(compare("a-s0", "b", store=tmp_path, function=False))
    assert "1 and 3 seeds; how much seeds differ is not counted" in one.note
    (same,) = scores(compare("a", "a", store=tmp_path, function=False))
    assert (same.verdict, same.low, same.high) == ("same", 0, 0)


def test_what_cannot_be_compared_says_why(tmp_path):
    a, b = planted(drop=100)
    base = make_run(tmp_path, a)
    newer = make_run(tmp_path, b, run_id="b", version=2)
    (row,) = scores(compare(base, newer, function=False))
    assert (row.verdict, row.note) == ("inconclusive", "measured with another version; evaluate both anew")
    failed = make_run(tmp_path, None, run_id="c", status="failed", why="ran out of memory")
    other = make_run(tmp_path, b, run_id="d", digest="other", data={"digits/test": "c" * 64})
    assert "other data" in scores(compare(base, other, function=False))[0].note
    with pytest.raises(UsageError, match="no score in common for linear"):  # a gate that compared nothing may not pass
        compare(base, other, function=False, bench=["linear"])
    verdict = compare(base, failed, function=False)
    assert verdict.regressed
    assert "ran out of memory" in verdict.markdown()


def test_markdown_and_json_say_the_same(tmp_path):
    a, b = planted(drop=40)
    verdict = compare(make_run(tmp_path, a), make_run(tmp_path, b, run_id="b"), function=False)
    text, raw = verdict.markdown(), json.loads(verdict.json())
    assert text.startswith("### Regression: b against a\n") and "90 % interval" in text
    assert "−2.00" in text and "**worse**" in text
    assert raw["regressed"] is True
    assert raw["rows"][1]["difference"] == pytest.approx(-2.0)
    assert verdict.json() == compare(tmp_path / "a", tmp_path / "b", function=False).json()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"base": "nothing-here"}, "is no run id, run folder"),
        ({"alpha": 0.0}, "alpha"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"bench": ["lineal"]}, "did you mean 'linear'"),
    ],
)
def test_wrong_calls_are_one_line(tmp_path, arguments, message):
    run = make_run(tmp_path, planted()[0])
    with pytest.raises(UsageError, match=message) as caught:
        compare(**({"base": run, "head": run, "function": False} | arguments))
    assert "\n" not in str(caught.value)


def test_diagnostics_are_shown_and_not_judged(tmp_path):
    evaluators = {"linear": replace(EVALUATORS["linear"], diagnostic=True)}
    a, b = planted(drop=400)
    verdict = compare(make_run(tmp_path, a), make_run(tmp_path, b, run_id="b"), function=False, evaluators=evaluators)
    assert scores(verdict)[0].verdict == "differs" and not verdict.regressed


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
