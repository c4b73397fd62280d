# SPDX-License-Identifier: Apache-2.0
"""Intervals, paired tests and corrections, against counting by hand, scipy, and simulation of what they promise."""

from __future__ import annotations

import itertools
import subprocess
import sys
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm, ttest_1samp, ttest_ind, ttest_rel

from suite import metrics, paired, stats
from suite.errors import UsageError
from tests.prediction_samples import answers, detector, multilabel, segmentation

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)
COUNTS = st.integers(0, 40)


def drawn_by_listing(kind, sides, resamples, seed=0):
    """The bootstrap as books define it: list the drawn images and score them."""
    rng, n = np.random.default_rng(seed), metrics.samples(kind, sides[0])
    rows = [rng.integers(0, n, n) for _ in range(resamples)]
    return np.array([[metrics.headline(kind, side, row) for row in rows] for side in sides])


SAMPLES = {
    "top1": [answers(np.arange(300) % 10 < 7), answers(np.arange(300) % 7 < 5)],
    "mean": [{"value": np.random.default_rng(i).random(200) * 100} for i in (0, 1)],
    "map": [multilabel(0.8), multilabel(2.0)],
    "miou": [segmentation(0.9), segmentation(0.7)],
    "detection": [detector(0.9), detector(0.6)],
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_draws_are_the_bootstrap_of_listed_images(kind):
    sides = SAMPLES[kind]
    fast, slow = stats.draws(kind, sides, 1500, 0), drawn_by_listing(kind, sides, 400)
    spread = slow.std(axis=1)
    assert fast.shape == (2, 1500)
    np.testing.assert_allclose(fast.mean(axis=1), slow.mean(axis=1), atol=0.25 * spread.max())
    np.testing.assert_allclose(fast.std(axis=1), spread, rtol=0.15)
    between = np.corrcoef(fast)[0, 1], np.corrcoef(slow)[0, 1]  # the same images are drawn for both sides
    assert between[0] == pytest.approx(between[1], abs=0.15)


@pytest.mark.parametrize("kind", SAMPLES)
def test_draws_do_not_depend_on_the_size_of_chunks(kind, monkeypatch):
    whole = stats.draws(kind, SAMPLES[kind], 50, 3)
    monkeypatch.setattr(stats, "CELLS", 700)
    np.testing.assert_allclose(stats.draws(kind, SAMPLES[kind], 50, 3), whole, rtol=1e-12)


def test_interval_of_top1_is_the_binomial_one():
    low, high = stats.interval("top1", answers(np.arange(1000) < 640), resamples=20_000)
    assert [low, high] == pytest.approx([100 * binom.ppf(q, 1000, 0.64) / 1000 for q in (0.025, 0.975)], abs=0.15)


def test_interval_covers_the_true_accuracy_as_often_as_it_says():
    rng = np.random.default_rng(0)
    ends = [stats.interval("top1", answers(rng.random(500) < 0.7), resamples=400, seed=i) for i in range(500)]
    covered = np.mean([low <= 70 <= high for low, high in ends])
    assert 0.92 <= covered <= 0.98


def test_interval_is_seeded():
    one = answers(np.random.default_rng(0).random(10_000) < 0.7)
    found, samples = stats.headline_interval(one, metrics.headline("top1", one))
    assert samples == 10_000 and found == stats.headline_interval(one, metrics.headline("top1", one))[0]
    assert stats.interval("top1", one, seed=1) != stats.interval("top1", one, seed=2)
    low, high = found
    assert high - low == pytest.approx(2 * 1.96 * 100 * np.sqrt(0.7 * 0.3 / 10_000), rel=0.1)


def test_interval_follows_the_evaluators_own_form_of_the_metric():
    one = SAMPLES["detection"][0]
    plain = metrics.headline("detection", one)
    (a, b), (c, d) = stats.headline_interval(one, plain)[0], stats.headline_interval(one, plain + 1.5)[0]
    assert [c - a, d - b] == pytest.approx([1.5, 1.5])


def test_without_images_or_of_an_unknown_kind_there_is_no_interval():
    assert stats.headline_interval({"label": np.zeros(0), "pred": np.zeros(0)}, 0.0) == (None, 0)
    assert stats.headline_interval({"other": np.zeros(3)}, 0.0) == (None, 0)
    nobody = {"targets": np.full((4, 2), -1), "scores": np.zeros((4, 2))}
    assert stats.headline_interval(nobody, 0.0) == (None, 4)


@settings(deadline=None)
@given(COUNTS, COUNTS)
def test_mcnemar_is_the_exact_sign_test(lost, gained):
    total = lost + gained
    by_hand = sum(comb(total, k) for k in range(lost, total + 1)) / 2**total
    assert stats.mcnemar(lost, gained) == pytest.approx(by_hand, rel=1e-9)
    if total:
        assert by_hand == pytest.approx(binomtest(lost, total, 0.5, alternative="greater").pvalue)


def holm_by_definition(p, alpha):
    """Step down: the smallest against alpha / M, the next against alpha / (M - 1), until one fails."""
    rejected = set()
    for step, i in enumerate(sorted(range(len(p)), key=lambda i: (p[i], i))):
        if p[i] * (len(p) - step) > alpha:
            break
        rejected.add(i)
    return rejected


@given(P_VALUES, st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_stepping_down_rejects(p, alpha):
    adjusted = stats.holm(p)
    assert {i for i, q in enumerate(adjusted) if q <= alpha} == holm_by_definition(p, alpha)
    assert all(q >= one for q, one in zip(adjusted, p, strict=True)) and adjusted.max() <= 1


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6, unique=True), st.randoms())
def test_holm_does_not_depend_on_the_order(p, random):
    order = list(range(len(p)))
    random.shuffle(order)
    np.testing.assert_array_equal(stats.holm([p[i] for i in order]), stats.holm(p)[order])


