# SPDX-License-Identifier: Apache-2.0
"""Class folders and list files: labels, splits, classes, unlabelled pictures, wrong lists."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from suite.data import detect, load
from suite.errors import UsageError
from tests.data_samples import tree


def test_image_folder(tmp_path):
    tree(tmp_path, {"train/b": 3, "train/a/deep": 2, "val/a": 1, "val/b": 1})
    (tmp_path / "train" / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "train" / "a" / "._hidden.jpg").write_bytes(b"no picture")
    train, val = load("imagefolder", "train", tmp_path), load("imagefolder", "val", tmp_path)
    assert train.classes == ("a", "b") and train.labels.tolist() == [0, 0, 1, 1, 1] and train.labels.dtype == np.int64
    assert [p.relative_to(tmp_path).as_posix() for p in train.paths][:3] == [
        "train/a/deep/0.jpg",
        "train/a/deep/1.jpg",
        "train/b/0.jpg",
    ]
    assert np.array_equal(train.images[2], np.asarray(Image.open(train.paths[2])))
    assert val.labels.tolist() == [0, 1] and val.array.shape == (2, 12, 16, 3)
    assert load("imagefolder", "test", tmp_path).fingerprint == val.fingerprint != train.fingerprint


def test_image_folder_equals_torchvisions(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    tree(tmp_path, {"train/b": 2, "train/B": 2, "train/a": 3, "test/a": 1})
    theirs, mine = datasets.ImageFolder(str(tmp_path / "train")), load("imagefolder", "train", tmp_path)
    assert [(str(p), int(c)) for p, c in zip(mine.paths, mine.labels, strict=True)] == theirs.samples
    assert list(mine.classes) == theirs.classes


def test_class_folders_without_a_test_split_hold_a_tenth_out(tmp_path):
    tree(tmp_path, {"cat": 20, "dog": 30})
    train, test = load("imagefolder", "train", tmp_path), load("imagefolder", "test", tmp_path)
    assert np.bincount(train.labels).tolist() == [18, 27] and np.bincount(test.labels).tolist() == [2, 3]
    assert not set(train.paths) & set(test.paths)
    again = load("imagefolder", "test", tmp_path)
    assert list(again.paths) == list(test.paths) and again.fingerprint == test.fingerprint


def test_train_folder_alone_holds_a_tenth_out_too(tmp_path):
    tree(tmp_path, {"train/cat": 10, "train/dog": 10})
    assert [len(load("imagefolder", split, tmp_path)) for split in ("train", "val")] == [18, 2]


def test_a_class_called_train_is_a_class(tmp_path):
    tree(tmp_path, {"train": 10, "car": 10})
    assert load("imagefolder", "train", tmp_path).classes == ("car", "train")


def test_unlabelled_pictures(tmp_path):
    tree(tmp_path / "flat", {".": 4})
    tree(tmp_path / "one", {"all": 4})
    tree(tmp_path / "split", {"train": 4})
    for root in ("flat", "one", "split"):
        found = load("imagefolder", "train", tmp_path / root)
        assert found.labels is None and found.classes == () and len(found) == 4
        with pytest.raises(UsageError, match="no labels"):
            load("imagefolder", "test", tmp_path / root)


def test_class_folders_that_disagree(tmp_path):
    tree(tmp_path, {"train/cat": 2, "train/dog": 2, "test/cat": 1, "test/dgo": 1})
    with pytest.raises(UsageError, match="'dgo'; did you mean 'dog'"):
        load("imagefolder", "test", tmp_path)
    (tmp_path / "train" / "cow").mkdir()
    with pytest.raises(UsageError, match="cow.*no images"):
        load("imagefolder", "train", tmp_path)


def test_an_archive_folder_around_the_set_is_seen_through(tmp_path):
    tree(tmp_path / "download" / "set", {"train/cat": 2, "train/dog": 2, "test/cat": 1})
    assert load("imagefolder", "train", tmp_path).classes == ("cat", "dog")
    assert detect(tmp_path) == "imagefolder"


def test_names_that_are_not_text_survive(tmp_path):
    tree(tmp_path, {"train/cat é 猫": 2, "train/dog": 2, "test/dog": 1})
    train = load("imagefolder", "train", tmp_path)
    assert train.classes == ("cat é 猫", "dog") and all(path.is_file() for path in train.paths)


def test_list_files(tmp_path):
    tree(tmp_path, {"images with blank": 3})
    (tmp_path / "train.txt").write_text("images with blank/0.jpg 1\r\nimages with blank/1.jpg\t0\n\n")
    (tmp_path / "val.txt").write_text("images with blank/2.jpg,2\n")
    train = load("imagelist", "train", tmp_path)
    assert train.labels.tolist() == [1, 0] and train.classes == ("0", "1", "2")
    assert load("imagelist", "test", tmp_path).labels.tolist() == [2]
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\n")
    assert load("imagelist", "train", tmp_path).classes == ("ant", "bee", "cow")


def test_list_files_with_class_names_or_none(tmp_path):
    tree(tmp_path, {"x": 3})
    (tmp_path / "train.txt").write_text("x/0.jpg dog\nx/1.jpg cat\n")
    assert load("imagelist", "train", tmp_path).labels.tolist() == [1, 0]
    (tmp_path / "train.txt").write_text("x/0.jpg\nx/1.jpg\n")
    assert load("imagelist", "train", tmp_path).labels is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x/0.jpg 0\nx/1.jpg\n", "train.txt:2"),
        ("x/0.jpg 0\n../../secret.jpg 1\n", "leaves the data root"),
        ("/etc/x.jpg 0\n", "leaves the data root"),
        ("x/0.jpg -1\nx/1.jpg 0\n", "label '-1'"),
        ("x/0.jpg 7\n", "label '7'.*2 classes"),
        ("\n\n", "is empty"),
        ("x/0.jpg 0\nx/9.jpg 1\n", "9.jpg .no such file"),
    ],
)
def test_wrong_lists_are_one_line(tmp_path, content, message):
    tree(tmp_path, {"x": 2})
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "train.txt").write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        load("imagelist", "train", tmp_path)
    assert "\n" not in str(caught.value)
