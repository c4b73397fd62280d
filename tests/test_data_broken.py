# SPDX-License-Identifier: Apache-2.0
"""Broken picture files, pictures in memory or on disk, fingerprints."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from suite.data import load
from suite.data.files import REMEMBERED, quick_reason
from suite.data.imageset import decode
from suite.errors import UsageError
from tests.data_samples import cut, picture, tree


def test_a_truncated_jpeg_is_refused_or_skipped(tmp_path):
    tree(tmp_path, {"train/a": 3, "train/b": 3, "test/a": 1, "test/b": 1})
    whole = load("imagefolder", "train", tmp_path)
    for name in ("a/1", "b/0"):
        cut(tmp_path / "train" / f"{name}.jpg")
    with pytest.raises(UsageError, match=r"2 broken image files.*a/1\.jpg \(.*truncated.*b/0\.jpg"):
        load("imagefolder", "train", tmp_path)
    left = load("imagefolder", "train", tmp_path, on_broken="skip")
    assert len(left) == 4 and left.labels.tolist() == [0, 0, 1, 1] and len(left.array) == 4
    assert [path.name for path, _ in left.skipped] == ["1.jpg", "0.jpg"] and left.fingerprint != whole.fingerprint
    assert np.array_equal(left.array[1], whole.array[2])


def test_damage_inside_a_file_is_found_when_all_is_decoded(tmp_path):
    tree(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 1}, suffix="png")
    file = tmp_path / "train" / "b" / "1.png"
    data = bytearray(file.read_bytes())
    data[60:90] = bytes(30)
    file.write_bytes(data)
    with pytest.raises(UsageError, match=r"1 broken image file: .*1\.png"):
        load("imagefolder", "train", tmp_path)
    left = load("imagefolder", "train", tmp_path, on_broken="skip")
    assert len(left) == 3 and len(left.array) == 3 and left.skipped[0][0] == file


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_quick_check_of_formats(tmp_path, format):
    path = picture(tmp_path / "x.jpg", 1, (40, 40), format=format)
    assert quick_reason(path) is None
    for share in (0.9, 0.5, 0.02, 0.0):
        cut(path, share)
        assert quick_reason(path), f"{format} cut to {share}"


def test_quick_check_of_odd_files(tmp_path):
    path = picture(tmp_path / "x.jpg")
    path.write_bytes(path.read_bytes() + b"trailer of a camera")
    assert quick_reason(path) is None
    path.write_bytes(b"<html>not found</html>")
    assert "not an image" in quick_reason(path)
    assert quick_reason(tmp_path / "gone.jpg") == "no such file"
    path.write_bytes(b"")
    assert quick_reason(path) == "empty file"


def test_all_broken_is_said(tmp_path):
    tree(tmp_path, {"train": 2})
    for path in (tmp_path / "train").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(UsageError, match="none of the 2"):
        load("imagefolder", "train", tmp_path, on_broken="skip")


def test_on_broken_is_checked():
    with pytest.raises(UsageError, match="'skp'; did you mean 'skip'"):
        load("digits", "test", on_broken="skp")


def test_the_check_of_a_large_set_is_remembered(tmp_path, monkeypatch):
    from suite.data import files

    tree(tmp_path / "set", {"train/a": 2, "train/b": 2, "test/a": 1})
    monkeypatch.setattr(files, "REMEMBERED", 4)
    assert REMEMBERED > 4
    load("imagefolder", "train", tmp_path / "set", cache=tmp_path / "cache", in_memory=False)
    monkeypatch.setattr(files, "quick_reason", lambda path: "looked again")
    load("imagefolder", "train", tmp_path / "set", cache=tmp_path / "cache", in_memory=False)
    (tmp_path / "set/train/a/0.jpg").write_bytes(b"changed")
    with pytest.raises(UsageError, match="looked again"):
        load("imagefolder", "train", tmp_path / "set", cache=tmp_path / "cache", in_memory=False)


def test_pictures_of_several_sizes_stay_on_disk(tmp_path):
    tree(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 1})
    picture(tmp_path / "train/a/9.jpg", size=(10, 10))
    train = load("imagefolder", "train", tmp_path)
    assert train.array is None and train.images[2].shape == (10, 10, 3)
    with pytest.raises(UsageError, match="9.jpg is 10×10, not 12×16"):
        load("imagefolder", "train", tmp_path, in_memory=True)
    assert load("imagefolder", "test", tmp_path, in_memory=False).array is None


def test_the_fingerprint_does_not_depend_on_where_or_how(tmp_path):
    roots = [tree(tmp_path / name, {"train/a": 2, "train/b": 2, "test/a": 1}) for name in ("here", "there")]
    marks = {load("imagefolder", "train", root, in_memory=mode).fingerprint for root in roots for mode in (True, False)}
    assert len(marks) == 1
    (roots[0] / "train/a/1.jpg").rename(roots[0] / "train/b/1b.jpg")
    assert load("imagefolder", "train", roots[0]).fingerprint not in marks


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode in ("L", "CMYK") else "png"
    Image.new("RGB", (6, 4), "white").convert(mode).save(tmp_path / f"x.{suffix}")
    found = decode(tmp_path / f"x.{suffix}")
    assert found.shape == (4, 6, 3) and found.dtype == np.uint8 and found.min() > 250
