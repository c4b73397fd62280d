# SPDX-License-Identifier: Apache-2.0
"""Tell a network's architecture from the names and shapes of its tensors, as timm names them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from suite.backbone import is_architecture

Guess = tuple[str, dict[str, Any], str]

# Larger numbers are no network of today but a broken or hostile file, and building it would take the memory.
MAX_DEPTH, MAX_WIDTH, MAX_SIDE = 64, 4096, 2048

# (blocks per layer, bottleneck): name
RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((1, 1, 1, 1), False): "resnet10t",
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((2, 2, 2, 2), True): "resnet26",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
# (name, width of a group of the first 3×3, groups): name
WIDE = {
    ("resnet50", 128, 1): "wide_resnet50_2",
    ("resnet101", 128, 1): "wide_resnet101_2",
    ("resnet50", 4, 32): "resnext50_32x4d",
    ("resnet101", 8, 32): "resnext101_32x8d",
    ("resnet101", 4, 64): "resnext101_64x4d",
}
RESNESTS: dict[tuple[int, ...], str] = {
    (1, 1, 1, 1): "resnest14d",
    (2, 2, 2, 2): "resnest26d",
    (3, 4, 6, 3): "resnest50d",
    (3, 4, 23, 3): "resnest101e",
    (3, 24, 36, 3): "resnest200e",
    (3, 30, 48, 8): "resnest269e",
}
# width: (size, depth, heads)
VITS = {
    192: ("tiny", 12, 3),
    384: ("small", 12, 6),
    768: ("base", 12, 12),
    1024: ("large", 24, 16),
    1280: ("huge", 32, 16),
}
SWINS: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "swin_tiny",
    (96, (2, 2, 18, 2)): "swin_small",
    (128, (2, 2, 18, 2)): "swin_base",
    (192, (2, 2, 18, 2)): "swin_large",
}
CONVNEXTS: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (3, 3, 9, 3)): "tiny",
    (96, (3, 3, 27, 3)): "small",
    (128, (3, 3, 27, 3)): "base",
    (192, (3, 3, 27, 3)): "large",
    (256, (3, 3, 27, 3)): "xlarge",
    (352, (3, 3, 27, 3)): "huge",
    (40, (2, 2, 6, 2)): "atto",
    (48, (2, 2, 6, 2)): "femto",
    (64, (2, 2, 6, 2)): "pico",
    (80, (2, 2, 8, 2)): "nano",
}


def infer_arch(state: Mapping[str, Tensor]) -> Guess | None:
    """Architecture, options and stem of a state dict in timm's names, or None where shapes do not tell.

    What shapes cannot tell is taken from the standard network: attention heads, strides, activation.

    Args:
        state: tensors by timm's names; other tensors are ignored.
    """
    try:
        if "layer1.0.conv1.weight" in state:
            guess = _resnet(state)
        elif "blocks.0.attn.qkv.weight" in state:
            guess = _vit(state)
        elif "layers.0.blocks.0.attn.qkv.weight" in state:
            guess = _swin(state)
        elif "stages.0.blocks.0.conv_dw.weight" in state:
            guess = _convnext(state)
        else:
            return None
    except (
        KeyError,
        IndexError,
        ValueError,
        ZeroDivisionError,
    ):  # a tensor that the guess needs is missing or has another rank
        return None
    return guess if guess and is_architecture(guess[0]) else None


def count(keys: Iterable[str], pattern: str) -> int:
    """Highest number that the only group of `pattern` takes at the start of a key, plus one."""
    compiled = re.compile(pattern)
    return max((int(m.group(1)) + 1 for key in keys if (m := compiled.match(key))), default=0)


def _resnet(state: Mapping[str, Tensor]) -> Guess | None:
    depths = tuple(count(state, rf"layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
    if "layer1.0.conv2.conv.weight" in state:
        name = RESNESTS.get(depths)
        return (name, {}, "imagenet") if name else None
    if any(".se." in key or ".conv2.fc1." in key for key in state):
        return None
    bottleneck = "layer1.0.conv3.weight" in state
    arch = RESNETS.get((depths, bottleneck))
    if arch is None:
        return None
    first = state["layer1.0.conv2.weight" if bottleneck else "layer1.0.conv1.weight"]  # out×(in/groups)×3×3
    groups = first.shape[0] // first.shape[1] if bottleneck else 1
    last, expansion = ("conv3", 4) if bottleneck else ("conv1", 1)
    planes = tuple(state[f"layer{i}.0.{last}.weight"].shape[0] // expansion for i in (1, 2, 3, 4))
    if max(planes) > MAX_WIDTH:
        return None
    options: dict[str, Any] = {}
    if bottleneck and (first.shape[0], groups) != (planes[0], 1):
        arch = WIDE.get((arch, first.shape[1], groups), "")
    elif planes != (64, 128, 256, 512):
        options["channels"] = list(planes)
    if "conv1.0.weight" in state:  # deep stem: three 3×3 convolutions
        average = any(re.match(r"layer2\.0\.downsample\.1\.weight", k) and state[k].dim() == 4 for k in state)
        return arch + ("d" if average else "c"), options, "imagenet"
    if arch == "resnet10t" or state["conv1.weight"].shape[0] != 64:
        return None
    return arch, options, "cifar" if state["conv1.weight"].shape[-1] == 3 else "imagenet"


def _vit(state: Mapping[str, Tensor]) -> Guess | None:
    width = state["blocks.0.attn.qkv.weight"].shape[1]
    depth, patch = count(state, r"blocks\.(\d+)\."), state["patch_embed.proj.weight"].shape[-1]
    class_token = "cls_token" in state
    patches = state["pos_embed"].shape[1] - class_token
    side = math.isqrt(patches)
    if side * side != patches or any(k in state for k in ("reg_token", "register_tokens", "pos_embed.weight")):
        return None
    if any(".mlp.w" in k or ".q_norm." in k or "rel_pos" in k or k.endswith("q_bias") for k in state):
        return None
    if (width not in VITS and width % 64) or depth > MAX_DEPTH or width > MAX_WIDTH or side * patch > MAX_SIDE:
        return None
    size, standard_depth, heads = VITS.get(width, ("tiny", 12, width // 64))
    arch = f"vit_{size}_patch{patch}_224"
    options: dict[str, Any] = {}
    if not is_architecture(arch):
        arch = "vit_huge_patch14_224" if size == "huge" else f"vit_{size}_patch16_224"
        options["patch_size"] = patch
    if width not in VITS:
        options |= {"embed_dim": width, "num_heads": heads}
    if depth != standard_depth:
        options["depth"] = depth
    if side * patch != 224:
        options["img_size"] = side * patch
    if not class_token:
        options |= {"class_token": False, "global_pool": "avg", "fc_norm": False}
    if "fc_norm.weight" in state:
        options |= {"global_pool": "avg", "fc_norm": True}
    elif "norm.weight" not in state:
        options["final_norm"] = False
    if "blocks.0.ls1.gamma" in state:
        options["init_values"] = 1e-5
    if "blocks.0.attn.qkv.bias" not in state:
        options["qkv_bias"] = False
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    if hidden != 4 * width:
        options["mlp_ratio"] = hidden / width
    return arch, options, "imagenet"


def _swin(state: Mapping[str, Tensor]) -> Guess | None:
    depths = tuple(count(state, rf"layers\.{i}\.blocks\.(\d+)\.") for i in range(4))
    name = SWINS.get((state["patch_embed.proj.weight"].shape[0], depths))
    window = (math.isqrt(state["layers.0.blocks.0.attn.relative_position_bias_table"].shape[0]) + 1) // 2
    if name is None:
        return None
    side = 32 * window  # the last stage is one window: 7 at 224, 12 at 384, 6 at 192
    arch = f"{name}_patch4_window{window}_{side}"
    if is_architecture(arch):
        return arch, {}, "imagenet"
    return f"{name}_patch4_window7_224", {"window_size": window, "img_size": side}, "imagenet"


def _convnext(state: Mapping[str, Tensor]) -> Guess | None:
    depths = tuple(count(state, rf"stages\.{i}\.blocks\.(\d+)\.") for i in range(4))
    size = CONVNEXTS.get((state["stem.0.weight"].shape[0], depths))
    if size is None or state["stem.0.weight"].shape[-1] != 4:
        return None
    second = "stages.0.blocks.0.mlp.grn.weight" in state
    return ("convnextv2_" if second else "convnext_") + size, {}, "imagenet"
