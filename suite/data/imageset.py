# SPDX-License-Identifier: Apache-2.0
"""An image set: pictures, labels, class names, and a fingerprint that says which pictures and labels."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, overload

import numpy as np
from PIL import Image

from suite.errors import UsageError


class Images(Protocol):
    """Anything indexable that gives one uint8 RGB picture at a time."""

    def __len__(self) -> int:
        """Number of pictures."""
        ...

    def __getitem__(self, index: int, /) -> np.ndarray:
        """Picture number `index`, H×W×3 uint8."""
        ...


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split of a data set, ready to index.

    Raises:
        ValueError: labels, groups, array or paths disagree in length with the images.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    labels: np.ndarray | None
    """int64 N (classification); int8 N×C in {-1, 0, 1}: absent, difficult, present (multi-label); None: unlabelled."""
    images: Images
    """`images[i]` is a uint8 H×W×3 RGB array."""
    fingerprint: str
    """First 16 hex digits of a SHA-256 over the content's identity; the same on every machine."""
    root: Path | None = None
    """Folder that holds the native layout (`VOCdevkit/VOC2007` for VOC) for detection and segmentation tools."""
    array: np.ndarray | None = None
    """N×H×W×3 uint8 when all pictures share one size and live decoded in memory."""
    paths: Sequence[Path] | None = None
    """Image files, when there is one per picture."""
    masks: Sequence[Path] | None = None
    """Label maps, one per picture (semantic segmentation)."""
    groups: np.ndarray | None = None
    """int64 N: pictures of one group show the same source, so a held-out split keeps them together."""
    skipped: tuple[tuple[Path, str], ...] = field(default=(), repr=False)
    """Broken files left out, with the reason."""

    def __post_init__(self) -> None:
        """Refuse parts of different lengths."""
        for part in ("labels", "array", "paths", "masks", "groups"):
            value = getattr(self, part)
            if value is not None and len(value) != len(self.images):
                raise ValueError(f"{self.name}/{self.split}: {len(value)} {part} for {len(self.images)} images")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def multilabel(self) -> bool:
        """True when an image may carry several classes (labels are N×C)."""
        return self.labels is not None and self.labels.ndim == 2

    def subset(self, indices: Sequence[int] | np.ndarray, split: str | None = None) -> ImageSet:
        """The pictures at `indices`, in that order; its fingerprint is derived from this one's and the indices."""
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise ValueError(f"{self.name}/{self.split}: subset index outside 0..{len(self) - 1}")
        array = None if self.array is None else self.array[chosen]
        paths, masks = _take(self.paths, chosen), _take(self.masks, chosen)
        images: Images = array if array is not None else Selected(self.images, chosen)
        return dataclasses.replace(
            self, split=split or self.split, images=images, array=array, paths=paths, masks=masks,
            labels=None if self.labels is None else self.labels[chosen],
            groups=None if self.groups is None else self.groups[chosen],
            fingerprint=digest(self.fingerprint, chosen), skipped=(),
        )  # fmt: skip


class PathList(Sequence[Path]):
    """Paths under one folder, held as one flat array.

    A million `Path` objects take half a gigabyte and are copied page by page into every forked worker; this
    takes the length of the names.
    """

    def __init__(self, root: Path, names: Sequence[str] | np.ndarray) -> None:
        """Hold `names`, paths relative to `root`."""
        self.root = root
        self.names = names if isinstance(names, np.ndarray) else np.array([os.fsencode(n) for n in names], dtype="S")

    def __len__(self) -> int:
        """Number of paths."""
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> PathList: ...
    def __getitem__(self, index: int | slice) -> Path | PathList:
        """Path number `index`."""
        if isinstance(index, slice):
            return PathList(self.root, self.names[index])
        return self.root / os.fsdecode(bytes(self.names[index]))

    def __iter__(self) -> Iterator[Path]:
        """Path after path."""
        return (self.root / os.fsdecode(bytes(name)) for name in self.names)

    def take(self, indices: np.ndarray) -> PathList:
        """The paths at `indices`."""
        return PathList(self.root, self.names[indices])


class FileImages:
    """Pictures decoded from files when asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read from `paths`."""
        self.paths = paths

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """Picture number `index`, H×W×3 uint8."""
        return decode(self.paths[index])


class Selected:
    """Some of the pictures of another set."""

    def __init__(self, images: Images, indices: np.ndarray) -> None:
        """Show `images[indices[i]]` as picture `i`."""
        self.images = images
        self.indices = indices

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.indices)

    def __getitem__(self, index: int) -> np.ndarray:
        """Picture number `index`, H×W×3 uint8."""
        return self.images[int(self.indices[index])]


def decode(path: Path) -> np.ndarray:
    """Decode one image file to RGB, H×W×3 uint8.

    Raises:
        UsageError: missing, truncated or unreadable; names the file and the reason.
    """
    try:
        with Image.open(path) as image:
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise many types (OSError, SyntaxError, ValueError, struct.error)
        raise UsageError(f"cannot read image {str(path)!r}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """One short line that says why a file could not be read."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image, or a format that cannot be read"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


def digest(*parts: object) -> str:
    """First 16 hex digits of the SHA-256 of `parts` (strings, bytes, arrays), each with its length and kind."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"array {part.dtype.str} {part.shape}\n".encode())
            sha.update(np.ascontiguousarray(part).data)
        else:
            data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
            sha.update(f"{len(data)}\n".encode())
            sha.update(data)
    return sha.hexdigest()[:16]


def _take(paths: Sequence[Path] | None, indices: np.ndarray) -> Sequence[Path] | None:
    if paths is None:
        return None
    return paths.take(indices) if isinstance(paths, PathList) else tuple(paths[int(i)] for i in indices)
