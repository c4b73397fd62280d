# SPDX-License-Identifier: Apache-2.0
"""The catalogue of data sets: complete entries, unknown names, missing roots, other packages, recognition."""

from __future__ import annotations

from importlib import metadata

import numpy as np
import pytest

from suite.data import Dataset, card, catalogue, detect, load, names
from suite.data.card import Card
from suite.data.imageset import ImageSet
from suite.errors import JobError, UsageError
from tests.data_samples import tree


def test_every_card_is_complete():
    for name, entry in catalogue().items():
        assert entry.card.name == name and entry.card.task in entry.card.tasks
        assert entry.card.train in entry.card.splits and entry.card.test in (None, *entry.card.splits)
        assert entry.card.layout and entry.card.licence and entry.card.obtain
    assert {"digits", "digit-scenes", "imagefolder", "voc07+12", "imagenet21k"} <= set(names())


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UsageError, match="cifar-10.*cifar10"):
        load("cifar-10", "train")


def test_any_number_of_own_folders_by_label(tmp_path):
    for label, count in (("flowers", 2), ("big_5", 3)):
        root = tree(tmp_path / label, {"train/a": 2, "train/b": 2, "test/a": count, "test/b": count})
        images = load(f"imagefolder-{label}", "test", root)
        assert (images.name, len(images), card(images.name).title) == (
            f"imagefolder-{label}",
            2 * count,
            f"Folder of images ({label})",
        )
    with pytest.raises(UsageError, match="needs --dataset-root.*imagefolder-big_5|imagefolder-big_5.*needs --dataset-root"):
        load("imagefolder-big_5", "train")
    for wrong in ("imagefolder-", "imagefolder-a/b", "imagefolder-a-b", "cifar10-mine", "flowers"):
        with pytest.raises(UsageError, match="data set"):
            card(wrong)


def test_splits_have_natural_names():
    assert card("imagenet").split("test") == "val" and card("voc07").split("train") == "train"
    assert card("digit-scenes").split("trainval") == "trainval" and card("voc12").split("test") == "val"


@pytest.mark.parametrize("name", [n for n in names() if not card(n).embedded])
def test_missing_and_empty_roots_are_one_line(name, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    wrong = {None: "needs --dataset-root", "gone": "no such folder", "file": "not a folder", "empty": "is empty"}
    for root, message in wrong.items():
        with pytest.raises(UsageError, match=message) as caught:
            load(name, "train", None if root is None else tmp_path / root)
        assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("name", [n for n in names() if not card(n).embedded])
def test_a_root_without_the_set_is_refused(name, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.md").write_text("nothing here")
    with pytest.raises(UsageError) as caught:
        load(name, "train", tmp_path)
    assert "\n" not in str(caught.value)


class Point:
    """An entry point of another package."""

    def __init__(self, name: str, value: object) -> None:
        self.name, self.value = name, f"other:{name}"
        self._value = value

    def load(self) -> object:
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


def test_another_package_adds_a_set(monkeypatch):
    known = Card("theirs", "Theirs", "classification", ("a", "b"), {"train": 2, "test": 2}, "x", "x", "x")
    pixels = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    entry = Dataset(known, lambda split, root, options: ImageSet("theirs", split, ("a", "b"), None, pixels, "0"))
    points = [Point("theirs", entry), Point("broken", ImportError("no such module")), Point("odd", 3)]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == "suite.datasets" else [])
    assert "theirs" in names() and len(load("theirs", "train")) == 2
    with pytest.raises(JobError, match="broken.*no such module"):
        card("broken")
    with pytest.raises(UsageError, match="odd"):
        card("odd")
    points.append(Point("digits", entry))
    with pytest.raises(UsageError, match="'digits' is defined twice.*other:digits"):
        names()


def test_detect_refuses_what_it_does_not_know(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.csv").write_text("1")
    with pytest.raises(UsageError, match="no data set recognised"):
        detect(tmp_path)
    tree(tmp_path / "several", {"one/train/cat": 1, "two/train/cat": 1})
    with pytest.raises(UsageError, match="no data set recognised"):
        detect(tmp_path / "several")
    tree(tmp_path / "list", {"x": 1})
    (tmp_path / "list" / "train.txt").write_text("x/0.jpg 0\n")
    assert detect(tmp_path / "list") == "imagelist"
