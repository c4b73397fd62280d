# SPDX-License-Identifier: Apache-2.0
"""What the tests of detection and segmentation share: a small bench, small networks, squares in VOC and COCO layout."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from suite.backbone import Backbone
from suite.data.imageset import FileImages, ImageSet

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from pycocotools import mask as run_lengths

from evaluators import detection, segmentation
from evaluators.mm import ops, runner

COLOURS = ((220, 40, 40), (40, 200, 60), (50, 80, 230))
NAMES = ("red", "green", "blue")
IDS = (90, 3, 17)
"""COCO ids of the classes, in no order and with gaps."""
SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}
VIT = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 64, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4}
BOTTLENECK = {"layers": [1, 1, 1, 1], "channels": [8, 8, 12, 16]}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
QUICK = detection.DetectionConfig(iterations=3, batch=2, sides=(64,), test_side=64, frozen_stages=0)
SEGMENT = segmentation.SegmentationConfig(
    iterations=3, batch=2, crop=64, scale=(64, 64), frozen_stages=0, background_weight=1.0
)


class FakeBench:
    """The part of a bench that the two evaluators use."""

    device, precision, weights = torch.device("cpu"), "32", "0"
    mean, std = MEAN, STD

    def __init__(self, out: Path, sets: dict[str, ImageSet] | None = None) -> None:
        self.out, self.sets, self.stored, self.bars = out, sets or {}, {}, []
        self.fingerprints: dict[str, str] = {}
        self.selected: dict[str, Any] = {}

    def data(self, cfg: Any, split: str) -> ImageSet:
        return self.sets[split]

    def select(self, **chosen: Any) -> None:
        self.selected.update(chosen)

    def predictions(self, kind: str, **arrays: np.ndarray) -> None:
        self.stored[kind] = arrays

    @contextlib.contextmanager
    def progress(self, total: int, what: str) -> Iterator[Callable[[int], None]]:
        self.bars.append([what, total, 0])

        def advance(count: int) -> None:
            self.bars[-1][2] += count

        yield advance


def squares(root: Path, split: str, count: int, seed: int) -> ImageSet:
    """Coloured squares on grey noise in VOC layout, and in COCO json with one mask in three as polygon, RLE and counts."""
    rng = np.random.default_rng(seed)
    base = root / "VOCdevkit" / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    names, labels = [f"{split}{i:03d}" for i in range(count)], np.full((count, len(NAMES)), -1, dtype=np.int8)
    marks: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        picture = rng.integers(90, 160, (64, 80, 3), dtype=np.uint8)
        mask = np.zeros((64, 80), dtype=np.uint8)
        objects = ""
        for _ in range(int(rng.integers(1, 3))):
            c, side = int(rng.integers(3)), int(rng.integers(16, 32))
            y, x = int(rng.integers(64 - side)), int(rng.integers(80 - side))
            picture[y : y + side, x : x + side], mask[y : y + side, x : x + side] = COLOURS[c], c + 1
            labels[i, c] = 1
            marks.append(coco_mark(len(marks), i, c, (x, y, side)))
            box = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + side, y + side), strict=True)
            corners = "".join(f"<{key}>{value}</{key}>" for key, value in box)
            objects += f"<object><name>{NAMES[c]}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>"
        Image.fromarray(picture).save(base / "JPEGImages" / f"{name}.jpg", quality=95)
        Image.fromarray(mask).save(base / "SegmentationClass" / f"{name}.png")
        size = "<size><width>80</width><height>64</height></size>"
        (base / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names))
    paths = [base / "JPEGImages" / f"{name}.jpg" for name in names]
    files = [{"id": 7 * i, "file_name": f"{path.relative_to(root)}", "height": 64, "width": 80} for i, path in enumerate(paths)]
    content = {
        "images": files,
        "annotations": marks,
        "categories": [{"id": i, "name": n} for i, n in zip(IDS, NAMES, strict=True)],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return ImageSet("squares", split, NAMES, labels, FileImages(paths), "0", root=root, paths=paths)


def coco_mark(number: int, image: int, c: int, square: tuple[int, int, int]) -> dict[str, Any]:
    """One annotation of a square at x, y with a side; its mask in one of COCO's three forms."""
    x, y, side = square
    mask = np.zeros((64, 80), dtype=np.uint8, order="F")
    mask[y : y + side, x : x + side] = 1
    shape: Any = [[x, y, x + side, y, x + side, y + side, x, y + side]]
    if number % 3 == 1:
        encoded = run_lengths.encode(mask)
        shape = {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}
    if number % 3 == 2:
        flat = np.concatenate([[0], mask.ravel(order="F")])
        edges = [*np.flatnonzero(np.diff(flat)).tolist(), 64 * 80]
        shape = {"size": [64, 80], "counts": np.diff(edges, prepend=0).tolist()}
    return {"id": number, "image_id": 7 * image, "category_id": IDS[c], "iscrowd": 0, "area": side * side,
            "bbox": [x, y, side, side], "segmentation": shape}  # fmt: skip


def network(arch: str = "resnet18", stem: str = "imagenet", **options: Any) -> Backbone:
    torch.manual_seed(0)
    return Backbone(arch, options or (SMALL if arch == "resnet18" else {}), stem)


def trains_everything(model: torch.nn.Module, batch: dict[str, list[Any]]) -> bool:
    """One backward pass gives every parameter inside the backbone a gradient, but for norms behind the last map."""
    data = model.train().data_preprocessor(batch, training=True)
    runner.total_loss(model.loss(data["inputs"], data["data_samples"])).backward()
    used = [n for n, p in model.named_parameters() if p.grad is None]
    behind = (".norm.", "head.norm", "fc_norm", "net.conv_head", "net.bn2", "net.final_conv", "net.head")
    return all(any(part in name for part in behind) for name in used)


def detection_batch(height: int, width: int, masks: bool = False) -> dict[str, list[Any]]:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    sample = DetDataSample(metainfo={"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1, 1)})
    boxes, labels = torch.tensor([[10.0, 10, 50, 60], [40, 20, 90, 80]]), torch.tensor([0, 2])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
    if masks:
        sample.gt_instances.masks = BitmapMasks(np.ones((2, height, width), dtype=np.uint8), height, width)
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    picture = torch.randint(0, 255, (3, height, width), dtype=torch.uint8)
    return {"inputs": [picture, picture.flip(2)], "data_samples": [sample, sample.clone()]}


def segmentation_batch(size: int) -> dict[str, list[Any]]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo={"img_shape": (size, size), "ori_shape": (size, size)})
    sample.gt_sem_seg = PixelData(data=torch.randint(0, 4, (1, size, size)))
    picture = torch.randint(0, 255, (3, size, size), dtype=torch.uint8)
    return {"inputs": [picture, picture.flip(2)], "data_samples": [sample, sample.clone()]}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """The operators installed and one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    ops.load("mmdet.models", "mmseg.models")
    yield
    torch.set_num_threads(before)
