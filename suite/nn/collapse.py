# SPDX-License-Identifier: Apache-2.0
"""How much room representations use: numbers that fall when a method collapses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation of the L2-normalised rows, times sqrt(d).

    1: directions spread evenly over the sphere; 0: all rows alike (SimSiam, section 4.1, where a healthy value is
    1/sqrt(d) before the factor). Rows are the population: the variance is not corrected for their number.

    Args:
        features: N×d.

    Returns:
        A scalar.
    """
    z = F.normalize(features.float(), dim=1)
    return z.std(0, correction=0).mean() * z.shape[1] ** 0.5


@torch.no_grad()
def effective_rank(features: Tensor) -> Tensor:
    """Exponential of the entropy of the centred rows' normalised singular values (Roy and Vetterli, EUSIPCO 2007).

    Between 1 and min(N - 1, d); 0 where all rows are alike, nan where one is not finite. A common offset of all rows does
    not count, because it says nothing about the images.

    Args:
        features: N×d.

    Returns:
        A scalar, float64.
    """
    x = features.double()
    spectrum = singular_values(x - x.mean(0))
    largest = x.abs().max() * max(x.shape) ** 0.5
    # What centring leaves of equal rows is rounding, not rank.
    return torch.where(spectrum[-1] > 1e-7 * largest, _exp_entropy(spectrum, 0.0), spectrum.sum() * 0)


@torch.no_grad()
def rankme(features: Tensor, epsilon: float = 1e-7) -> Tensor:
    """RankMe: exp(-sum p log p), p = sigma / sum(sigma) + epsilon (Garrido et al., ICML 2023, eq. 1).

    The paper's own number: rows are not centred.

    Args:
        features: N×d; the paper takes 25 600 rows of the embeddings.
        epsilon: added to every p.

    Returns:
        A scalar, float64; nan where a row is not finite.
    """
    return _exp_entropy(singular_values(features.double()), epsilon)


def singular_values(x: Tensor) -> Tensor:
    """Singular values of a float64 matrix in ascending order, from the smaller Gram matrix; nan if x is not finite.

    Exact to about 1e-8 of the largest, which is far below what an entropy shows, at a fraction of the time of an SVD.
    """
    finite = torch.isfinite(x).all()
    x = x.nan_to_num(0.0, 0.0, 0.0)  # the solver raises on nan; a log line should say nan instead
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    return torch.where(finite, values, torch.nan)


def _exp_entropy(spectrum: Tensor, epsilon: float) -> Tensor:
    p = spectrum / spectrum.sum() + epsilon
    return torch.special.entr(p).sum().exp()
