# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 and CIFAR-100 (A. Krizhevsky, 2009) from the files their page offers, without running pickles.

The "python version" is a pickle of byte strings, lists and one NumPy array per batch. The unpickler here maps the
few names such a file needs to harmless stand-ins that only hold bytes, and refuses every other name.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from suite.data.imageset import ImageSet, digest, reason
from suite.errors import UsageError

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Variant:
    """File names and row layout of one of the two sets."""

    folders: tuple[str, str]
    files: dict[str, tuple[str, ...]]
    meta: tuple[str, bytes]
    names: str
    label_key: bytes
    label_bytes: int

    def binary(self, file: str) -> str:
        """Name of a batch in the binary version."""
        return f"{file}.bin"


TEN = Variant(
    ("cifar-10-batches-py", "cifar-10-batches-bin"),
    {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    ("batches.meta", b"label_names"), "batches.meta.txt", b"labels", 1,
)  # fmt: skip
HUNDRED = Variant(
    ("cifar-100-python", "cifar-100-binary"), {"train": ("train",), "test": ("test",)},
    ("meta", b"fine_label_names"), "fine_label_names.txt", b"fine_labels", 2,
)  # fmt: skip


def find_batches(root: Path, variant: Variant) -> tuple[Path, bool] | None:
    """Folder of the batches and whether they are the binary version; None when there are none."""
    for folder in (root, *(root / name for name in variant.folders)):
        if (folder / variant.files["test"][0]).is_file() and (folder / variant.meta[0]).is_file():
            return folder, False
        if (folder / variant.binary(variant.files["test"][0])).is_file():
            return folder, True
    return None


def load_batches(name: str, split: str, folder: Path, binary: bool, variant: Variant) -> ImageSet:
    """Read one split into memory.

    Raises:
        UsageError: a batch is missing, damaged, or holds what no CIFAR file holds.
    """
    if split not in variant.files:
        raise UsageError(f"data set {name!r} has no split {split!r} (valid: train, test)")
    classes = _class_names(folder, binary, variant)
    read = _read_binary if binary else _read_pickle
    batches = [read(folder, file, variant) for file in variant.files[split]]
    pixels = np.concatenate([batch[0] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([batch[1] for batch in batches]).astype(np.int64)
    if labels.size and not 0 <= labels.min() <= labels.max() < len(classes):
        raise UsageError(f"{folder}: label {labels.max()} is not one of {len(classes)} classes (from 0)")
    array = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))  # N×32×32×3
    return ImageSet(name, split, classes, labels, array, digest(name, split, array, labels), array=array)


def _class_names(folder: Path, binary: bool, variant: Variant) -> tuple[str, ...]:
    if binary:
        file = folder / variant.names
        if not file.is_file():
            return CIFAR10 if variant is TEN else tuple(str(i) for i in range(100))
        return tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    names = _unpickle(folder / variant.meta[0]).get(variant.meta[1])
    if not isinstance(names, list) or not names:
        raise UsageError(f"{folder / variant.meta[0]}: no list {variant.meta[1].decode()!r}")
    return tuple(n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in names)


def _read_binary(folder: Path, file: str, variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    path = folder / variant.binary(file)
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {reason(error)}") from error
    row = variant.label_bytes + 3072
    if not raw.size or raw.size % row:
        raise UsageError(f"{path}: {raw.size} bytes are no whole number of {row}-byte pictures (cut short?)")
    rows = raw.reshape(-1, row)
    return rows[:, variant.label_bytes :], rows[:, variant.label_bytes - 1]


def _read_pickle(folder: Path, file: str, variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    path = folder / file
    batch = _unpickle(path)
    data, labels = batch.get(b"data"), batch.get(variant.label_key)
    if not isinstance(data, _Array) or not isinstance(labels, list):
        raise UsageError(f"{path}: not a CIFAR batch (wanted 'data' and {variant.label_key.decode()!r})")
    pixels = data.pixels(path)
    if len(labels) != len(pixels) or not all(isinstance(label, int) for label in labels):
        raise UsageError(f"{path}: {len(labels)} labels for {len(pixels)} pictures")
    return pixels, np.array(labels, dtype=np.int64)


class _Type:
    """Stand-in for `numpy.dtype`: remembers the type's code."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like do not matter for single bytes."""


class _Array:
    """Stand-in for `numpy.ndarray`: remembers shape, type and bytes."""

    def __init__(self, *_: Any) -> None:
        self.shape: Any = None
        self.type: Any = None
        self.columns_first: Any = False
        self.raw: Any = None

    def __setstate__(self, state: Any) -> None:
        """Take (version, shape, type, column order, bytes)."""
        _, self.shape, self.type, self.columns_first, self.raw = state

    def pixels(self, path: Path) -> np.ndarray:
        """N×3072 uint8."""
        code = getattr(self.type, "code", None)
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        shape = self.shape if isinstance(self.shape, tuple) and all(isinstance(n, int) for n in self.shape) else ()
        flat = np.frombuffer(raw, dtype=np.uint8) if isinstance(raw, bytes | bytearray) else np.empty(0, np.uint8)
        if code not in ("u1", b"u1", "|u1") or len(shape) != 2 or shape[1] != 3072 or flat.size != shape[0] * 3072:
            raise UsageError(f"{path}: 'data' is not an array of N×3072 bytes")
        return flat.reshape(shape, order="F" if self.columns_first else "C")


class _Buffer(_Array):
    """Stand-in for `numpy._frombuffer`, which protocol 5 uses to write arrays."""

    def __init__(self, raw: Any, kind: Any, shape: Any, order: Any) -> None:
        super().__init__()
        self.__setstate__((1, shape, kind, order == "F", raw))


class _Bytes:
    """Stand-in for `_codecs.encode`, which protocol 2 uses to write bytes."""

    def __new__(cls, text: str, *_: Any) -> bytes:  # type: ignore[misc]
        return text.encode("latin1")

    def __setstate__(self, state: Any) -> None:
        """Keep a pickle from setting attributes of this class."""


class _Unpickler(pickle.Unpickler):
    """Reads what a CIFAR batch holds and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for one of the names that NumPy arrays pickle to."""
        allowed: dict[tuple[str, str], type] = {
            ("_codecs", "encode"): _Bytes,
            ("numpy", "dtype"): _Type,
            ("numpy", "ndarray"): _Array,
        }
        for core in ("numpy.core", "numpy._core"):
            allowed[f"{core}.multiarray", "_reconstruct"] = _Array
            allowed[f"{core}.numeric", "_frombuffer"] = _Buffer
        if (module, name) not in allowed:
            raise UsageError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return allowed[module, name]


def _unpickle(path: Path) -> dict[bytes, Any]:
    """The dictionary in a batch file, keys as bytes."""
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {reason(error)}") from error
    except Exception as error:  # a damaged pickle raises anything
        raise UsageError(f"{path}: not a CIFAR batch: {reason(error)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: not a CIFAR batch: holds {type(content).__name__}, not a dictionary")
    return {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}
