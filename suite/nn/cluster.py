# SPDX-License-Identifier: Apache-2.0
"""Clustering of all features between epochs, and what a classifier on clusters needs: balanced order and class weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from suite.errors import JobError, UsageError
from suite.nn.gather import all_sum, rank, world_size


@dataclass(frozen=True)
class Clusters:
    """What k-means found."""

    labels: Tensor
    """n int64: the nearest centroid of every row; a cluster may be empty."""
    centroids: Tensor
    """k×d float32; unit rows if spherical."""


def kmeans(x: Tensor, k: int, *, seed: int = 0, iterations: int = 20, spherical: bool = False) -> Clusters:
    """Lloyd's k-means through faiss, from k random rows; a cluster that empties splits the largest one.

    Args:
        x: n×d, on any device; the work is done on the CPU. All rows are used, however many they are.
        k: number of clusters, at most n.
        seed: of the first centroids; the same seed gives the same clusters.
        iterations: how often centroids move.
        spherical: cosine instead of Euclidean distance, centroids of unit length (x should have unit rows).

    Raises:
        UsageError: fewer rows than clusters.
        JobError: a feature is not finite.
    """
    import faiss

    rows = _rows(x)
    n, d = rows.shape
    if not 1 <= k <= n:
        raise UsageError(f"{k} clusters of {n} samples: choose 1 to {n}")
    found = faiss.Kmeans(
        d, k, niter=iterations, seed=seed % 2**31, spherical=spherical, min_points_per_centroid=1, max_points_per_centroid=n
    )
    found.train(rows)
    nearest = found.index.search(rows, 1)[1][:, 0]
    return Clusters(torch.from_numpy(nearest.astype(np.int64)), torch.from_numpy(np.array(found.centroids)))


def kmeans_on_main(
    x: Tensor, k: int, device: torch.device, *, seed: int = 0, iterations: int = 20, spherical: bool = False
) -> Clusters:
    """`kmeans` by process 0 with all cores, its result on every process. All processes call it, each with n rows."""
    if rank() == 0:
        found = kmeans(x, k, seed=seed, iterations=iterations, spherical=spherical)
        labels, centroids = found.labels.to(device), found.centroids.to(device)
    else:
        labels = torch.empty(len(x), dtype=torch.int64, device=device)
        centroids = torch.empty(k, x.shape[1], device=device)
    agree(labels, centroids)
    return Clusters(labels, centroids)


def agree(*tensors: Tensor) -> None:
    """Overwrite the tensors by those of process 0."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def pca_whiten(x: Tensor, dim: int = 256) -> Tensor:
    """Project on the first principal components, divide each by its standard deviation, L2-normalise the rows.

    DeepCluster, section 3.4. Components without variance are left out.

    Args:
        x: n×d, n >= 2.
        dim: number of components; fewer where the data has fewer.

    Returns:
        n×min(dim, rank) float32 on the CPU.

    Raises:
        UsageError: fewer than two rows.
        JobError: a feature is not finite, or all rows are alike.
    """
    import faiss

    rows = _rows(x)
    n, d = rows.shape
    if n < 2:
        raise UsageError(f"principal components need 2 samples at least, not {n}")
    pca = faiss.PCAMatrix(d, min(dim, d, n - 1))
    pca.max_points_per_d = n
    pca.train(rows)
    projected = torch.from_numpy(pca.apply(rows))  # n×r
    deviation = projected.std(0, correction=0)
    used = deviation > 1e-5 * deviation.max()
    if not bool(used.any()):
        raise JobError("all features are alike: the network has collapsed, nothing can be clustered")
    return F.normalize(projected[:, used] / deviation[used], dim=1)


def _rows(x: Tensor) -> np.ndarray:
    rows = np.ascontiguousarray(x.detach().float().cpu().numpy())
    if not np.isfinite(rows.sum(1)).all():  # a mask of every element would be a quarter of the features again
        raise JobError("features to cluster are not finite")
    return rows


def cluster_sizes(labels: Tensor, k: int) -> Tensor:
    """Members of every cluster: n -> k int64. Waits for no device, unlike torch.bincount."""
    return torch.zeros(k, dtype=torch.int64, device=labels.device).scatter_add_(0, labels, torch.ones_like(labels))


def uniform_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """An epoch's order in which every non-empty cluster comes up equally often.

    DeepCluster, section 3.3, "Trivial parametrization". Each of c clusters gives n // c + 1 members, without repetition where
    it has more than that; together they are shuffled and cut to n.

    Args:
        labels: n clusters, on the CPU.
        generator: of the CPU; the same one everywhere gives every process the same order.

    Returns:
        n indices.
    """
    n = len(labels)
    _, compact, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    share = n // len(sizes) + 1
    shuffled = torch.randperm(n, generator=generator)
    members = shuffled[compact[shuffled].argsort(stable=True)]  # n: cluster after cluster, each in random order
    start = sizes.cumsum(0) - sizes  # c
    place = torch.arange(share).expand(len(sizes), share)  # c×share: the first ones of a large cluster …
    drawn = (torch.rand(len(sizes), share, generator=generator, dtype=torch.float64) * sizes[:, None]).long()
    place = torch.where(sizes[:, None] > share, place, drawn)  # … and any of a small one
    order = members[(start[:, None] + place).flatten()]
    return order[torch.randperm(len(order), generator=generator)[:n]]


def class_weights(labels: Tensor, k: int, power: float = 0.5) -> Tensor:
    """Weights of a cross entropy proportional to (1/size)^power, summing to 1 (ODC, "Loss re-weighting").

    Empty clusters weigh nothing, which no loss notices.

    Args:
        labels: n clusters below k.
        k: number of clusters.
        power: 0 treats samples alike, 1 treats clusters alike.

    Returns:
        k float32.
    """
    sizes = cluster_sizes(labels, k)
    weights = torch.where(sizes > 0, sizes.clamp_min(1).double() ** -power, 0.0)
    return (weights / weights.sum()).float()


def weighted_cross_entropy(logits: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Mean over the global batch of -log softmax(logits)_y, where class y counts `weights[y]` times."""
    w = weights[y]  # N
    total = all_sum(w.sum()) / world_size()
    return (w * F.cross_entropy(logits, y, reduction="none")).sum() / total


def nmi(first: Tensor, second: Tensor) -> float:
    """Normalised mutual information of two clusterings, 0 to 1: how little changes between epochs.

    Over the geometric mean of the entropies, as DeepCluster defines it (section 4.1).
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(first.cpu().numpy(), second.cpu().numpy(), average_method="geometric"))
