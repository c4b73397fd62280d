# SPDX-License-Identifier: Apache-2.0
"""Image sets, their subsets and digests, and packed folders."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from suite.data import load
from suite.data.imageset import ImageSet, PathList, decode, digest
from suite.data.pack import pack, reduced
from suite.errors import JobError, UsageError
from tests.data_samples import cut, picture, tree


def little(n: int = 6) -> ImageSet:
    pixels = np.random.default_rng(1).integers(0, 256, (n, 8, 10, 3), dtype=np.uint8)
    labels = np.arange(n, dtype=np.int64) % 3
    return ImageSet("little", "train", ("a", "b", "c"), labels, pixels, "f" * 16, array=pixels, groups=np.arange(n) // 2)


def test_subset_keeps_everything_together():
    whole = little()
    part = whole.subset([4, 1], "val")
    assert part.split == "val" and part.labels.tolist() == [1, 1] and part.groups.tolist() == [2, 0] and len(part) == 2
    assert np.array_equal(part.images[0], whole.array[4]) and np.array_equal(part.array[1], whole.array[1])
    marks = {whole.fingerprint, part.fingerprint, whole.subset([1, 4]).fingerprint, part.subset([0]).fingerprint}
    assert len(marks) == 4 and whole.subset(np.array([4, 1])).fingerprint == part.fingerprint
    with pytest.raises(ValueError, match="outside"):
        whole.subset([6])


def test_subset_of_files(tmp_path):
    tree(tmp_path, {"train/a": 3, "train/b": 3, "test/a": 1})
    whole = load("imagefolder", "train", tmp_path, in_memory=False)
    part = whole.subset([5, 0]).subset([1])
    assert list(part.paths) == [whole.paths[0]] and np.array_equal(part.images[0], whole.images[0])


def test_parts_of_different_length_are_refused():
    pixels = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="3 labels for 2 images"):
        ImageSet("x", "train", (), np.zeros(3, dtype=np.int64), pixels, "0")


def test_path_list_is_small_and_exact(tmp_path):
    paths = PathList(tmp_path, ["a/1.jpg", "b/é.jpg", "c/a longer name.jpg"])
    assert paths[1] == tmp_path / "b" / "é.jpg" and list(paths[1:]) == [paths[1], paths[2]] and len(list(paths)) == 3
    assert list(pickle.loads(pickle.dumps(paths))) == list(paths)


def test_digest_tells_parts_and_types_apart():
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest(np.arange(3)), digest(np.arange(3.0))}) == 5


def test_pack_and_open_again(tmp_path):
    tree(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 1})
    big = picture(tmp_path / "train/a/9.jpg", 9, (60, 45))
    plain = load("imagefolder", "train", tmp_path)
    packed = pack(plain, tmp_path / "packed", short=30)
    assert [packed.images[i].shape for i in (0, 2)] == [(12, 16, 3), (40, 30, 3)]
    assert np.array_equal(packed.images[3], plain.images[3]) and np.array_equal(packed.labels, plain.labels)
    assert np.array_equal(packed.images[2], reduced(decode(big), 30))
    stamp = (tmp_path / "packed" / "images.bin").stat().st_mtime_ns
    again = pickle.loads(pickle.dumps(pack(plain, tmp_path / "packed", short=30)))
    assert (tmp_path / "packed" / "images.bin").stat().st_mtime_ns == stamp
    assert np.array_equal(again.images[2], packed.images[2]) and again.fingerprint == packed.fingerprint != plain.fingerprint
    assert pack(plain, tmp_path / "other", short=20).fingerprint != packed.fingerprint


def test_pack_refuses_another_or_damaged_folder(tmp_path):
    pack(little(), tmp_path / "packed")
    with pytest.raises(UsageError, match="holds another set .*images 6 instead of 4"):
        pack(little(4), tmp_path / "packed")
    with open(tmp_path / "packed" / "images.bin", "ab") as file:
        file.truncate(100)
    with pytest.raises(UsageError, match="damaged: 100 bytes"):
        pack(little(), tmp_path / "packed")
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="no packed folder"):
        pack(little(), tmp_path / "mine")
    (tmp_path / "file").write_text("x")
    with pytest.raises(JobError, match="cannot pack"):
        pack(little(), tmp_path / "file" / "packed")


def test_a_broken_picture_leaves_no_half_packed_folder(tmp_path):
    tree(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 1})
    plain = load("imagefolder", "train", tmp_path, in_memory=False)
    cut(plain.paths[3])
    with pytest.raises(UsageError, match=r"1\.jpg"):
        pack(plain, tmp_path / "packed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test", "train"]
