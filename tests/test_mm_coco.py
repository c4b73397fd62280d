# SPDX-License-Identifier: Apache-2.0
"""Detection on COCO json: reading, masks, average precision against pycocotools and by hand, and Mask R-CNN end to end."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from pycocotools import mask as run_lengths

from evaluators import detection
from evaluators.mm import coco
from evaluators.mm.boxes import Found
from suite.data import load
from suite.data.imageset import ImageSet
from suite.errors import UsageError
from suite.metrics import PREDICTIONS, headline
from tests.mm_samples import IDS, QUICK, FakeBench, network, one_thread, squares

SHAPE = {"img_shape": (64, 80), "ori_shape": (64, 80)}
MASKS = dataclasses.replace(QUICK, masks=True, norm=True, box_convs=1, mask_convs=1, mask_channels=8)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    squares(folder, "train", 24, 0)
    squares(folder, "val", 10, 1)
    return folder


@pytest.fixture
def own(root: Path, tmp_path: Path) -> Path:
    """A copy of the annotations that a test may change; the pictures are the same files."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "VOCdevkit").symlink_to(root / "VOCdevkit")
    for path in (root / "annotations").iterdir():
        (tmp_path / "annotations" / path.name).write_text(path.read_text())
    return tmp_path


def change(root: Path, edit: Callable[[dict[str, Any]], None], split: str = "val") -> None:
    path = root / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def perfect(data: ImageSet, shift: float = 0.0) -> list[Found]:
    """Every object as a detection, moved to the right by a part of its width."""
    found = []
    for item in coco.items(data, masks=True):
        boxes = np.array([one["bbox"] for one in item["instances"]], dtype=np.float32).reshape(-1, 4)
        moved = boxes + shift * (boxes[:, 2] - boxes[:, 0])[:, None] * np.array([1, 0, 1, 0], dtype=np.float32)
        masks = []
        for x1, y1, x2, y2 in np.round(moved).astype(int):
            mask = np.zeros((item["height"], item["width"]), dtype=np.uint8, order="F")
            mask[max(y1, 0) : y2, max(x1, 0) : x2] = 1
            masks.append(run_lengths.encode(mask))
        classes = np.array([one["bbox_label"] for one in item["instances"]], dtype=np.int64)
        found.append(Found(moved, classes, np.linspace(0.9, 0.5, len(boxes)).astype(np.float32), masks))
    return found


def test_items_hold_classes_boxes_and_masks_of_all_three_forms(root: Path) -> None:
    from mmdet.datasets.transforms import LoadAnnotations

    data = load("coco", "val", root)
    assert data.classes == ("green", "blue", "red"), "by category id"
    content = json.loads((root / "annotations" / "instances_val.json").read_text())
    order = sorted(IDS)
    forms = set()
    for item in coco.items(data, masks=True):
        marks = [m for m in content["annotations"] if m["image_id"] == 7 * item["img_id"]]
        assert [one["bbox_label"] for one in item["instances"]] == [order.index(m["category_id"]) for m in marks]
        shapes = [m["segmentation"] for m in marks]
        forms |= {type(shape["counts"]).__name__ if isinstance(shape, dict) else "polygons" for shape in shapes}
        loaded = LoadAnnotations(with_bbox=True, with_mask=True)(
            {**copy.deepcopy(item), "img_shape": (64, 80), "ori_shape": (64, 80)}
        )
        for mark, mask in zip(marks, loaded["gt_masks"].masks, strict=True):
            x, y, side, _ = mark["bbox"]
            assert mask.sum() == side * side and mask[y : y + side, x : x + side].all()
    assert forms == {"polygons", "str", "list"}


def test_perfect_detections_score_100_and_shifted_ones_what_their_overlap_says(root: Path) -> None:
    data = load("coco", "val", root)
    names = ("ap50", "ap75", "map", "mask_ap50", "mask_ap75", "mask_map")
    scores, arrays = coco.scorer(data, masks=True)(perfect(data))
    assert scores == pytest.approx(dict.fromkeys(names, 100.0))
    assert headline("detection", arrays) == pytest.approx(100) and set(arrays) == set(PREDICTIONS["detection"])
    # moved by a part p of its width, a square overlaps itself by (1 - p) / (1 + p)
    scores, _ = coco.scorer(data, masks=False)(perfect(data, shift=0.2))  # overlap 0.8 / 1.2 = 0.667
    assert (scores["ap50"], scores["ap75"], scores["map"]) == pytest.approx((100, 0, 40))
    scores, arrays = coco.scorer(data, masks=False)(perfect(data, shift=0.5))  # 1/3
    assert set(scores.values()) == {0.0} and not arrays["tp"].any()


