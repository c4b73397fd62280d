# SPDX-License-Identifier: Apache-2.0
"""Paired bootstrap: how far the difference of two scores on the same images can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suite import metrics
from suite.errors import UsageError

Arrays = Mapping[str, NDArray[Any]]

CELLS = 4_000_000
"""Numbers that a chunk of resamples may hold at once."""


@dataclass(frozen=True)
class Difference:
    """Two scores in percent, head - base, and the percentile interval of that."""

    base: float
    head: float
    difference: float
    low: float
    high: float
    samples: int


def bootstrap(
    what: str, base: Arrays, head: Arrays, alpha: float = 0.05, resamples: int = 2000, seed: int = 0
) -> tuple[str, Difference]:
    """Percentile interval of the difference of two headlines, resampling images for both sides alike.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3. For top-1 the resampled difference
    depends only on how many images each side alone got right, and these counts are multinomial: they are drawn
    directly.

    Args:
        what: name for error messages.
        base: prediction arrays, see `suite.metrics.PREDICTIONS`.
        head: prediction arrays on the same images in the same order.
        alpha: 1 - coverage.
        resamples: how many.
        seed: of the drawing.

    Returns:
        The kind of predictions and the difference.

    Raises:
        UsageError: unknown or unequal kinds, or different images.
    """
    kind = metrics.kind_of(base)
    if kind is None or kind != metrics.kind_of(head):
        raise UsageError(f"{what}: the stored predictions are of no common kind (valid: {', '.join(metrics.PREDICTIONS)})")
    check_pairs(what, kind, base, head)
    n = metrics.samples(kind, base)
    a, b = metrics.headline(kind, base), metrics.headline(kind, head)
    rng = np.random.default_rng(seed)
    top1 = kind == "top1"
    drawn = _top1(base, head, resamples, rng) if top1 else _counted(kind, base, head, resamples, rng)
    low, high = np.nanquantile(drawn, [alpha / 2, 1 - alpha / 2]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return kind, Difference(a, b, b - a, float(low), float(high), n)


def _top1(base: Arrays, head: Arrays, resamples: int, rng: np.random.Generator) -> NDArray[Any]:
    right_a, right_b = base["pred"] == base["label"], head["pred"] == head["label"]
    n = len(right_a)
    gained, lost = int((right_b & ~right_a).sum()), int((right_a & ~right_b).sum())
    counts = rng.multinomial(n, [gained / n, lost / n, (n - gained - lost) / n], size=resamples)  # R×3
    return 100 * (counts[:, 0] - counts[:, 1]) / n


def _counted(kind: str, base: Arrays, head: Arrays, resamples: int, rng: np.random.Generator) -> NDArray[Any]:
    n = metrics.samples(kind, base)
    rows = max(len(arrays[metrics.PREDICTIONS[kind][0]]) for arrays in (base, head))
    chunk = max(1, min(resamples, CELLS // max(n, rows)))
    differences = []
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        counts = rng.multinomial(n, np.full(n, 1 / n), size=size)  # R×N
        differences.append(metrics.resampled(kind, head, counts) - metrics.resampled(kind, base, counts))
    return np.concatenate(differences)


def check_pairs(what: str, kind: str, base: Arrays, head: Arrays) -> None:
    """Both sides must have been scored against the same ground truth, image by image.

    Raises:
        UsageError: naming what differs.
    """
    truth = {"top1": "label", "map": "targets", "miou": "confusion", "detection": "n_gt"}[kind]
    a, b = base[truth], head[truth]
    if len(a) != len(b):
        raise UsageError(f"{what}: {len(a)} test images against {len(b)}; a paired comparison needs the same images")
    if not len(a):
        raise UsageError(f"{what}: the stored predictions hold no image")
    if kind == "miou":  # pixels per true class and image, whatever was predicted
        a, b = a.sum(axis=2, dtype=np.int64), b.sum(axis=2, dtype=np.int64)
    if a.shape != b.shape or not np.array_equal(a, b):
        raise UsageError(f"{what}: the true labels differ; a paired comparison needs the same images in the same order")
