# SPDX-License-Identifier: Apache-2.0
"""`check` names every file that is wrong, and why."""

from __future__ import annotations

import re
import shutil

import pytest

from suite.data.check import check
from tests.data_samples import coco_tree, cut, picture, tree, voc_tree
from tests.test_cifar import cifar10_batches
from tests.test_data_annotated import cityscapes_tree


def reasons(name, root, **options):
    return {problem.file: problem.reason for problem in check(name, root, **options).problems}


@pytest.fixture
def folder(tmp_path):
    return tree(tmp_path, {"train/a": 3, "train/b": 3, "test/a": 2, "test/b": 2})


def test_a_good_folder_is_good(folder):
    report = check("imagefolder", folder)
    assert report.ok and report.totals == {"train": 6, "test": 4} and report.counts["train"] == {"a": 3, "b": 3}
    assert report.how_to_obtain


@pytest.mark.parametrize("name", ["imagefolder", "cifar10", "voc07", "coco", "cityscapes", "imagelist", "imagenet"])
def test_missing_and_empty_roots(name, tmp_path):
    (tmp_path / "empty").mkdir()
    for root, why in ((None, "needs --dataset-root"), (tmp_path / "gone", "no such folder"), (tmp_path / "empty", "empty")):
        report = check(name, root)
        assert not report.ok and len(report.problems) == 1 and why in report.problems[0].reason and report.how_to_obtain


def test_broken_pictures_are_named(folder):
    cut(folder / "train/a/1.jpg")
    (folder / "test/b/0.jpg").write_bytes(b"")
    found = reasons("imagefolder", folder)
    assert "truncated" in found[str(folder / "train/a/1.jpg")].lower() and found[str(folder / "test/b/0.jpg")] == "empty file"
    assert len(found) == 2 and found == reasons("imagefolder", folder, decode=False)


def test_damage_inside_needs_decoding(folder):
    path = picture(folder / "train/a/9.png")
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)
    path.write_bytes(data)
    assert str(path) in reasons("imagefolder", folder) and not reasons("imagefolder", folder, decode=False)


def test_empty_classes_loose_files_and_strangers(folder):
    (folder / "test/b/0.jpg").rename(folder / "test/0.jpg")
    (folder / "test/b/1.jpg").unlink()
    found = reasons("imagefolder", folder)
    assert found == {"test": "class 'b' has no images", str(folder / "test/0.jpg"): "belongs to no class, is not used"}
    (folder / "train/c").mkdir()
    assert any("'c'" in why or "/c'" in why for why in reasons("imagefolder", folder).values())


def test_the_same_picture_in_train_and_test(folder):
    shutil.copy(folder / "train/b/2.jpg", folder / "test/b/copy.jpg")
    shutil.copy(folder / "train/b/2.jpg", folder / "train/b/again.jpg")
    found = reasons("imagefolder", folder)
    assert list(found) == [str(folder / "test/b/copy.jpg")] and "same bytes as" in found[str(folder / "test/b/copy.jpg")]


def test_unlabelled_pictures_need_no_test_split(tmp_path):
    report = check("imagefolder", tree(tmp_path, {".": 3}))
    assert report.ok and report.counts == {"train": {"": 3}}


def test_lists(tmp_path):
    tree(tmp_path, {"x": 3})
    (tmp_path / "train.txt").write_text("x/0.jpg 0\nx/9.jpg 1\n")
    (tmp_path / "test.txt").write_text("x/2.jpg 5\n")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    found = reasons("imagelist", tmp_path)
    assert found[str(tmp_path / "x/9.jpg")] == "no such file" and "label '5'" in found["test"]


def test_cifar(tmp_path):
    cifar10_batches(tmp_path)
    report = check("cifar10", tmp_path)
    assert report.totals == {"train": 10, "test": 2} and report.expected == {"train": 50_000, "test": 10_000}
    (tmp_path / "data_batch_3").unlink()
    assert "data_batch_3" in reasons("cifar10", tmp_path)["train"]


def test_voc(tmp_path):
    voc_tree(tmp_path, {"000001": [("dog", 0)], "000002": [("cat", 0)], "000003": [("cat", 0)], "000004": []})
    voc_tree(tmp_path, {"000005": [("dog", 0)]}, "test")
    assert check("voc07", tmp_path).ok
    home = tmp_path / "VOCdevkit" / "VOC2007"
    for name, old, new in (("000001", "<xmax>20<", "<xmax>41<"), ("000002", "<xmin>2<", "<xmin>20<")):
        file = home / "Annotations" / f"{name}.xml"
        file.write_text(file.read_text().replace(old, new))
    (home / "JPEGImages" / "000003.jpg").unlink()
    found = {re.sub(".*/", "", file): why for file, why in reasons("voc07", tmp_path).items()}
    assert found.keys() == {"000001.xml", "000002.xml", "000003.jpg"} and "leaves the 40×30" in found["000001.xml"]
    (home / "Annotations" / "000004.xml").write_text("<annotation>")
    assert any("000004.xml" in why for why in reasons("voc07", tmp_path).values())


def test_coco(tmp_path):
    coco_tree(tmp_path)
    assert check("coco", tmp_path).ok
    (tmp_path / "val2017" / "1.jpg").unlink()
    (tmp_path / "annotations" / "instances_train2017.json").write_text("{")
    found = reasons("coco", tmp_path)
    assert "instances_train2017.json" in found["train"] and found[str(tmp_path / "val2017/1.jpg")] == "no such file"


def test_cityscapes(tmp_path):
    cityscapes_tree(tmp_path)
    assert check("cityscapes", tmp_path).ok
    cityscapes_tree(tmp_path / "high", value=25)
    found = reasons("cityscapes", tmp_path / "high")
    assert len(found) == 2 and all("label 25 is out of range" in why for why in found.values())
    picture(tmp_path / "leftImg8bit/val/aachen/aachen_0_leftImg8bit.png", size=(24, 32))
    assert list(reasons("cityscapes", tmp_path).values()) == ["is 16×12, its picture 32×24"]


@pytest.mark.slow
def test_embedded(tmp_path):
    report = check("digits", cache=tmp_path)
    assert report.ok and report.totals == {"train": 5388, "test": 1800} and not report.expected


def test_seconds_for_a_few_thousand_pictures(tmp_path):
    first = picture(tmp_path / "train/a/0.jpg", size=(32, 32))
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for i in range(400):
            (tmp_path / folder / f"{i}.jpg").write_bytes(first.read_bytes())
    report = check("imagefolder", tmp_path)
    assert report.totals == {"train": 800, "test": 800} and len(report.problems) == 800
