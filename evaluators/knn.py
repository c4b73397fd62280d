# SPDX-License-Identifier: Apache-2.0
"""k-nearest-neighbour classification on frozen features.

Cosine similarity, exact search, neighbours vote with exp(similarity / T) as in Wu et al. 2018 (NPID, arXiv 1805.01978,
section 3.4), or one vote each. DINOv2's softmax(similarity / T) is the same vote up to a factor per query. k is chosen on a
held-out part of the training data; the accuracy of every k is reported beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import NonNegativeFloat, PositiveInt

from suite.backbone import Backbone
from suite.data.imageset import ImageSet
from suite.data.split import held_out
from suite.errors import UsageError
from suite.metrics import accuracy
from suite.nn.neighbours import search
from suite.spec import EvalConfig, Evaluator, Metric

if TYPE_CHECKING:
    from suite.bench import Bench

Predictions = dict[int, np.ndarray]
"""k to a class per query."""
HELD_OUT = 10_000
"""Images to choose k on at most: they tell accuracies half a point apart, and more would cost more than the test."""


@dataclass(frozen=True, kw_only=True)
class KNNConfig(EvalConfig):
    """Settings of the kNN evaluation."""

    ks: tuple[PositiveInt, ...] = (1, 5, 10, 20, 100, 200)
    temperature: NonNegativeFloat = 0.07
    "T of the vote exp(similarity / T); 0: every neighbour has one vote."
    choose: bool = True
    "True: the headline's k is chosen on held-out training data; False: it is the last of `ks`."
    layer: str = "pooled"


def vote(similarity: np.ndarray, labels: np.ndarray, classes: int, ks: Sequence[int], temperature: float) -> Predictions:
    """Predicted class for each k.

    Args:
        similarity: M×K, best first.
        labels: M×K classes of the neighbours.
        classes: number of classes C.
        ks: how many neighbours vote.
        temperature: T; 0 for one vote each. Ties go to the lower class index.

    Returns:
        k to M predictions.
    """
    predicted = {k: np.empty(len(labels), np.int64) for k in sorted(ks)}
    size = max(1, (1 << 22) // classes)
    for first in range(0, len(labels), size):
        some, near = labels[first : first + size], similarity[first : first + size].astype(np.float64)
        cell = some + classes * np.arange(len(some))[:, None]  # m×K, index into m×C
        weight = np.exp((near - near[:, :1]) / temperature) if temperature else np.ones_like(near)
        votes, begin = np.zeros((len(some), classes)), 0
        for k, prediction in predicted.items():
            votes += np.bincount(cell[:, begin:k].ravel(), weight[:, begin:k].ravel(), votes.size).reshape(votes.shape)
            prediction[first : first + size] = votes.argmax(1)
            begin = k
    return predicted


def run(backbone: Backbone, cfg: KNNConfig, bench: Bench) -> Mapping[str, float]:
    """Top-1 for every k, and for the chosen one."""
    train, test = bench.data(cfg, "train"), bench.data(cfg, "test")
    _labels(train)
    answers = _labels(test)
    bank = bench.features(backbone, train, [cfg.layer])[cfg.layer]
    queries = bench.features(backbone, test, [cfg.layer])[cfg.layer]
    ks = _usable(cfg.ks, len(train))
    if ks != sorted(set(cfg.ks)):
        bench.select(ks=f"{', '.join(map(str, ks))}: there are {len(train)} training images")
    last = cfg.ks[-1] if cfg.ks[-1] in ks else ks[-1]
    chosen = _choose(train, bank, ks, cfg, bench) if cfg.choose else last
    guesses = _predict(train, bank, queries, ks, cfg, bench)
    bench.predictions("top1", label=answers, pred=guesses[chosen])
    return {
        "top1": accuracy(answers, guesses[chosen]),
        **{f"top1.k{k}": accuracy(answers, guess) for k, guess in guesses.items()},
    }


def _labels(images: ImageSet) -> np.ndarray:
    if images.labels is None or images.multilabel:
        raise UsageError(f"knn needs one label per image; {images.name}/{images.split} has none")
    return images.labels


def _usable(ks: Sequence[int], images: int) -> list[int]:
    """Those that there are images for, ascending; if there are none, all images vote."""
    return sorted({k for k in ks if k <= images}) or [images]


def _choose(train: ImageSet, bank: np.ndarray, ks: Sequence[int], cfg: KNNConfig, bench: Bench) -> int:
    """The smallest of the best k on held-out training images; the least of all where nothing can be held out."""
    try:
        rest, val = held_out(train, min(0.2, HELD_OUT / len(train)), cfg.seed)
    except UsageError as error:
        bench.select(k=ks[0], on=f"nothing: {error}")
        return ks[0]
    labels = _labels(train)[val]
    guesses = _predict(train, bank, bank, _usable(ks, len(rest)), cfg, bench, among=rest, asking=val)
    best = max(guesses, key=lambda k: (accuracy(labels, guesses[k]), -k))
    chosen = best if best in ks else ks[0]  # all of the rest have voted: they were fewer than the least k
    bench.select(k=chosen, on=f"{len(val)} held-out training images")
    return chosen


def _predict(
    train: ImageSet,
    bank: np.ndarray,
    queries: np.ndarray,
    ks: Sequence[int],
    cfg: KNNConfig,
    bench: Bench,
    among: np.ndarray | None = None,
    asking: np.ndarray | None = None,
) -> Predictions:
    """Classes of the queries by the training images `among`."""
    with bench.progress(len(bank) if among is None else len(among), "neighbours") as advance:
        similarity, position = search(
            bank, queries, ks[-1], device=bench.device, threads=bench.threads, among=among, asking=asking,
            what=cfg.layer, advance=advance,
        )  # fmt: skip
    return vote(similarity, _labels(train)[position], train.num_classes, ks, cfg.temperature)


EVALUATOR = Evaluator(
    name="knn",
    title="kNN",
    task="classification",
    run=run,
    layers=lambda backbone, cfg, size: [cfg.layer],
    presets={
        "default": KNNConfig(),
        "mmselfsup": KNNConfig(ks=(10, 20, 100, 200), choose=False),
        "dinov2": KNNConfig(ks=(10, 20, 100, 200), choose=False),
        "moco": KNNConfig(ks=(200,), temperature=0.1, choose=False),
        "lightly": KNNConfig(ks=(200,), temperature=0.1, choose=False),
        "majority": KNNConfig(temperature=0.0),
    },
    describe={
        "default": "cosine, T 0.07, k chosen on held-out training images",
        "mmselfsup": "cosine, T 0.07, k 10/20/100/200, headline 200 (MMSelfSup test_knn)",
        "dinov2": "cosine, softmax(similarity / 0.07), k 10/20/100/200, headline 200 (DINOv2 eval/knn)",
        "moco": "cosine, T 0.1, k 200 (MoCo CIFAR notebook, which takes the projected vector; here the backbone's)",
        "lightly": "cosine, T 0.1, k 200 (lightly's ResNet-50 script; the library's default T is 0.07 since its PR 1840)",
        "majority": "cosine, one vote each, k chosen on held-out training images",
    },
    metrics=(Metric("top1", "top-1"),),
)
