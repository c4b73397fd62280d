# SPDX-License-Identifier: Apache-2.0
"""Is a data set complete, and if not, what is wrong with which file?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from suite.data.cache import require_folder
from suite.data.card import Card
from suite.data.catalogue import Dataset, dataset
from suite.data.files import Listing, Options, decode_reason, parallel, quick_reason
from suite.data.imageset import ImageSet, reason
from suite.data.voc import read_annotation
from suite.errors import UsageError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    file: str
    """File or folder, or the split when no single file is to blame."""
    reason: str


@dataclass(frozen=True)
class Report:
    """What a check found."""

    name: str
    problems: tuple[Problem, ...]
    counts: Mapping[str, Mapping[str, int]]
    """Split -> class -> images; unlabelled images count under an empty name. Multi-label: images with the class."""
    totals: Mapping[str, int]
    """Split -> images."""
    expected: Mapping[str, int] = field(default_factory=dict)
    """Split -> images of the official set, where it is fixed and the number found differs."""
    how_to_obtain: str = ""

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


def check(name: str, root: Path | str | None = None, *, decode: bool = True, cache: Path | None = None) -> Report:
    """Look at everything a data set consists of: folders, lists, annotations, labels and pictures.

    Args:
        name: a name of the catalogue.
        root: data root; not needed for embedded sets.
        decode: decode every picture; False: look at first and last bytes only.
        cache: cache folder of embedded sets.

    Raises:
        UsageError: unknown name. Anything wrong with the files is a `Problem`.
    """
    entry = dataset(name)
    try:
        folder = None
        if not entry.card.embedded:
            folder = require_folder(root, name, entry.card.layout, entry.card.obtain)
        found, problems = _read_splits(entry, folder, cache)
    except UsageError as error:
        found, problems = {}, [Problem(str(root), str(error))]
    for part in found.values():
        if isinstance(part, Listing):
            problems += [Problem(str(part.root / loose), "belongs to no class, is not used") for loose in part.loose]
    listings = {split: part for split, part in found.items() if isinstance(part, Listing)}
    for test in (_pictures(listings, decode), _overlaps(listings), _empty_classes(found), _native(entry.card, listings)):
        problems += test
    totals = {split: _length(part) for split, part in found.items()}
    expected = {split: n for split, n in entry.card.splits.items() if isinstance(n, int) and totals.get(split, n) != n}
    unique = tuple(dict.fromkeys(problems))
    return Report(name, unique, {split: _counts(part) for split, part in found.items()}, totals, expected,
                  entry.card.obtain)  # fmt: skip


def _read_splits(entry: Dataset, root: Path | None, cache: Path | None) -> tuple[dict[str, Listing | ImageSet], list[Problem]]:
    """Each split's listing (or the set itself, where there are no image files), and splits that cannot be read.

    A split that is absent is a problem only when it is one of the official pair.
    """
    found: dict[str, Listing | ImageSet] = {}
    problems = []
    pair = [split for split in (entry.card.train, entry.card.test) if split]
    for split in dict.fromkeys((*pair, *entry.card.splits)):
        try:
            if entry.read is None or root is None:
                found[split] = entry.load(split, root, Options(cache=cache))
            else:
                found[split] = _listing(entry, root, split)
        except UsageError as error:
            if split in pair and not _unlabelled_only(found, split, entry.card):
                problems.append(Problem(split, str(error)))
    if {"val", "test"} <= found.keys() and _same(found["val"], found["test"]):
        del found["val" if entry.card.test == "test" else "test"]  # one folder under two names
    return found, problems


def _listing(entry: Dataset, root: Path, split: str) -> Listing | ImageSet:
    """The files of a split; CIFAR's batches are no image files and are loaded."""
    assert entry.read is not None
    try:
        return entry.read(root, split)
    except UsageError:
        if entry.card.name not in ("cifar10", "cifar100"):
            raise
        return entry.load(split, root, Options())


def _unlabelled_only(found: Mapping[str, Listing | ImageSet], split: str, card: Card) -> bool:
    """True for the missing test split of a set of unlabelled pictures."""
    train = found.get(card.train)
    return split == card.test and train is not None and train.labels is None


def _same(one: Listing | ImageSet, other: Listing | ImageSet) -> bool:
    return isinstance(one, Listing) and isinstance(other, Listing) and list(one.names) == list(other.names)


def _length(part: Listing | ImageSet) -> int:
    return len(part.names) if isinstance(part, Listing) else len(part)


def _counts(part: Listing | ImageSet) -> dict[str, int]:
    if part.labels is None:
        return {"": _length(part)}
    if part.labels.ndim == 2:
        return dict(zip(part.classes, (part.labels == 1).sum(0).tolist(), strict=True))
    return dict(zip(part.classes, np.bincount(part.labels, minlength=len(part.classes)).tolist(), strict=True))


