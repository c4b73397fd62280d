# SPDX-License-Identifier: Apache-2.0
"""A packed cache: pictures decoded once, made smaller, and read from one memory-mapped file afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from suite.data.cache import atomic_folder
from suite.data.files import parallel
from suite.data.imageset import Images, ImageSet, digest, reason
from suite.errors import JobError, UsageError

if TYPE_CHECKING:
    from suite.progress import Reporter

FORMAT = 1
SAMPLE = 32
"""Pictures from which the size of the whole is estimated."""


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


def side(size: int) -> int:
    """Shorter side that pictures are packed with for views of `size` pixels: what an evaluation resizes to, at least 256."""
    return max(256, round(size * 256 / 224))


def packed_fingerprint(image_set: ImageSet, short: int) -> str:
    """Fingerprint of a set once packed: reducing changes pixels, so it is another set."""
    return digest("packed", image_set.fingerprint, short)


def packed(image_set: ImageSet, folder: Path, short: int, reporter: Reporter) -> ImageSet:
    """The set packed under `folder`, by an earlier call or now with a progress bar; see `pack`."""
    path = folder / packed_fingerprint(image_set, short)
    if path.exists():
        return pack(image_set, path, short)
    reporter.say(f"packing {image_set.name}/{image_set.split}, shorter side at most {short}, into {path}")
    with reporter.task(f"packing {image_set.name}/{image_set.split}", len(image_set), "images") as advance:
        return pack(image_set, path, short, advance)


def pack(image_set: ImageSet, path: Path, short: int = 256, advance: Callable[[int], None] = lambda n: None) -> ImageSet:
    """Decode a set once into the folder `path`, or open what an earlier call packed there.

    Args:
        image_set: the set.
        path: folder to write; it appears whole or not at all.
        short: pictures whose shorter side is longer are reduced to it (antialiased), the others stay as they are.
        advance: called with the number of pictures done since the last call.

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
            with _alone(path) as needed:
                if needed:
                    _check_space(image_set, path, short)
                    with atomic_folder(path) as temporary:
                        _write(image_set.images, temporary, short, wanted, advance)
        except OSError as error:
            raise JobError(f"cannot pack {image_set.name}/{image_set.split} into {str(path)!r}: {reason(error)}") from error
    images = _open(path, wanted)
    return dataclasses.replace(image_set, images=images, array=None, fingerprint=packed_fingerprint(image_set, short))


def reduced(picture: np.ndarray, short: int) -> np.ndarray:
    """The picture with a shorter side of at most `short` pixels, H×W×3 uint8."""
    height, width = picture.shape[:2]
    if min(height, width) <= short:
        return picture
    scale = short / min(height, width)
    size = max(short, round(width * scale)), max(short, round(height * scale))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0))


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Wait until no other process packs into `path`; True when it is still to be done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield not path.exists()
        finally:
            # Whoever waits on this file goes on; whoever comes later finds the finished folder.
            lock.unlink(missing_ok=True)


def _check_space(image_set: ImageSet, path: Path, short: int) -> None:
    """Refuse before hours of decoding what the disk will not hold.

    Raises:
        JobError: the estimate exceeds the free space.
    """
    rows = np.unique(np.linspace(0, len(image_set) - 1, num=min(SAMPLE, len(image_set))).astype(int))
    needed = len(image_set) * np.mean([reduced(image_set.images[int(i)], short).nbytes for i in rows])
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise JobError(
            f"cannot pack {image_set.name}/{image_set.split} into {str(path.parent)!r}: about {needed / 2**30:.1f} GiB needed, "
            f"{free / 2**30:.1f} GiB free; SUITE_CACHE names another folder"
        )


def _write(images: Images, folder: Path, short: int, meta: dict[str, Any], advance: Callable[[int], None]) -> None:
    offsets = np.zeros(len(images), dtype=np.int64)
    sizes = np.zeros((len(images), 2), dtype=np.int32)
    end = 0
    with open(folder / "images.bin", "wb") as file:
        for start in range(0, len(images), 4096):  # bounds the pictures that wait in memory
            rows = range(start, min(start + 4096, len(images)))
            for i, picture in zip(rows, parallel(lambda i: reduced(images[i], short), rows, chunk=16), strict=True):
                offsets[i], sizes[i] = end, picture.shape[:2]
                end += file.write(np.ascontiguousarray(picture).data)
                advance(1)
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