def test_holm_of_holms_own_kind_of_example():
    np.testing.assert_allclose(stats.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]).shape == (0,) and stats.holm([float("nan")])[0] == 1


def test_many_equal_networks_are_called_different_rarely():
    rng, wrong, trials = np.random.default_rng(1), 0, 300
    for _ in range(trials):
        easy = rng.random(400) < 0.5
        six = {str(i): answers(easy | (rng.random(400) < 0.3)) for i in range(6)}
        wrong += any(pair.significant for pair in stats.pairwise(six))
    assert wrong / trials <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / trials)


def test_pairwise_finds_the_one_that_differs():
    rng = np.random.default_rng(2)

    def noisy(level):
        return answers(rng.random(3000) < level)

    found = stats.pairwise({"a": noisy(0.7), "b": noisy(0.7), "c": noisy(0.5)})
    assert [(pair.a, pair.b, pair.significant) for pair in found] == [("a", "b", False), ("a", "c", True), ("b", "c", True)]
    assert found[1].difference == pytest.approx(-20, abs=4) and found[1].p <= found[1].adjusted
    assert stats.pairwise({"a": noisy(0.7)}) == []


@pytest.mark.parametrize("kind", ["mean", "map", "miou", "detection"])
def test_pairwise_of_other_kinds(kind):
    a, b = SAMPLES[kind]
    first, same, second = stats.pairwise({"a": a, "b": b, "again": a}, resamples=400)
    assert same.difference == 0 and same.p == 1 and not same.significant
    assert first.difference == -second.difference and first.p == second.p
    assert first.significant == (kind != "mean")


def test_a_bootstrap_p_value_counts_draws_and_goes_on_below_what_they_resolve():
    drawn = np.random.default_rng(0).normal(-1, 1, 50_000)
    assert stats.tail(drawn) == (1 + (drawn >= 0).sum()) / 50_001
    far = np.random.default_rng(0).normal(-5, 1, 2000)
    assert stats.tail(far) == pytest.approx(norm.sf(5), rel=0.5)
    assert stats.tail(np.full(99, -1.0)) == 0.01 and stats.tail(np.zeros(99)) == 1 == stats.tail(np.full(9, np.nan))


@given(st.floats(1e-3, 0.49), st.integers(10, 100_000))
def test_few_images_widen_what_is_claimed(alpha, n):
    share = stats.narrowed(alpha, n)
    assert share <= alpha * (1 + 1e-9)
    if share > 1e-300:  # the normal tail of a few images' t quantile can be too small for a float
        assert stats.expanded(share, n) == pytest.approx(alpha, rel=1e-5)
    assert stats.narrowed(alpha, 10**7) == pytest.approx(alpha, rel=1e-3)
    assert (stats.expanded(1.0, n), stats.expanded(alpha, 1)) == (1.0, 1.0)


def test_interval_of_a_mean_over_20_images_is_students():
    value = np.random.default_rng(0).normal(50, 10, 20)
    low, high = stats.interval("mean", {"value": value}, resamples=40_000)
    wanted = ttest_1samp(value, 50).confidence_interval(0.95)
    assert [low, high] == pytest.approx([wanted.low, wanted.high], abs=0.4)


