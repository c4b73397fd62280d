# SPDX-License-Identifier: Apache-2.0
"""PASCAL VOC annotations as items for OpenMMLab transforms, and the matching of detections to boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from suite.data.imageset import decode
from suite.data.voc import read_annotation, read_ids
from suite.errors import UsageError

if TYPE_CHECKING:
    from suite.data.imageset import ImageSet


CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Ids of the classes that are trained and tested, in their order (cityscapesScripts, `labels.py`)."""


@dataclass(frozen=True)
class Boxes:
    """The annotated boxes of one picture."""

    boxes: np.ndarray
    "float32 M×4, x1 y1 x2 y2 in pixels."
    classes: np.ndarray
    "int64 M."
    difficult: np.ndarray
    "bool M."


def detection_items(data: ImageSet) -> list[dict[str, Any]]:
    """One item per picture of a VOC-layout set, in order, as mmdet's transforms take them.

    Coordinates are the file's minus one, as in mmdet. Difficult boxes carry `ignore_flag` 1.

    Raises:
        UsageError: the set has no VOC layout, or an annotation is missing or unreadable.
    """
    if data.paths is None or not len(data) or not _annotation(data.paths[0]).is_file():
        raise UsageError(f"data set {data.name!r} has no boxes in VOC layout (Annotations/*.xml beside JPEGImages)")
    index = {name: i for i, name in enumerate(data.classes)}
    return [_item(path, number, index) for number, path in enumerate(data.paths)]


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
    """The boxes of an item of `detection_items`."""
    instances = item["instances"]
    return Boxes(
        np.array([i["bbox"] for i in instances], dtype=np.float32).reshape(-1, 4),
        np.array([i["bbox_label"] for i in instances], dtype=np.int64),
        np.array([i["ignore_flag"] for i in instances], dtype=bool),
    )


def segmentation_items(data: ImageSet, lists: Sequence[tuple[str, str]] = ()) -> list[dict[str, Any]]:
    """One item per picture with a label map, as mmseg's transforms take them.

    Args:
        data: with label maps of its own, or in VOC layout.
        lists: VOC layout: pairs of a list in `ImageSets/Segmentation` and the folder of its label maps; empty: the list
            of the set's split and `SegmentationClass`.

    Raises:
        UsageError: no label maps, or a list that is missing.
    """
    if data.masks is not None and data.paths is not None and not lists:
        pairs = list(zip(data.paths, data.masks, strict=True))
    elif data.paths is not None and len(data):
        pairs = _listed(data.paths[0].parent.parent, lists or ((data.split, "SegmentationClass"),))
    else:
        raise UsageError(f"data set {data.name!r} has no label maps, so it cannot be segmented")
    return [_labelled(image, mask) for image, mask in pairs]


def _listed(folder: Path, lists: Sequence[tuple[str, str]]) -> list[tuple[Path, Path]]:
    pairs = []
    for name, maps in lists:
        for image in read_ids(folder / "ImageSets" / "Segmentation" / f"{name}.txt", name):
            pairs.append((folder / "JPEGImages" / f"{image}.jpg", folder / maps / f"{image}.png"))
    absent = next((mask for _, mask in pairs if not mask.is_file()), None)
    if absent is not None:
        raise UsageError(f"label map {str(absent)!r} is missing")
    return pairs


def _labelled(image: Path, mask: Path) -> dict[str, Any]:
    item = {"img_path": str(image), "seg_map_path": str(mask), "reduce_zero_label": False, "seg_fields": []}
    if mask.stem.endswith("_labelIds"):
        item["label_map"] = {i: CITYSCAPES_IDS.index(i) if i in CITYSCAPES_IDS else 255 for i in range(256)}
    return item


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes: N×4, M×4 -> N×M."""
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    other = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(other - corner, 0, None), axis=2)
    area_a, area_b = (np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b))
    return shared / np.maximum(area_a[:, None] + area_b[None] - shared, 1e-6)


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
