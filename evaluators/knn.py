# SPDX-License-Identifier: Apache-2.0
"""k-nearest-neighbour classification on frozen features.

Cosine similarity, exact search (faiss on the CPU), neighbours vote with exp(similarity / T) as in Wu et al. 2018
(NPID, arXiv 1805.01978, section 3.4) and DINO, or one vote each. k is chosen on a held-out part of the training data; the
accuracy of every k is reported beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import NonNegativeFloat

from suite.backbone import Backbone
from suite.data.split import held_out
from suite.errors import UsageError
from suite.metrics import accuracy
from suite.spec import EvalConfig, Evaluator, Metric

if TYPE_CHECKING:
    from suite.bench import Bench


@dataclass(frozen=True, kw_only=True)
class KNNConfig(EvalConfig):
    """Settings of the kNN evaluation."""

    ks: tuple[int, ...] = (1, 5, 10, 20, 100, 200)
    temperature: NonNegativeFloat = 0.07
    "T of the vote exp(similarity / T); 0: every neighbour has one vote."
    choose: bool = True
    "True: the headline's k is chosen on held-out training data; False: it is the last of `ks`."
    layer: str = "pooled"


def neighbours(bank: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of `bank` most similar to each query by inner product, best first.

    Args:
        bank: N×d float32 unit rows.
        queries: M×d float32 unit rows.
        k: at most N.

    Returns:
        Similarities M×k and positions M×k.
    """
    import faiss

    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(np.ascontiguousarray(bank, dtype=np.float32))
    return index.search(np.ascontiguousarray(queries, dtype=np.float32), k)


def vote(
    similarity: np.ndarray, labels: np.ndarray, classes: int, ks: Sequence[int], temperature: float
) -> dict[int, np.ndarray]:
    """Predicted class for each k.

    Args:
        similarity: M×K, best first.
        labels: M×K classes of the neighbours.
        classes: number of classes.
        ks: how many neighbours vote.
        temperature: T; 0 for one vote each. Ties go to the lower class index.

    Returns:
        k to M predictions.
    """
    votes = np.zeros((len(similarity), classes))
    weight = np.exp((similarity - similarity[:, :1]) / temperature) if temperature else np.ones_like(similarity)
    predicted, rows, begin = {}, np.arange(len(similarity)), 0
    for k in sorted(ks):
        for column in range(begin, k):
            votes[rows, labels[:, column]] += weight[:, column]
        begin = k
        predicted[k] = votes.argmax(1)
    return predicted


def unit(features: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a zero row stays zero."""
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norm, 1e-12)


def run(backbone: Backbone, cfg: KNNConfig, bench: Bench) -> Mapping[str, float]:
    """Top-1 for every k, and for the chosen one."""
    train, test = bench.data(cfg, "train"), bench.data(cfg, "test")
    labels, answers = train.labels, test.labels
    if labels is None or answers is None or train.multilabel:
        raise UsageError(f"knn needs one label per image; {train.name!r} has none")
    bank = unit(bench.features(backbone, train, [cfg.layer])[cfg.layer])
    queries = unit(bench.features(backbone, test, [cfg.layer])[cfg.layer])
    ks = [k for k in cfg.ks if k <= len(bank)] or [len(bank)]
    chosen = ks[-1]
    if cfg.choose:
        rest, val = held_out(train, 0.2, cfg.seed)
        guesses = _predict(bank[rest], labels[rest], bank[val], train.num_classes, ks, cfg.temperature)
        chosen = max(guesses, key=lambda k: (accuracy(labels[val], guesses[k]), -k))
        bench.select(k=chosen, on=f"{len(val)} held-out training images")
    guesses = _predict(bank, labels, queries, train.num_classes, ks, cfg.temperature)
    bench.predictions("top1", label=answers, pred=guesses[chosen])
    return {
        "top1": accuracy(answers, guesses[chosen]),
        **{f"top1.k{k}": accuracy(answers, guess) for k, guess in guesses.items()},
    }


def _predict(
    bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, classes: int, ks: Sequence[int], temperature: float
) -> dict[int, np.ndarray]:
    usable = [k for k in ks if k <= len(bank)] or [len(bank)]
    similarity, position = neighbours(bank, queries, max(usable))
    return vote(similarity, labels[position], classes, usable, temperature)


EVALUATOR = Evaluator(
    name="knn",
    title="kNN",
    task="classification",
    run=run,
    presets={
        "default": KNNConfig(),
        "mmselfsup": KNNConfig(ks=(10, 20, 100, 200), choose=False),
        "dinov2": KNNConfig(ks=(10, 20, 100, 200), choose=False),
        "moco": KNNConfig(ks=(200,), temperature=0.1, choose=False),
        "majority": KNNConfig(temperature=0.0),
    },
    describe={
        "default": "cosine, T 0.07, k chosen on held-out training images",
        "mmselfsup": "cosine, T 0.07, k 10/20/100/200 (MMSelfSup test_knn)",
        "dinov2": "cosine, T 0.07, k 10/20/100/200 (DINOv2 eval/knn)",
        "moco": "cosine, T 0.1, k 200 (MoCo CIFAR notebook, lightly)",
        "majority": "cosine, one vote each, k chosen on held-out training images",
    },
    metrics=(Metric("top1", "top-1"),),
)
