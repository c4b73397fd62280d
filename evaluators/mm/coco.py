# SPDX-License-Identifier: Apache-2.0
"""Annotations in COCO json (T.-Y. Lin et al., ECCV 2014) as items for mmdet's transforms, and pycocotools' precision."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluators.mm.boxes import THRESHOLDS, Found, Score
from suite.data.coco import image_folder_of, instances_file, read_json
from suite.data.imageset import decode
from suite.errors import UsageError

if TYPE_CHECKING:
    from suite.data.imageset import ImageSet

DETECTIONS = 100
"""Most detections per picture that count (COCO's `maxDets`)."""


@dataclass(frozen=True)
class Split:
    """The pictures of an image set with what the json says about each.

    Attributes:
        file: the json, for messages.
        sizes: height and width per picture.
        marks: annotations per picture.
        classes: category id to class number.
    """

    file: Path
    sizes: Sequence[tuple[int, int]]
    marks: Sequence[Sequence[Mapping[str, Any]]]
    classes: Mapping[Any, int]


def items(data: ImageSet, masks: bool = False) -> list[dict[str, Any]]:
    """One item per picture, in order, as mmdet's transforms take them; only those pictures that are in the set.

    Objects outside the picture or thinner than a pixel are left out, crowds carry `ignore_flag` 1, as in mmdet.

    Args:
        data: in COCO layout.
        masks: the objects' masks too.

    Raises:
        UsageError: no COCO json for the set, or annotations that cannot be used.
    """
    split = read(data, masks)
    assert data.paths is not None
    return [
        {
            "img_path": str(path), "img_id": number, "height": size[0], "width": size[1],
            "instances": [one for mark in marks if (one := _instance(mark, size, split.classes, masks)) is not None],
        }
        for number, (path, size, marks) in enumerate(zip(data.paths, split.sizes, split.marks, strict=True))
    ]  # fmt: skip


def scorer(data: ImageSet, masks: bool = False) -> Score:
    """The average precision of detections in a set in COCO layout; arguments and errors as for `items`."""
    split = read(data, masks)
    flat = [mark for of in split.marks for mark in of if masks and _shapeless(mark["segmentation"])]
    if flat:
        raise UsageError(
            f"{split.file}: {len(flat)} annotation(s) have no polygon of three points, first {flat[0].get('id')!r}"
        )
    return partial(score, truth=truth(split), pictures=len(data), classes=data.num_classes, masks=masks)


def _shapeless(shape: Any) -> bool:
    return isinstance(shape, list) and not _polygons(shape)


def read(data: ImageSet, masks: bool) -> Split:
    """Find the json of a set and check every annotation of its pictures.

    Raises:
        UsageError: as for `items`.
    """
    if data.root is None or data.paths is None or not (data.root / "annotations").is_dir():
        other = "masks" if masks else "boxes in VOC layout (Annotations/*.xml beside JPEGImages) or"
        raise UsageError(f"data set {data.name!r} has no {other} in COCO json (annotations/instances_{data.split}*.json)")
    file = instances_file(data.root, data.split)
    content, _ = read_json(file)
    folder = data.root / image_folder_of(data.root, file.stem.removeprefix("instances_"), content)
    classes = {c["id"]: i for i, c in enumerate(sorted(content["categories"], key=lambda category: category["id"]))}
    of_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for mark in content.get("annotations", ()):
        of_image[mark["image_id"]].append(mark)
    by_file = {str(folder / image["file_name"]): image for image in content["images"]}
    if len(by_file) < len(content["images"]):
        raise UsageError(f"{file}: {len(content['images']) - len(by_file)} image(s) have the file name of another")
    chosen = [by_file[str(path)] for path in data.paths]
    sizes = [_size(image, path) for image, path in zip(chosen, data.paths, strict=True)]
    marks = [of_image[image["id"]] for image in chosen]
    wrong = [
        (mark, why)
        for size, of in zip(sizes, marks, strict=True)
        for mark in of
        if (why := problem(mark, size, masks)) is not None
    ]
    if wrong:
        mark, why = wrong[0]
        raise UsageError(f"{file}: {len(wrong)} annotation(s) cannot be used, first {mark.get('id')!r} ({why})")
    return Split(file, sizes, marks, classes)


def _size(image: Mapping[str, Any], path: Path) -> tuple[int, int]:
    height, width = image.get("height"), image.get("width")
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        return height, width
    shape = decode(path).shape
    return int(shape[0]), int(shape[1])


def problem(mark: Mapping[str, Any], size: tuple[int, int], masks: bool) -> str | None:
    """Why an annotation cannot be used, or None."""
    box = mark.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_number(side) for side in box):
        return "bbox is no list of four numbers"
    if box[2] < 0 or box[3] < 0:
        return "bbox has a negative side"
    if not masks:
        return None
    shape = mark.get("segmentation")
    if isinstance(shape, list):
        return None  # an object without a proper polygon is ignored in training; `scorer` refuses it
    if not isinstance(shape, dict):
        return "no segmentation"
    if shape.get("size") != list(size):
        return f"run lengths for size {shape.get('size')}, the picture has {list(size)}"
    counts = shape.get("counts")
    if isinstance(counts, list):
        whole = all(isinstance(count, int) and count >= 0 for count in counts)
        return None if whole and sum(counts) == size[0] * size[1] else "run lengths do not add up to the picture"
    return None if isinstance(counts, str) else "no run lengths"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _polygons(shape: list[Any]) -> list[list[float]]:
    """The polygons that have an area: three points or more."""
    lists = [p for p in shape if isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0]
    return [p for p in lists if all(_number(value) for value in p)]


