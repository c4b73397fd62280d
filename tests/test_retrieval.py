# SPDX-License-Identifier: Apache-2.0
"""Retrieval against scikit-learn's average precision per query and a loop for R@k."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from evaluators import retrieval
from evaluators.retrieval import EVALUATOR, rankings
from suite.bench import Bench
from suite.errors import JobError
from tests.bench_samples import embedded, evaluate, network, relabelled, saved


def reference(queries, labels, gallery, gallery_labels, leave_out):
    """Average precision by scikit-learn and rank of the first hit by sorting, one query at a time."""
    found = {}
    for i, (q, label) in enumerate(zip(queries, labels, strict=True)):
        others = [j for j in range(len(gallery)) if not (leave_out and i == j)]
        relevant = np.array([gallery_labels[j] == label for j in others])
        if relevant.any():
            scores = np.array([gallery[j] @ q for j in others], np.float32)
            order = np.argsort(-scores, kind="stable")
            found[i] = average_precision_score(relevant, scores), int(relevant[order].argmax())
    return found


def check(got, expected):
    kept, precision, rank = got
    assert list(kept) == list(expected)
    np.testing.assert_allclose(precision, [ap for ap, _ in expected.values()], atol=1e-9)
    np.testing.assert_array_equal(rank, [first for _, first in expected.values()])


def exact(rng, n):
    """Unit rows whose products have no rounding, many of them equal."""
    signs = rng.choice([-0.5, 0.5], (n, 4))
    axes = np.eye(4)[rng.integers(0, 4, n)]
    return np.where(rng.random((n, 1)) < 0.5, signs, axes).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 6), st.sampled_from([1 << 26, 1]))
def test_ties_and_all_are_as_scikit_learn_has_them(seed, n, classes, room):
    rng = np.random.default_rng(seed)
    x, labels = exact(rng, n), rng.integers(0, classes, n)
    gallery, gallery_labels = exact(rng, 20), rng.integers(0, classes, 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "SIMILARITIES", room)
        check(rankings(x, labels), reference(x, labels, x, labels, True))
        check(rankings(x, labels, gallery, gallery_labels), reference(x, labels, gallery, gallery_labels, False))


def test_without_ties_too():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 400)
    x = (rng.normal(size=(5, 12))[labels] + 2 * rng.normal(size=(400, 12))).astype(np.float32)
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    check(rankings(x, labels), reference(unit, labels, unit, labels, True))


def test_order_of_the_images_does_not_matter_to_precision():
    rng = np.random.default_rng(1)
    x, labels = exact(rng, 60), rng.integers(0, 3, 60)
    order = rng.permutation(60)
    forth, back = rankings(x, labels)[1], rankings(x[order], labels[order])[1]
    np.testing.assert_allclose(back, forth[order], atol=1e-12)


def test_collapsed_features_score_the_share_of_relevant_images():
    labels = np.arange(40) % 4
    _, precision, _ = rankings(np.ones((40, 8), np.float32), labels)
    np.testing.assert_allclose(precision, 9 / 39)


def test_queries_are_halved_until_they_fit(monkeypatch):
    rng = np.random.default_rng(2)
    x, labels = rng.normal(size=(50, 6)).astype(np.float32), rng.integers(0, 4, 50)
    expected, real = rankings(x, labels), retrieval.similarities

    def small(bank, queries, **options):
        if len(queries) > 9:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return real(bank, queries, **options)

    monkeypatch.setattr(retrieval, "similarities", small)
    for ours, theirs in zip(rankings(x, labels), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_features_that_are_not_finite_are_refused():
    x = np.ones((6, 3), np.float32)
    x[4, 0] = np.nan
    with pytest.raises(JobError, match="features of stage2 are not finite"):
        rankings(x, np.arange(6) % 2, what="stage2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("retrieval") / "run", network())


def test_both_presets_through_the_real_bench(run):
    sources = embedded(240, 100)
    found = {preset: evaluate(EVALUATOR, run, sources, preset) for preset in EVALUATOR.presets}
    for result in found.values():
        assert result.status == "ok" and set(result.metrics) == {"map", "recall.k1", "recall.k5", "recall.k10"}
        assert 5 < result.metrics["map"] < 60
        assert result.metrics["recall.k1"] <= result.metrics["recall.k5"] <= result.metrics["recall.k10"]
    assert [sorted(name.rpartition("/")[2] for name in result.data) for result in found.values()] == [
        ["test"],
        ["test", "train"],
    ]


def test_metrics_are_means_over_queries(run, monkeypatch):
    sources = embedded(60, 50)
    images = sources.sets["digits", "test"]
    x = np.random.default_rng(3).normal(size=(50, 5)).astype(np.float32)
    monkeypatch.setattr(Bench, "features", lambda self, b, i, layers: {layers[0]: x})
    metrics = evaluate(EVALUATOR, run, sources).metrics
    _, precision, rank = rankings(x, images.labels)
    assert metrics["map"] == pytest.approx(100 * precision.mean())
    assert metrics["recall.k5"] == pytest.approx(100 * np.mean(rank < 5))


def test_gallery_shows_the_nearest_images(run):
    """One query per class, its neighbours by a float64 ranking, and their own pictures."""
    sources = embedded(60, 50)
    images = sources.sets["digits", "test"]
    rng = np.random.default_rng(4)
    x, bank = (rng.normal(size=(n, 5)).astype(np.float32) for n in (50, 60))
    for others in (None, bank):
        chosen, found = retrieval.nearest(x, images.labels, others)
        classes = images.labels[chosen].tolist()
        assert len(set(classes)) == len(classes) == min(retrieval.QUERIES, images.num_classes)
        against = (x if others is None else others).astype(np.float64)
        for query, row in zip(chosen, found, strict=True):
            scores = against @ x[query] / np.linalg.norm(against, axis=1)
            scores[query] = -np.inf if others is None else scores[query]
            assert row.tolist() == np.argsort(-scores)[: retrieval.NEIGHBOURS].tolist()


def test_gallery_is_kept_with_pictures_of_the_images_it_names(run, monkeypatch):
    sources = embedded(60, 50)
    images = sources.sets["digits", "test"]
    kept = {}
    monkeypatch.setattr(Bench, "artifact", lambda self, name, **arrays: kept.update({name: arrays}))
    evaluate(EVALUATOR, run, sources)
    shown = kept["gallery"]
    thumbs = shown["thumbs"]
    assert thumbs.dtype == np.uint8 and thumbs.shape[1:] == (retrieval.SIDE, retrieval.SIDE, 3)
    assert shown["right"].shape == shown["neighbours"].shape and shown["neighbours"].max() == len(thumbs) - 1
    first = np.flatnonzero(images.labels == images.labels[0])[0]
    small = thumbs[0].reshape(16, 3, 16, 3, 3).mean((1, 3))  # 48 -> 16 pixels
    picture = images.array[first].reshape(16, 2, 16, 2, 3).mean((1, 3))  # 32 -> 16
    assert np.abs(small - picture).mean() < 6


def test_edges_are_one_line_or_work(run):
    sources = embedded(60, 20)
    nothing = evaluate(EVALUATOR, run, sources.changed("test", lambda images: images.subset([0])), debug=False)
    assert nothing.status == "failed" and "has another of its class to find" in nothing.why
    unlabelled = evaluate(EVALUATOR, run, sources.changed("test", lambda images: relabelled(images, None)), debug=False)
    assert unlabelled.status == "failed" and "one label per image" in unlabelled.why
    one = sources.changed("test", lambda images: relabelled(images, np.zeros(len(images), np.int64)))
    assert evaluate(EVALUATOR, run, one).metrics["map"] == 100
