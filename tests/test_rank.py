# SPDX-License-Identifier: Apache-2.0
"""Geometry of features against formulas written out in float64, its invariances and extremes; and the t-SNE picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators import rank, tsne
from suite.bench import Bench
from suite.nn.neighbours import unit
from tests.bench_samples import embedded, evaluate, network, relabelled, saved


def normal(n, d, seed=0, scale=None):
    x = np.random.default_rng(seed).normal(size=(n, d))
    return (x * (np.ones(d) if scale is None else scale)).astype(np.float32)


def naive_rankme(x):
    singular = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    p = singular / np.abs(singular).sum() + 1e-7
    return np.exp(-sum(v * np.log(v) for v in p))


def naive_effective_rank(x):
    p = np.linalg.eigvalsh(np.cov(x.astype(np.float64), rowvar=False, bias=True))
    p = p[p > 1e-12 * p.sum()] / p.sum()
    return np.exp(-sum(v * np.log(v) for v in p))


def naive_uniformity(u):
    pairs = [np.exp(-2 * ((u[i] - u[j]) ** 2).sum()) for i in range(len(u)) for j in range(i)]
    return np.log(np.mean(pairs))


def of(x):
    plain, centred = rank.spectrum(x)
    return rank.rankme(plain), rank.effective_rank(centred, plain)


@pytest.mark.parametrize(("n", "d"), [(200, 20), (15, 40), (2, 3), (30, 30), (2500, 4)])
def test_ranks_are_the_formulas(n, d):
    x = normal(n, d, scale=np.logspace(0, -2, d)) + 0.5
    assert of(x) == (pytest.approx(naive_rankme(x), rel=1e-5), pytest.approx(naive_effective_rank(x), rel=1e-5))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(1, 24), st.floats(0.01, 100))
def test_ranks_do_not_change_under_rotation_and_scale_and_have_bounds(seed, n, d, factor):
    rng = np.random.default_rng(seed)
    x = normal(n, d, seed, np.exp(rng.normal(size=d)))
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    before, after = of(x), of((factor * x @ rotation).astype(np.float32))
    assert after == pytest.approx(before, rel=1e-4)
    for value in before:
        assert 1 - 1e-6 <= value <= min(n, d) * (1 + 1e-5)
    order = rng.permutation(n)
    assert of(x[order]) == pytest.approx(before, rel=1e-6)


def test_collapsed_features_have_rank_one_and_isotropic_ones_rank_d():
    one = np.outer(np.ones(100), normal(1, 64)[0]).astype(np.float32)
    assert of(one) == (pytest.approx(1, abs=1e-3), 0)
    line = np.outer(np.linspace(-1, 1, 100), normal(1, 64)[0]).astype(np.float32)
    assert of(line) == (pytest.approx(1, abs=1e-3), pytest.approx(1, abs=1e-6))
    assert of(np.zeros((10, 8), np.float32)) == (pytest.approx(1, abs=1e-3), 0)
    noisy = one * (1 + 1e-7 * normal(100, 64))
    assert of(noisy.astype(np.float32))[1] == 0
    corners = np.concatenate([np.eye(32), -np.eye(32)]).astype(np.float32)
    assert of(corners) == (pytest.approx(32, rel=1e-5), pytest.approx(32))
    assert of(normal(20_000, 16)) == (pytest.approx(16, rel=1e-3), pytest.approx(16, rel=1e-2))


def test_a_mean_lowers_rankme_but_not_the_effective_rank():
    x = normal(500, 10)
    assert of(x + 20)[0] < 2 < of(x)[0] and of(x + 20)[1] == pytest.approx(of(x)[1], rel=1e-4)


def test_feature_std_is_one_for_all_directions_and_zero_for_one():
    assert rank.feature_std(unit(normal(20_000, 32))) == pytest.approx(1, abs=0.01)
    assert rank.feature_std(unit(np.ones((50, 32), np.float32))) == 0
    u = unit(normal(40, 6) + 1)
    assert rank.feature_std(u) == pytest.approx(np.sqrt(6) * np.mean([np.std(u[:, j].astype(np.float64)) for j in range(6)]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 10))
def test_uniformity_is_the_mean_over_pairs(seed, n, d):
    x = normal(n, d, seed)
    x[0] = 0 if seed % 2 else x[0]
    u = unit(x)
    assert rank.uniformity(u) == pytest.approx(naive_uniformity(u.astype(np.float64)), abs=1e-5)


def test_uniformity_extremes_and_little_memory(monkeypatch):
    assert rank.uniformity(unit(np.ones((50, 4), np.float32))) == pytest.approx(0, abs=1e-5)
    u = unit(normal(600, 64))
    whole = rank.uniformity(u)
    assert whole == pytest.approx(naive_uniformity(u[:200].astype(np.float64)), abs=0.02)
    real = torch.Tensor.triu_

    def small(self, diagonal):
        if len(self) > 50:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return real(self, diagonal)

    monkeypatch.setattr(torch.Tensor, "triu_", small)
    assert rank.uniformity(u) == pytest.approx(whole, abs=1e-9)


def test_alignment_is_the_mean_squared_distance():
    first, second = unit(normal(30, 5)), unit(normal(30, 5, seed=1))
    expected = np.mean([((a - b) ** 2).sum() for a, b in zip(first.astype(np.float64), second.astype(np.float64), strict=True)])
    assert rank.alignment(first, second) == pytest.approx(expected)
    assert rank.alignment(first, first) == 0
    assert rank.alignment(first, -first) == pytest.approx(4, abs=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("rank") / "run", network())


def test_both_presets_through_the_real_bench(run):
    sources = embedded(90, 60)
    for preset, images in (("default", 60), ("train", 90)):
        result = evaluate(rank.EVALUATOR, run, sources, preset)
        assert result.status == "ok" and set(result.metrics) == {metric.name for metric in rank.EVALUATOR.metrics}
        assert 1 < result.metrics["effective_rank"] < result.metrics["rankme"] < images
        assert 0 < result.metrics["feature_std"] < 1 and 0 < result.metrics["alignment"] < 4
        assert -4 < result.metrics["uniformity"] < 0


def test_labels_are_not_read(run):
    sources = embedded(20, 60)
    blind = sources.changed("test", lambda images: relabelled(images, None))
    assert evaluate(rank.EVALUATOR, run, blind).metrics == evaluate(rank.EVALUATOR, run, sources).metrics


def test_a_choice_of_images_is_seeded(run):
    sources, few = embedded(20, 60), ("images=30", "pairs=20")
    one, same, other = (evaluate(rank.EVALUATOR, run, sources, "", [*few, f"seed={seed}"]).metrics for seed in (0, 0, 1))
    assert one == same and all(one[name] != other[name] for name in one)


def test_smaller_crops_align_less(run):
    sources = embedded(20, 60)
    wild, mild = (evaluate(rank.EVALUATOR, run, sources, "", [f"crop_min={c}"]).metrics["alignment"] for c in (0.08, 0.9))
    assert wild > mild > 0


def test_one_image_and_broken_features_are_one_line(run, monkeypatch):
    sources = embedded(20, 20)
    single = sources.changed("test", lambda images: images.subset([0]))
    for evaluator, least in ((rank.EVALUATOR, "two images or more"), (tsne.EVALUATOR, "8 images or more")):
        result = evaluate(evaluator, run, single, debug=False)
        assert result.status == "failed" and least in result.why
    monkeypatch.setattr(Bench, "features", lambda self, b, i, layers: {layers[0]: np.full((len(i), 4), np.nan, np.float32)})
    for evaluator in (rank.EVALUATOR, tsne.EVALUATOR):
        result = evaluate(evaluator, run, sources, debug=False)
        assert result.status == "failed" and "features of pooled are not finite" in result.why
    monkeypatch.setattr(Bench, "features", lambda self, b, i, layers: {layers[0]: np.ones((len(i), 4), np.float32)})
    result = evaluate(tsne.EVALUATOR, run, sources, debug=False)
    assert result.status == "failed" and "nothing to project" in result.why


def test_tsne_keeps_points_that_show_clusters_and_repeats_itself(run, monkeypatch):
    labels = embedded(20, 120).sets["digits", "test"].labels
    x = 5 * np.eye(10)[labels] + 0.3 * normal(120, 10)
    monkeypatch.setattr(Bench, "features", lambda self, b, i, layers: {layers[0]: x.astype(np.float32)})
    kept = []
    for seed in (0, 0, 1):
        result = evaluate(tsne.EVALUATOR, run, embedded(20, 120), "", [f"seed={seed}", "images=100"])
        assert result.status == "ok" and 80 < result.metrics["trustworthiness"] <= 100
        kept.append(run.artifact(result, "tsne"))
    one, same, other = kept
    assert set(one) == {"xy", "label"} and one["xy"].shape == (100, 2) and one["label"].shape == (100,)
    np.testing.assert_array_equal(one["xy"], same["xy"])
    assert not np.array_equal(one["label"], other["label"])
    apart = np.linalg.norm(one["xy"][:, None] - one["xy"], axis=2) + 1e9 * np.eye(100)
    assert (one["label"][apart.argmin(1)] == one["label"]).mean() > 0.9


@pytest.mark.parametrize(("n", "d"), [(8, 3), (9, 1), (30, 60)])
def test_tsne_of_few_images_and_features(n, d):
    points = tsne.project(normal(n, d), tsne.TSNEConfig())
    assert points.shape == (n, 2) and points.dtype == np.float32 and np.isfinite(points).all()
