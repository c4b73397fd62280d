# SPDX-License-Identifier: Apache-2.0
"""A picture of the features: t-SNE to two dimensions (van der Maaten and Hinton 2008), kept for a page to draw.

The number beside it says how far the picture can be believed: trustworthiness (Venna and Kaski 2001), 100 when the five
nearest points of every point in the picture are among its nearest in feature space too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from suite.backbone import Backbone
from suite.errors import JobError, UsageError
from suite.spec import EvalConfig, Evaluator, Metric

if TYPE_CHECKING:
    from suite.bench import Bench

FEWEST = 8


@dataclass(frozen=True, kw_only=True)
class TSNEConfig(EvalConfig):
    """Settings of the projection."""

    images: PositiveInt = 2_000
    "A random choice of so many test images when there are more."
    components: PositiveInt = 50
    "Principal components that t-SNE starts from."
    perplexity: PositiveFloat = 30.0
    "At most a quarter of the images."
    layer: str = "pooled"


def project(features: np.ndarray, cfg: TSNEConfig) -> np.ndarray:
    """Points N×2 float32 of N×d features, N at least 8; the same for the same seed and machine."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    components = min(cfg.components, *features.shape)
    reduced = PCA(components, random_state=cfg.seed).fit_transform(features)
    start = "pca" if components > 1 else "random"
    perplexity = min(cfg.perplexity, len(features) / 4)
    return TSNE(perplexity=perplexity, init=start, random_state=cfg.seed).fit_transform(reduced).astype(np.float32)


def run(backbone: Backbone, cfg: TSNEConfig, bench: Bench) -> Mapping[str, float]:
    """Trustworthiness in percent; the points and their labels are kept."""
    from sklearn.manifold import trustworthiness

    images = bench.data(cfg, "test")
    rows = np.sort(np.random.default_rng(cfg.seed).permutation(len(images))[: cfg.images])
    if len(rows) < FEWEST:
        raise UsageError(f"tsne needs {FEWEST} images or more; {images.name}/{images.split} has {len(rows)}")
    features = np.array(bench.features(backbone, images, [cfg.layer])[cfg.layer][rows])
    if not np.isfinite(features).all():
        raise JobError(f"features of {cfg.layer} are not finite: the weights are broken")
    if (features == features[0]).all():
        raise JobError(f"features of {cfg.layer} are the same for all images: there is nothing to project")
    with bench.progress(1, "t-SNE") as advance:
        xy = project(features, cfg)
        advance(1)
    labels = np.full(len(images), -1) if images.labels is None or images.multilabel else images.labels
    bench.artifact("tsne", xy=xy, label=labels[rows])
    return {"trustworthiness": 100 * float(trustworthiness(features, xy, n_neighbors=min(5, (len(rows) - 1) // 2)))}


EVALUATOR = Evaluator(
    name="tsne",
    title="t-SNE",
    task="classification",
    run=run,
    layers=lambda backbone, cfg, size: [cfg.layer],
    presets={"default": TSNEConfig()},
    describe={"default": "up to 2,000 test images, 50 principal components, perplexity 30; trustworthiness of 5 neighbours"},
    metrics=(Metric("trustworthiness", "trustworthiness"),),
    diagnostic=True,
)
