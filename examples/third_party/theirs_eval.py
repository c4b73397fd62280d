# SPDX-License-Identifier: Apache-2.0
"""Nearest class centroid on frozen features: an evaluator with nothing to choose and nothing to train.

Every class is the mean of its training features, scaled to length one; a test image belongs to the centroid with the
largest cosine similarity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from suite.backbone import Backbone
from suite.errors import UsageError
from suite.metrics import accuracy
from suite.spec import EvalConfig, Evaluator, Metric

if TYPE_CHECKING:
    from suite.bench import Bench


@dataclass(frozen=True, kw_only=True)
class CentroidConfig(EvalConfig):
    """Settings of the evaluation."""

    layer: str = "pooled"
    "`pooled`, `stage3`, or `stage3@4` for a 4×4 grid of it."


def run(backbone: Backbone, cfg: CentroidConfig, bench: Bench) -> Mapping[str, float]:
    """Top-1 of the nearest centroid."""
    train, test = bench.data(cfg, "train"), bench.data(cfg, "test")
    if train.labels is None or test.labels is None or train.multilabel:
        raise UsageError(f"centroid needs one label per image; {train.name!r} has none")
    known = unit(bench.features(backbone, train, [cfg.layer])[cfg.layer])  # N×d
    asked = unit(bench.features(backbone, test, [cfg.layer])[cfg.layer])  # M×d
    centroids = unit(np.stack([known[train.labels == c].mean(0) for c in range(train.num_classes)]))  # C×d
    predicted = (asked @ centroids.T).argmax(1)  # M
    bench.predictions("top1", label=test.labels, pred=predicted)
    return {"top1": accuracy(test.labels, predicted)}


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a zero row stays zero."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


EVALUATOR = Evaluator(
    name="centroid",
    title="Nearest centroid",
    task="classification",
    run=run,
    presets={"default": CentroidConfig()},
    describe={"default": "cosine to the mean feature of each class"},
    metrics=(Metric("top1", "top-1"),),
)
