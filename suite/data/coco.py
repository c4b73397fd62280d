# SPDX-License-Identifier: Apache-2.0
"""Readers for annotations in COCO json: COCO itself (T.-Y. Lin et al., ECCV 2014) and iNaturalist 2018."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from suite.data.files import Listing
from suite.data.imageset import reason
from suite.errors import UsageError


def read_coco(root: Path, split: str) -> Listing:
    """List images of `annotations/instances_<split>*.json` with multi-label targets.

    A class is 1 where an image has an object of it, 0 where it only has crowds of it (`iscrowd`), else -1.

    Raises:
        UsageError: no such file, not COCO json, or no image folder.
    """
    path = instances_file(root, split)
    content, mark = read_json(path)
    folder = image_folder_of(root, path.stem.removeprefix("instances_"), content)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    column = {category["id"]: i for i, category in enumerate(categories)}
    images = sorted(content["images"], key=lambda image: image["id"])
    row = {image["id"]: i for i, image in enumerate(images)}
    targets = np.full((len(images), len(categories)), -1, dtype=np.int8)
    lost = []
    for item in content.get("annotations", ()):
        i, c = row.get(item.get("image_id")), column.get(item.get("category_id"))
        if i is None or c is None:
            lost.append(item.get("id"))
            continue
        targets[i, c] = max(targets[i, c], 0 if item.get("iscrowd") else 1)
    if lost:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        raise UsageError(f"{path}: annotation {lost[0]} names an image or category that is not listed{more}")
    names = [_name(path, folder, image["file_name"]) for image in images]
    classes = tuple(str(category["name"]) for category in categories)
    labels = targets if "annotations" in content else None
    return Listing(root, names, classes, labels, annotations=mark, native=root)


def read_inat(root: Path, split: str) -> Listing:
    """List images of `<split>2018.json` with their category as class (iNaturalist 2018).

    Raises:
        UsageError: no such file, not COCO json, or an image without exactly one category.
    """
    path = next((p for p in (root / f"{split}2018.json", root / "annotations" / f"{split}2018.json") if p.is_file()), None)
    if path is None:
        raise UsageError(f"no {split}2018.json in {str(root)!r} (valid: train, val)")
    content, _ = read_json(path)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    number = {category["id"]: i for i, category in enumerate(categories)}
    of_image = {item.get("image_id"): number.get(item.get("category_id")) for item in content.get("annotations", ())}
    labels = [of_image.get(image["id"]) for image in content["images"]]
    if any(label is None for label in labels):
        raise UsageError(f"{path}: image {content['images'][labels.index(None)]['id']} has no listed category")
    names = [_name(path, "", image["file_name"]) for image in content["images"]]
    return Listing(root, names, tuple(str(c["name"]) for c in categories), np.array(labels, dtype=np.int64))


def instances_file(root: Path, split: str) -> Path:
    """`annotations/instances_<split><year>.json`, whatever the year."""
    found = sorted((root / "annotations").glob("instances_*.json"))
    for path in found:
        stem = path.stem.removeprefix("instances_")
        if stem == split or stem.rstrip("0123456789") == split:
            return path
    valid = ", ".join(p.stem.removeprefix("instances_").rstrip("0123456789") for p in found)
    raise UsageError(f"no annotations/instances_{split}*.json in {str(root)!r} (valid: {valid or 'none'})")


def read_json(path: Path) -> tuple[dict[str, Any], str]:
    """The content of a COCO file, its parts checked for shape, and the digest of its bytes.

    Raises:
        UsageError: not json, without lists of images and categories, or with ids that are no whole numbers or not unique.
    """
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"annotation {str(path)!r} cannot be read: {reason(error)}") from error
    wanted = {"images": {"id", "file_name"}, "categories": {"id", "name"}}
    for part, keys in wanted.items():
        items = content.get(part) if isinstance(content, dict) else None
        if not isinstance(items, list) or not items or not all(isinstance(i, dict) and keys <= i.keys() for i in items):
            raise UsageError(f"annotation {str(path)!r}: no list {part!r} with {' and '.join(sorted(keys))}")
        ids = [item["id"] for item in items]
        bad = next((i for i in ids if not isinstance(i, int)), None)
        if bad is not None:
            raise UsageError(f"annotation {str(path)!r}: id {str(bad)[:40]!r} in {part!r} is no whole number")
        if len(set(ids)) < len(ids):
            raise UsageError(f"annotation {str(path)!r}: {len(ids) - len(set(ids))} id(s) in {part!r} are not unique")
    _check_marks(path, content.get("annotations", []))
    return content, hashlib.sha256(raw).hexdigest()[:16]


def _check_marks(path: Path, marks: Any) -> None:
    """Annotations must be a list of objects whose references can be looked up."""
    if not isinstance(marks, list) or not all(isinstance(mark, dict) for mark in marks):
        raise UsageError(f"annotation {str(path)!r}: 'annotations' is no list of objects")
    keys = ("image_id", "category_id")
    wrong = [mark for mark in marks if not all(isinstance(mark.get(key), int) for key in keys)]
    if wrong:
        first = str(wrong[0].get("id"))[:40]
        raise UsageError(f"annotation {str(path)!r}: {len(wrong)} annotation(s) lack image_id or category_id, first {first}")


def image_folder_of(root: Path, name: str, content: dict[str, Any]) -> str:
    """The folder of a split's images, relative to the root."""
    first = str(content["images"][0]["file_name"])
    folders = (name, f"images/{name}", "images", "")
    for folder in folders:
        if (root / folder / first).is_file():
            return folder
    for folder in folders:  # the first image may be the missing one
        if folder and (root / folder).is_dir():
            return folder
    raise UsageError(f"no image folder {name!r} in {str(root)!r}")


def _name(path: Path, folder: str, file_name: Any) -> str:
    name = str(file_name)
    if name.startswith("/") or ".." in name.split("/"):
        raise UsageError(f"{path}: file name {name[:80]!r} leaves the data root")
    return f"{folder}/{name}" if folder else name
