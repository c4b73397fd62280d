# SPDX-License-Identifier: Apache-2.0
"""What the geometry of the features says without labels or training: dimensions in use, collapse, alignment, uniformity.

`rankme`: exp of the entropy of the normalised singular values of the feature matrix as it is, the mean included (RankMe,
Garrido et al. 2023, arXiv 2210.02885, equation 1; there of the projector's output on training images).
`effective_rank`: the same exp of an entropy (Roy and Vetterli 2007), of the eigenvalues of the covariance matrix: the mean is
taken off, which in RankMe counts as one more and often the largest direction, and directions count by variance instead of
standard deviation, so that weak ones count less. 0 where nothing varies.
`feature_std`: standard deviation per channel of features of length 1, averaged, times √d: 1 for features that point
everywhere, 0 after a collapse (SimSiam, Chen and He 2021, arXiv 2011.10566, section 4.1).
`alignment` and `uniformity`: mean squared distance of two augmented views of an image, and log of the mean of exp(-2 squared
distance) over all pairs of images, of features of length 1 (Wang and Isola 2020, arXiv 2005.10242, section 4). Lower is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt

from suite.backbone import Backbone
from suite.data.imageset import ImageSet
from suite.errors import UsageError
from suite.nn.neighbours import CPU, full_precision, halving, unit
from suite.spec import EvalConfig, Evaluator, Metric

if TYPE_CHECKING:
    from suite.bench import Bench

EPS = 1e-7
"""Added to every normalised singular value (RankMe, equation 1)."""
RESOLUTION = 1e-12
"""Share of the second moment below which variance is the rounding of float32."""


@dataclass(frozen=True, kw_only=True)
class RankConfig(EvalConfig):
    """Settings of the geometry evaluation."""

    split: Literal["test", "train"] = "test"
    images: PositiveInt = 25_600
    "A random choice of so many when there are more; RankMe's number."
    pairs: PositiveInt = 2_048
    "Images of which two augmented views are compared, at most: these two passes are all that `rank` costs beside others."
    crop_min: PositiveFloat = 0.08
    "Least share of the area that a view's crop keeps."
    layer: str = "pooled"


def spectrum(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values of N×d features, and of the features without their mean; min(N, d) each, ascending, float64."""
    mean = features.mean(0, dtype=np.float64)  # d
    count, width = features.shape
    if count < width:
        whole = features.astype(np.float64)
        grams = whole @ whole.T, (whole - mean) @ (whole - mean).T  # N×N
    else:
        centred = np.zeros((width, width))
        for first in range(0, count, 1024):
            block = features[first : first + 1024] - mean
            centred += block.T @ block
        grams = centred + count * np.outer(mean, mean), centred  # d×d
    plain, without = (np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0)) for gram in grams)
    return plain, without


def exp_entropy(values: np.ndarray, eps: float = 0.0) -> float:
    """exp(-Σ p log p) of p = values / their sum + eps: the number of equal values with the same entropy."""
    p = values / max(values.sum(), np.finfo(np.float64).tiny) + eps
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def rankme(singular: np.ndarray) -> float:
    """RankMe, from singular values."""
    return exp_entropy(singular, EPS)


def effective_rank(centred: np.ndarray, singular: np.ndarray) -> float:
    """Effective rank of the covariance matrix, 0 without variance.

    Args:
        centred: singular values of the features without their mean.
        singular: of the features as they are, which say what counts as no variance.
    """
    variance = centred**2
    return exp_entropy(variance) if variance.sum() > RESOLUTION * (singular**2).sum() else 0.0


def feature_std(directions: np.ndarray) -> float:
    """Mean over channels of the standard deviation of unit rows N×d, times √d."""
    return float(directions.std(0, dtype=np.float64).mean() * np.sqrt(directions.shape[1]))


def alignment(first: np.ndarray, second: np.ndarray) -> float:
    """Mean squared distance of paired unit rows N×d."""
    return float(((first.astype(np.float64) - second) ** 2).sum(1).mean())


def uniformity(directions: np.ndarray, device: torch.device = CPU) -> float:
    """Log of the mean of exp(-2 squared distance) over all pairs of unit rows N×d, N at least 2."""
    x = torch.from_numpy(directions).to(device)
    square = (x * x).sum(1)  # 1 or, of a zero row, 0

    def total(first: int, last: int) -> float:
        apart = square[first:last, None] + square[first:] - 2 * x[first:last] @ x[first:].T  # n×(N - first)
        return float(apart.clamp_(min=0).mul_(-2).exp_().triu_(1).sum(dtype=torch.float64))

    with full_precision():
        found = sum(halving(total, len(x), max(1, (1 << 24) // len(x))))
    return float(np.log(found / (len(x) * (len(x) - 1) / 2)))


def run(backbone: Backbone, cfg: RankConfig, bench: Bench) -> Mapping[str, float]:
    """All five numbers."""
    images = bench.data(cfg, cfg.split)
    if len(images) < 2:
        raise UsageError(f"rank needs two images or more; {images.name}/{images.split} has {len(images)}")
    matrix = bench.features(backbone, images, [cfg.layer])[cfg.layer]
    features = np.array(matrix[_some(images, cfg.images, cfg.seed)])
    directions = unit(features, cfg.layer)
    with bench.progress(3, "geometry") as advance:
        singular, centred = spectrum(features)
        advance(1)
        metrics = {
            "rankme": rankme(singular),
            "effective_rank": effective_rank(centred, singular),
            "feature_std": feature_std(directions),
            "uniformity": uniformity(directions, bench.device),
        }
        advance(1)
        paired = images if len(images) <= cfg.pairs else images.subset(_some(images, cfg.pairs, cfg.seed))
        views = bench.augmented(backbone, paired, [cfg.layer], bench.train_view(cfg.crop_min), 2)
        first, second = (unit(view[cfg.layer], cfg.layer) for view in views)
        advance(1)
    return {**metrics, "alignment": alignment(first, second)}


def _some(images: ImageSet, count: int, seed: int) -> np.ndarray:
    """At most so many positions, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(len(images))[:count])


EVALUATOR = Evaluator(
    name="rank",
    title="Rank",
    task="classification",
    run=run,
    layers=lambda backbone, cfg, size: [cfg.layer],
    presets={"default": RankConfig(), "train": RankConfig(split="train")},
    describe={
        "default": "RankMe, effective rank, collapse, alignment, uniformity of test features: no labels, no training",
        "train": "the same of 25,600 training images (RankMe's data)",
    },
    metrics=(
        Metric("rankme", "RankMe", unit=""),
        Metric("effective_rank", "effective rank", unit=""),
        Metric("feature_std", "feature std", unit=""),
        Metric("alignment", "alignment", unit="", higher_is_better=False),
        Metric("uniformity", "uniformity", unit="", higher_is_better=False),
    ),
    diagnostic=True,
)
