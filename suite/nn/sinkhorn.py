# SPDX-License-Identifier: Apache-2.0
"""Balanced soft assignments of a batch to prototypes by the Sinkhorn-Knopp algorithm."""

from __future__ import annotations

import torch
from torch import Tensor

from suite.nn.gather import gather_detached


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Codes Q* = Diag(u) exp(C^T Z / epsilon) Diag(v) that share the prototypes equally (SwAV, eq. 3 to 5).

    The batch is that of all processes: the prototypes' sums are taken over everybody's samples in every iteration. In
    logarithms, so that no exponential over- or underflows. Processes share K numbers per iteration, so they may hold
    different numbers of samples.

    Args:
        scores: N×K similarities of this process's samples (queued ones too) to the prototypes.
        epsilon: smoothness; larger gives softer codes.
        iterations: rounds of normalising prototypes, then samples.

    Returns:
        N×K float32 rows that sum to 1; with many iterations every prototype's column over the global batch B sums to B/K.
    """
    with torch.autocast(scores.device.type, enabled=False):
        log_q = scores.float() / epsilon  # N×K
        for _ in range(iterations):
            log_q = log_q - _everyones(torch.logsumexp(log_q, 0))  # prototypes
            log_q = torch.log_softmax(log_q, 1)  # samples; the constants log K and log B cancel
        return log_q.exp() if iterations else torch.softmax(log_q, 1)


def _everyones(local: Tensor) -> Tensor:
    """Logarithm of the sum over processes of exp(local), K -> K; no maximum cancels a process's digits."""
    return torch.logsumexp(gather_detached(local[None]), 0)


def prototype_usage(codes: Tensor) -> Tensor:
    """Effective number of prototypes that a batch of codes N×K uses: exp of the entropy of their mean, 1 to K."""
    return torch.special.entr(codes.mean(0)).sum().exp()
