# SPDX-License-Identifier: Apache-2.0
"""The project's own entries of the catalogue, in the order in which `detect` tries them."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from suite.data import cards, cifar, digits, scenes
from suite.data.cache import require_folder
from suite.data.card import Card
from suite.data.catalogue import Dataset, Read, from_files
from suite.data.cityscapes import read_cityscapes
from suite.data.coco import read_coco, read_inat
from suite.data.files import Listing, Options, from_listing, is_image
from suite.data.folders import class_folders, image_folder, labelled_folder, split_folders, unwrapped
from suite.data.imageset import ImageSet
from suite.data.lists import image_list, list_files
from suite.data.voc import CLASSES, find_devkit, read_voc
from suite.errors import UsageError

JOINT = {"train": (("2007", "trainval"), ("2012", "trainval")), "test": (("2007", "test"),)}


def builtin() -> list[Dataset]:
    """All entries: embedded, then the sets with a layout of their own, then lists and folders."""
    return [
        Dataset(digits.CARD, lambda split, root, options: digits.load_digits_set(split, options.cache)),
        Dataset(scenes.CARD, lambda split, root, options: scenes.load_scenes(split, options)),
        from_files(cards.VOC0712, _joint, lambda root: _has_voc(root, "2007") and _has_voc(root, "2012")),
        from_files(cards.VOC07, _voc("2007"), lambda root: _has_voc(root, "2007")),
        from_files(cards.VOC12, _voc("2012"), lambda root: _has_voc(root, "2012")),
        from_files(cards.COCO, read_coco, lambda root: any(root.glob("annotations/instances_*.json"))),
        from_files(cards.CITYSCAPES, read_cityscapes, lambda root: (root / "leftImg8bit").is_dir()),
        _cifar(cards.CIFAR10, cifar.TEN),
        _cifar(cards.CIFAR100, cifar.HUNDRED),
        from_files(cards.INAT2018, _inat, lambda root: (root / "train2018.json").is_file()),
        from_files(cards.PLACES205, _places, lambda root: (root / "trainvalsplit_places205").is_dir()),
        from_files(cards.IMAGENET, _imagenet),
        from_files(cards.IMAGENET21K, functools.partial(image_folder, hold_out=False)),
        from_files(cards.IMAGELIST, image_list, lambda root: bool(list_files(root))),
        from_files(cards.IMAGEFOLDER, image_folder, _looks_like_folders),
    ]


def _voc(year: str) -> Read:
    def read(root: Path, split: str) -> Listing:
        return read_voc(root, split, [(year, split)], None)

    return read


def _joint(root: Path, split: str) -> Listing:
    if split not in JOINT:
        raise UsageError(f"data set 'voc07+12' has no split {split!r} (valid: {', '.join(JOINT)})")
    return read_voc(root, split, JOINT[split], CLASSES)


def _has_voc(root: Path, year: str) -> bool:
    try:
        find_devkit(root, year)
    except UsageError:
        return False
    return True


def _cifar(known: Card, variant: cifar.Variant) -> Dataset:
    """The official batches, or the same pictures as JPEG or PNG in class folders."""

    def read(root: Path, split: str) -> Listing:
        listing = image_folder(root, split, hold_out=False)
        if listing.labels is None or len(listing.classes) != len(known.classes or range(100)):
            raise UsageError(f"{known.name}: neither its batches nor its class folders in {str(root)!r}")
        return listing

    def load_split(split: str, root: Path | None, options: Options) -> ImageSet:
        folder = require_folder(root, known.name, known.layout, known.obtain)
        batches = cifar.find_batches(folder, variant)
        if batches is not None:
            return cifar.load_batches(known.name, split, *batches, variant)
        return from_listing(known.name, split, read(folder, split), options)

    return Dataset(known, load_split, read, lambda root: cifar.find_batches(root, variant) is not None)


def _imagenet(root: Path, split: str) -> Listing:
    """Class folders, or a flat folder of pictures with a list in `meta/`."""
    folder = root / split
    if folder.is_dir() and class_folders(folder):
        classes = class_folders(root / "train") if (root / "train").is_dir() else None
        return labelled_folder(root, folder, classes if split != "train" else None)
    if list_files(root):
        return image_list(root, split, (split,))
    raise UsageError(f"imagenet: neither {split}/<class>/ nor meta/{split}.txt in {str(root)!r}")


def _places(root: Path, split: str) -> Listing:
    prefixes = ("data/vision/torralba/deeplearning/images256", "images256", split)
    suffix = "_places205" if (root / "trainvalsplit_places205").is_dir() else ""
    return image_list(root, split, prefixes, suffix) if list_files(root) else image_folder(root, split, hold_out=False)


def _inat(root: Path, split: str) -> Listing:
    if list_files(root):
        return image_list(root, split, ("train_val2018", split))
    return read_inat(root, split)


def _looks_like_folders(root: Path) -> bool:
    """Pictures lie right in the folder, in a split or in a class folder; not in a folder of whole data sets."""
    root = unwrapped(root)
    tops = list(split_folders(root).values()) or [root]
    folders = [*tops, *(top / name for top in tops for name in class_folders(top))]
    return any(is_image(entry.name) for folder in folders for entry in os.scandir(folder))