def naive_ap(detections: list[Found], truth: dict[str, Any], threshold: float, classes: int) -> float:
    """COCO's box precision at 101 recalls for objects of any size, from its description; crowds absorb what overlaps them."""
    values = []
    for c in range(classes):
        rows, positives = [], 0
        for number, found in enumerate(detections):
            marks = [m for m in truth["annotations"] if m["image_id"] == number and m["category_id"] == c]
            positives += sum(not m["iscrowd"] for m in marks)
            free = {m["id"] for m in marks if not m["iscrowd"]}
            order = [i for i in np.argsort(-found.scores, kind="stable") if found.classes[i] == c][:100]
            for i in order:
                x1, y1, x2, y2 = found.boxes[i].astype(float)
                best, chosen = threshold, None
                crowded = False
                for m in marks:
                    u1, v1, w, h = m["bbox"]
                    shared = max(0, min(x2, u1 + w) - max(x1, u1)) * max(0, min(y2, v1 + h) - max(y1, v1))
                    area = (x2 - x1) * (y2 - y1)
                    overlap = shared / (area if m["iscrowd"] else area + w * h - shared)
                    if m["iscrowd"]:
                        crowded |= overlap >= threshold
                    elif m["id"] in free and overlap >= best:
                        best, chosen = overlap, m["id"]
                if chosen is not None:
                    free.discard(chosen)
                    rows.append((float(found.scores[i]), True))
                elif not crowded:
                    rows.append((float(found.scores[i]), False))
        if not positives:
            continue
        rows.sort(key=lambda row: -row[0])
        tp = np.cumsum([hit for _, hit in rows])
        recall, precision = tp / positives, tp / np.arange(1, len(rows) + 1)
        values.append(np.mean([max(precision[recall >= r], default=0.0) for r in np.linspace(0, 1, 101)]))
    return 100 * float(np.mean(values))


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_the_described_one_and_pycocotools(seed: int, own: Path) -> None:
    rng = np.random.default_rng(seed)

    def crowd(content: dict[str, Any]) -> None:
        for mark in content["annotations"]:
            mark["iscrowd"] = int(rng.random() < 0.2)

    change(own, crowd)
    data = load("coco", "val", own)
    found = [noisy(one, rng) for one in perfect(data)]
    truth = coco.truth(coco.read(data, masks=False))
    scores, arrays = coco.scorer(data, masks=True)(found)
    assert scores["ap50"] == pytest.approx(naive_ap(found, truth, 0.5, 3), abs=1e-9)
    assert scores["ap75"] == pytest.approx(naive_ap(found, truth, 0.75, 3), abs=1e-9)
    assert 0 < scores["map"] < scores["ap50"] < 100
    theirs = pycocotools(own / "annotations" / "instances_val.json", found)
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        ours = [scores[prefix + name] for name in ("map", "ap50", "ap75")]
        np.testing.assert_allclose(ours, 100 * theirs[kind][:3], atol=1e-9)
    assert arrays["n_gt"].sum() == sum(not mark["iscrowd"] for mark in truth["annotations"])
    assert headline("detection", arrays) == pytest.approx(scores["ap50"], abs=1.5)  # all recalls in place of 101


def noisy(found: Found, rng: np.random.Generator) -> Found:
    """Detections moved a little, doubled, some with another class."""
    twice = np.repeat(found.boxes, 2, axis=0) + rng.normal(0, 2, (2 * len(found.boxes), 4)).astype(np.float32)
    classes = np.repeat(found.classes, 2)
    classes = np.where(rng.random(len(classes)) < 0.2, rng.integers(0, 3, len(classes)), classes)
    masks = []
    for x1, y1, x2, y2 in np.round(twice).astype(int):
        mask = np.zeros((64, 80), dtype=np.uint8, order="F")
        mask[max(y1, 0) : y2, max(x1, 0) : x2] = 1
        masks.append(run_lengths.encode(mask))
    return Found(twice, classes, rng.random(len(classes)).astype(np.float32), masks)