def test_pairwise_p_values_of_the_mean_are_those_of_the_t_test_on_many_images():
    rng = np.random.default_rng(3)
    a = rng.normal(50, 10, 800)
    b = a + rng.normal(0.35, 5, 800)
    (pair,) = stats.pairwise({"a": {"value": a}, "b": {"value": b}}, resamples=20_000)
    assert pair.p == pytest.approx(ttest_rel(a, b).pvalue, abs=0.015)


def test_other_images_and_kinds_are_refused():
    one = answers(np.ones(10, bool))
    for other, message in (
        ({name: array[:-1] for name, array in one.items()}, "10 test images against 9"),
        ({**one, "label": one["label"] + 1}, "labels differ"),
        ({"value": np.zeros(10)}, "no common kind"),
    ):
        with pytest.raises(UsageError, match=message):
            stats.pairwise({"a": one, "b": other})


def seeds(level, count, seed, n=500):
    rng = np.random.default_rng(seed)
    return [answers(rng.random(n) < level) for _ in range(count)]


def test_seeds_are_welchs_test_when_images_do_not_matter():
    a, b = [70.0, 71.0, 70.4], [69.0, 68.0, 69.5, 68.7]
    gap = paired.over_seeds(a, b, 0.0)
    assert gap.lower == pytest.approx(ttest_ind(b, a, equal_var=False, alternative="less").pvalue)
    assert gap.higher == pytest.approx(ttest_ind(b, a, equal_var=False, alternative="greater").pvalue)
    wanted = ttest_ind(b, a, equal_var=False).confidence_interval(0.9)
    assert [gap.low, gap.high] == pytest.approx([wanted.low, wanted.high])
    same = paired.over_seeds(a, b[:3], 0.0, matched=True)
    assert same.lower == pytest.approx(ttest_rel(b[:3], a, alternative="less").pvalue)


def test_images_widen_the_interval_of_seeds():
    a, b = [70.0, 70.2, 70.1], [69.8, 70.0, 70.3]
    alone, both = paired.over_seeds(a, b, 0.0), paired.over_seeds(a, b, 0.5)
    assert both.high - both.low > alone.high - alone.low
    single = paired.over_seeds([70.0], [69.0], 0.5)
    assert single.lower == pytest.approx(norm.cdf(-2)) and single.seed_error == 0


def test_seed_noise_alone_is_no_regression():
    """Two recipes whose seeds scatter by 2 points: single seeds differ for sure, the recipes do not."""
    rng, wrong, trials = np.random.default_rng(4), 0, 200
    for trial in range(trials):
        sides = [[answers(rng.random(800) < 0.7 + rng.normal(0, 0.02)) for _ in range(3)] for _ in range(2)]
        _, gap = paired.measure("x", *sides, resamples=200, seed=trial)
        wrong += gap.lower <= 0.05
    assert wrong / trials <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize("kind", SAMPLES)
def test_swapping_sides_swaps_the_signs(kind):
    a, b = SAMPLES[kind]
    forth, back = (paired.measure("x", [x], [y], resamples=300)[1] for x, y in ((a, b), (b, a)))
    assert forth.difference == -back.difference
    assert [forth.low, forth.high] == pytest.approx([-back.high, -back.low])
    assert (forth.lower, forth.higher) == (back.higher, back.lower)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.randoms())
def test_order_of_images_does_not_matter_and_equal_answers_give_exactly_0(pairs, random):
    a, b = (answers(np.array(side)) for side in zip(*pairs, strict=True))
    order = list(range(len(pairs)))
    random.shuffle(order)
    moved = [{name: array[order] for name, array in side.items()} for side in (a, b)]
    assert paired.measure("x", [a], [b], resamples=50) == paired.measure("x", *([side] for side in moved), resamples=50)
    _, equal = paired.measure("x", [a], [a], resamples=50)
    assert (equal.difference, equal.low, equal.high, equal.lower, equal.higher) == (0, 0, 0, 1, 1)


def test_statistics_and_the_gate_load_no_torch():
    modules = ("stats", "paired", "sides", "scores", "revision", "compare", "verdict", "verdict_forms")
    code = f"import sys, {', '.join(f'suite.{name}' for name in modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parent.parent).returncode == 0


def test_patterns_of_several_networks_are_drawn_with_their_frequencies():
    rights = np.array(list(itertools.product([0, 1], repeat=3)) * 40, bool).T  # 3×320, every pattern 40 times
    drawn = stats.draws("top1", [answers(right) for right in rights], 4000, 0)
    np.testing.assert_allclose(drawn.mean(axis=1), 50, atol=0.3)
    np.testing.assert_allclose(np.corrcoef(drawn), np.eye(3), atol=0.06)
