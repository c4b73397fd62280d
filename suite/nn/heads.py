# SPDX-License-Identifier: Apache-2.0
"""Multi-layer projection heads, as the papers describe them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn


def mlp(
    dims: Sequence[int],
    *,
    norm: bool = True,
    last_norm: Literal["affine", "plain", "none"] = "none",
    bias: bool = False,
    last_bias: bool = True,
) -> nn.Sequential:
    """Linear layers with [batch norm and] ReLU between them.

    Args:
        dims: widths, input first: `(2048, 2048, 128)` makes two layers.
        norm: batch norm after every layer but the last.
        last_norm: batch norm after the last layer: with scale and shift, without, or none.
        bias: bias of every layer but the last.
        last_bias: bias of the last layer.
    """
    layers: list[nn.Module] = []
    last = len(dims) - 2
    for i, (wide, narrow) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
        layers.append(nn.Linear(wide, narrow, bias=last_bias if i == last else bias))
        if i < last:
            layers += [nn.BatchNorm1d(narrow)] if norm else []
            layers.append(nn.ReLU(inplace=True))
        elif last_norm != "none":
            layers.append(nn.BatchNorm1d(narrow, affine=last_norm == "affine"))
    return nn.Sequential(*layers)
