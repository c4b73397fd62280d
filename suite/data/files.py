# SPDX-License-Identifier: Apache-2.0
"""From a list of image files to an `ImageSet`: quick health check, fingerprint, decoding into memory."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from suite.data.cache import atomic_file, cache_dir
from suite.data.imageset import FileImages, ImageSet, PathList, decode, digest, reason
from suite.errors import UsageError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
MEMORY_LIMIT = 1 << 30
"""Bytes of decoded pictures above which `in_memory="auto"` leaves them on disk."""
REMEMBERED = 10_000
"""From this many files on, a finished health check is noted in the cache and not repeated."""

Broken = list[tuple[int, str]]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Options:
    """How a set is loaded, apart from which."""

    cache: Path | None = None
    """Cache folder; None: `suite.data.cache_dir()`."""
    on_broken: Literal["refuse", "skip"] = "refuse"
    """Broken image files raise, or are left out and listed in `ImageSet.skipped`."""
    in_memory: Literal["auto"] | bool = "auto"
    """Decode everything now: always, never, or when all pictures share a size and stay below 1 GiB."""


@dataclass(frozen=True, eq=False)
class Listing:
    """One split as files, before any picture is opened."""

    root: Path
    """Folder that `names` and `masks` are relative to."""
    names: Sequence[str]
    """Image files, with forward slashes."""
    classes: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    masks: Sequence[str] | None = None
    """Label maps, one per image."""
    annotations: str = ""
    """Digest of annotation content that the labels do not carry (boxes, masks)."""
    native: Path | None = None
    """Folder that tools for the native layout are given."""
    loose: Sequence[str] = field(default=())
    """Image files that belong to no class and are not used."""


def from_listing(name: str, split: str, listing: Listing, options: Options) -> ImageSet:
    """Check the files quickly, then make the image set.

    Raises:
        UsageError: no images, broken files (unless skipped), or `in_memory=True` with pictures of several sizes.
    """
    if not len(listing.names):
        raise UsageError(f"data set {name!r}, split {split!r}: no images in {str(listing.root)!r}")
    paths = PathList(listing.root, listing.names)
    sizes, broken = quick_check(paths, options.cache)
    array = None
    if not broken or options.on_broken == "skip":
        kept = _without(len(paths), broken)
        array, late = _into_memory(paths, kept, options.in_memory)
        broken = sorted(broken + late)
    if broken and options.on_broken != "skip":
        raise UsageError(f"{name}/{split}: {summary(paths, broken)}; repair them or choose --on-broken skip")
    kept = _without(len(paths), broken)
    if not len(kept):
        raise UsageError(f"{name}/{split}: none of the {len(paths)} image files can be read")
    names, labels = paths.names[kept], None if listing.labels is None else listing.labels[kept]
    masks = None if listing.masks is None else PathList(listing.root, listing.masks).take(kept)
    identity = (b"\n".join(names.tolist()), sizes[kept], "" if labels is None else labels)
    if array is not None and len(array) != len(kept):
        array = None
    chosen = paths.take(kept)
    return ImageSet(
        name, split, listing.classes, labels, array if array is not None else FileImages(chosen),
        digest("files", *identity, "\n".join(listing.classes), listing.annotations),
        root=listing.native, array=array, paths=chosen, masks=masks,
        skipped=tuple((paths[i], why) for i, why in broken),
    )  # fmt: skip


def summary(paths: Sequence[Path], broken: Broken) -> str:
    """One line: how many files are broken, and the first three with their reasons."""
    first = ", ".join(f"{paths[i]} ({why})" for i, why in broken[:3])
    return f"{len(broken)} broken image file{'s' * (len(broken) > 1)}: {first}{', …' * (len(broken) > 3)}"


def quick_check(paths: PathList, cache: Path | None = None) -> tuple[np.ndarray, Broken]:
    """Sizes in bytes, and the files that are missing, empty, cut short or no images, without decoding them.

    A JPEG or PNG is taken as whole when its first and last bytes are right; anything else is decoded. Bits that
    went wrong inside a file are found by `suite.data.check`, which decodes everything.
    """
    stats = np.array(list(parallel(_stat, paths)), dtype=np.int64).reshape(-1, 2)  # N×2: bytes, time of last change
    note = None
    if len(paths) >= REMEMBERED:
        note = cache_dir(cache) / "checked" / f"{digest(str(paths.root), paths.names.tobytes(), stats)}.json"
        with contextlib.suppress(OSError, ValueError):
            return stats[:, 0], [(int(i), str(why)) for i, why in json.loads(note.read_text())]
    reasons = parallel(quick_reason, paths)
    broken = [(i, why) for i, why in enumerate(reasons) if why is not None]
    if note is not None:
        with contextlib.suppress(OSError), atomic_file(note) as temporary:
            temporary.write_text(json.dumps(broken))
    return stats[:, 0], broken


def quick_reason(path: Path) -> str | None:
    """Why a file cannot be a whole image, judged by its first and last bytes where that suffices; None: it can."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
            if not head:
                return "empty file"
            file.seek(max(-16, -os.fstat(file.fileno()).st_size), os.SEEK_END)
            tail = file.read(16)
    except OSError as error:
        return reason(error)
    if head.startswith(b"\xff\xd8\xff") and tail.endswith(b"\xff\xd9"):
        return None
    if head.startswith(b"\x89PNG\r\n\x1a\n") and tail.endswith(b"IEND\xaeB`\x82"):
        return None
    return decode_reason(path)  # other formats, and files with bytes after the image's end


