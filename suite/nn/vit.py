# SPDX-License-Identifier: Apache-2.0
"""What methods do to timm's vision transformers: fixed positions, Xavier weights, running on visible patches."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from suite.errors import UsageError
from suite.nn.masks import take_tokens
from suite.nn.position import sincos_2d


def fix_positions(net: Any, first: Literal["row", "column"] = "column") -> None:
    """Replace a ViT's learned positions by fixed sine-cosine ones, zero for the class token (MAE; MoCo v3).

    They stay a parameter, without gradient, so that the weights file holds them.

    Raises:
        UsageError: a network without a table of absolute positions.
    """
    height, width, prefix = _grid(net)
    table = sincos_2d(height, width, net.embed_dim, first=first, class_tokens=prefix)
    with torch.no_grad():
        net.pos_embed.copy_(table[None])
    net.pos_embed.requires_grad_(False)


def visible_tokens(net: Any, x: Tensor, keep: Tensor) -> Tensor:
    """Run a ViT on the class token and the patches in `keep` alone, final norm included (MAE, section 3, "MAE encoder").

    Args:
        net: a timm VisionTransformer with a class token.
        x: N×3×H×W.
        keep: N×K places; positions belong to places, so the order is free.

    Returns:
        N×(1+K)×d, the class token first.

    Raises:
        UsageError: a network that is not built so.
    """
    _, _, prefix = _grid(net)
    patches = net.patch_embed(x) + net.pos_embed[:, prefix:]  # N×L×d
    first = (net.cls_token + net.pos_embed[:, :1]).expand(len(x), -1, -1)  # N×1×d
    tokens = torch.cat([first, take_tokens(patches, keep)], 1)  # N×(1+K)×d
    return net.norm(net.blocks(net.norm_pre(net.pos_drop(tokens))))


def _grid(net: Any) -> tuple[int, int, int]:
    """Rows and columns of patches and number of class tokens, of networks that this file can handle."""
    table: Any = getattr(net, "pos_embed", None)
    size: Any = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    plain = (
        isinstance(table, Tensor)
        and getattr(net, "cls_token", None) is not None
        and size is not None
        and net.num_prefix_tokens == 1
    )
    if not plain or table.shape[1] != size[0] * size[1] + 1:
        raise UsageError(
            f"{type(net).__name__} is no plain vision transformer with one class token and absolute positions; "
            "choose a vit_*_patch* architecture"
        )
    return size[0], size[1], 1


def xavier_linears_(module: nn.Module, *, split_qkv: bool = False) -> None:
    """Xavier-uniform weights and zero biases in every Linear below `module` (MAE, appendix A.1; MoCo v3).

    Args:
        module: changed in place.
        split_qkv: bound the joint projection to queries, keys and values as the three matrices that it is (MoCo v3).
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            if split_qkv and name.rpartition(".")[2] == "qkv":
                bound = math.sqrt(6 / (child.out_features // 3 + child.in_features))
                nn.init.uniform_(child.weight, -bound, bound)
            else:
                nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def xavier_patch_embed_(net: Any) -> None:
    """Xavier-uniform patch embedding, as the linear map of flattened patches that it is (MAE and MoCo v3)."""
    nn.init.xavier_uniform_(net.patch_embed.proj.weight.data.flatten(1))
