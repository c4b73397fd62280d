# SPDX-License-Identifier: Apache-2.0
"""Metrics against scikit-learn and against loops written from the definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score, top_k_accuracy_score

from suite import metrics


def devkit_ap(target, score):
    """Average precision as VOCap.m of the VOC 2012 devkit has it: sentinels, envelope, recall steps."""
    order = sorted(range(len(target)), key=lambda i: -score[i])
    ranked = [target[i] for i in order if target[i] != 0]
    positives = sum(t > 0 for t in ranked)
    recall, precision, tp = [0.0], [0.0], 0
    for i, t in enumerate(ranked, 1):
        tp += t > 0
        recall.append(tp / positives)
        precision.append(tp / i)
    recall.append(1.0)
    precision.append(0.0)
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


def test_accuracy_is_scikit_learns():
    rng = np.random.default_rng(0)
    label, pred = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    assert metrics.accuracy(label, pred) == pytest.approx(100 * accuracy_score(label, pred))
    assert np.isnan(metrics.accuracy([], []))
    with pytest.raises(ValueError, match="shape"):
        metrics.accuracy([1, 2], [1])


@pytest.mark.parametrize("k", [1, 3, 5, 10, 20])
def test_topk_is_scikit_learns(k):
    rng = np.random.default_rng(k)
    label, scores = rng.integers(0, 10, 300), rng.normal(size=(300, 10))
    expected = 100.0 if k >= 10 else 100 * top_k_accuracy_score(label, scores, k=k, labels=np.arange(10))
    assert metrics.topk(label, scores, k) == pytest.approx(expected)


def test_topk_of_a_constant_or_broken_output_is_chance_or_less():
    label = np.repeat(np.arange(10), 10)
    assert metrics.topk(label, np.zeros((100, 10)), 1) == 10
    assert metrics.topk(label, np.full((100, 10), np.nan), 5) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_average_precision_is_the_devkits(seed, n):
    rng = np.random.default_rng(seed)
    target, score = rng.choice([-1, -1, 0, 1], n), rng.permutation(n).astype(float)
    ours = metrics.average_precision(target, score)
    if (target == 1).any():
        assert ours == pytest.approx(devkit_ap(target, score), abs=1e-12)
    else:
        assert np.isnan(ours)


def test_difficult_entries_change_nothing():
    rng = np.random.default_rng(1)
    target, score = rng.choice([-1, 1], 50), rng.normal(size=50)
    more_targets, more_scores = np.append(target, [0, 0]), np.append(score, [9.0, -9.0])
    assert metrics.average_precision(more_targets, more_scores) == metrics.average_precision(target, score)


def test_mean_average_precision_leaves_out_classes_without_positives():
    targets = np.array([[1, -1], [-1, -1], [1, 0]])
    mean, per_class = metrics.mean_average_precision(targets, np.array([[0.9, 0.1], [0.5, 0.2], [0.4, 0.3]]))
    assert mean == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert np.isnan(per_class[1])


def test_iou_is_scikit_learns_and_ignores_classes_that_never_occur():
    rng = np.random.default_rng(2)
    true, pred = rng.integers(0, 4, 500), rng.integers(0, 4, 500)
    confusion = np.zeros((5, 5), np.int64)
    np.add.at(confusion, (true, pred), 1)
    per_class = metrics.iou_per_class(confusion)
    assert per_class[:4] == pytest.approx(100 * jaccard_score(true, pred, average=None))
    assert np.isnan(per_class[4])
    assert metrics.mean_iou(confusion) == pytest.approx(per_class[:4].mean())


def detections(seed, images=12, classes=3, n=80):
    rng = np.random.default_rng(seed)
    n_gt = rng.integers(0, 4, (images, classes))
    image, cls = rng.integers(0, images, n), rng.integers(0, classes, n)
    left = n_gt.copy()
    tp = np.zeros(n, bool)
    for i in range(n):
        if left[image[i], cls[i]] and rng.random() < 0.6:
            tp[i] = True
            left[image[i], cls[i]] -= 1
    ignored = ~tp & (rng.random(n) < 0.2)
    score = rng.permutation(n) / n
    return {"image": image, "cls": cls, "score": score, "tp": tp, "ignored": ignored, "n_gt": n_gt}


def naive_detection_ap(a, indices):
    """AP of the images in `indices`, each drawn image standing for itself: copies are listed one by one."""
    aps = []
    for c in range(a["n_gt"].shape[1]):
        positives = sum(a["n_gt"][i, c] for i in indices)
        if not positives:
            continue
        rows = [
            (a["score"][d], bool(a["tp"][d]))
            for i in indices
            for d in range(len(a["image"]))
            if a["image"][d] == i and a["cls"][d] == c and not a["ignored"][d]
        ]
        rows.sort(key=lambda r: -r[0])
        curve, found = [], 0
        for rank, (_, hit) in enumerate(rows, 1):
            found += hit
            curve.append((found / positives, found / rank))
        area, last = 0.0, 0.0
        for i, (recall, _) in enumerate(curve):
            area += (recall - last) * max(p for _, p in curve[i:])
            last = recall
        aps.append(area)
    return 100 * sum(aps) / len(aps)


@pytest.mark.parametrize("seed", range(5))
def test_detection_ap_is_the_naive_loops_on_all_images_and_on_resamples(seed):
    a = detections(seed)
    assert metrics.detection_ap(**a)[0] == pytest.approx(naive_detection_ap(a, range(12)))
    drawn = np.random.default_rng(seed).integers(0, 12, 12)
    assert metrics.headline("detection", a, drawn) == pytest.approx(naive_detection_ap(a, list(drawn)))


def test_no_detection_at_all_is_zero():
    empty = {name: np.zeros(0, int) for name in ("image", "cls", "score", "tp", "ignored")}
    assert metrics.detection_ap(**empty, n_gt=np.array([[1, 0]]))[0] == 0


def test_headline_is_each_metric_on_the_images_drawn():
    rng = np.random.default_rng(4)
    drawn = rng.integers(0, 30, 30)
    label, pred = rng.integers(0, 3, 30), rng.integers(0, 3, 30)
    arrays = {"label": label, "pred": pred}
    assert metrics.headline("top1", arrays, drawn) == metrics.accuracy(label[drawn], pred[drawn])
    targets, scores = rng.choice([-1, 1], (30, 4)), rng.normal(size=(30, 4))
    expected = 100 * np.mean([devkit_ap(targets[drawn, c], scores[drawn, c]) for c in range(4)])
    assert metrics.headline("map", {"targets": targets, "scores": scores}, drawn) == pytest.approx(expected)
    confusion = rng.integers(0, 200, (30, 3, 3)).astype(np.uint8)
    expected = metrics.mean_iou(confusion.astype(int).sum(axis=0))
    assert metrics.headline("miou", {"confusion": confusion}) == expected


@pytest.mark.parametrize("kind", list(metrics.PREDICTIONS))
def test_counted_resamples_are_listed_resamples(kind):
    rng = np.random.default_rng(7)
    n = 12
    arrays = {
        "top1": {"label": rng.integers(0, 3, n), "pred": rng.integers(0, 3, n)},
        "mean": {"value": 100 * rng.random(n)},
        "map": {"targets": rng.choice([-1, 0, 1], (n, 4)), "scores": rng.integers(0, 6, (n, 4)) / 6},
        "miou": {"confusion": rng.integers(0, 3, (n, 5, 5))},
        "detection": detections(3) | {"score": rng.integers(0, 20, 80) / 20},
    }[kind]
    drawn = rng.integers(0, n, (40, n))
    counts = np.stack([np.bincount(row, minlength=n) for row in drawn])
    one_by_one = [metrics.headline(kind, arrays, row) for row in drawn]
    assert metrics.resampled(kind, arrays, counts) == pytest.approx(one_by_one)


def test_kind_is_read_from_the_arrays():
    assert metrics.kind_of({"label": [1], "pred": [1]}) == "top1"
    assert metrics.kind_of(detections(0)) == "detection"
    assert metrics.kind_of({"x": [1]}) is None
    assert metrics.samples("detection", detections(0)) == 12
    with pytest.raises(ValueError, match="unknown kind"):
        metrics.headline("bleu", {})
