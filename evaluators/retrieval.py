# SPDX-License-Identifier: Apache-2.0
"""Image retrieval with frozen features: every test image is a query, images of its class are what it should find.

The gallery is ranked by cosine similarity. By default it is the test set without the query itself, so nothing is trained and
no training data is read. Mean average precision is over the whole ranking, as scikit-learn's `average_precision_score`
defines it: images of equal similarity enter together, so that their order in the data set plays no part (features that have
all collapsed to one score the share of relevant images). R@k is the share of queries with a relevant image among the first
k; there, equal similarities stand in the order of the data set. Queries with nothing relevant in the gallery do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from suite.backbone import Backbone
from suite.errors import UsageError
from suite.nn.neighbours import CPU, halving, similarities
from suite.spec import EvalConfig, Evaluator, Metric
from suite.views import CenterCrop, Resize, View

if TYPE_CHECKING:
    from suite.bench import Bench
    from suite.data.imageset import ImageSet

KS = (1, 5, 10)
SIMILARITIES = 1 << 26
"""Numbers held at once, as long as at least 256 queries are answered together: each answer reads the whole gallery."""

QUERIES, NEIGHBOURS, SIDE = 8, 10, 48
"""Of the picture that a run's page shows: rows, columns, and pixels of a thumbnail's side."""


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(EvalConfig):
    """Settings of the retrieval evaluation."""

    gallery: Literal["test", "train"] = "test"
    "What is searched: the other test images, or the training images."
    layer: str = "pooled"


def rankings(
    queries: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
    *,
    device: torch.device = CPU,
    what: str = "features",
    advance: Callable[[int], object] = lambda n: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How well each query ranks the gallery.

    Args:
        queries: M×d float32, may be memory-mapped.
        labels: class of each query, M.
        gallery: N×d float32; None: the queries, each without itself.
        gallery_labels: its classes, N; unused without a gallery.
        device: where to compute.
        what: names the features in errors.
        advance: called with the number of queries answered since the last call.

    Returns:
        Positions of the m queries with something relevant in the gallery, in order; the average precision of each, 0 to 1; and
        the rank of its first relevant image, from 0.

    Raises:
        JobError: a feature is not finite.
    """
    bank, classes = (queries, labels) if gallery is None or gallery_labels is None else (gallery, gallery_labels)
    own, members = bank is queries, {int(c): np.flatnonzero(classes == c) for c in np.unique(classes)}
    usable = np.array([len(members.get(int(label), ())) > own for label in labels], bool)
    order = np.argsort(labels, kind="stable")  # queries of one class share the relevant images
    order = order[usable[order]]
    precision, rank = np.zeros(len(labels)), np.zeros(len(labels), np.int64)

    def answer(first: int, last: int) -> int:
        rows = order[first:last]
        scores = similarities(bank, queries[rows], device=device, what=what)  # q×N
        if own:
            scores[torch.arange(len(rows)), torch.from_numpy(rows)] = -torch.inf
        begins = np.flatnonzero(np.diff(labels[rows], prepend=-1))
        for begin, end in zip(begins, [*begins[1:], len(rows)], strict=True):
            relevant = torch.from_numpy(members[int(labels[rows[begin]])]).to(device)
            rank[rows[begin:end]] = first_hit(scores[begin:end], relevant).cpu().numpy()
            precision[rows[begin:end]] = average_precisions(scores[begin:end], relevant).cpu().numpy()
        return len(rows)

    for answered in halving(answer, len(order), min(4096, max(256, SIMILARITIES // len(bank)))):
        advance(answered)
    kept = np.flatnonzero(usable)
    return kept, precision[kept], rank[kept]


def first_hit(scores: Tensor, relevant: Tensor) -> Tensor:
    """Rank of the best relevant column, from 0; of equal scores the lower column stands first.

    Args:
        scores: q×N.
        relevant: ascending columns, at least one.
    """
    best, at = scores[:, relevant].max(1, keepdim=True)
    tied = scores == best  # q×N; `at` is the first of equal ones
    before = torch.arange(scores.shape[1], device=scores.device) < relevant[at]
    return (scores > best).sum(1) + (tied & before).sum(1)


def average_precisions(scores: Tensor, relevant: Tensor) -> Tensor:
    """Average precision per query over the finite scores, float64.

    The mean over relevant images of the share of relevant ones among all that score no less.

    Args:
        scores: q×N; minus infinity: not in the gallery. Sorted in place.
        relevant: columns, at least one per query with a finite score.
    """
    hits = _ascending(scores[:, relevant])  # q×R
    ranked = _ascending(scores)
    above = len(relevant) - torch.searchsorted(hits, hits)  # relevant ones that score no less, q×R
    seen = scores.shape[1] - torch.searchsorted(ranked, hits)
    counted = hits > -torch.inf
    return torch.where(counted, above / seen.double(), 0).sum(1) / counted.sum(1)


def _ascending(x: Tensor) -> Tensor:
    """Rows sorted; on the CPU in place and by NumPy, whose sort is several times faster."""
    if x.device.type != "cpu":
        return x.sort(dim=1).values
    x.numpy().sort(axis=1)
    return x


def nearest(
    queries: np.ndarray, labels: np.ndarray, bank: np.ndarray | None, device: torch.device = CPU, what: str = "features"
) -> tuple[np.ndarray, np.ndarray]:
    """A few queries of different classes with the images most similar to each, for a person to look at.

    Args:
        queries: M×d float32.
        labels: class of each query, M.
        bank: N×d float32; None: the queries, each without itself.
        device: where to compute.
        what: names the features in errors.

    Returns:
        Indices of Q queries, and of the k nearest images of each, Q×k, the nearest first.
    """
    chosen = np.sort(np.unique(labels, return_index=True)[1])[:QUERIES]
    scores = similarities(queries if bank is None else bank, queries[chosen], device=device, what=what)  # Q×N
    if bank is None:
        scores[torch.arange(len(chosen)), torch.from_numpy(chosen)] = -torch.inf
    most = scores.shape[1] - (bank is None)
    return chosen, scores.topk(min(NEIGHBOURS, most), dim=1).indices.cpu().numpy()


def thumbnails(bench: Bench, images: ImageSet, indices: np.ndarray) -> np.ndarray:
    """Small square pictures of some images, n×S×S×3 bytes."""
    view = View((Resize(SIDE), CenterCrop(SIDE)))
    pixels = bench.scores(lambda x: x, images.subset(indices), view=view)  # n×3×S×S in 0..1
    return np.ascontiguousarray((255 * pixels).round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


def run(backbone: Backbone, cfg: RetrievalConfig, bench: Bench) -> Mapping[str, float]:
    """Mean average precision and R@k."""
    queries = bench.data(cfg, "test")
    gallery = queries if cfg.gallery == "test" else bench.data(cfg, "train")
    for images in (queries, gallery):
        if images.labels is None or images.multilabel:
            raise UsageError(f"retrieval needs one label per image; {images.name}/{images.split} has none")
    assert queries.labels is not None
    asked = bench.features(backbone, queries, [cfg.layer])[cfg.layer]
    bank = None if gallery is queries else bench.features(backbone, gallery, [cfg.layer])[cfg.layer]
    with bench.progress(len(queries), "ranking") as advance:
        kept, precision, rank = rankings(
            asked, queries.labels, bank, gallery.labels, device=bench.device, what=cfg.layer, advance=advance
        )
    if not len(kept):
        raise UsageError(f"retrieval: no image of {queries.name}/{queries.split} has another of its class to find")
    largest = len(queries if bank is None else gallery) - (bank is None)
    if largest < max(KS):
        bench.select(gallery=f"at most {largest} images per query: R@k beyond that counts all of them")
    bench.predictions("mean", value=100 * precision)
    assert gallery.labels is not None
    chosen, found = nearest(asked, queries.labels, bank, bench.device, cfg.layer)
    # The page finds all pictures in one list: queries first, then every neighbour where it is shown.
    thumbs = [thumbnails(bench, queries, chosen), thumbnails(bench, gallery, found.ravel())]
    bench.artifact(
        "gallery",
        queries=np.arange(len(chosen)),
        neighbours=len(chosen) + np.arange(found.size).reshape(found.shape),
        right=gallery.labels[found] == queries.labels[chosen, None],
        thumbs=np.concatenate(thumbs),
    )
    return {"map": float(100 * precision.mean()), **{f"recall.k{k}": float(100 * (rank < k).mean()) for k in KS}}


EVALUATOR = Evaluator(
    name="retrieval",
    title="Retrieval",
    task="classification",
    run=run,
    layers=lambda backbone, cfg, size: [cfg.layer],
    presets={"default": RetrievalConfig(), "train": RetrievalConfig(gallery="train")},
    describe={
        "default": "test images find each other: cosine, mean average precision and R@1/5/10",
        "train": "test images find training images: cosine, mean average precision and R@1/5/10",
    },
    metrics=(Metric("map", "mAP"), Metric("recall", "R@k")),
)
