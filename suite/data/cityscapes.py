# SPDX-License-Identifier: Apache-2.0
"""Reader for Cityscapes layout (M. Cordts et al., CVPR 2016)."""

from __future__ import annotations

from pathlib import Path

from suite.data.files import Listing
from suite.data.folders import images_below
from suite.errors import UsageError

CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
SUFFIX = "_leftImg8bit"
MAPS = ("labelTrainIds", "labelIds")
"""Label maps in order of preference: 19 training classes (255: ignored), or the 34 original ids."""


def read_cityscapes(root: Path, split: str) -> Listing:
    """List `leftImg8bit/<split>/<city>/*.png` with the label map of each picture.

    Raises:
        UsageError: no such split, or pictures without a label map.
    """
    folder = root / "leftImg8bit" / split
    if not folder.is_dir():
        valid = sorted(p.name for p in (root / "leftImg8bit").glob("*") if p.is_dir())
        raise UsageError(f"no folder leftImg8bit/{split} in {str(root)!r} (valid: {', '.join(valid) or 'none'})")
    names = [name for name in images_below(folder) if Path(name).stem.endswith(SUFFIX)]
    if not names:
        raise UsageError(f"no pictures <city>/*{SUFFIX}.png below {str(folder)!r}")
    stems = [name.rsplit(SUFFIX, 1)[0] for name in names]
    maps = {kind: [f"gtFine/{split}/{stem}_gtFine_{kind}.png" for stem in stems] for kind in MAPS}
    missing = {kind: [name for name in files if not (root / name).is_file()] for kind, files in maps.items()}
    kind = min(MAPS, key=lambda kind: len(missing[kind]))
    if missing[kind]:
        raise UsageError(f"{len(missing[kind])} label map(s) missing in {str(root)!r}: {', '.join(missing[kind][:3])}")
    pictures = [f"leftImg8bit/{split}/{name}" for name in names]
    return Listing(root, pictures, CLASSES, masks=maps[kind], annotations=kind, native=root)
