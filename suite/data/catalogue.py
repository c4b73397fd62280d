# SPDX-License-Identifier: Apache-2.0
"""The data sets by name: what each is, how it is read, and how a folder is recognised.

Another package adds one with an entry point in the group `suite.datasets` that names a `Dataset`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Literal

from suite.data.cache import require_folder
from suite.data.card import Card
from suite.data.files import Listing, Options, from_listing
from suite.data.imageset import ImageSet
from suite.errors import JobError, UsageError, unknown

LABEL = re.compile(r"[A-Za-z0-9_]+")
"""What a user may call a set of pictures."""
Load = Callable[[str, "Path | None", Options], ImageSet]
"""(split, data root, options) -> image set."""
Read = Callable[[Path, str], Listing]
"""(data root, split) -> files of the split, none of them opened."""


@dataclass(frozen=True)
class Dataset:
    """An entry of the catalogue: what the set is and how it is loaded."""

    card: Card
    load: Load
    read: Read | None = None
    """For sets of image files: the listing behind `load`, which the check uses."""
    matches: Callable[[Path], bool] | None = None
    """Whether a folder looks like this set; None: never chosen by looking."""


def catalogue() -> dict[str, Dataset]:
    """Every data set by name, the project's own first, then those of other packages.

    Raises:
        UsageError: two packages use one name, or an entry point names something else than a Dataset.
        JobError: another package fails to import.
    """
    return {name: dataset(name) for name in names()}


def names() -> tuple[str, ...]:
    """Names of all data sets, without importing other packages."""
    own, others = _own(), _others()
    for name in others:
        if name in own:
            raise UsageError(f"data set {name!r} is defined twice: by this project and by {others[name].value}")
    return (*own, *sorted(others))


def dataset(name: str) -> Dataset:
    """The entry of one data set; `imagefolder-flowers` is a folder of images of its own, beside `imagefolder`.

    Raises:
        UsageError: unknown name (with the nearest one), or an entry point that is no Dataset.
        JobError: the package that offers it fails to import.
    """
    if name in _own():
        return _own()[name]
    if name not in _others():
        return _labelled(name)
    point = _others()[name]
    try:
        found = point.load()
    except Exception as error:
        raise JobError(f"data set {name!r}: loading {point.value} failed: {type(error).__name__}: {error}") from error
    if not isinstance(found, Dataset) or found.card.name != name:
        raise UsageError(f"{point.value} is no suite.data.Dataset with a card named {name!r}")
    return found


def _labelled(name: str) -> Dataset:
    """Another set of a kind that any pictures can be laid out in."""
    kind, _, label = name.partition("-")
    entry = _own().get(kind)
    if entry is None or entry.read is None or not entry.card.kind or not LABEL.fullmatch(label):
        raise unknown("data set", name, names())
    return from_files(replace(entry.card, name=name, title=f"{entry.card.title} ({label})"), entry.read)


def card(name: str) -> Card:
    """What is known about a data set; UsageError for an unknown name."""
    return dataset(name).card


def load(
    name: str,
    split: str,
    root: Path | str | None = None,
    *,
    cache: Path | None = None,
    on_broken: Literal["refuse", "skip"] = "refuse",
    in_memory: Literal["auto"] | bool = "auto",
) -> ImageSet:
    """Load one split of a data set.

    Args:
        name: a name of the catalogue.
        split: one of the set's own splits (`Card.splits`), or `train`, `val`, `test` for its official pair.
        root: data root; not needed for embedded sets.
        cache: cache folder; default `suite.data.cache_dir()`.
        on_broken: `refuse` raises when an image file is broken, `skip` leaves it out (`ImageSet.skipped`).
        in_memory: decode all now: True, False, or `auto`: when all pictures share a size and take less than 1 GiB.

    Raises:
        UsageError: unknown name or split, missing or empty root, unreadable annotation, broken images.
    """
    entry = dataset(name)
    if on_broken not in ("refuse", "skip"):
        raise unknown("value of on_broken", on_broken, ("refuse", "skip"))
    split = entry.card.split(split)
    folder = None if root is None else Path(root).expanduser()
    return entry.load(split, folder, Options(cache, on_broken, in_memory))


def detect(root: Path | str) -> str:
    """Name of the data set that a folder holds, judged by its layout.

    Raises:
        UsageError: no such folder, an empty one, or nothing recognisable in it.
    """
    layout = "class folders, list files, VOCdevkit, COCO annotations, Cityscapes folders or CIFAR batches"
    folder = require_folder(root, "", layout, "")
    for entry in catalogue().values():
        if entry.matches is not None and entry.matches(folder):
            return entry.card.name
    raise UsageError(f"data root {str(root)!r}: no data set recognised (looked for {layout}); name it with --dataset")


def from_files(known: Card, read: Read, matches: Callable[[Path], bool] | None = None) -> Dataset:
    """An entry for a set of image files, from the function that lists them."""

    def load_split(split: str, root: Path | None, options: Options) -> ImageSet:
        folder = require_folder(root, known.name, known.layout, known.obtain)
        return from_listing(known.name, split, read(folder, split), options)

    return Dataset(known, load_split, read, matches)


@functools.cache
def _own() -> dict[str, Dataset]:
    from suite.data.builtin import builtin

    return {entry.card.name: entry for entry in builtin()}


def _others() -> dict[str, metadata.EntryPoint]:
    found: dict[str, metadata.EntryPoint] = {}
    for point in metadata.entry_points(group="suite.datasets"):
        if point.name in found and found[point.name].value != point.value:
            raise UsageError(f"data set {point.name!r} is defined twice: {found[point.name].value} and {point.value}")
        found[point.name] = point
    return found
