# SPDX-License-Identifier: Apache-2.0
"""`digit-scenes`: pictures of several handwritten digits, with labels, boxes and masks, in PASCAL VOC layout.

The scenes are composed from the same source digits as `digits`; those of the training, validation and test scenes
are disjoint. They are written once into the cache, with a digest of every file that is compared on each use.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from suite.data.cache import atomic_folder, cache_dir, process_dir
from suite.data.card import Card
from suite.data.compose import RawRandom, background, colours, ink, paint, sources, split_sources, to_uint8
from suite.data.digits import CARD as DIGITS
from suite.data.digits import NAMES
from suite.data.files import Options, from_listing, parallel
from suite.data.imageset import ImageSet, digest
from suite.data.voc import read_voc
from suite.errors import UsageError

CARD = Card(
    name="digit-scenes",
    title="Digit scenes (embedded)",
    task="detection",
    classes=NAMES,
    splits={"train": 200, "val": 200, "trainval": 400, "test": 200},
    layout="nothing: generated on first use",
    licence=DIGITS.licence,
    obtain="comes with the project; composed from the digits inside scikit-learn",
    embedded=True,
    tasks=("detection", "multilabel", "segmentation"),
    train="trainval",
)
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class ScenesParams:
    """Everything that determines the scenes."""

    version: int = 1
    """Raised whenever the code draws other scenes, or writes them otherwise, from the same parameters."""
    seed: int = 0
    size: int = 96
    """Side of a scene in pixels."""
    count: tuple[int, int, int] = (200, 200, 200)
    """Scenes for training, validation and test."""
    test_per_class: int = 45
    """Source digits of each class kept for the test scenes, the same as in `digits`."""
    digits: tuple[int, int] = (1, 5)
    """Fewest and most digits in a scene."""
    height: tuple[float, float] = (18.0, 42.0)
    """Range of a digit cell's height in pixels; a digit's ink is a little less."""
    half_tangent: float = 0.13
    spread: float = 0.11
    """Largest deviation of the background's luminance from its middle."""
    contrast: tuple[float, float] = (0.36, 0.60)
    noise: float = 0.03
    small: int = 17
    """A digit whose box is lower than this is marked difficult."""
    hidden: float = 0.8
    """A digit of which a smaller part can be seen is marked difficult."""


