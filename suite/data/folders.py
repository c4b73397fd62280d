# SPDX-License-Identifier: Apache-2.0
"""Readers for folders of class folders and for list files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from suite.data.compose import RawRandom
from suite.data.files import Listing, is_image
from suite.errors import UsageError, unknown

SPELLINGS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
HELD_OUT = 10
"""Where a set has no test folder, one in this many images of each class is held out as `test`."""


def image_folder(root: Path, split: str, *, hold_out: bool = True) -> Listing:
    """Read `<root>/<split>/<class>/*.jpg`, `<root>/<class>/*.jpg`, or a folder of unlabelled pictures.

    `val` and `test` stand for each other when only one exists. Without either, a fixed tenth of each class is held
    out as `test` and `train` is the rest. Pictures that lie in one class folder only, or in none, are unlabelled
    and all belong to `train`.

    Args:
        root: the data root.
        split: `train`, `val`, `test`, or the name of another folder.
        hold_out: False: `train` is everything and there is no other split.

    Raises:
        UsageError: no such split, no images, an empty class, or a test class that `train` lacks.
    """
    root = unwrapped(root)
    folders = split_folders(root)
    if not folders:
        return _held_out(root, root, split, hold_out)
    folder = folders.get(split) or folders.get({"val": "test", "test": "val"}.get(split, ""))
    if folder is None and split in ("val", "test") and "train" in folders:
        return _held_out(root, folders["train"], split, hold_out)
    if folder is None:
        folder = root / split
        if os.sep in split or not folder.is_dir():
            raise UsageError(f"no split {split!r} in {str(root)!r} (valid: {', '.join(folders)})")
    if split == "train" and hold_out and len(folders) == 1:
        return _held_out(root, folder, split, hold_out)
    train = folders.get("train", folder)
    classes = class_folders(train) if train != folder else []
    return labelled_folder(root, folder, classes if len(classes) > 1 else None)


def labelled_folder(root: Path, folder: Path, classes: list[str] | None = None) -> Listing:
    """All pictures below the class folders of `folder`; `classes`: the class names that count (default: its own).

    Raises:
        UsageError: no images, an empty class of its own, or a class folder that is not in `classes`.
    """
    found = class_folders(folder)
    if len(found) < 2 and not (classes and found):
        names = images_below(folder)
        if not names:
            raise UsageError(f"no images below {str(folder)!r} (wanted: class folders, or pictures)")
        return Listing(root, _relative(root, folder, names))
    own = classes is None
    classes = found if classes is None else classes
    number = {name: i for i, name in enumerate(classes)}
    names, labels = [], []
    for name in found:
        below = images_below(folder / name)
        if not below and own:
            raise UsageError(f"class folder {str(folder / name)!r} holds no images; fill or remove it")
        if name not in number and below:
            raise unknown(f"class folder in {str(folder)!r} (not in train):", name, classes)
        names += [f"{name}/{image}" for image in below]
        labels += [number.get(name, -1)] * len(below)
    loose = sorted(entry.name for entry in os.scandir(folder) if is_image(entry.name) and entry.is_file())
    target = np.array(labels, dtype=np.int64)
    return Listing(root, _relative(root, folder, names), tuple(classes), target, loose=_relative(root, folder, loose))


def split_folders(root: Path) -> dict[str, Path]:
    """Folders of `root` that are splits, by canonical name; empty when `root` holds class folders or pictures.

    A folder `train` with pictures right in it, beside folders of other names, is a class of railway pictures.
    """
    entries = _folders(root)
    named = {SPELLINGS[name.lower()]: root / name for name in entries if name.lower() in SPELLINGS}
    nested = any(_folders(folder) for folder in named.values())
    return named if nested or len(named) == len(entries) else {}


def class_folders(folder: Path) -> list[str]:
    """Names of the sub-folders, sorted by code point: their order gives the labels."""
    return sorted(_folders(folder))


def images_below(folder: Path) -> list[str]:
    """Image files in a folder and its sub-folders, relative with forward slashes, sorted."""
    found = []
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = os.path.relpath(where, folder).replace(os.sep, "/")
        prefix = "" if prefix == "." else f"{prefix}/"
        found += [prefix + name for name in files if is_image(name)]
    return sorted(found)


def unwrapped(root: Path) -> Path:
    """Go down while a folder holds nothing but one folder of folders, as unpacked archives often do."""
    while True:
        entries = [entry.name for entry in os.scandir(root) if not entry.name.startswith(".")]
        inner = root / entries[0] if len(entries) == 1 else root
        if inner == root or entries[0].lower() in SPELLINGS or not inner.is_dir() or not _folders(inner):
            return root
        root = inner


def test_tenth(labels: np.ndarray) -> np.ndarray:
    """Mask of the images held out as `test`: the same fixed tenth of each class every time, at least one."""
    mask = np.zeros(len(labels), dtype=bool)
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        order = RawRandom(2007, int(c), len(members)).permutation(len(members))
        mask[members[order[: max(1, len(members) // HELD_OUT)]]] = True
    return mask


def _held_out(root: Path, folder: Path, split: str, hold_out: bool) -> Listing:
    """A split of a set that has training pictures only."""
    listing = labelled_folder(root, folder)
    if split == "train" and (listing.labels is None or not hold_out):
        return listing
    if split not in ("train", "val", "test") or not hold_out:
        raise UsageError(f"no split {split!r} in {str(root)!r} (valid: train)")
    if listing.labels is None:
        raise UsageError(f"no split {split!r} in {str(root)!r}: its pictures carry no labels (valid: train)")
    mask = test_tenth(listing.labels)
    chosen = np.flatnonzero(mask if split != "train" else ~mask)
    names = [listing.names[int(i)] for i in chosen]
    return Listing(root, names, listing.classes, listing.labels[chosen], loose=listing.loose)


def _folders(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    except OSError as error:
        raise UsageError(f"cannot read folder {str(folder)!r}: {error.strerror}") from error


def _relative(root: Path, folder: Path, names: list[str]) -> list[str]:
    prefix = folder.relative_to(root).as_posix()
    return names if prefix == "." else [f"{prefix}/{name}" for name in names]
