# SPDX-License-Identifier: Apache-2.0
"""Segmentation: items, loss and IoU against mmseg and scikit-learn, and the evaluator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from evaluators import segmentation
from evaluators.mm import labels, runner, segmenter, voc
from suite.data.imageset import ImageSet
from suite.errors import UsageError
from suite.metrics import headline, iou_per_class, mean_iou
from tests.mm_samples import NAMES, SEGMENT, FakeBench, network, one_thread, squares


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageSet]:
    root = tmp_path_factory.mktemp("squares")
    return {"train": squares(root, "train", 24, 0), "test": squares(root, "test", 10, 1)}


def test_weighted_loss_is_mmsegs_where_all_classes_weigh_the_same() -> None:
    from mmseg.models.losses import CrossEntropyLoss

    logits, label = torch.randn(2, 4, 5, 5), torch.randint(0, 4, (2, 5, 5))
    label[0, 0] = segmenter.IGNORE
    want = CrossEntropyLoss(avg_non_ignore=True, loss_weight=0.4)(logits, label, ignore_index=segmenter.IGNORE)
    torch.testing.assert_close(segmenter.WeightedLoss(1.0, 4, 0.4)(logits, label), want)
    only = torch.zeros(1, 2, 2, dtype=torch.int64)
    assert segmenter.WeightedLoss(0.1, 4, 1.0)(logits[:1, :, :2, :2], only) > 0


def test_confusion_sums_to_mmsegs_iou_metric() -> None:
    from mmseg.evaluation import IoUMetric

    generator = torch.Generator().manual_seed(0)
    total, results = np.zeros((4, 4), dtype=np.int64), []
    for _ in range(5):
        label = torch.randint(0, 5, (9, 11), generator=generator)
        label[label == 4] = segmenter.IGNORE
        pred = torch.where(torch.rand(9, 11, generator=generator) < 0.6, label.clamp(max=3), torch.tensor(1))
        total += segmentation.confusion(label, pred, 4)
        results.append(IoUMetric.intersect_and_union(pred, label, 4, segmenter.IGNORE))
    intersection, union, _, _ = (sum(part) for part in zip(*results, strict=True))
    np.testing.assert_allclose(iou_per_class(total), 100 * (intersection / union).numpy(), rtol=1e-5)
    assert total.sum() == sum(float(r[3].sum()) for r in results)


def test_data_without_annotations_is_a_usage_error(tmp_path: Path, sets: dict[str, ImageSet]) -> None:
    bare = ImageSet("bare", "test", NAMES, None, np.zeros((2, 8, 8, 3), np.uint8), "0")
    with pytest.raises(UsageError, match="bare.*no boxes"):
        voc.items(bare)
    with pytest.raises(UsageError, match="bare.*no label maps"):
        labels.items(bare)
    with pytest.raises(UsageError, match="other.txt"):
        labels.items(sets["train"], [("other", "SegmentationClass")])


def test_cityscapes_ids_become_training_classes(tmp_path: Path) -> None:
    from mmseg.datasets.transforms import LoadAnnotations

    for name, values in (("a_gtFine_labelIds", [0, 7, 33, 34]), ("b_gtFine_labelTrainIds", [255, 0, 18, 255])):
        Image.fromarray(np.array([values, values], dtype=np.uint8)).save(tmp_path / f"{name}.png")
    for mask in sorted(tmp_path.glob("*.png")):
        data = ImageSet("cityscapes", "val", NAMES, None, np.zeros((1, 1, 4, 3), np.uint8), "0", paths=[mask], masks=[mask])
        item = LoadAnnotations()(labels.items(data)[0])
        assert item["gt_seg_map"].tolist() == [[255, 0, 18, 255]] * 2


@pytest.mark.slow
def test_segmentation_learns_the_squares(sets: dict[str, ImageSet], tmp_path: Path) -> None:
    cfg = dataclasses.replace(SEGMENT, iterations=40, batch=4, workers=0)
    bench = FakeBench(tmp_path, sets)
    scores = segmentation.run(network("resnet18", "cifar"), cfg, bench)
    assert scores["miou"] > 35, "guessing background everywhere gives about 20"
    stored = bench.stored["miou"]["confusion"]
    assert stored.shape == (10, 4, 4) and stored.sum() == 10 * 64 * 80
    assert headline("miou", bench.stored["miou"]) == pytest.approx(scores["miou"])


def test_mean_iou_is_scikit_learns() -> None:
    from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

    generator = torch.Generator().manual_seed(1)
    truths, preds, counts = [], [], []
    for _ in range(4):
        label = torch.randint(0, 6, (13, 17), generator=generator)
        label[label == 5] = segmenter.IGNORE
        pred = torch.where(torch.rand(13, 17, generator=generator) < 0.7, label.clamp(max=4), torch.tensor(2))
        pred[label == 4] = 0  # a class that is never right
        counts.append(segmentation.confusion(label, pred, 7))  # classes 5 and 6 never occur
        truths.append(label[label != segmenter.IGNORE])
        preds.append(pred[label != segmenter.IGNORE])
    total, truth, found = sum(counts), torch.cat(truths).numpy(), torch.cat(preds).numpy()
    np.testing.assert_array_equal(total, confusion_matrix(truth, found, labels=range(7)))
    assert mean_iou(total) == pytest.approx(100 * jaccard_score(truth, found, average="macro", labels=range(5)), abs=1e-9)
    assert 100 * np.trace(total) / total.sum() == pytest.approx(100 * accuracy_score(truth, found), abs=1e-9)
    assert 0 < mean_iou(total) < 100


def test_missing_pictures_and_maps_are_counted(tmp_path: Path) -> None:
    data = squares(tmp_path, "train", 6, 0)
    base = tmp_path / "VOCdevkit" / "VOC2007"
    for name in ("train001", "train004"):
        (base / "SegmentationClass" / f"{name}.png").unlink()
    with pytest.raises(UsageError, match=r"2 of 6 label maps of .* missing, first .*train001\.png"):
        labels.items(data)
    (base / "JPEGImages" / "train003.jpg").unlink()
    with pytest.raises(UsageError, match=r"1 of 6 pictures of .* missing, first .*train003\.jpg"):
        labels.items(data)


class Stop(Exception):
    """Training was about to begin."""


@pytest.mark.parametrize(("split", "count"), [("val", 400 - 200), ("test", 400)])
def test_choosing_on_val_leaves_it_out_of_training(
    split: Any, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from suite.data import load

    def stop(model: Any, data: Any, cfg: segmentation.SegmentationConfig, *rest: Any) -> None:
        raise Stop(f"{len(data)} pictures, {cfg.iterations} iterations")

    monkeypatch.setattr(runner, "finetune", stop)
    cfg = dataclasses.replace(SEGMENT, split=split, fraction=2.0)
    parts = {own: load("digit-scenes", "trainval" if own == "train" else own) for own in ("train", "val", "test")}
    bench = FakeBench(tmp_path, parts)
    with pytest.raises(Stop, match=f"{count} pictures, 6 iterations"):
        segmentation.run(network("resnet18", "cifar"), cfg, bench)
    assert bench.selected["schedule"] == "2 of a schedule set by hand: 6 of 3 iterations"
