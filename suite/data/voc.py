# SPDX-License-Identifier: Apache-2.0
"""Reader for PASCAL VOC layout (M. Everingham et al., IJCV 2010)."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from suite.data.files import Listing, parallel
from suite.data.imageset import digest, reason
from suite.errors import UsageError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class Annotation:
    """What one XML file says."""

    size: tuple[int, int]
    """Height and width; 0 when not stated."""
    objects: tuple[tuple[str, bool, tuple[float, float, float, float]], ...]
    """Name, difficult, and box (xmin, ymin, xmax, ymax; the first pixel is 1)."""


def read_voc(root: Path, split: str, years: Sequence[tuple[str, str]], classes: tuple[str, ...] | None) -> Listing:
    """List images with multi-label targets: 1 present, 0 only difficult objects, -1 absent.

    Targets come from `ImageSets/Main/<class>_<split>.txt` where all of them exist, else from the XML files; a
    split without either (the test split of 2012) is unlabelled.

    Args:
        root: folder that is, holds, or lies within `VOCdevkit`.
        split: only for messages.
        years: pairs of year and list name, e.g. `("2007", "trainval")`; several are joined.
        classes: class names in label order; None: read from the annotations.

    Raises:
        UsageError: missing folders or lists, or an annotation that cannot be read.
    """
    home = find_devkit(root, years[0][0])
    names, parts, marks = [], [], []
    known = classes or _class_names(home, years)
    for year, part in years:
        folder = f"VOCdevkit/VOC{year}"
        ids = read_ids(home / folder / "ImageSets" / "Main" / f"{part}.txt", split)
        names += [f"{folder}/JPEGImages/{image}.jpg" for image in ids]
        labels = _from_lists(home / folder, part, ids, known)
        xml = annotation_files(home / folder, ids)
        marks.append(digest(*parallel(_bytes, xml)))
        parts.append(_from_xml(xml, known) if labels is None and xml else labels)
    found = [part for part in parts if part is not None]
    labels = np.concatenate(found) if len(found) == len(parts) else None
    return Listing(home, names, known, labels, annotations=digest(*marks), native=home)


def find_devkit(root: Path, year: str) -> Path:
    """The folder that holds `VOCdevkit/VOC<year>`, for any natural spelling of the data root."""
    for folder in (root, root.parent, root.parent.parent):
        if (folder / "VOCdevkit" / f"VOC{year}" / "ImageSets" / "Main").is_dir():
            return folder
    raise UsageError(f"no VOCdevkit/VOC{year}/ImageSets/Main in {str(root)!r}")


def read_ids(path: Path, split: str) -> list[str]:
    """Image names of a list file (the first column).

    Raises:
        UsageError: missing, empty, or a name that leaves the folder.
    """
    if not path.is_file():
        valid = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt") if "_" not in p.stem))
        raise UsageError(f"no split {split!r}: {str(path)!r} is missing (valid: {valid or 'none'})")
    ids = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    if not ids:
        raise UsageError(f"list {str(path)!r} is empty")
    bad = next((image for image in ids if "/" in image or image.startswith(".")), None)
    if bad is not None:
        raise UsageError(f"list {str(path)!r} names {bad!r}, which is no image name")
    return ids


def annotation_files(folder: Path, ids: Sequence[str]) -> list[Path]:
    """The XML files of some pictures of `VOC<year>`, all of them or, for a split without annotations, none.

    Raises:
        UsageError: some are missing; says how many and names the first.
    """
    files = [folder / "Annotations" / f"{image}.xml" for image in ids]
    missing = [file for file, found in zip(files, parallel(Path.is_file, files), strict=True) if not found]
    if missing and len(missing) < len(files):
        raise UsageError(f"{len(missing)} of {len(files)} annotations are missing, first {str(missing[0])!r} (no such file)")
    return [] if missing else files


def read_annotation(path: Path) -> Annotation:
    """Parse one XML file.

    Raises:
        UsageError: missing, not XML, or an object without name or box.
    """
    try:
        tree = ElementTree.parse(path).getroot()
        size = (int(tree.findtext("size/height", "0")), int(tree.findtext("size/width", "0")))
        objects = []
        for item in tree.iter("object"):
            corners = [float(item.findtext(f"bndbox/{corner}", "")) for corner in ("xmin", "ymin", "xmax", "ymax")]
            difficult = item.findtext("difficult", "0").strip() == "1"
            objects.append((item.findtext("name", "").strip(), difficult, tuple(corners)))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise UsageError(f"annotation {str(path)!r} cannot be read: {reason(error)}") from error
    return Annotation(size, tuple(objects))  # type: ignore[arg-type]


def _from_lists(folder: Path, part: str, ids: list[str], classes: tuple[str, ...]) -> np.ndarray | None:
    """Targets from the per-class lists, N×C int8, or None when one is missing."""
    files = [folder / "ImageSets" / "Main" / f"{name}_{part}.txt" for name in classes]
    if not files or not all(file.is_file() for file in files):
        return None
    targets = np.full((len(ids), len(files)), -1, dtype=np.int8)
    row = {image: i for i, image in enumerate(ids)}
    for column, file in enumerate(files):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) != 2 or fields[1] not in ("-1", "0", "1"):
                raise UsageError(f"{file}:{number}: {line[:60]!r} is not `image -1|0|1`")
            if fields[0] in row:
                targets[row[fields[0]], column] = int(fields[1])
    return targets


def _from_xml(files: list[Path], classes: tuple[str, ...]) -> np.ndarray:
    """Targets from annotations, N×C int8; objects of other classes do not count."""
    column = {name: i for i, name in enumerate(classes)}
    targets = np.full((len(files), len(classes)), -1, dtype=np.int8)
    for row, annotation in enumerate(parallel(read_annotation, files)):
        for name, difficult, _ in annotation.objects:
            if name in column:
                targets[row, column[name]] = max(targets[row, column[name]], 0 if difficult else 1)
    return targets


def _class_names(home: Path, years: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The VOC names, or those found in the annotations when they are others."""
    found: set[str] = set()
    if all((home / f"VOCdevkit/VOC{year}/ImageSets/Main/{CLASSES[0]}_{part}.txt").is_file() for year, part in years):
        return CLASSES
    for year, _ in years:
        files = sorted((home / "VOCdevkit" / f"VOC{year}" / "Annotations").glob("*.xml"))
        found |= {name for annotation in parallel(read_annotation, files) for name, _, _ in annotation.objects}
    return CLASSES if found <= set(CLASSES) else tuple(sorted(found))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"annotation {str(path)!r} cannot be read: {reason(error)}") from error
