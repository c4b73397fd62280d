# SPDX-License-Identifier: Apache-2.0
"""Draw handwritten digits on coloured pictures, the same bytes on every machine.

Only exactly rounded operations (+ - * / comparisons, elementwise) touch the pixels, rotations come from the
rational parametrisation of the circle instead of sine and cosine, and random numbers are raw PCG64 words, the
stream that NumPy promises to keep. So a golden hash of the result holds across processors and library versions.
"""

from __future__ import annotations

import numpy as np

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G, B in luminance (ITU-R BT.601)."""


class RawRandom:
    """Random numbers from raw PCG64 words, seeded by a tuple of integers."""

    def __init__(self, *seed: int) -> None:
        """Seed with any number of non-negative integers."""
        self._bits = np.random.PCG64(np.random.SeedSequence(seed))

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        """Float64 in [low, high), of the given shape."""
        words = self._bits.random_raw(int(np.prod(shape, dtype=np.int64)))
        unit = (np.asarray(words, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return low + (high - low) * unit.reshape(shape)

    def integers(self, low: int, high: int, *shape: int) -> np.ndarray:
        """int64 in [low, high), of the given shape."""
        return low + np.floor(self.uniform(0.0, 1.0, *shape) * (high - low)).astype(np.int64)

    def permutation(self, n: int) -> np.ndarray:
        """0..n-1 in random order."""
        return np.argsort(np.asarray(self._bits.random_raw(n), dtype=np.uint64), kind="stable")

    def sign(self, *shape: int) -> np.ndarray:
        """-1.0 or 1.0, equally likely."""
        return np.where(self.uniform(0.0, 1.0, *shape) < 0.5, -1.0, 1.0)


def rotation(half_tangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of the angle whose half has this tangent."""
    square = half_tangent * half_tangent
    return (1.0 - square) / (1.0 + square), 2.0 * half_tangent / (1.0 + square)


def sources() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 handwritten digits that ship inside scikit-learn.

    Returns:
        Grey values N×8×8 float64 in [0, 1] and labels N int64.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.float64) / 16.0, bunch.target.astype(np.int64)