@dataclass(frozen=True)
class Digit:
    """One digit of a scene."""

    label: int
    box: tuple[int, int, int, int]
    """First column, first row, last column, last row, from 0, of what can be seen."""
    difficult: bool
    occluded: bool
    truncated: bool


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture with its annotation."""

    image: np.ndarray
    """H×W×3 uint8."""
    instances: np.ndarray
    """H×W uint8: 0 background, i+1 for digit i, 255 for the soft edge around a digit."""
    digits: tuple[Digit, ...]

    def labels(self) -> np.ndarray:
        """Multi-label target, C int8: -1 absent, 0 only difficult ones, 1 present."""
        target = np.full(len(NAMES), -1, dtype=np.int8)
        for item in self.digits:
            target[item.label] = max(target[item.label], 0 if item.difficult else 1)
        return target


def load_scenes(split: str, options: Options | None = None, params: ScenesParams | None = None) -> ImageSet:
    """One split of `digit-scenes`, from the cache or generated in a few seconds.

    Where the cache cannot be written the files live in a temporary folder as long as this process.

    Raises:
        UsageError: no such split.
    """
    options, params = options or Options(), params or ScenesParams()
    if split not in CARD.splits:
        raise UsageError(f"data set 'digit-scenes' has no split {split!r} (valid: {', '.join(CARD.splits)})")
    folder, manifest = scenes_folder(params, options.cache)
    listing = read_voc(folder, split, [("2007", split)], NAMES)
    images = from_listing(CARD.name, split, listing, options)
    return dataclasses.replace(images, fingerprint=digest(manifest["key"], split, manifest["scenes"]))


def scenes_folder(params: ScenesParams, cache: Path | None = None) -> tuple[Path, dict[str, object]]:
    """The folder that holds `VOCdevkit/VOC2007` and `annotations`, complete and undamaged, and its manifest."""
    key = digest("digit-scenes", repr(sorted(asdict(params).items())))
    wanted, private = cache_dir(cache) / CARD.name / key, process_dir() / f"{CARD.name}-{key}"
    for folder in (wanted, private):
        manifest = _intact(folder)
        if manifest is not None:
            return folder, manifest
    for folder in (wanted, private):
        try:
            shutil.rmtree(folder, ignore_errors=True)  # damaged
            _write(folder, key, params)
        except OSError:
            if folder == private:
                raise
            continue
        manifest = _intact(folder)
        if manifest is not None:
            return folder, manifest
    raise UsageError(f"cannot write {str(wanted)!r}; choose another cache with SUITE_CACHE")


def generate(part: str, params: ScenesParams) -> list[Scene]:
    """Compose the scenes of one of `train`, `val`, `test`."""
    glyphs, labels = sources()
    train, test = split_sources(labels, params.test_per_class, RawRandom(params.seed, 0))
    order = train[RawRandom(params.seed, 11).permutation(len(train))]
    half = len(order) // 2
    pool = {"train": order[:half], "val": order[half:], "test": test}[part]
    number = PARTS.index(part)
    draws = (RawRandom(params.seed, 12, number, i) for i in range(params.count[number]))
    return [_scene(glyphs, labels, pool, params, draw) for draw in draws]


def _scene(glyphs: np.ndarray, labels: np.ndarray, pool: np.ndarray, params: ScenesParams, draws: RawRandom) -> Scene:
    """Place digits one after another, each over those before it."""
    size = params.size
    base = draws.uniform(params.spread, 1.0 - params.spread, 1)
    canvas = background(draws, base, size, params.spread, cells=4)
    placed: list[tuple[float, float, float]] = []
    owner, reach = np.zeros((size, size), dtype=np.int64), np.zeros((size, size))
    own: list[np.ndarray] = []
    chosen: list[int] = []
    for _ in range(int(draws.integers(params.digits[0], params.digits[1] + 1, 1)[0])):
        source = int(pool[draws.integers(0, len(pool), 1)[0]])
        height = float(draws.uniform(*params.height, 1)[0])
        spot = _spot(placed, height, size, draws)
        turn = draws.uniform(-params.half_tangent, params.half_tangent, 1)
        colour = _colour(base, params, draws)
        if spot is None:
            continue
        cover = ink(glyphs[source][None], (size, size), np.array([spot]), np.array([height]), turn)
        solid = cover[0] > 0.5
        after = np.where(solid, len(own) + 1, owner)
        if any((after == i + 1).sum() < 0.4 * mask.sum() for i, mask in enumerate([*own, solid])):
            continue
        paint(canvas, cover, colour)
        owner, reach = after, np.maximum(reach, cover[0])
        own.append(solid)
        chosen.append(int(labels[source]))
        placed.append((*spot, height))
    canvas += draws.uniform(-params.noise, params.noise, 1, size, size, 1)
    digits = tuple(_digit(c, owner == i + 1, own[i], params) for i, c in enumerate(chosen))
    edge = (owner == 0) & (reach > 0.12)
    return Scene(to_uint8(canvas)[0], np.where(edge, 255, owner).astype(np.uint8), digits)


def _spot(placed: list[tuple[float, float, float]], height: float, size: int, draws: RawRandom) -> tuple[float, float] | None:
    """A centre (y, x) that leaves most of every digit visible, or None when twenty tries find none."""
    margin = 0.42 * height
    tries = draws.uniform(margin, size - margin, 20, 2)
    for y, x in tries.tolist():
        apart = (0.36 * (height + other) for _, _, other in placed)
        gaps = (max(abs(y - v), 1.2 * abs(x - u)) for v, u, _ in placed)
        if all(gap >= least for gap, least in zip(gaps, apart, strict=True)):
            return y, x
    return None


def _colour(base: np.ndarray, params: ScenesParams, draws: RawRandom) -> np.ndarray:
    """A digit's colour, 1×3, lighter or darker than the background by at least the guaranteed contrast."""
    sign, contrast = draws.sign(1), draws.uniform(*params.contrast, 1)
    luminance = base + sign * contrast
    luminance = np.where((luminance < 0.0) | (luminance > 1.0), base - sign * contrast, luminance)
    return colours(np.clip(luminance, 0.0, 1.0), draws.uniform(-1.0, 1.0, 1, 2))


def _digit(label: int, visible: np.ndarray, whole: np.ndarray, params: ScenesParams) -> Digit:
    rows, cols = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    box = (int(cols[0]), int(rows[0]), int(cols[-1]), int(rows[-1]))
    occluded = bool(visible.sum() < params.hidden * whole.sum())
    last = params.size - 1
    truncated = box[0] == 0 or box[1] == 0 or box[2] == last or box[3] == last
    return Digit(label, box, occluded or box[3] - box[1] + 1 < params.small, occluded, truncated)


def _write(folder: Path, key: str, params: ScenesParams) -> None:
    from suite.data.scenes_write import write_coco, write_voc

    scenes = {part: generate(part, params) for part in PARTS}
    marks = [digest(s.image, s.instances, s.labels(), repr(s.digits)) for part in PARTS for s in scenes[part]]
    with atomic_folder(folder) as temporary:
        write_voc(temporary, scenes)
        write_coco(temporary, scenes)
        manifest = {"key": key, "scenes": digest(*marks), "files": _digests(temporary)}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    hashes = parallel(lambda path: hashlib.sha256(path.read_bytes()).hexdigest(), files)
    return {path.relative_to(folder).as_posix(): mark for path, mark in zip(files, hashes, strict=True)}


def _intact(folder: Path) -> dict[str, object] | None:
    """The manifest, when every file is there and unchanged."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return manifest if manifest["files"] == _digests(folder) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
