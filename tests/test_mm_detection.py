# SPDX-License-Identifier: Apache-2.0
"""Detection on VOC layout: items, matching and average precision against mmdet, and the evaluator."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from evaluators import detection
from evaluators.mm import runner, splits, voc
from evaluators.mm.boxes import THRESHOLDS, Found
from suite.data.imageset import ImageSet
from suite.errors import UsageError
from suite.metrics import PREDICTIONS, headline
from tests.mm_samples import NAMES, QUICK, FakeBench, network, one_thread, squares


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageSet]:
    root = tmp_path_factory.mktemp("squares")
    return {"train": squares(root, "train", 24, 0), "test": squares(root, "test", 10, 1)}


def random_detections(seed: int) -> tuple[list[Found], list[voc.Boxes]]:
    rng = np.random.default_rng(seed)

    def boxes(n: int) -> np.ndarray:
        corner = rng.uniform(0, 60, (n, 2))
        return np.concatenate([corner, corner + rng.uniform(5, 40, (n, 2))], axis=1).astype(np.float32)

    detections, targets = [], []
    for _ in range(12):
        target = voc.Boxes(boxes(5), rng.integers(0, 3, 5), rng.random(5) < 0.25)
        near = np.repeat(target.boxes, 3, axis=0) + rng.normal(0, 3, (15, 4)).astype(np.float32)
        found = np.concatenate([near, boxes(6)])
        detections.append(Found(found, rng.integers(0, 3, 21), rng.random(21).astype(np.float32)))
        targets.append(target)
    return detections, targets


@pytest.mark.parametrize("seed", [6, 8, 25])
def test_average_precision_is_mmdets(seed: int) -> None:
    # mmdet holds recalls in float32, so sets whose box counts share a factor with 10 differ at the eleven recalls
    from mmdet.evaluation.functional import eval_map

    detections, targets = random_detections(seed)
    rows = [[np.c_[d.boxes, d.scores][d.classes == k] for k in range(3)] for d in detections]
    annotations = [
        {"bboxes": t.boxes[~t.difficult], "labels": t.classes[~t.difficult], "bboxes_ignore": t.boxes[t.difficult],
         "labels_ignore": t.classes[t.difficult]}
        for t in targets
    ]  # fmt: skip
    scores, arrays = voc.score(detections, targets, 3)

    def theirs(threshold: float, mode: str) -> float:
        return 100 * eval_map(rows, annotations, iou_thr=threshold, logger="silent", nproc=1, eval_mode=mode)[0]

    assert scores["ap50"] == pytest.approx(theirs(0.5, "area"), abs=1e-3)
    assert scores["ap50.11point"] == pytest.approx(theirs(0.5, "11points"), abs=1e-3)
    assert scores["map"] == pytest.approx(np.mean([theirs(t, "area") for t in THRESHOLDS]), abs=1e-3)
    assert 0 < scores["map"] < scores["ap50"] < 100
    assert headline("detection", arrays) == pytest.approx(scores["ap50"])


def test_matching_follows_the_development_kit() -> None:
    target = voc.Boxes(np.array([[0, 0, 10, 10], [20, 0, 30, 10]], dtype=np.float32), np.array([0, 0]), np.array([False, True]))
    found = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [50, 50, 60, 60], [0, 0, 10, 10]], dtype=np.float32)
    hit, ignored = voc.match(found, np.array([0, 0, 0, 0, 1]), np.array([0.5, 0.9, 0.8, 0.7, 0.6]), target, (0.5, 0.95))
    assert hit[0].tolist() == [False, True, False, False, False], "the second, higher score takes the box"
    assert hit[1].tolist() == [True, False, False, False, False], "at 0.95 only the exact box reaches it"
    assert ignored.tolist() == [[False, False, True, False, False]] * 2, "a detection on a difficult box counts neither way"


def test_no_detection_at_all_scores_zero() -> None:
    _, targets = random_detections(0)
    nothing = Found(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    scores, arrays = voc.score([nothing] * len(targets), targets, 3)
    assert scores == dict.fromkeys(("ap50", "ap75", "map", "ap50.11point"), 0.0)
    assert set(arrays) == set(PREDICTIONS["detection"])


def test_voc_boxes_are_read_as_mmdet_reads_them(sets: dict[str, ImageSet]) -> None:
    from mmdet.datasets import VOCDataset

    data = sets["test"]
    assert data.root is not None
    (data.root / "ids.txt").write_text("\n".join(path.stem for path in data.paths or ()))
    theirs = VOCDataset(
        ann_file=str(data.root / "ids.txt"), data_prefix={"sub_data_root": f"{data.root}/VOCdevkit/VOC2007/"},
        metainfo={"classes": NAMES}, pipeline=[], test_mode=True,
    )  # fmt: skip
    for item, other in zip(voc.items(data), theirs, strict=True):
        assert item["instances"] == other["instances"]
        assert (item["height"], item["width"]) == (64, 80) == (other["height"], other["width"])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["fpn", "c4"])
def test_detection_runs_end_to_end_twice_the_same(architecture: Any, sets: dict[str, ImageSet], tmp_path: Path) -> None:
    net, cfg = network("resnet18", "cifar"), dataclasses.replace(QUICK, architecture=architecture, workers=0)
    before = net.sha256()
    first, second = FakeBench(tmp_path, sets), FakeBench(tmp_path, sets)
    scores = detection.run(net, cfg, first)
    assert scores == detection.run(net, cfg, second)
    assert set(scores) == {"ap50", "ap75", "map", "ap50.11point"} and all(np.isfinite(list(scores.values())))
    assert headline("detection", first.stored["detection"]) == pytest.approx(scores["ap50"])
    assert first.bars == [["fine-tuning", 3, 3], ["predicting", 10, 10]]
    assert net.sha256() == before


@pytest.mark.slow
def test_detection_learns_the_squares(sets: dict[str, ImageSet], tmp_path: Path) -> None:
    cfg = dataclasses.replace(QUICK, iterations=40, batch=4, milestones=(30,), workers=0)
    scores = detection.run(network("resnet18", "cifar"), cfg, FakeBench(tmp_path, sets))
    assert scores["ap50"] > 15


def development_kit(detections: list[Found], targets: list[voc.Boxes], threshold: float, eleven: bool) -> float:
    """`VOCevaldet.m`, class by class and detection by detection, with boxes in continuous coordinates."""
    values = []
    for c in range(3):
        rows = [(float(s), n, box.astype(float)) for n, d in enumerate(detections)
                for box, k, s in zip(d.boxes, d.classes, d.scores, strict=True) if k == c]  # fmt: skip
        rows.sort(key=lambda row: -row[0])
        positives = sum(int(((t.classes == c) & ~t.difficult).sum()) for t in targets)
        taken: set[tuple[int, int]] = set()
        tp: list[float] = []
        for _, n, box in rows:
            best, where = -math.inf, -1
            for j in np.flatnonzero(targets[n].classes == c).tolist():
                if (overlap := overlap_of(box, targets[n].boxes[j].astype(float))) > best:
                    best, where = overlap, j
            if best < threshold:
                tp.append(0.0)
            elif not targets[n].difficult[where]:
                tp.append(float((n, where) not in taken))
                taken.add((n, where))
        recall, precision = np.cumsum(tp) / positives, np.cumsum(tp) / np.arange(1, len(tp) + 1)
        if eleven:
            values.append(sum(max(precision[recall >= r / 10], default=0.0) for r in range(11)) / 11)
        else:
            steps = np.diff(np.concatenate([[0.0], recall]))
            values.append(sum(step * max(precision[i:]) for i, step in enumerate(steps) if step > 0))
    return 100 * float(np.mean(values))


def overlap_of(a: np.ndarray, b: np.ndarray) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_the_development_kits(seed: int) -> None:
    detections, targets = random_detections(seed)
    scores, _ = voc.score(detections, targets, 3)
    assert scores["ap50"] == pytest.approx(development_kit(detections, targets, 0.5, False), abs=1e-9)
    assert scores["ap75"] == pytest.approx(development_kit(detections, targets, 0.75, False), abs=1e-9)
    assert scores["ap50.11point"] == pytest.approx(development_kit(detections, targets, 0.5, True), abs=1e-9)
    every = [development_kit(detections, targets, t, False) for t in THRESHOLDS]
    assert scores["map"] == pytest.approx(np.mean(every), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_hits_are_exactly_mmdets(seed: int) -> None:
    from mmdet.evaluation.functional.mean_ap import tpfp_default

    detections, targets = random_detections(seed)
    for found, target in zip(detections, targets, strict=True):
        hit, ignored = voc.match(found.boxes, found.classes, found.scores, target, THRESHOLDS)
        for t, threshold in enumerate(THRESHOLDS):
            for c in range(3):
                mine, own = found.classes == c, target.classes == c
                rows = np.c_[found.boxes, found.scores][mine]
                plain, difficult = target.boxes[own & ~target.difficult], target.boxes[own & target.difficult]
                tp, fp = tpfp_default(rows, plain, difficult, threshold)
                assert np.array_equal(hit[t, mine], tp[0].astype(bool))
                assert np.array_equal(~hit[t, mine] & ~ignored[t, mine], fp[0].astype(bool))


def test_a_test_set_without_a_box_is_a_usage_error() -> None:
    bare = voc.Boxes(np.zeros((1, 4), np.float32), np.zeros(1, np.int64), np.ones(1, dtype=bool))
    nothing = Found(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    with pytest.raises(UsageError, match="no annotated box that is not difficult"):
        voc.score([nothing], [bare], 3)


def test_missing_annotations_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    from suite.data import load
    from tests.data_samples import voc_tree

    names = [f"{i:06d}" for i in range(1, 6)]
    voc_tree(tmp_path, {name: [("dog", 0)] for name in names})
    folder = tmp_path / "VOCdevkit" / "VOC2007" / "Annotations"
    for name in ("000001", "000004"):
        (folder / f"{name}.xml").unlink()
    with pytest.raises(UsageError, match=r"2 of 5 annotations are missing, first .*000001\.xml"):
        load("voc07", "trainval", tmp_path)


class Stop(Exception):
    """Training was about to begin."""


@pytest.mark.parametrize(("split", "count"), [("val", 24 - 5), ("test", 24)])
def test_choosing_on_val_leaves_it_out_of_training(
    split: Any, count: int, sets: dict[str, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(model: Any, data: Any, cfg: detection.DetectionConfig, *rest: Any, **how: Any) -> None:
        raise Stop(f"{len(data)} pictures, {cfg.iterations} iterations")

    monkeypatch.setattr(runner, "finetune", stop)
    bench = FakeBench(tmp_path, {"train": sets["train"], "val": sets["train"].subset(range(5)), "test": sets["test"]})
    with pytest.raises(Stop, match=f"{count} pictures, 6 iterations"):
        detection.run(network("resnet18", "cifar"), dataclasses.replace(QUICK, split=split, fraction=2.0), bench)
    assert bench.selected["schedule"] == "2 of a schedule set by hand: 6 of 3 iterations"


def test_the_embedded_scenes_have_a_validation_split() -> None:
    from suite.data import load

    train, val, test = (load("digit-scenes", split) for split in ("trainval", "val", "test"))
    assert train.paths and val.paths and test.paths
    assert set(val.paths) < set(train.paths) and not set(val.paths) & set(test.paths)
    assert len(voc.items(val)) == len(val) == 200


def test_pictures_left_out_are_in_the_record(sets: dict[str, ImageSet], tmp_path: Path) -> None:
    skipped = ((tmp_path / "a.jpg", "no such file"), (tmp_path / "b.jpg", "empty file"))
    bench = FakeBench(tmp_path, {"train": sets["train"], "test": dataclasses.replace(sets["test"], skipped=skipped)})
    splits.load(bench, QUICK, "test")
    assert bench.selected == {"skipped.test": "2 of 12 pictures left out, first a.jpg (no such file)"}
