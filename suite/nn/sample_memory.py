# SPDX-License-Identifier: Apache-2.0
"""Features and labels of all training images that are re-clustered a little in every step (ODC)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suite.errors import UsageError
from suite.nn.bank import last_of_equal
from suite.nn.cluster import agree, class_weights, cluster_sizes, kmeans


class SampleMemory(nn.Module):
    """ODC's samples memory (features, labels) and centroids memory (section 3.1).

    Everything is a buffer. Several processes hold equal memories: they update with the gathered batch, and what rounding or
    the order of a sum could change comes from process 0.

    Args:
        size: number of training images n.
        dim: width of the features d.
        clusters: number of clusters k.
        momentum: share of the old feature in an update.
    """

    features: Tensor
    labels: Tensor
    centroids: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int, clusters: int, momentum: float = 0.5) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("features", torch.zeros(size, dim))  # n×d, unit rows
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))  # n
        self.register_buffer("centroids", torch.zeros(clusters, dim))  # k×d, means of their members
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fill(self, features: Tensor, labels: Tensor) -> None:
        """Start from one clustering of all features n×d.

        Raises:
            UsageError: another number of features or labels than the memory holds.
        """
        if features.shape != self.features.shape or labels.shape != self.labels.shape:
            raise UsageError(f"memory of {tuple(self.features.shape)} filled with features of {tuple(features.shape)}")
        self.features.copy_(F.normalize(features.float(), dim=1))
        self.labels.copy_(labels)
        self.filled.fill_(True)
        agree(self.features, self.labels)
        self.update_centroids()

    @torch.no_grad()
    def update(self, index: Tensor, features: Tensor) -> Tensor:
        """New features by moving average, new labels by the nearest centroid (section 3.1).

        Args:
            index: N images of the gathered global batch; of one given twice, the last feature counts.
            features: N×d, normalised here.

        Returns:
            Share of the batch whose label changed, a scalar.
        """
        with torch.autocast(features.device.type, enabled=False):
            new = F.normalize(features.float(), dim=1)
            mixed = F.normalize(torch.lerp(new, self.features.index_select(0, index), self.momentum), dim=1)  # N×d
            mixed = mixed[last_of_equal(index)]
            labels = (mixed @ self.centroids.T).argmax(1)  # N
        before = self.labels.index_select(0, index)
        self.features.index_copy_(0, index, mixed)
        self.labels.index_copy_(0, index, labels)
        return (before != labels).float().mean()

    @torch.no_grad()
    def update_centroids(self) -> None:
        """Each centroid becomes the mean of its members; that of an empty cluster stays (every few steps)."""
        k, d = self.centroids.shape
        sizes = self.sizes()
        sums = self.centroids.new_zeros(k, d).index_add_(0, self.labels, self.features)
        self.centroids.copy_(torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], self.centroids))
        agree(self.centroids)

    @torch.no_grad()
    def resolve_small(self, minimum: int, seed: int = 0) -> int:
        """Empty the clusters of fewer than `minimum` members, refill them from the largest ones (section 3.2).

        Members go to the nearest of the other clusters; then every emptied cluster takes half of the largest cluster of
        that moment, split by 2-means. Waits for the device once, and more where there are small clusters.

        Args:
            minimum: smallest cluster that is left alone.
            seed: of the splits; the step, say.

        Returns:
            How many clusters were small.

        Raises:
            UsageError: all clusters are small.
        """
        small = self.sizes() < minimum  # k
        number = int(small.sum())
        if number == 0:
            return 0
        if number == len(small):
            raise UsageError(f"every cluster has fewer than {minimum} samples; fewer clusters or a smaller minimum")
        normal, moving = (~small).nonzero()[:, 0], small[self.labels].nonzero()[:, 0]
        with torch.autocast(self.features.device.type, enabled=False):
            target = (self.features[moving] @ self.centroids[normal].T).argmax(1)
        self.labels[moving] = normal[target]
        for cluster in small.nonzero()[:, 0].tolist():
            self._split_largest(cluster, seed)
        agree(self.labels, self.centroids)
        return number

    def _split_largest(self, empty: int, seed: int) -> None:
        largest = int(self.sizes().argmax())
        members = (self.labels == largest).nonzero()[:, 0]
        if len(members) < 2:
            return
        rows = self.features[members]
        half = kmeans(rows, 2, seed=seed).labels.to(members.device) == 1
        if bool(half.all()) or not bool(half.any()):  # all members alike
            half = torch.arange(len(members), device=members.device) % 2 == 1
        self.labels[members[half]] = empty
        self.centroids[largest], self.centroids[empty] = rows[~half].mean(0), rows[half].mean(0)

    def sizes(self) -> Tensor:
        """Members of every cluster, k."""
        return cluster_sizes(self.labels, len(self.centroids))

    def weights(self, power: float = 0.5) -> Tensor:
        """Class weights of the present labels, k."""
        return class_weights(self.labels, len(self.centroids), power)
