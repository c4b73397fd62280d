# SPDX-License-Identifier: Apache-2.0
"""Edges instead of colours as a network's input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Sobel(nn.Module):
    """Mean of the colours, then horizontal and vertical Sobel filters: N×3×H×W -> N×2×H×W (DeepCluster, section 3.4).

    The filters are fixed; padding is one zero on each side. In float32 whatever the precision around it, because edges are
    small differences.
    """

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        # A constant, not state: checkpoints and saved backbones stay free of it.
        self.register_buffer("filters", torch.stack([across, across.T])[:, None], persistent=False)  # 2×1×3×3

    def forward(self, x: Tensor) -> Tensor:
        """Both edge maps of every picture."""
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float().mean(1, keepdim=True), self.filters, padding=1)
