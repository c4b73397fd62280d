# SPDX-License-Identifier: Apache-2.0
"""Annotations in PASCAL VOC layout as items for mmdet's transforms, and the average precision of the development kit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluators.mm.boxes import THRESHOLDS, Found, Score, iou
from suite.data.imageset import decode
from suite.data.voc import read_annotation
from suite.errors import UsageError
from suite.metrics import detection_ap

if TYPE_CHECKING:
    from suite.data.imageset import ImageSet


@dataclass(frozen=True)
class Boxes:
    """The annotated boxes of one picture."""

    boxes: np.ndarray
    "float32 M×4, x1 y1 x2 y2 in pixels."
    classes: np.ndarray
    "int64 M."
    difficult: np.ndarray
    "bool M."


def has_boxes(data: ImageSet) -> bool:
    """True for a set in VOC layout with an annotation of its first picture."""
    return data.paths is not None and len(data) > 0 and _annotation(data.paths[0]).is_file()


def items(data: ImageSet, masks: bool = False) -> list[dict[str, Any]]:
    """One item per picture of a VOC-layout set, in order, as mmdet's transforms take them.

    Coordinates are the file's minus one, as in mmdet. Difficult boxes carry `ignore_flag` 1.

    Args:
        data: in VOC layout.
        masks: not available in this layout.

    Raises:
        UsageError: the set has no VOC layout, or an annotation is missing or unreadable.
    """
    if data.paths is None or not has_boxes(data) or masks:
        wanted = "masks" if masks else "boxes in VOC layout (Annotations/*.xml beside JPEGImages)"
        raise UsageError(f"data set {data.name!r} has no {wanted}")
    index = {name: i for i, name in enumerate(data.classes)}
    return [_item(path, number, index) for number, path in enumerate(data.paths)]


def scorer(data: ImageSet, masks: bool = False) -> Score:
    """The average precision of detections in a VOC-layout set; arguments and errors as for `items`."""
    return partial(score, targets=[truth(item) for item in items(data, masks)], classes=data.num_classes)


def _annotation(path: Path) -> Path:
    return path.parent.parent / "Annotations" / f"{path.stem}.xml"


def _item(path: Path, number: int, classes: dict[str, int]) -> dict[str, Any]:
    annotation = read_annotation(_annotation(path))
    height, width = annotation.size if all(annotation.size) else decode(path).shape[:2]
    instances = [
        {"bbox": [float(int(side) - 1) for side in box], "bbox_label": classes[name], "ignore_flag": int(difficult)}
        for name, difficult, box in annotation.objects
        if name in classes
    ]
    return {"img_path": str(path), "img_id": number, "height": height, "width": width, "instances": instances}


def truth(item: dict[str, Any]) -> Boxes:
    """The boxes of an item of `items`."""
    instances = item["instances"]
    return Boxes(
        np.array([i["bbox"] for i in instances], dtype=np.float32).reshape(-1, 4),
        np.array([i["bbox_label"] for i in instances], dtype=np.int64),
        np.array([i["ignore_flag"] for i in instances], dtype=bool),
    )


def match(
    boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray, target: Boxes, thresholds: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections of one picture are hits, by the rules of the VOC development kit (`VOCevaldet.m`).

    A detection belongs to the box of its class that it overlaps most; by falling score, the first to reach the
    threshold on a box is a hit, later ones are false; one on a difficult box counts neither way.

    Args:
        boxes: N×4.
        classes: N.
        scores: N.
        target: the annotated boxes.
        thresholds: T least overlaps.

    Returns:
        bool T×N hits and bool T×N ignored.
    """
    hit = np.zeros((len(thresholds), len(boxes)), dtype=bool)
    ignored = np.zeros_like(hit)
    for c in np.unique(classes):
        of_class = np.flatnonzero(target.classes == c)
        mine = np.flatnonzero(classes == c)
        if not of_class.size:
            continue
        mine = mine[np.argsort(-scores[mine], kind="stable")]
        overlap = iou(boxes[mine], target.boxes[of_class])
        best, reach = overlap.argmax(axis=1), overlap.max(axis=1)
        difficult = target.difficult[of_class][best]
        for t, threshold in enumerate(thresholds):
            on = reach >= threshold
            ignored[t, mine] = on & difficult
            candidates = np.flatnonzero(on & ~difficult)
            _, first = np.unique(best[candidates], return_index=True)
            hit[t, mine[candidates[first]]] = True
    return hit, ignored


def score(
    detections: Sequence[Found], targets: Sequence[Boxes], classes: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Average precision of detections, and the matches at an overlap of 0.5 behind it.

    Args:
        detections: per picture.
        targets: the annotated boxes per picture.
        classes: number of classes.

    Returns:
        `ap50`, `ap75`, `map` and `ap50.11point` in percent; the arrays of the "detection" predictions.

    Raises:
        UsageError: no box to find.
    """
    n_gt = np.stack([np.bincount(t.classes[~t.difficult], minlength=classes) for t in targets])  # N×C
    if not n_gt.sum():
        raise UsageError("the test pictures have no annotated box that is not difficult")
    matched = [match(d.boxes, d.classes, d.scores, t, THRESHOLDS) for d, t in zip(detections, targets, strict=True)]
    tp = np.concatenate([hit for hit, _ in matched], axis=1)  # T×M
    ignored = np.concatenate([skip for _, skip in matched], axis=1)  # T×M
    arrays: dict[str, np.ndarray] = {
        "image": np.repeat(np.arange(len(detections)), [len(d.boxes) for d in detections]),
        "cls": np.concatenate([d.classes for d in detections]).astype(np.int64),
        "score": np.concatenate([d.scores for d in detections]),
        "n_gt": n_gt,
    }
    values = [detection_ap(**arrays, tp=t, ignored=i)[0] for t, i in zip(tp, ignored, strict=True)]
    arrays |= {"tp": tp[0], "ignored": ignored[0]}
    eleven = eleven_point_ap(arrays["cls"], arrays["score"], tp[0], ignored[0], n_gt.sum(axis=0))
    scores = {"ap50": values[0], "ap75": values[THRESHOLDS.index(0.75)], "map": float(np.mean(values))}
    return scores | {"ap50.11point": eleven}, arrays


def eleven_point_ap(cls: np.ndarray, score: np.ndarray, tp: np.ndarray, ignored: np.ndarray, total: np.ndarray) -> float:
    """Mean over classes of the precision at recalls 0, 0.1, ..., 1, in percent (VOC 2007 development kit).

    Args:
        cls: class per detection, M.
        score: confidence, M.
        tp: hits, M.
        ignored: detections that count neither way, M.
        total: boxes that are not difficult per class, C.
    """
    order = np.argsort(-score, kind="stable")
    order = order[~ignored[order]]
    values = []
    for c in np.flatnonzero(total):
        hit = tp[order][cls[order] == c]
        recall, precision = np.cumsum(hit) / total[c], np.cumsum(hit) / np.arange(1, len(hit) + 1)
        values.append(np.mean([precision[recall >= r].max(initial=0.0) for r in np.arange(11) / 10]))
    return float(100 * np.mean(values)) if values else float("nan")
