# SPDX-License-Identifier: Apache-2.0
"""Reader for list files: text with one `path label` or `path` a line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from suite.data.files import Listing
from suite.errors import UsageError

FOLDERS = ("", "meta", "lists", "trainvalsplit_places205")
PART = re.compile(r"\d(percent|pct)$")
"""Lists of a labelled part of a split; they make no data set by themselves."""
STEMS = {"train": ("train",), "val": ("val", "valid", "validation", "test"), "test": ("test", "val", "validation")}


def image_list(root: Path, split: str, prefixes: tuple[str, ...] = (), suffix: str = "") -> Listing:
    """Read `<root>/<split>.txt` (or .csv, or in `meta/`): a path relative to the root and a label on each line.

    The label is a class number from 0 or a class name, after a blank, tab or comma; a file whose lines all lack one
    is unlabelled. Class names for numbers come from `classes.txt` (one a line) where it exists. `val` and `test`
    stand for each other when only one exists.

    Args:
        root: the data root.
        split: `train`, `val`, `test`, or another list's name.
        prefixes: folders that paths may be relative to, tried in turn after the root.
        suffix: of the lists' names.

    Raises:
        UsageError: no list, a line that cannot be read, a path outside the root, or a label out of range.
    """
    files = list_files(root)
    file = next((files[stem + suffix] for stem in STEMS.get(split, (split,)) if stem + suffix in files), None)
    if file is None:
        raise UsageError(f"no list {split}.txt in {str(root)!r} (valid: {', '.join(sorted(files)) or 'none'})")
    names, labels = _parse(file, root, prefixes)
    if labels is None:
        return Listing(root, names)
    others = [_parse(other, root, prefixes)[1] or [] for other in files.values() if other != file]
    classes = _class_names(root, [labels, *others])
    return Listing(root, names, classes, _numbers(file, labels, classes))


def list_files(root: Path) -> dict[str, Path]:
    """List files of a data root by stem: `train`, `val`, `test` and others beside them."""
    for folder in FOLDERS:
        found = {
            path.stem: path
            for extension in ("csv", "txt")
            for path in sorted((root / folder).glob(f"*.{extension}"))
            if path.stem in ("train", "val", "valid", "validation", "test")
            or (re.match(r"(train|val|test)[_-]", path.stem) and not PART.search(path.stem))
        }
        if found:
            return found
    return {}


def _parse(file: Path, root: Path, prefixes: tuple[str, ...]) -> tuple[list[str], list[str] | None]:
    """Paths and labels (as text) of a list; labels None when the first line is a path alone."""
    try:
        lines = [line.rstrip("\r") for line in file.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"list {str(file)!r} is not readable text: {error}") from error
    rows = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not rows:
        raise UsageError(f"list {str(file)!r} is empty")
    prefix = _prefix(root, rows[0][1], prefixes)
    alone = (root / prefix / rows[0][1]).is_file() or not any(_columns(line)[1] for _, line in rows)
    names, labels = [], []
    for number, line in rows:
        path, label = (line, "") if alone else _columns(line)
        if not path or (not alone and not label):
            raise UsageError(f"{file}:{number}: {line[:80]!r} is not `path label`")
        if path.startswith("/") or ".." in path.split("/"):
            raise UsageError(f"{file}:{number}: path {path[:80]!r} leaves the data root")
        names.append(f"{prefix}/{path}" if prefix else path)
        labels.append(label)
    return names, None if alone else labels


def _columns(line: str) -> tuple[str, str]:
    match = re.fullmatch(r"(.+?)(?:\s*[,;]\s*|\s+)([^\s,;]+)", line)
    return (match[1], match[2]) if match else (line, "")


def _prefix(root: Path, line: str, prefixes: tuple[str, ...]) -> str:
    """The first of '' and `prefixes` under which the first line's file exists."""
    for prefix in ("", *prefixes):
        if any((root / prefix / name).is_file() for name in (line, _columns(line)[0])):
            return prefix
    return ""


def _class_names(root: Path, lists: list[list[str]]) -> tuple[str, ...]:
    named = next((root / f / "classes.txt" for f in FOLDERS if (root / f / "classes.txt").is_file()), None)
    if named is not None:
        return tuple(line.strip() for line in named.read_text(encoding="utf-8").splitlines() if line.strip())
    values = {label for labels in lists for label in labels}
    if all(re.fullmatch(r"[+-]?\d+", value) for value in values):
        return tuple(str(i) for i in range(max(int(value) for value in values) + 1))
    return tuple(sorted(values))


def _numbers(file: Path, labels: list[str], classes: tuple[str, ...]) -> np.ndarray:
    """Labels as class numbers, N int64."""
    by_name = {name: i for i, name in enumerate(classes)}
    numeric = all(re.fullmatch(r"[+-]?\d+", label) for label in labels)
    numbers = []
    for row, label in enumerate(labels, 1):
        value = int(label) if numeric else by_name.get(label, -1)
        if not 0 <= value < len(classes):
            raise UsageError(f"{file}: label {label!r} of entry {row} is not one of {len(classes)} classes (from 0)")
        numbers.append(value)
    return np.array(numbers, dtype=np.int64)
