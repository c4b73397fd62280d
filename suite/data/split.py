# SPDX-License-Identifier: Apache-2.0
"""Parts of a training set: held-out data to choose hyper-parameters on, and labelled subsets, drawn or published.

Pictures of one group (several compositions of one source digit) never end up on both sides.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from suite.data.imageset import ImageSet, PathList
from suite.errors import UsageError

LIST_FOLDERS = ("", "meta", "imagenet_subsets")
"""Where a data root may hold lists of labelled images."""
LIST_NAMES = ("{}percent.txt", "train_{}percent.txt", "train_{}pct.txt")
"""SimCLR's, OpenSelfSup's and MMSelfSup's names of the list of so many percent."""


def held_out(images: ImageSet, fraction: float, seed: int, *, keep_small: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Split positions into (rest, held out) with about `fraction` of every class held out.

    Args:
        images: a labelled set, one class per image.
        fraction: share to hold out, between 0 and 1.
        seed: of the choice.
        keep_small: nothing is held out of a class with a single group; otherwise such a class is an error.

    Returns:
        Two sorted int64 arrays of positions.

    Raises:
        UsageError: no labels, or a class (with `keep_small`: every class) with a single group, which cannot be on both sides.
    """
    chosen = labelled_subset(images, fraction, seed)
    rest = np.setdiff1d(np.arange(len(images)), chosen)
    assert images.labels is not None
    lost = np.setdiff1d(images.labels, images.labels[rest])
    if keep_small:
        chosen = chosen[~np.isin(images.labels[chosen], lost)]
        rest = np.setdiff1d(np.arange(len(images)), chosen)
    if len(lost) and (not keep_small or not len(chosen)):
        raise UsageError(f"{images.name}/{images.split}: class {images.classes[lost[0]]!r} is too small to hold out part of it")
    return rest, chosen


def labelled_subset(images: ImageSet, fraction: float, seed: int) -> np.ndarray:
    """Positions of a stratified subset: `fraction` of every class, at least one group of each.

    Raises:
        UsageError: the set has no single label per image.
    """
    if images.labels is None or images.multilabel:
        raise UsageError(f"{images.name}/{images.split} has no single label per image to stratify by")
    groups = np.arange(len(images)) if images.groups is None else images.groups
    names, first, counts = np.unique(groups, return_index=True, return_counts=True)
    label_of = images.labels[first]
    order = np.random.default_rng(seed).permutation(len(names))
    chosen = []
    for label in np.unique(label_of):
        mine = order[label_of[order] == label]
        wanted = fraction * counts[mine].sum()
        before = np.cumsum(counts[mine]) - counts[mine]
        chosen.append(names[mine[(before + counts[mine] / 2 <= wanted) | (before == 0)]])
    return np.flatnonzero(np.isin(groups, np.concatenate(chosen)))


@dataclass(frozen=True)
class Subset:
    """A labelled part of a training set, and where it comes from."""

    images: ImageSet
    source: str
    "The list's file name and the beginning of its SHA-256, or that the part was drawn."


def published_subset(images: ImageSet, fraction: float, seed: int, split: str) -> Subset:
    """The published list of `fraction` of the images where the data root holds one, else a seeded stratified subset.

    Args:
        images: the training set.
        fraction: 0.01 for the lists of 1 percent.
        seed: of the subset that is drawn where there is no list.
        split: name of the part.

    Raises:
        UsageError: a list that cannot be read or names images that are not there, or no single label per image.
    """
    file = find_list(images, fraction)
    if file is None:
        drawn = images.subset(labelled_subset(images, fraction, seed), split)
        return Subset(drawn, f"seeded stratified subset (seed {seed})")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return Subset(images.subset(listed(images, file), split), f"{file.name}, sha256 {sha256[:12]}")


def find_list(images: ImageSet, fraction: float) -> Path | None:
    """The list of `fraction` of the images in the data root or in one of LIST_FOLDERS below it, or None."""
    if not isinstance(images.paths, PathList):
        return None
    root, percent = images.paths.root, f"{100 * fraction:g}"
    files = (root / folder / name.format(percent) for folder in LIST_FOLDERS for name in LIST_NAMES)
    return next((file for file in files if file.is_file()), None)


def listed(images: ImageSet, file: Path) -> np.ndarray:
    """Positions of the images that a list names, in the set's order.

    A line is a file name (`n01440764_10026.JPEG`, SimCLR) or a path and a label (`n01440764/n01440764_10026.JPEG 0`,
    MMSelfSup); folder and name count, extension and label do not.

    Raises:
        UsageError: an unreadable or empty list, an image named twice or not in the set, or a name that fits several images.
    """
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"list {str(file)!r} is not readable text ({type(error).__name__})") from error
    names = [line[0] for line in lines if line]
    wanted = {_key(name): name for name in names}
    if not names or len(wanted) < len(names):
        raise UsageError(f"list {str(file)!r} {'names an image twice' if names else 'is empty'}")
    found: dict[str, int] = {}
    for i, (name, folder) in enumerate(_parts(images.paths)):
        for key in (name, f"{folder}/{name}"):
            if key in wanted and found.setdefault(key, i) != i:
                raise UsageError(f"list {str(file)!r}: {wanted[key]!r} fits several images of {images.name}/{images.split}")
    missing = [name for key, name in wanted.items() if key not in found]
    if missing:
        where = f"{images.name}/{images.split}"
        raise UsageError(f"list {str(file)!r}: {len(missing)} of {len(names)} images are not in {where}, first {missing[0]!r}")
    return np.array(sorted(found.values()), dtype=np.int64)


def _key(path: str) -> str:
    """What identifies an image in a list: the last folder, where one is given, and the name without extension."""
    *folders, name = path.replace("\\", "/").split("/")
    stem = os.path.splitext(name)[0]
    return f"{folders[-1]}/{stem}" if folders and folders[-1] not in ("", ".") else stem


def _parts(paths: Sequence[Path] | None) -> Iterator[tuple[str, str]]:
    """(name without extension, folder) of every image."""
    names = (os.fsdecode(bytes(name)) for name in paths.names) if isinstance(paths, PathList) else map(str, paths or ())
    for path in names:
        folder, name = os.path.split(path)
        yield os.path.splitext(name)[0], os.path.basename(folder)
