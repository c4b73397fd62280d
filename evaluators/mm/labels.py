# SPDX-License-Identifier: Apache-2.0
"""Pictures with label maps as items for mmseg's transforms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.data.voc import read_ids
from suite.errors import UsageError

if TYPE_CHECKING:
    from suite.data.imageset import ImageSet


CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Ids of the classes that are trained and tested, in their order (cityscapesScripts, `labels.py`)."""


def items(data: ImageSet, lists: Sequence[tuple[str, str]] = ()) -> list[dict[str, Any]]:
    """One item per picture with a label map, as mmseg's transforms take them.

    Args:
        data: with label maps of its own, or in VOC layout.
        lists: VOC layout: pairs of a list in `ImageSets/Segmentation` and the folder of its label maps; empty: the list
            of the set's split and `SegmentationClass`.

    Raises:
        UsageError: no label maps, or a list, a picture or a label map that is missing.
    """
    if data.masks is not None and data.paths is not None and not lists:
        pairs = list(zip(data.paths, data.masks, strict=True))
    elif data.paths is not None and len(data):
        pairs = _listed(data.paths[0].parent.parent, lists or ((data.split, "SegmentationClass"),))
    else:
        raise UsageError(f"data set {data.name!r} has no label maps, so it cannot be segmented")
    return [_labelled(image, mask) for image, mask in pairs]


def _listed(folder: Path, lists: Sequence[tuple[str, str]]) -> list[tuple[Path, Path]]:
    pairs = []
    for name, maps in lists:
        for image in read_ids(folder / "ImageSets" / "Segmentation" / f"{name}.txt", name):
            pairs.append((folder / "JPEGImages" / f"{image}.jpg", folder / maps / f"{image}.png"))
    for kind, paths in (("pictures", [image for image, _ in pairs]), ("label maps", [mask for _, mask in pairs])):
        absent = [path for path in paths if not path.is_file()]
        if absent:
            raise UsageError(f"{len(absent)} of {len(paths)} {kind} of {str(folder)!r} are missing, first {str(absent[0])!r}")
    return pairs


def _labelled(image: Path, mask: Path) -> dict[str, Any]:
    item = {"img_path": str(image), "seg_map_path": str(mask), "reduce_zero_label": False, "seg_fields": []}
    if mask.stem.endswith("_labelIds"):
        item["label_map"] = {i: CITYSCAPES_IDS.index(i) if i in CITYSCAPES_IDS else 255 for i in range(256)}
    return item
