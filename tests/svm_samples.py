# SPDX-License-Identifier: Apache-2.0
"""Small problems for the SVM's tests."""

from __future__ import annotations

import numpy as np
import torch


def problem(samples, width, rates, seed=0):
    """Unit features of decaying spectrum, N×d, and one noisy linear target per rate of positives, P×N."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((samples, 20)) * np.exp(-np.arange(20) / 8)
    x = np.maximum(hidden @ rng.standard_normal((20, width)) + 0.7 * rng.standard_normal((samples, width)), 0)
    x /= np.linalg.norm(x, axis=1, keepdims=True) + 1e-5
    score = hidden @ rng.standard_normal((20, len(rates))) + 0.5 * rng.standard_normal((samples, len(rates)))
    cut = [np.sort(column)[-max(1, round(rate * samples))] for column, rate in zip(score.T, rates, strict=True)]
    return torch.from_numpy(x), torch.from_numpy(np.where(score >= cut, 1.0, -1.0).T.copy())


def weigh(targets):
    return torch.where(targets > 0, 2.0, 1.0).double() * (targets != 0)
