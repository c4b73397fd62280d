# SPDX-License-Identifier: Apache-2.0
"""A packed cache: pictures decoded once, made smaller, and read from one memory-mapped file afterwards."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from suite.data.cache import atomic_folder
from suite.data.files import parallel
from suite.data.imageset import Images, ImageSet, digest, reason
from suite.errors import JobError, UsageError

FORMAT = 1


class PackedImages:
    """Pictures of several sizes in one file of bytes, mapped into memory and shared by all workers."""

    def __init__(self, folder: Path) -> None:
        """Open a packed folder."""
        self.folder = folder
        self._open()

    def _open(self) -> None:
        with np.load(self.folder / "index.npz", allow_pickle=False) as index:
            self.offsets, self.sizes = index["offsets"], index["sizes"]  # N, N×2
        self.bytes = np.memmap(self.folder / "images.bin", dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.offsets)

    def __getitem__(self, index: int) -> np.ndarray:
        """Picture number `index`, H×W×3 uint8; a copy."""
        height, width = (int(n) for n in self.sizes[index])
        start = int(self.offsets[index])
        return np.array(self.bytes[start : start + height * width * 3]).reshape(height, width, 3)

    def __getstate__(self) -> dict[str, Path]:
        """A worker gets the folder and maps the file itself."""
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Path]) -> None:
        """Open again."""
        self.folder = state["folder"]
        self._open()


def pack(image_set: ImageSet, path: Path, short: int = 256) -> ImageSet:
    """Decode a set once into the folder `path`, or open what an earlier call packed there.

    Args:
        image_set: the set.
        path: folder to write; it appears whole or not at all.
        short: pictures whose shorter side is longer are reduced to it (antialiased), the others stay as they are.

    Returns:
        The same set with its pictures in the packed file, and a fingerprint derived from the set's and `short`.

    Raises:
        UsageError: `path` holds something else, or a picture cannot be decoded.
        JobError: the folder cannot be written or the disk is full.
    """
    if short < 1:
        raise UsageError(f"short={short}: the shorter side must be at least 1 pixel")
    wanted = {"format": FORMAT, "fingerprint": image_set.fingerprint, "short": short, "images": len(image_set)}
    if not path.exists():
        try:
            with atomic_folder(path) as temporary:
                _write(image_set.images, temporary, short, wanted)
        except OSError as error:
            raise JobError(f"cannot pack {image_set.name}/{image_set.split} into {str(path)!r}: {reason(error)}") from error
    images = _open(path, wanted)
    fingerprint = digest("packed", image_set.fingerprint, short)
    return dataclasses.replace(image_set, images=images, array=None, fingerprint=fingerprint)


def reduced(picture: np.ndarray, short: int) -> np.ndarray:
    """The picture with a shorter side of at most `short` pixels, H×W×3 uint8."""
    height, width = picture.shape[:2]
    if min(height, width) <= short:
        return picture
    scale = short / min(height, width)
    size = max(short, round(width * scale)), max(short, round(height * scale))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0))


def _write(images: Images, folder: Path, short: int, meta: dict[str, Any]) -> None:
    offsets = np.zeros(len(images), dtype=np.int64)
    sizes = np.zeros((len(images), 2), dtype=np.int32)
    end = 0
    with open(folder / "images.bin", "wb") as file:
        for start in range(0, len(images), 4096):  # bounds the pictures that wait in memory
            rows = range(start, min(start + 4096, len(images)))
            for i, picture in zip(rows, parallel(lambda i: reduced(images[i], short), rows, chunk=16), strict=True):
                offsets[i], sizes[i] = end, picture.shape[:2]
                end += file.write(np.ascontiguousarray(picture).data)
    np.savez(folder / "index.npz", offsets=offsets, sizes=sizes)
    (folder / "meta.json").write_text(json.dumps({**meta, "bytes": end}))


def _open(path: Path, wanted: dict[str, Any]) -> PackedImages:
    try:
        meta = json.loads((path / "meta.json").read_text())
        different = [key for key in wanted if meta.get(key) != wanted[key]]
        if different:
            shown = ", ".join(f"{key} {meta.get(key)} instead of {wanted[key]}" for key in different)
            raise UsageError(f"packed folder {str(path)!r} holds another set ({shown}); remove it or choose another")
        size = (path / "images.bin").stat().st_size
        if size != meta["bytes"]:
            raise UsageError(f"packed folder {str(path)!r} is damaged: {size} bytes, not {meta['bytes']}; remove it")
        return PackedImages(path)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"{str(path)!r} is no packed folder: {reason(error)}") from error
