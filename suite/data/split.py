# SPDX-License-Identifier: Apache-2.0
"""Stratified parts of a training set: held-out data to choose hyper-parameters on, and labelled subsets.

Pictures of one group (several compositions of one source digit) never end up on both sides.
"""

from __future__ import annotations

import numpy as np

from suite.data.imageset import ImageSet
from suite.errors import UsageError


def held_out(images: ImageSet, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split positions into (rest, held out) with about `fraction` of every class held out.

    Args:
        images: a labelled set, one class per image.
        fraction: share to hold out, between 0 and 1.
        seed: of the choice.

    Returns:
        Two sorted int64 arrays of positions.

    Raises:
        UsageError: no labels, or a class with a single group, which cannot be on both sides.
    """
    chosen = labelled_subset(images, fraction, seed)
    rest = np.setdiff1d(np.arange(len(images)), chosen)
    assert images.labels is not None
    lost = np.setdiff1d(images.labels, images.labels[rest])
    if len(lost):
        raise UsageError(f"{images.name}/{images.split}: class {images.classes[lost[0]]!r} is too small to hold out part of it")
    return rest, chosen


def labelled_subset(images: ImageSet, fraction: float, seed: int) -> np.ndarray:
    """Positions of a stratified subset: `fraction` of every class, at least one group of each.

    Raises:
        UsageError: the set has no single label per image.
    """
    if images.labels is None or images.multilabel:
        raise UsageError(f"{images.name}/{images.split} has no single label per image to stratify by")
    groups = np.arange(len(images)) if images.groups is None else images.groups
    names, first, counts = np.unique(groups, return_index=True, return_counts=True)
    label_of = images.labels[first]
    order = np.random.default_rng(seed).permutation(len(names))
    chosen = []
    for label in np.unique(label_of):
        mine = order[label_of[order] == label]
        wanted = fraction * counts[mine].sum()
        before = np.cumsum(counts[mine]) - counts[mine]
        chosen.append(names[mine[(before + counts[mine] / 2 <= wanted) | (before == 0)]])
    return np.flatnonzero(np.isin(groups, np.concatenate(chosen)))