def pycocotools(file: Path, detections: list[Found]) -> dict[str, np.ndarray]:
    """The twelve numbers that pycocotools prints for the untouched json, by its own ids."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    content = json.loads(file.read_text())
    for mark in content["annotations"]:
        mark["id"] += 1  # it takes an id of 0 for "no match"
    target = COCO()
    target.dataset = content
    target.createIndex()
    images, stats = sorted(image["id"] for image in content["images"]), {}
    for kind in ("bbox", "segm"):
        rows = []
        for image, found in zip(images, detections, strict=True):
            for box, c, s, mask in zip(found.boxes.tolist(), found.classes, found.scores, found.masks, strict=True):
                row = {"image_id": image, "category_id": sorted(IDS)[c], "score": float(s)}
                shape = {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
                rows.append({**row, **(shape if kind == "bbox" else {"segmentation": mask})})
        evaluation = COCOeval(target, target.loadRes(rows), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        stats[kind] = evaluation.stats
    return stats


def test_no_detection_at_all_scores_zero(root: Path) -> None:
    data = load("coco", "val", root)
    nothing = Found(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    scores, arrays = coco.scorer(data, masks=True)([nothing] * len(data))
    assert set(scores.values()) == {0.0} and len(scores) == 6
    assert headline("detection", arrays) == 0 and arrays["n_gt"].sum() > 0


def test_crowds_and_slivers_are_not_trained_on(own: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["annotations"][0] |= {"iscrowd": 1}
        content["annotations"].append({**content["annotations"][0], "id": 900, "iscrowd": 0, "bbox": [5, 5, 0.5, 20]})
        content["annotations"].append({**content["annotations"][0], "id": 901, "iscrowd": 0, "bbox": [90, 5, 10, 10]})

    change(own, edit, "train")
    items = coco.items(load("coco", "train", own), masks=True)
    assert items[0]["instances"][0]["ignore_flag"] == 1
    boxes = [one["bbox"] for item in items for one in item["instances"]]
    assert [5, 5, 5.5, 25] not in boxes and [90, 5, 100, 15] not in boxes


def test_a_picture_without_objects_is_tested_but_not_trained_on(own: Path) -> None:
    change(own, lambda content: content.update(annotations=[m for m in content["annotations"] if m["image_id"] != 7]))
    data = load("coco", "val", own)
    items = coco.items(data)
    assert len(items) == 10 and items[1]["instances"] == [] and not detection.trainable(items[1])
    assert detection.trainable(items[0]) and not detection.trainable({**items[0], "height": 20})
    scores, arrays = coco.scorer(data)(perfect(data))
    assert scores["ap50"] == pytest.approx(100) and len(arrays["n_gt"]) == 10


def mark(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][1].update(values)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (mark(bbox=[1, 2, 3]), r"1 annotation\(s\) cannot be used, first 1 \(bbox is no list of four numbers"),
        (mark(bbox=[1, 2, float("nan"), 4]), "four numbers"),
        (mark(bbox=[1, 2, -3, 4]), "negative side"),
        (mark(segmentation=None), "no segmentation"),
        (mark(segmentation=[[1, 2, 3, 4]]), "no polygon|no polygon of three points|have no polygon"),
        (mark(segmentation={"size": [64, 80], "counts": [10, 20]}), "do not add up"),
        (mark(segmentation={"size": [80, 64], "counts": "abc"}), r"run lengths for size \[80, 64\]"),
        (mark(segmentation={"size": [64, 80]}), "no run lengths"),
        (mark(category_id=4), "annotation 1 names an image or category that is not listed"),
        (mark(category_id=None), r"1 annotation\(s\) lack image_id or category_id, first 1"),
        (lambda c: c.update(annotations={"a": 1}), "no list of objects"),
        (lambda c: c["images"][1].update(id=0), r"1 id\(s\) in 'images' are not unique"),
        (lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"]), r"1 image\(s\) have the file name of another"),
        (lambda c: c["categories"][1].update(id="x"), "id 'x' in 'categories' is no whole number"),
        (lambda c: c.update(annotations=[]), "no annotated object"),
        (lambda c: c.pop("annotations"), "no annotated object"),
        (lambda c: [m.update(iscrowd=1) for m in c["annotations"]], "no annotated object that is not a crowd"),
    ],
)
def test_broken_json_is_one_line(edit: Callable[[dict[str, Any]], None], message: str, own: Path) -> None:
    change(own, edit)
    with pytest.raises(UsageError, match=message) as caught:
        data = load("coco", "val", own)
        nothing = Found(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
        coco.scorer(data, masks=True)([nothing] * len(data))
    assert "\n" not in str(caught.value)


def test_a_training_object_without_a_polygon_is_ignored(own: Path) -> None:
    from mmdet.datasets.transforms import LoadAnnotations

    change(own, mark(segmentation=[[1, 2, 3, 4]]), "train")
    items = coco.items(load("coco", "train", own), masks=True)
    flat = next(item for item in items if any(one["mask"] == [] for one in item["instances"]))
    loaded = LoadAnnotations(with_bbox=True, with_mask=True)({**flat, **SHAPE})
    assert loaded["gt_ignore_flags"].sum() == 1


def test_missing_pictures_are_counted_or_left_out_and_said(own: Path, tmp_path: Path) -> None:
    def lose(content: dict[str, Any]) -> None:
        content["images"][2]["file_name"] = "VOCdevkit/gone2.jpg"
        content["images"][5]["file_name"] = "VOCdevkit/gone5.jpg"

    change(own, lose)
    with pytest.raises(UsageError, match=r"2 broken image files: .*gone2\.jpg \(no such file\).*gone5\.jpg"):
        load("coco", "val", own)
    data = load("coco", "val", own, on_broken="skip")
    assert len(data) == 8 and len(data.skipped) == 2
    assert [item["img_id"] for item in coco.items(data)] == list(range(8))
    scores, arrays = coco.scorer(data)(perfect(data))
    assert scores["ap50"] == pytest.approx(100) and arrays["n_gt"].shape == (8, 3), "objects of missing pictures do not count"


def test_masks_need_coco_json(tmp_path: Path) -> None:
    bare = ImageSet("bare", "test", ("a",), None, np.zeros((2, 8, 8, 3), np.uint8), "0")
    with pytest.raises(UsageError, match=r"'bare' has no masks in COCO json"):
        coco.items(bare, masks=True)
    with pytest.raises(UsageError, match=r"'bare' has no boxes in VOC layout .* or in COCO json"):
        coco.items(bare)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["fpn", "c4"])
def test_mask_rcnn_runs_end_to_end_twice_the_same(architecture: Any, root: Path, tmp_path: Path) -> None:
    net, cfg = network("resnet18", "cifar"), dataclasses.replace(MASKS, architecture=architecture, workers=0)
    sets = {"train": load("coco", "train", root), "test": load("coco", "val", root)}
    first, second = FakeBench(tmp_path, sets), FakeBench(tmp_path, sets)
    scores = detection.run(net, cfg, first)
    assert scores == detection.run(net, cfg, second)
    declared = {metric.name for metric in detection.EVALUATOR.metrics}
    assert set(scores) == declared and all(np.isfinite(list(scores.values())))
    assert set(first.stored["detection"]) == set(PREDICTIONS["detection"])


@pytest.mark.slow
def test_mask_rcnn_learns_the_squares(root: Path, tmp_path: Path) -> None:
    cfg = dataclasses.replace(MASKS, iterations=60, batch=4, milestones=(50,), mask_channels=16, workers=0)
    sets = {"train": load("coco", "train", root), "test": load("coco", "val", root)}
    scores = detection.run(network("resnet18", "cifar"), cfg, FakeBench(tmp_path, sets))
    assert scores["ap50"] > 15 and scores["mask_ap50"] > 10


@pytest.mark.slow
def test_embedded_scenes_have_masks_too() -> None:
    data = load("digit-scenes", "val")
    items = coco.items(data, masks=True)
    assert len(items) == 200 and all("mask" in one for item in items for one in item["instances"])
