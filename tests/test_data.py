# SPDX-License-Identifier: Apache-2.0
"""Readers of data the user has, on small trees; the catalogue, image sets and the packed cache."""

from __future__ import annotations

import json
import pickle
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from suite.data import Dataset, card, catalogue, detect, load, names
from suite.data.card import Card
from suite.data.files import REMEMBERED, quick_reason
from suite.data.imageset import ImageSet, PathList, decode, digest
from suite.data.pack import pack, reduced
from suite.errors import JobError, UsageError


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (12, 16), **save: object) -> Path:
    """Write a noisy picture; JPEG and PNG by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **save)
    return path


def tree(root: Path, layout: dict[str, int], suffix: str = "jpg") -> Path:
    """Folders with a number of pictures each; no two pictures alike."""
    seed = 0
    for folder, count in layout.items():
        for i in range(count):
            seed += 1
            picture(root / folder / f"{i}.{suffix}", seed)
    return root


def cut(path: Path, share: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


# ---- catalogue


def test_every_card_is_complete():
    for name, entry in catalogue().items():
        assert entry.card.name == name and entry.card.task in entry.card.tasks
        assert entry.card.train in entry.card.splits and entry.card.test in (None, *entry.card.splits)
        assert entry.card.layout and entry.card.licence and entry.card.obtain
    assert {"digits", "digit-scenes", "imagefolder", "voc07+12", "imagenet21k"} <= set(names())


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UsageError, match="cifar-10.*cifar10"):
        load("cifar-10", "train")


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


# ---- folders


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


# ---- list files


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


# ---- broken files


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


# ---- in memory or on disk


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


# ---- CIFAR


def cifar10_batches(root: Path, protocol: int = 2) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
    root.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
        batch = {b"data": pixels[2 * i : 2 * i + 2].copy(), b"labels": [i, 9 - i], b"batch_label": b"x"}
        (root / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    (root / "batches.meta").write_bytes(pickle.dumps({b"label_names": [n.encode() for n in "abcdefghij"]}, protocol=2))
    return pixels


@pytest.mark.parametrize("protocol", range(6))
def test_cifar10_python_version(tmp_path, protocol):
    pixels = cifar10_batches(tmp_path / "cifar-10-batches-py", protocol)
    train, test = load("cifar10", "train", tmp_path), load("cifar10", "test", tmp_path / "cifar-10-batches-py")
    assert train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5] and test.labels.tolist() == [5, 4]
    assert train.classes == tuple("abcdefghij")
    assert np.array_equal(train.array, pixels[:10].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert detect(tmp_path) == "cifar10"


def test_cifar10_python_2_strings(tmp_path):
    cifar10_batches(tmp_path)
    batch = pickle.loads((tmp_path / "test_batch").read_bytes())
    text = {key.decode(): value for key, value in batch.items()}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(text, protocol=2))
    assert load("cifar10", "test", tmp_path).labels.tolist() == [5, 4]


def test_cifar_binary_versions(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (4, 3073), dtype=np.uint8)
    rows[:, 0] = [3, 1, 4, 1]
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(rows.tobytes())
    (tmp_path / "test_batch.bin").write_bytes(rows.tobytes())
    test = load("cifar10", "test", tmp_path)
    assert test.labels.tolist() == [3, 1, 4, 1] and test.classes[3] == "cat"
    assert np.array_equal(test.array[1], rows[1, 1:].reshape(3, 32, 32).transpose(1, 2, 0))
    (tmp_path / "test_batch.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(UsageError, match="cut short"):
        load("cifar10", "test", tmp_path)
    hundred = tmp_path / "cifar-100-binary"
    hundred.mkdir()
    for name in ("train", "test"):
        (hundred / f"{name}.bin").write_bytes(np.concatenate([[[7], [7], [7], [7]], rows], 1).astype(np.uint8).tobytes())
    found = load("cifar100", "test", tmp_path)
    assert found.labels.tolist() == [3, 1, 4, 1] and found.num_classes == 100


def test_cifar100_uses_fine_labels(tmp_path):
    data = np.zeros((2, 3072), dtype=np.uint8)
    for name in ("train", "test"):
        batch = {b"data": data, b"fine_labels": [99, 0], b"coarse_labels": [1, 1]}
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=2))
    (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": [str(i).encode() for i in range(100)]}))
    assert load("cifar100", "train", tmp_path).labels.tolist() == [99, 0] and detect(tmp_path) == "cifar100"


def test_cifar_in_class_folders(tmp_path):
    for folder in ("train", "test"):
        tree(tmp_path, {f"{folder}/{name}": 1 for name in card("cifar10").classes})
    assert load("cifar10", "test", tmp_path).classes == card("cifar10").classes


class Payload:
    """Pickles to a call that leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,)) if self.path.name == "direct" else (exec, (f"open({str(self.path)!r}, 'w')",))


@pytest.mark.parametrize("trace", ["direct", "code"])
def test_a_malicious_pickle_does_not_run(tmp_path, trace):
    cifar10_batches(tmp_path / "set")
    mark = tmp_path / trace
    bad = pickle.dumps({b"data": Payload(mark), b"labels": [1, 2]}, protocol=2)
    pickle.loads(bad)
    assert mark.exists()  # the payload works where pickles are run
    mark.unlink()
    (tmp_path / "set" / "test_batch").write_bytes(bad)
    with pytest.raises(UsageError, match="which no CIFAR file needs"):
        load("cifar10", "test", tmp_path / "set")
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1, 2]), pickle.dumps({b"data": 3})])
def test_damaged_cifar_batches(tmp_path, content):
    cifar10_batches(tmp_path)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(UsageError, match="test_batch") as caught:
        load("cifar10", "test", tmp_path)
    assert "\n" not in str(caught.value)


def test_cifar_label_out_of_range(tmp_path):
    cifar10_batches(tmp_path)
    batch = {b"data": np.zeros((1, 3072), dtype=np.uint8), b"labels": [10]}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(UsageError, match="label 10"):
        load("cifar10", "test", tmp_path)


# ---- VOC, COCO, Cityscapes, and the large sets


def voc_tree(root: Path, objects: dict[str, list[tuple[str, int]]], split: str = "trainval", year: str = "2007") -> Path:
    home = root / "VOCdevkit" / f"VOC{year}"
    for folder in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation", "JPEGImages"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    for i, (name, items) in enumerate(objects.items()):
        picture(home / "JPEGImages" / f"{name}.jpg", len(split) * 100 + i, (30, 40))
        body = "".join(
            f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox><xmin>2</xmin><ymin>3</ymin>"
            "<xmax>20</xmax><ymax>25</ymax></bndbox></object>"
            for label, difficult in items
        )
        size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
        (home / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{body}</annotation>")
    (home / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in objects))
    return root


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


def coco_tree(root: Path) -> Path:
    for split, count in {"train": 3, "val": 2}.items():
        images = [{"id": 10 + i, "file_name": f"{i}.jpg", "height": 12, "width": 16} for i in range(count)]
        marks = [
            {"id": 1, "image_id": 11, "category_id": 7, "iscrowd": 0},
            {"id": 2, "image_id": 10, "category_id": 3, "iscrowd": 1},
        ]
        content = {"images": images, "annotations": marks, "categories": [{"id": 7, "name": "b"}, {"id": 3, "name": "a"}]}
        (root / "annotations").mkdir(exist_ok=True, parents=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
        for i in range(count):
            picture(root / f"{split}2017" / f"{i}.jpg", count * 10 + i)
    return root


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


# ---- image sets and packing


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
