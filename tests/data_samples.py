# SPDX-License-Identifier: Apache-2.0
"""Small data sets on disk in the layouts that people have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (12, 16), **save: object) -> Path:
    """Write a noisy picture; JPEG and PNG by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **save)
    return path


def tree(root: Path, layout: dict[str, int], suffix: str = "jpg") -> Path:
    """Folders with a number of pictures each; no two pictures alike."""
    seed = 0
    for folder, count in layout.items():
        for i in range(count):
            seed += 1
            picture(root / folder / f"{i}.{suffix}", seed)
    return root


def cut(path: Path, share: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def voc_tree(root: Path, objects: dict[str, list[tuple[str, int]]], split: str = "trainval", year: str = "2007") -> Path:
    home = root / "VOCdevkit" / f"VOC{year}"
    for folder in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation", "JPEGImages"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    for i, (name, items) in enumerate(objects.items()):
        picture(home / "JPEGImages" / f"{name}.jpg", len(split) * 100 + i, (30, 40))
        body = "".join(
            f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox><xmin>2</xmin><ymin>3</ymin>"
            "<xmax>20</xmax><ymax>25</ymax></bndbox></object>"
            for label, difficult in items
        )
        size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
        (home / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{body}</annotation>")
    (home / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in objects))
    return root


def coco_tree(root: Path) -> Path:
    for split, count in {"train": 3, "val": 2}.items():
        images = [{"id": 10 + i, "file_name": f"{i}.jpg", "height": 12, "width": 16} for i in range(count)]
        marks = [
            {"id": 1, "image_id": 11, "category_id": 7, "iscrowd": 0},
            {"id": 2, "image_id": 10, "category_id": 3, "iscrowd": 1},
        ]
        content = {"images": images, "annotations": marks, "categories": [{"id": 7, "name": "b"}, {"id": 3, "name": "a"}]}
        (root / "annotations").mkdir(exist_ok=True, parents=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
        for i in range(count):
            picture(root / f"{split}2017" / f"{i}.jpg", count * 10 + i)
    return root
