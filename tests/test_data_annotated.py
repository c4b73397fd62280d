# SPDX-License-Identifier: Apache-2.0
"""Readers of VOC, COCO, Cityscapes, ImageNet, Places205 and iNaturalist on small trees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from suite.data import detect, load
from suite.errors import UsageError
from tests.data_samples import coco_tree, picture, tree, voc_tree


def test_voc_from_annotations(tmp_path):
    voc_tree(tmp_path, {"000001": [("dog", 0), ("dog", 1), ("cat", 1)], "000002": [("train", 0)]})
    for root in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2007"):
        found = load("voc07", "trainval", root)
        column = {name: found.labels[:, i].tolist() for i, name in enumerate(found.classes)}
        assert column["dog"] == [1, -1] and column["cat"] == [0, -1] and column["train"] == [-1, 1]
        assert found.multilabel and found.num_classes == 20 and found.root == tmp_path and found.labels.dtype == np.int8
    assert detect(tmp_path) == "voc07"


def test_voc_class_lists_come_first(tmp_path):
    from suite.data.voc import CLASSES

    voc_tree(tmp_path, {"000001": [("dog", 0)], "000002": []})
    main = tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    for name in CLASSES:
        (main / f"{name}_trainval.txt").write_text("000001 -1\n000002  0\n" if name == "cow" else "000001 -1\n000002 -1\n")
    found = load("voc07", "trainval", tmp_path)
    assert (found.labels == 1).sum() == 0 and found.labels[1, CLASSES.index("cow")] == 0
    (main / "cow_trainval.txt").write_text("000001 yes\n")
    with pytest.raises(UsageError, match="cow_trainval.txt:1"):
        load("voc07", "trainval", tmp_path)


def test_voc_boxes_are_part_of_the_fingerprint(tmp_path):
    voc_tree(tmp_path, {"000001": [("dog", 0)]})
    before = load("voc07", "trainval", tmp_path)
    file = tmp_path / "VOCdevkit/VOC2007/Annotations/000001.xml"
    file.write_text(file.read_text().replace("<xmax>20<", "<xmax>21<"))
    after = load("voc07", "trainval", tmp_path)
    assert np.array_equal(before.labels, after.labels) and before.fingerprint != after.fingerprint


def test_voc_joint_training_set(tmp_path):
    voc_tree(tmp_path, {"000001": [("dog", 0)]})
    voc_tree(tmp_path, {"000002": [("cat", 0)]}, "test")
    voc_tree(tmp_path, {"2008_000001": [("cow", 0)], "2008_000002": [("cat", 0)]}, year="2012")
    assert [len(load("voc07+12", split, tmp_path)) for split in ("train", "test")] == [3, 1]
    assert detect(tmp_path) == "voc07+12"


def test_voc_errors(tmp_path):
    voc_tree(tmp_path, {"000001": [("dog", 0)]})
    with pytest.raises(UsageError, match="no split 'test'.*valid: trainval"):
        load("voc07", "test", tmp_path)
    (tmp_path / "VOCdevkit/VOC2007/Annotations/000001.xml").write_text("<annotation><object>")
    with pytest.raises(UsageError, match=r"000001\.xml.*cannot be read"):
        load("voc07", "trainval", tmp_path)


def test_coco(tmp_path):
    coco_tree(tmp_path)
    train = load("coco", "train", tmp_path)
    assert train.classes == ("a", "b") and train.labels.tolist() == [[0, -1], [-1, 1], [-1, -1]]
    assert len(load("coco", "test", tmp_path)) == 2 and detect(tmp_path) == "coco"
    assert train.paths[0] == tmp_path / "train2017" / "0.jpg"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "no list 'images'"),
        ('{"images": [{"id": 1}], "categories": []}', "no list 'images' with file_name and id"),
        ('{"images": [{"id": 1, "file_name": "../x.jpg"}], "categories": [{"id": 1, "name": "a"}]}', "leaves the data root"),
        (
            '{"images": [{"id": 1, "file_name": "0.jpg"}], "categories": [{"id": 1, "name": "a"}],'
            ' "annotations": [{"id": 5, "image_id": 2, "category_id": 1}]}',
            "annotation 5 names",
        ),
    ],
)
def test_wrong_coco_json(tmp_path, content, message):
    coco_tree(tmp_path)
    (tmp_path / "annotations" / "instances_train2017.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        load("coco", "train", tmp_path)


def cityscapes_tree(root: Path, kind: str = "labelTrainIds", value: int = 3) -> Path:
    for split in ("train", "val"):
        picture(root / "leftImg8bit" / split / "aachen" / "aachen_0_leftImg8bit.png", len(split))
        path = root / "gtFine" / split / "aachen" / f"aachen_0_gtFine_{kind}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((12, 16), value, dtype=np.uint8)).save(path)
    return root


@pytest.mark.parametrize("kind", ["labelTrainIds", "labelIds"])
def test_cityscapes(tmp_path, kind):
    cityscapes_tree(tmp_path, kind)
    val = load("cityscapes", "val", tmp_path)
    assert val.num_classes == 19 and val.labels is None and np.asarray(Image.open(val.masks[0])).max() == 3
    assert detect(tmp_path) == "cityscapes"
    val.masks[0].unlink()
    with pytest.raises(UsageError, match=r"1 label map\(s\) missing"):
        load("cityscapes", "val", tmp_path)


def test_imagenet_with_class_folders_or_a_list(tmp_path):
    tree(tmp_path, {"train/n01": 2, "train/n02": 2, "val/n02": 1})
    assert load("imagenet", "test", tmp_path).labels.tolist() == [1]
    flat = tree(tmp_path / "flat", {"train/n01": 2, "train/n02": 2, "val": 2})
    (flat / "meta").mkdir()
    (flat / "meta" / "val.txt").write_text("0.jpg 1\n1.jpg 0\n")
    assert load("imagenet", "val", flat).labels.tolist() == [1, 0]


def test_imagenet21k_is_all_training(tmp_path):
    tree(tmp_path, {"n01": 2, "n02": 2})
    assert len(load("imagenet21k", "train", tmp_path)) == 4
    with pytest.raises(UsageError, match="no split 'test'"):
        load("imagenet21k", "test", tmp_path)


def test_places205_and_inaturalist(tmp_path):
    places = tree(tmp_path / "places", {"data/vision/torralba/deeplearning/images256/a/abbey": 2})
    (places / "trainvalsplit_places205").mkdir()
    for split in ("train", "val"):
        (places / "trainvalsplit_places205" / f"{split}_places205.csv").write_text("a/abbey/0.jpg 0\na/abbey/1.jpg 1\n")
    assert load("places205", "test", places).labels.tolist() == [0, 1] and detect(places) == "places205"
    inat = tree(tmp_path / "inat", {"train_val2018/x": 2})
    images = [{"id": i, "file_name": f"train_val2018/x/{i}.jpg"} for i in range(2)]
    marks = [{"image_id": 0, "category_id": 5}, {"image_id": 1, "category_id": 2}]
    content = {"images": images, "annotations": marks, "categories": [{"id": 2, "name": "ant"}, {"id": 5, "name": "bee"}]}
    for split in ("train", "val"):
        (inat / f"{split}2018.json").write_text(json.dumps(content))
    found = load("inat2018", "train", inat)
    assert found.labels.tolist() == [1, 0] and found.classes == ("ant", "bee") and detect(inat) == "inat2018"
