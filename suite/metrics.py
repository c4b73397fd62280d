# SPDX-License-Identifier: Apache-2.0
"""The metrics of every benchmark in NumPy, and the stored predictions from which each is computed again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[Any]
Kind = Literal["top1", "mean", "map", "miou", "detection"]

PREDICTIONS: Mapping[str, tuple[str, ...]] = {
    "top1": ("label", "pred"),
    "mean": ("value",),
    "map": ("targets", "scores"),
    "miou": ("confusion",),
    "detection": ("image", "cls", "score", "tp", "ignored", "n_gt"),
}
"""Kind of predictions to the arrays it needs.

`top1`: label N, pred N. `mean`: value N in percent, one per image (the average precision of a query). `map`: targets N×C
in {1 present, 0 difficult, -1 absent}, scores N×C. `miou`: confusion N×C×C, one matrix [true, predicted] per image.
`detection`: one row per detection, already matched to the ground truth at one IoU (image M, cls M, score M, tp M, ignored
M: matched to a difficult box), and n_gt N×C, the number of boxes that are not difficult.
"""


def accuracy(label: ArrayLike, pred: ArrayLike) -> float:
    """Percentage of samples whose prediction is the label; nan without samples."""
    label, pred = np.asarray(label), np.asarray(pred)
    if label.shape != pred.shape:
        raise ValueError(f"labels {label.shape} and predictions {pred.shape} differ in shape")
    return float(100 * np.mean(label == pred)) if label.size else float("nan")


def topk(label: ArrayLike, scores: ArrayLike, k: int) -> float:
    """Percentage of samples whose label is among the k highest scores.

    Equal scores rank by class index, so a constant output earns no more than chance; a nan score never helps.

    Args:
        label: class index per sample, N.
        scores: N×C, higher means likelier.
        k: how many guesses count; more than C counts all.
    """
    label, scores = np.asarray(label), np.asarray(scores)
    if scores.ndim != 2 or label.shape != scores.shape[:1]:
        raise ValueError(f"labels {label.shape} do not fit scores {scores.shape}")
    if not label.size:
        return float("nan")
    own = np.take_along_axis(scores, label[:, None].astype(np.int64), axis=1)  # N×1
    tie = (scores == own) & (np.arange(scores.shape[1]) < label[:, None])
    rank = (~(scores <= own) | tie).sum(axis=1)
    return float(100 * np.mean(rank < k))


def average_precision(target: ArrayLike, score: ArrayLike) -> float:
    """Area under the monotone precision-recall curve over all points, 0 to 1.

    The PASCAL VOC measure since 2010 (VOC 2012 devkit, `VOCap.m`). Equal scores keep their order.

    Args:
        target: N in {1 present, 0 difficult: left out, -1 absent}.
        score: N.

    Returns:
        The average precision, nan without a positive.
    """
    target, score = np.asarray(target), np.asarray(score)
    if target.shape != score.shape or target.ndim != 1:
        raise ValueError(f"targets {target.shape} and scores {score.shape} must be two vectors of one length")
    hit = target[_descending(score)]
    hit = hit[hit != 0] > 0
    return _area(hit, int(hit.sum()))


def mean_average_precision(targets: ArrayLike, scores: ArrayLike) -> tuple[float, Array]:
    """Mean over classes of the average precision.

    Args:
        targets: N×C in {1 present, 0 difficult, -1 absent}.
        scores: N×C.

    Returns:
        The mean in percent over classes that have a positive, and per class C in percent (nan: none).
    """
    targets, scores = np.asarray(targets), np.asarray(scores)
    if targets.shape != scores.shape or targets.ndim != 2:
        raise ValueError(f"targets {targets.shape} and scores {scores.shape} must both be N×C")
    per_class = 100 * np.array([average_precision(t, s) for t, s in zip(targets.T, scores.T, strict=True)])
    return _mean(per_class), per_class


def iou_per_class(confusion: ArrayLike) -> Array:
    """Intersection over union per class in percent, nan for a class neither present nor predicted.

    Args:
        confusion: C×C pixel counts [true, predicted].
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    hit = np.diagonal(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hit
    return 100 * np.divide(hit, union, out=np.full(hit.shape, np.nan), where=union > 0)


def mean_iou(confusion: ArrayLike) -> float:
    """Mean over classes of the intersection over union, in percent, without classes that never occur."""
    return _mean(iou_per_class(confusion))


def detection_ap(
    image: ArrayLike, cls: ArrayLike, score: ArrayLike, tp: ArrayLike, ignored: ArrayLike, n_gt: ArrayLike
) -> tuple[float, Array]:
    """All-point average precision of matched detections at one IoU threshold (VOC 2010 and later).

    Args:
        image: image index per detection, M; only its length matters here.
        cls: class index per detection, M.
        score: confidence per detection, M.
        tp: whether the detection is a true positive, M.
        ignored: whether it matched a difficult box and counts neither way, M.
        n_gt: boxes that are not difficult, per image and class, N×C.

    Returns:
        The mean in percent over classes with at least one box, and per class C in percent (nan: no box).
    """
    image, cls, score, tp, ignored = (np.asarray(a) for a in (image, cls, score, tp, ignored))
    if not image.shape == cls.shape == score.shape == tp.shape == ignored.shape:
        raise ValueError("image, cls, score, tp and ignored must have one entry per detection")
    total = np.asarray(n_gt).sum(axis=0)  # C
    order = _descending(score)
    order = order[~ignored[order].astype(bool)]
    cls, hit = cls[order], tp[order].astype(bool)
    per_class = 100 * np.array([_area(hit[cls == c], int(n)) for c, n in enumerate(total)])
    return _mean(per_class), per_class


def kind_of(arrays: Mapping[str, ArrayLike]) -> str | None:
    """The kind of a set of prediction arrays, or None when it is no known one."""
    return next((kind for kind, names in PREDICTIONS.items() if all(name in arrays for name in names)), None)


def samples(kind: str, arrays: Mapping[str, ArrayLike]) -> int:
    """Number of images behind these predictions."""
    return len(np.asarray(arrays["n_gt" if kind == "detection" else PREDICTIONS[kind][0]]))


def headline(kind: str, arrays: Mapping[str, ArrayLike], indices: ArrayLike | None = None) -> float:
    """The metric of stored predictions in percent, on all images or on a resample of them.

    Args:
        kind: a key of `PREDICTIONS`.
        arrays: the arrays named there.
        indices: image indices, repetitions allowed; None: every image once.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in PREDICTIONS:
        raise ValueError(f"unknown kind of predictions {kind!r} (valid: {', '.join(PREDICTIONS)})")
    a = {name: np.asarray(arrays[name]) for name in PREDICTIONS[kind]}
    if indices is not None:
        a = _resample(kind, a, np.sort(indices))  # so that equal scores keep the order of the images
    if kind == "top1":
        return accuracy(a["label"], a["pred"])
    if kind == "mean":
        return _mean(a["value"].astype(np.float64))
    if kind == "map":
        return mean_average_precision(a["targets"], a["scores"])[0]
    if kind == "miou":
        return mean_iou(a["confusion"].sum(axis=0, dtype=np.int64))
    return detection_ap(**a)[0]


def resampled(kind: str, arrays: Mapping[str, ArrayLike], counts: ArrayLike) -> Array:
    """`headline` of many resamples at once.

    Copies of one image stand together in a ranking, and precision only rises over copies of a hit, so that
    counting each image `counts` times gives exactly what listing its copies would.

    Args:
        kind: a key of `PREDICTIONS`.
        arrays: the arrays named there.
        counts: how often each resample drew each image, R×N.

    Returns:
        The metric in percent per resample, R.
    """
    counts = np.asarray(counts)
    a = {name: np.asarray(arrays[name]) for name in PREDICTIONS[kind]}
    if kind == "top1":
        return 100 * (counts @ (a["label"] == a["pred"])) / counts.sum(axis=1)
    if kind == "mean":
        return counts @ a["value"].astype(np.float64) / counts.sum(axis=1)
    if kind == "miou":
        n, c, _ = a["confusion"].shape
        total = counts.astype(np.float64) @ a["confusion"].reshape(n, c * c).astype(np.float64)  # R×C²
        return np.array([mean_iou(one) for one in total.reshape(-1, c, c)])
    if kind == "map":
        pairs = zip(a["targets"].T, a["scores"].T, strict=True)
        columns = [_weighted_map_class(target, score, counts) for target, score in pairs]
        return _mean_columns(100 * np.stack(columns, axis=1))
    order = _descending(a["score"])
    order = order[~a["ignored"][order].astype(bool)]
    cls, hit, image = a["cls"][order], a["tp"][order].astype(bool), a["image"][order]
    total = counts @ a["n_gt"].astype(np.int64)  # R×C
    columns = [_weighted_area(hit[cls == c], counts[:, image[cls == c]], n) for c, n in enumerate(total.T)]
    return _mean_columns(100 * np.stack(columns, axis=1))


def _weighted_map_class(target: Array, score: Array, counts: Array) -> Array:
    order = _descending(score)
    order = order[target[order] != 0]
    hit = target[order] > 0
    weight = counts[:, order]
    return _weighted_area(hit, weight, weight[:, hit].sum(axis=1))


def _weighted_area(hit: Array, weight: Array, positives: Array) -> Array:
    """`_area` of R resamples: hit M, weight R×M (copies of each ranked entry), positives R."""
    if not hit.size:
        return np.where(positives > 0, 0.0, np.nan)
    seen = np.cumsum(weight, axis=1)
    precision = np.cumsum(weight * hit, axis=1) / np.maximum(seen, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    area = np.where(hit, weight * envelope, 0.0).sum(axis=1)
    return np.divide(area, positives, out=np.full(len(area), np.nan), where=positives > 0)


def _mean_columns(per_class: Array) -> Array:
    known = ~np.isnan(per_class)
    total = np.where(known, per_class, 0.0).sum(axis=1)
    return np.divide(total, known.sum(axis=1), out=np.full(len(total), np.nan), where=known.any(axis=1))


def _resample(kind: str, a: dict[str, Array], indices: Array) -> dict[str, Array]:
    if kind != "detection":
        return {name: array[indices] for name, array in a.items()}
    counts = np.bincount(indices, minlength=len(a["n_gt"]))
    rows = np.repeat(np.arange(len(a["image"])), counts[a["image"]])
    return {name: array[indices] if name == "n_gt" else array[rows] for name, array in a.items()}


def _descending(score: Array) -> Array:
    # nan sorts last in either direction, and a detector that answers nan has not found anything
    return np.argsort(-score.astype(np.float64), kind="stable")


def _area(hit: Array, positives: int) -> float:
    """Area under the precision envelope of a ranking, given its hits (booleans, best first)."""
    if positives == 0:
        return float("nan")
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hit].sum() / positives)


def _mean(per_class: Array) -> float:
    known = per_class[~np.isnan(per_class)]
    return float(known.mean()) if known.size else float("nan")