def split_sources(labels: np.ndarray, per_class_test: int, draws: RawRandom) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and test digits, disjoint, `per_class_test` test digits of each class."""
    order = draws.permutation(len(labels))
    test = np.concatenate([order[labels[order] == c][:per_class_test] for c in range(10)])
    train = np.setdiff1d(order, test)
    return train, np.sort(test)


def ink(
    glyphs: np.ndarray,
    size: tuple[int, int],
    centre: np.ndarray,
    height: np.ndarray,
    half_tangent: np.ndarray,
    aspect: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Coverage of one rotated, scaled digit per picture.

    Args:
        glyphs: N×8×8 grey values in [0, 1].
        size: canvas height and width in pixels.
        centre: N×2 digit centre (y, x) in pixels.
        height: N, height of the 8×8 cell in pixels.
        half_tangent: N, tangent of half the rotation.
        aspect: width of the cell over its height, N or a number.

    Returns:
        Coverage N×H×W in [0, 1].
    """
    n, step = len(glyphs), max(1, 65536 // (size[0] * size[1]))  # pictures whose intermediate values fit the cache
    wide = np.broadcast_to(np.asarray(aspect, dtype=np.float64), (n,))
    cover = np.empty((n, *size))
    for start in range(0, n, step):
        part = slice(start, start + step)
        cover[part] = _ink(glyphs[part], size, centre[part], height[part], half_tangent[part], wide[part])
    return cover


def _ink(
    glyphs: np.ndarray,
    size: tuple[int, int],
    centre: np.ndarray,
    height: np.ndarray,
    half_tangent: np.ndarray,
    aspect: np.ndarray,
) -> np.ndarray:
    rows = np.arange(size[0], dtype=np.float64)[None, :, None] + 0.5 - centre[:, 0, None, None]  # N×H×1
    cols = np.arange(size[1], dtype=np.float64)[None, None, :] + 0.5 - centre[:, 1, None, None]  # N×1×W
    cos, sin = (part[:, None, None] for part in rotation(half_tangent))
    scale = (8.0 / height)[:, None, None]
    y = (cos * rows - sin * cols) * scale  # N×H×W
    x = (sin * rows + cos * cols) * (scale / aspect[:, None, None])  # N×H×W
    grey = _bilinear(np.pad(glyphs, ((0, 0), (1, 1), (1, 1))), y + 4.5, x + 4.5)
    ramp = np.clip((grey - 0.28) / 0.34, 0.0, 1.0)
    return ramp * ramp * (3.0 - 2.0 * ramp)


def colours(luminance: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Colours of a wanted luminance.

    Args:
        luminance: any shape, in [0, 1].
        chroma: the same shape × 2, in [-1, 1]: strength of red and blue.

    Returns:
        The shape × 3, RGB in [0, 1], whose `LUMA`-weighted sum is `luminance`.
    """
    reach = np.minimum(0.35, np.minimum(luminance, 1.0 - luminance))[..., None]
    red_blue = reach * chroma
    green = -(LUMA[0] * red_blue[..., 0] + LUMA[2] * red_blue[..., 1]) / LUMA[1]
    offset = np.stack([red_blue[..., 0], green, red_blue[..., 1]], axis=-1)
    return luminance[..., None] + offset


def background(draws: RawRandom, base: np.ndarray, size: int, spread: float, cells: int = 3) -> np.ndarray:
    """Smooth coloured backgrounds: a coarse grid of colours, interpolated.

    Args:
        draws: random numbers.
        base: N, middle luminance; the picture stays within `spread` of it.
        size: side of the square picture in pixels.
        spread: largest deviation of luminance.
        cells: grid points along a side.

    Returns:
        N×size×size×3 float64 in [0, 1].
    """
    n = len(base)
    luminance = base[:, None, None] + draws.uniform(-spread, spread, n, cells, cells)
    hue = draws.uniform(-1.0, 1.0, n, 1, 1, 2) + draws.uniform(-0.6, 0.6, n, cells, cells, 2)
    grid = colours(luminance, np.clip(hue, -1.0, 1.0))  # N×cells×cells×3
    place = (np.arange(size, dtype=np.float64) + 0.5) * ((cells - 1) / size)
    low = np.floor(place).astype(np.int64)
    part = place - low
    high = np.minimum(low + 1, cells - 1)
    rows = grid[:, low] * (1.0 - part)[None, :, None, None] + grid[:, high] * part[None, :, None, None]
    weight = part[None, None, :, None]
    return rows[:, :, low] * (1.0 - weight) + rows[:, :, high] * weight


def paint(canvas: np.ndarray, coverage: np.ndarray, colour: np.ndarray) -> None:
    """Blend N colours (N×3) into N pictures (N×H×W×3) by coverage (N×H×W), in place."""
    canvas += coverage[..., None] * (colour[:, None, None, :] - canvas)


def to_uint8(canvas: np.ndarray) -> np.ndarray:
    """[0, 1] to 0..255, rounded."""
    return np.floor(np.clip(canvas, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _bilinear(images: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Sample N×K×K images at N×H×W coordinates (pixel centres at integers), zero outside."""
    side = images.shape[1]
    y, x = np.clip(y, 0.0, side - 1.0), np.clip(x, 0.0, side - 1.0)
    y0 = np.minimum(y.astype(np.int64), side - 2)
    x0 = np.minimum(x.astype(np.int64), side - 2)
    fy, fx = y - y0, x - x0
    flat = images.reshape(-1)
    base = (np.arange(len(images)) * side * side)[:, None, None] + y0 * side + x0
    top = flat[base] * (1.0 - fx) + flat[base + 1] * fx
    bottom = flat[base + side] * (1.0 - fx) + flat[base + side + 1] * fx
    return top * (1.0 - fy) + bottom * fy
