# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses, in float32 whatever the precision around them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from suite.nn.gather import gather, rank


def info_nce(q: Tensor, k: Tensor, negatives: Tensor, tau: float) -> Tensor:
    """-log exp(q·k/tau) / (exp(q·k/tau) + sum_i exp(q·n_i/tau)), mean over the batch (MoCo, eq. 1).

    Args:
        q: N×d unit queries.
        k: N×d unit keys, the positives.
        negatives: K×d unit keys.
        tau: temperature.
    """
    with torch.autocast(q.device.type, enabled=False):
        q, k, negatives = q.float(), k.float(), negatives.float()
        l_pos = (q * k).sum(1, keepdim=True)  # N×1
        l_neg = q @ negatives.T  # N×K
        logits = torch.cat([l_pos, l_neg], dim=1) / tau  # N×(1+K)
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def nt_xent(z1: Tensor, z2: Tensor, tau: float) -> Tensor:
    """Normalised temperature-scaled cross entropy over the global batch (SimCLR, eq. 1).

    Args:
        z1: N×d embeddings of the first views on this process.
        z2: N×d embeddings of the second views.
        tau: temperature.
    """
    n = len(z1)
    z1, z2 = F.normalize(z1.float(), dim=1), F.normalize(z2.float(), dim=1)
    all1, all2 = gather(z1), gather(z2)  # (W·N)×d each
    everyone = torch.cat([all1, all2])  # 2WN×d
    mine = torch.cat([z1, z2])  # 2N×d
    with torch.autocast(z1.device.type, enabled=False):
        logits = mine @ everyone.T / tau  # 2N×2WN
    first = torch.arange(n, device=z1.device) + rank() * n
    own = torch.cat([first, first + len(all1)])
    positive = torch.cat([first + len(all1), first])
    logits = logits.scatter(1, own[:, None], float("-inf"))
    return F.cross_entropy(logits, positive)