def decode_reason(path: Path) -> str | None:
    """Why a file cannot be decoded, or None when it can."""
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:  # Pillow's decoders raise many types
        return reason(error)
    return None


def parallel(function: Callable[[T], R], items: Sequence[T], chunk: int = 64) -> Iterator[R]:
    """`map` on threads, in order; for work that waits for disks or runs outside the interpreter lock."""
    starts = range(0, len(items), chunk)
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        for results in pool.map(lambda start: [function(item) for item in items[start : start + chunk]], starts):
            yield from results


def is_image(name: str) -> bool:
    """True for a file name with an image's extension that is not hidden."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")


def _stat(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return -1, 0
    return found.st_size, found.st_mtime_ns


def _without(n: int, broken: Broken) -> np.ndarray:
    kept = np.ones(n, dtype=bool)
    kept[[i for i, _ in broken]] = False
    return np.flatnonzero(kept)


def _into_memory(paths: PathList, kept: np.ndarray, wanted: bool | str) -> tuple[np.ndarray | None, Broken]:
    """Decode the kept files into one array, or None when that is not wanted; and files that fail to decode."""
    if wanted is False or not len(kept):
        return None, []
    try:
        shape = decode(paths[int(kept[0])]).shape
    except UsageError as error:
        return None, [(int(kept[0]), str(error).rsplit(": ", 1)[-1])]
    if wanted == "auto" and len(kept) * int(np.prod(shape)) >= MEMORY_LIMIT:
        return None, []
    array = np.empty((len(kept), *shape), dtype=np.uint8)  # N×H×W×3
    good, broken = 0, []
    for i, picture in zip(kept, parallel(_decoded, paths.take(kept)), strict=True):
        if isinstance(picture, str):
            broken.append((int(i), picture))
        elif picture.shape == shape:
            array[good] = picture
            good += 1
        elif wanted == "auto":
            return None, []
        else:
            size = f"{picture.shape[0]}×{picture.shape[1]}, not {shape[0]}×{shape[1]}"
            raise UsageError(f"in_memory=True needs pictures of one size: {paths[int(i)]} is {size}")
    return array[:good], broken


def _decoded(path: Path) -> np.ndarray | str:
    try:
        return decode(path)
    except UsageError as error:
        return reason(error.__cause__ or error)