def _instance(mark: Mapping[str, Any], size: tuple[int, int], classes: Mapping[Any, int], masks: bool) -> dict[str, Any] | None:
    left, top, width, height = mark["bbox"]
    inside = min(left + width, size[1]) > max(left, 0) and min(top + height, size[0]) > max(top, 0)
    if not inside or width < 1 or height < 1 or not mark.get("area", 1) > 0:
        return None
    one = {"bbox": [left, top, left + width, top + height], "bbox_label": classes[mark["category_id"]]}
    one["ignore_flag"] = int(bool(mark.get("iscrowd")))
    if masks:
        shape = mark["segmentation"]
        one["mask"] = _polygons(shape) if isinstance(shape, list) else shape
    return one


def truth(split: Split) -> dict[str, Any]:
    """What pycocotools compares with: pictures and classes by number, annotations counted from 1 (it takes 0 for none)."""
    marks: list[dict[str, Any]] = []
    images = []
    for number, (size, of) in enumerate(zip(split.sizes, split.marks, strict=True)):
        images.append({"id": number, "height": size[0], "width": size[1]})
        for mark in of:
            one: dict[str, Any] = {"id": len(marks) + 1, "image_id": number, "category_id": split.classes[mark["category_id"]]}
            one |= {"bbox": mark["bbox"], "iscrowd": int(bool(mark.get("iscrowd")))}
            one["area"] = mark["area"] if _number(mark.get("area")) else mark["bbox"][2] * mark["bbox"][3]
            shape = mark.get("segmentation")
            one["segmentation"] = _polygons(shape) if isinstance(shape, list) else shape
            marks.append(one)
    categories = [{"id": number} for number in split.classes.values()]
    return {"images": images, "annotations": marks, "categories": categories}


def score(
    detections: Sequence[Found], truth: Mapping[str, Any], pictures: int, classes: int, masks: bool
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """COCO's average precision of boxes, and of masks.

    Args:
        detections: per picture.
        truth: of `truth`.
        pictures: how many.
        classes: how many.
        masks: compare masks too.

    Returns:
        `ap50`, `ap75`, `map` and with masks `mask_ap50`, `mask_ap75`, `mask_map` in percent; the arrays of the
        "detection" predictions, of boxes at an overlap of 0.5.

    Raises:
        UsageError: no object to find.
    """
    if all(mark["iscrowd"] for mark in truth["annotations"]):
        raise UsageError("the test pictures have no annotated object that is not a crowd")
    boxes = evaluate(detections, truth, "bbox")
    scores = precision(boxes)
    if masks:
        scores |= {f"mask_{name}": value for name, value in precision(evaluate(detections, truth, "segm")).items()}
    return scores, matches(boxes, pictures, classes)


def evaluate(detections: Sequence[Found], truth: Mapping[str, Any], kind: str) -> Any:
    """A `COCOeval` that has accumulated, for objects of any size; `kind` is `bbox` or `segm`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        target = COCO()
        target.dataset = {**truth, "annotations": [dict(mark) for mark in truth["annotations"]]}  # it writes into them
        target.createIndex()
        rows = [row for number, found in enumerate(detections) for row in _rows(number, found, kind)]
        result = target.loadRes(rows) if rows else _nothing(target)
        evaluation = COCOeval(target, result, kind)
        evaluation.params.iouThrs = np.array(THRESHOLDS)
        evaluation.params.maxDets = [DETECTIONS]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _nothing(target: Any) -> Any:
    """No detection at all, which `loadRes` cannot say."""
    result = type(target)()
    result.dataset = {**target.dataset, "annotations": []}
    result.createIndex()
    return result


def _rows(number: int, found: Found, kind: str) -> list[dict[str, Any]]:
    common = [
        {"image_id": number, "category_id": int(c), "score": float(s)} for c, s in zip(found.classes, found.scores, strict=True)
    ]
    if kind == "segm":
        return [{**row, "segmentation": mask} for row, mask in zip(common, found.masks, strict=True)]
    corners = found.boxes.astype(np.float64)
    corners[:, 2:] -= corners[:, :2]
    return [{**row, "bbox": box} for row, box in zip(common, corners.tolist(), strict=True)]


def precision(evaluation: Any) -> dict[str, float]:
    """Mean over classes that have an object, in percent."""
    found = evaluation.eval["precision"][..., 0, 0]  # T×101×C, -1 without an object
    per_threshold = [100 * float(at[at > -1].mean()) for at in found]
    return {"ap50": per_threshold[0], "ap75": per_threshold[THRESHOLDS.index(0.75)], "map": float(np.mean(per_threshold))}


def matches(evaluation: Any, pictures: int, classes: int) -> dict[str, np.ndarray]:
    """The arrays of "detection" predictions at an overlap of 0.5, picture by picture."""
    parts = [one for one in evaluation.evalImgs if one is not None]
    parts.sort(key=lambda one: one["image_id"])
    n_gt = np.zeros((pictures, classes), dtype=np.int64)
    for one in parts:
        n_gt[one["image_id"], one["category_id"]] = int((np.asarray(one["gtIgnore"]) == 0).sum())
    counts = [len(one["dtScores"]) for one in parts]
    ignored = np.concatenate([np.asarray(one["dtIgnore"])[0].astype(bool) for one in parts])
    hit = np.concatenate([np.asarray(one["dtMatches"])[0] > 0 for one in parts])
    return {
        "image": np.repeat([one["image_id"] for one in parts], counts),
        "cls": np.repeat([one["category_id"] for one in parts], counts),
        "score": np.concatenate([np.asarray(one["dtScores"], dtype=np.float32) for one in parts]),
        "tp": hit & ~ignored, "ignored": ignored, "n_gt": n_gt,
    }  # fmt: skip
