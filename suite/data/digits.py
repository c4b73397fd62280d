# SPDX-License-Identifier: Apache-2.0
"""`digits`: small coloured pictures, each of one real handwritten digit among clutter.

The 8×8 digits inside scikit-learn are too easy as they are: nearest neighbours on raw pixels classify 98 %.
Here each is drawn with random scale, place, slight rotation and colour on a smooth coloured background, over
fragments of other digits. The digit always stands out from its background by a known luminance.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from suite.data.cache import atomic_file, cache_dir
from suite.data.card import Card
from suite.data.compose import RawRandom, background, colours, ink, paint, sources, split_sources, to_uint8
from suite.data.imageset import ImageSet, digest
from suite.errors import UsageError

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CARD = Card(
    name="digits",
    title="Digits (embedded)",
    task="classification",
    classes=NAMES,
    splits={"train": 5388, "test": 1800},
    layout="nothing: generated on first use",
    licence="CC BY 4.0 (Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI, 1998)",
    obtain="comes with the project; composed from the digits inside scikit-learn",
    embedded=True,
)


@dataclass(frozen=True)
class DigitsParams:
    """Everything that determines the pictures."""

    version: int = 1
    """Raised whenever the code draws other pictures from the same parameters."""
    seed: int = 0
    size: int = 32
    """Side of a picture in pixels."""
    test_per_class: int = 45
    """Source digits of each class kept for the test split; the others are for training."""
    copies: int = 4
    """Pictures made from each source digit."""
    height: tuple[float, float] = (15.0, 27.0)
    """Range of the digit cell's height in pixels."""
    half_tangent: float = 0.13
    """Largest tangent of half the rotation (0.13: 15 degrees)."""
    spread: float = 0.11
    """Largest deviation of the background's luminance from its middle."""
    contrast: tuple[float, float] = (0.34, 0.60)
    """Luminance of the digit minus the middle of the background, either sign; minus `spread` it is guaranteed."""
    clutter_contrast: tuple[float, float] = (0.16, 0.40)
    """The same for the fragments."""
    noise: float = 0.03
    """Largest deviation of a pixel, all channels alike."""


def load_digits_set(split: str, cache: Path | None = None, params: DigitsParams | None = None) -> ImageSet:
    """One split of `digits`, from the cache or generated in a few seconds.

    Args:
        split: `train` or `test`.
        cache: cache folder; default `suite.data.cache_dir()`. One that cannot be written is done without.
        params: other than the default pictures.
    """
    params = params or DigitsParams()
    if split not in CARD.splits:
        raise UsageError(f"data set 'digits' has no split {split!r} (valid: {', '.join(CARD.splits)})")
    key = digest("digits", repr(sorted(asdict(params).items())))
    path = cache_dir(cache) / "digits" / f"{key}-{split}.npz"
    parts = _read(path)
    if parts is None:
        parts = generate(split, params)
        with contextlib.suppress(OSError), atomic_file(path) as temporary:
            np.savez(temporary, images=parts[0], labels=parts[1], groups=parts[2], digest=digest(*parts))
    images, labels, groups = parts
    fingerprint = digest(key, split, images, labels)
    return ImageSet("digits", split, NAMES, labels, images, fingerprint, array=images, groups=groups)


def generate(split: str, params: DigitsParams) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compose one split.

    Returns:
        Pictures N×size×size×3 uint8, labels N int64, and the source digit of each picture N int64.
    """
    glyphs, labels = sources()
    train, test = split_sources(labels, params.test_per_class, RawRandom(params.seed, 0))
    pool = train if split == "train" else test
    rounds = []
    for copy in range(params.copies):
        draws = RawRandom(params.seed, 1 + (split == "test"), copy)
        rounds.append(_pictures(glyphs, labels, pool, params, draws))
    images, groups = np.concatenate(rounds), np.tile(pool, params.copies)
    order = RawRandom(params.seed, 3 + (split == "test")).permutation(len(images))
    return images[order], labels[groups][order], groups[order]


def _pictures(glyphs: np.ndarray, labels: np.ndarray, pool: np.ndarray, params: DigitsParams, draws: RawRandom) -> np.ndarray:
    """One picture of each source digit in `pool`, N×size×size×3 uint8."""
    n, size = len(pool), params.size
    sign = draws.sign(n)
    contrast = draws.uniform(*params.contrast, n)
    room = 1.0 - contrast - params.spread  # the background's middle, so that both luminances stay inside [0, 1]
    middle = params.spread + room * draws.uniform(0.0, 1.0, n) * (1.0 - params.spread / room)
    base = np.where(sign > 0, middle, 1.0 - middle)
    canvas = background(draws, base, size, params.spread)
    height = draws.uniform(*params.height, n)
    slack = (size - height)[:, None] / 2.0 + 1.0
    centre = size / 2.0 + slack * draws.uniform(-1.0, 1.0, n, 2)
    turn = draws.uniform(-params.half_tangent, params.half_tangent, n)
    for fragment in range(2):
        drawn = np.ones(n) if fragment == 0 else (draws.uniform(0.0, 1.0, n) < 0.5).astype(np.float64)
        _clutter(canvas, glyphs[pool[draws.integers(0, n, n)]], centre, height, base, drawn, params, draws)
    cover = ink(glyphs[pool], (size, size), centre, height, turn, draws.uniform(0.85, 1.15, n))
    paint(canvas, cover, colours(base + sign * contrast, draws.uniform(-1.0, 1.0, n, 2)))
    canvas += draws.uniform(-params.noise, params.noise, n, size, size, 1)
    return to_uint8(canvas)


def _clutter(
    canvas: np.ndarray,
    glyphs: np.ndarray,
    centre: np.ndarray,
    height: np.ndarray,
    base: np.ndarray,
    drawn: np.ndarray,
    params: DigitsParams,
    draws: RawRandom,
) -> None:
    """Paint the outer part of another digit beside each digit, where `drawn` is 1."""
    n, size = len(glyphs), params.size
    cos, sin = _direction(draws, n)
    reach = height * draws.uniform(0.55, 0.8, n)
    place = centre + np.stack([cos * reach, sin * reach], axis=1)
    turn = draws.uniform(-1.0, 1.0, n)
    cover = ink(glyphs, (size, size), place, draws.uniform(*params.height, n), turn)
    rows = np.arange(size)[None, :, None] + 0.5 - place[:, 0, None, None]
    cols = np.arange(size)[None, None, :] + 0.5 - place[:, 1, None, None]
    outward = rows * cos[:, None, None] + cols * sin[:, None, None]  # N×H×W, pixels beyond the fragment's centre
    cut = draws.uniform(-3.0, 2.0, n)[:, None, None]
    sign, contrast = draws.sign(n), draws.uniform(*params.clutter_contrast, n)
    luminance = np.clip(base + sign * contrast, 0.0, 1.0)
    colour = colours(luminance, draws.uniform(-1.0, 1.0, n, 2))
    paint(canvas, cover * (outward > cut) * drawn[:, None, None], colour)


def _direction(draws: RawRandom, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Points on the unit circle all around, without trigonometry."""
    t = draws.uniform(-1.0, 1.0, n)
    square = t * t
    cos, sin = (1.0 - square) / (1.0 + square), 2.0 * t / (1.0 + square)  # a half circle
    flip = draws.sign(n)
    return flip * cos, flip * sin


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The cached split, or None when absent or damaged (it is then generated anew)."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            parts = stored["images"], stored["labels"], stored["groups"]
            return parts if str(stored["digest"]) == digest(*parts) else None
    except Exception:  # a torn or foreign file raises anything from OSError to zipfile and zlib errors
        return None
