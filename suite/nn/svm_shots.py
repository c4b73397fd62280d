# SPDX-License-Identifier: Apache-2.0
"""Low-shot runs: which the training set can fill, and what is reported of their draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit


def summary(k: int, maps: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation over the draws and, of two draws or more, a 95 % interval of the mean (Student's t)."""
    values, draws = np.asarray(maps), len(maps)
    found = {f"lowshot.k{k}": float(values.mean()), f"lowshot_std.k{k}": float(values.std())}
    if draws > 1:
        half = float(stdtrit(draws - 1, 0.975) * values.std(ddof=1) / math.sqrt(draws))
        found |= {f"lowshot_low.k{k}": found[f"lowshot.k{k}"] - half, f"lowshot_high.k{k}": found[f"lowshot.k{k}"] + half}
    return found


def fits(labels: np.ndarray, k: int) -> bool:
    """Whether every class of several has k positives and (C-1)·k negatives."""
    positives, negatives = (labels == 1).sum(0), (labels == -1).sum(0)
    return labels.shape[1] > 1 and bool((positives >= k).all() and (negatives >= (labels.shape[1] - 1) * k).all())