def _empty_classes(found: Mapping[str, Listing | ImageSet]) -> Iterator[Problem]:
    for split, part in found.items():
        for name, count in _counts(part).items():
            if not count and part.labels is not None and part.labels.ndim == 1:
                yield Problem(split, f"class {name!r} has no images")


def _pictures(listings: Mapping[str, Listing], decode: bool) -> Iterator[Problem]:
    """Image files that are missing or broken, each once though several splits may hold it."""
    files = dict.fromkeys(part.root / name for part in listings.values() for name in part.names)
    look: Callable[[Path], str | None] = _full_reason if decode else quick_reason
    for path, why in zip(files, parallel(look, list(files), chunk=16), strict=True):
        if why is not None:
            yield Problem(str(path), why)


def _full_reason(path: Path) -> str | None:
    return decode_reason(path) if (why := quick_reason(path)) is None else why


def _overlaps(listings: Mapping[str, Listing]) -> Iterator[Problem]:
    """Files with the same bytes in two splits that should share nothing."""
    seen: dict[tuple[int, str], tuple[str, Path]] = {}
    splits = [split for split in ("trainval", "train", "val", "test") if split in listings]
    files = {split: _sized(listings[split]) for split in splits}
    sizes = [set(size for _, size in files[split]) for split in splits]
    shared = {size for i, one in enumerate(sizes) for other in sizes[i + 1 :] for size in one & other}
    for split in splits:
        todo = [(path, size) for path, size in files[split] if size in shared]
        for (path, size), mark in zip(todo, parallel(_sha, [path for path, _ in todo]), strict=True):
            first, other = seen.setdefault((size, mark), (split, path))
            if first != split and other != path and mark:
                yield Problem(str(path), f"same bytes as {other} of {first}")


def _sized(listing: Listing) -> list[tuple[Path, int]]:
    paths = [listing.root / name for name in listing.names]
    return list(zip(paths, parallel(lambda p: p.stat().st_size if p.is_file() else -1, paths), strict=True))


def _sha(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _native(card: Card, listings: Mapping[str, Listing]) -> Iterator[Problem]:
    """Annotations and label maps of detection and segmentation sets."""
    for listing in listings.values():
        if listing.masks is not None:
            yield from _label_maps(listing, len(listing.classes))
        elif listing.native is not None and (listing.native / "VOCdevkit").is_dir():
            yield from _voc_annotations(listing, card)


def _label_maps(listing: Listing, classes: int) -> Iterator[Problem]:
    limit = classes if "TrainIds" in listing.annotations else 35

    def wrong(pair: tuple[str, str]) -> str | None:
        try:
            with Image.open(listing.root / pair[0]) as image, Image.open(listing.root / pair[1]) as labels:
                values = np.asarray(labels)
                if image.size != labels.size:
                    return f"is {labels.size[0]}×{labels.size[1]}, its picture {image.size[0]}×{image.size[1]}"
        except Exception as error:  # Pillow's decoders raise many types; the picture itself is reported elsewhere
            return reason(error)
        high = values[(values != 255) & (values >= limit)]
        return f"label {int(high.max())} is out of range (0..{limit - 1} and 255)" if high.size else None

    pairs = list(zip(listing.names, listing.masks or (), strict=True))
    for (_, mask), why in zip(pairs, parallel(wrong, pairs, chunk=4), strict=True):
        if why is not None:
            yield Problem(str(listing.root / mask), why)


def _voc_annotations(listing: Listing, card: Card) -> Iterator[Problem]:
    """XML files that are missing, unreadable, or hold boxes outside the picture or of unknown classes."""
    files = [_xml_of(listing.root / name) for name in listing.names]
    if not any(file.is_file() for file in files):
        return  # the test split of 2012 has no annotations

    def wrong(path: Path) -> str | None:
        try:
            annotation = read_annotation(path)
        except UsageError as error:
            return reason(error.__cause__ or error)
        height, width = annotation.size
        for name, _, (left, top, right, bottom) in annotation.objects:
            if name not in listing.classes:
                return f"object of unknown class {name!r}"
            if left >= right or top >= bottom or left < 0 or top < 0 or (width and (right > width or bottom > height)):
                return f"box of {name!r} ({left:g}, {top:g}, {right:g}, {bottom:g}) leaves the {width}×{height} picture"
        return None

    yield from _problems(zip(files, parallel(wrong, files), strict=True))


def _problems(pairs: Iterable[tuple[Path, str | None]]) -> Iterator[Problem]:
    return (Problem(str(path), why) for path, why in pairs if why is not None)


def _xml_of(picture: Path) -> Path:
    return picture.parent.parent / "Annotations" / f"{picture.stem}.xml"
