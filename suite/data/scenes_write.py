# SPDX-License-Identifier: Apache-2.0
"""Write composed scenes as PASCAL VOC folders and COCO json."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from suite.data.digits import NAMES
from suite.data.scenes import Digit, Scene

VOC = "VOCdevkit/VOC2007"
SETS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}

Scenes = Mapping[str, Sequence[Scene]]


def write_voc(root: Path, scenes: Scenes) -> None:
    """Write `VOCdevkit/VOC2007` under `root`, in the layout of the PASCAL VOC 2007 development kit."""
    home = root / VOC
    for folder in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation", "JPEGImages"):
        (home / folder).mkdir(parents=True)
    for folder in ("SegmentationClass", "SegmentationObject"):
        (home / folder).mkdir()
    palette = voc_palette()
    for name, scene in numbered(scenes, tuple(scenes)):
        Image.fromarray(scene.image).save(home / "JPEGImages" / f"{name}.jpg", quality=95, subsampling=0)
        _save_map(scene.instances, home / "SegmentationObject" / f"{name}.png", palette)
        _save_map(class_map(scene), home / "SegmentationClass" / f"{name}.png", palette)
        (home / "Annotations" / f"{name}.xml").write_text(annotation(name, scene), encoding="utf-8")
    for split, parts in SETS.items():
        members = numbered(scenes, parts)
        ids = "".join(f"{name}\n" for name, _ in members)
        for folder in ("Main", "Segmentation"):
            (home / "ImageSets" / folder / f"{split}.txt").write_text(ids)
        for c, label in enumerate(NAMES):
            lines = "".join(f"{name} {scene.labels()[c]:2d}\n" for name, scene in members)
            (home / "ImageSets" / "Main" / f"{label}_{split}.txt").write_text(lines)


def write_coco(root: Path, scenes: Scenes) -> None:
    """Write `annotations/instances_<split>.json` under `root`; file names are relative to `root`."""
    (root / "annotations").mkdir()
    categories = [{"id": i + 1, "name": name, "supercategory": "digit"} for i, name in enumerate(NAMES)]
    for split, parts in SETS.items():
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for name, scene in numbered(scenes, parts):
            height, width = scene.instances.shape
            file_name = f"{VOC}/JPEGImages/{name}.jpg"
            images.append({"id": int(name), "file_name": file_name, "height": height, "width": width})
            for i, item in enumerate(scene.digits):
                objects.append(_coco_object(int(name), len(objects) + 1, item, scene.instances == i + 1))
        content = {"info": {"description": "digit-scenes"}, "licenses": [], "images": images}
        content |= {"annotations": objects, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def numbered(scenes: Scenes, parts: Sequence[str]) -> list[tuple[str, Scene]]:
    """Scenes of some parts with their image names: six digits, counted over all parts."""
    found, number = [], 0
    for part, members in scenes.items():
        for scene in members:
            number += 1
            if part in parts:
                found.append((f"{number:06d}", scene))
    return found


def annotation(name: str, scene: Scene) -> str:
    """The VOC annotation of one scene as XML; box corners count from 1."""
    root = ElementTree.Element("annotation")
    _leaves(root, folder="VOC2007", filename=f"{name}.jpg")
    _leaves(ElementTree.SubElement(root, "source"), database="digit-scenes", annotation="composed", image="composed")
    height, width, depth = scene.image.shape
    _leaves(ElementTree.SubElement(root, "size"), width=width, height=height, depth=depth)
    _leaves(root, segmented=1)
    for item in scene.digits:
        node = ElementTree.SubElement(root, "object")
        _leaves(node, name=NAMES[item.label], pose="Unspecified", truncated=int(item.truncated or item.occluded))
        _leaves(node, difficult=int(item.difficult), occluded=int(item.occluded))
        corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), (corner + 1 for corner in item.box), strict=True))
        _leaves(ElementTree.SubElement(node, "bndbox"), **corners)
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def class_map(scene: Scene) -> np.ndarray:
    """H×W uint8: 0 background, class + 1, 255 void."""
    table = np.zeros(256, dtype=np.uint8)
    table[255] = 255
    for i, item in enumerate(scene.digits):
        table[i + 1] = item.label + 1
    return table[scene.instances]


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: columns first, starting with zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    ends = edges if edges.size and edges[-1] == mask.size else np.append(edges, mask.size)
    return np.diff(ends, prepend=0).tolist()


def voc_palette() -> list[int]:
    """The VOC colour map: the bits of the index, spread over the high bits of red, green and blue."""
    colour = np.zeros((256, 3), dtype=np.int64)
    index = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            colour[:, channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return colour.ravel().tolist()


def _coco_object(image: int, number: int, item: Digit, mask: np.ndarray) -> dict[str, Any]:
    left, top, right, bottom = item.box
    return {
        "id": number, "image_id": image, "category_id": item.label + 1, "iscrowd": 0,
        "area": int(mask.sum()), "bbox": [left, top, right - left + 1, bottom - top + 1],
        "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)}, "difficult": int(item.difficult),
    }  # fmt: skip


def _save_map(values: np.ndarray, path: Path, palette: list[int]) -> None:
    image = Image.fromarray(values)
    image.putpalette(palette)
    image.save(path)


def _leaves(node: ElementTree.Element, **texts: object) -> None:
    for tag, text in texts.items():
        ElementTree.SubElement(node, tag).text = str(text)
