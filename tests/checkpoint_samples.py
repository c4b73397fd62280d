# SPDX-License-Identifier: Apache-2.0
"""Small networks with random tensors, and their checkpoints in the layouts of other projects."""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

State = dict[str, Tensor]
RESNET = ("resnet18", {"channels": (8, 16, 32, 64)})
VIT = ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2})


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """No tensor keeps a default, so that a swapped or forgotten one changes the output."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            scale = noise.abs() + 0.5 if "var" in name or tensor.dim() == 1 and "weight" in name else noise * 0.1
            tensor.copy_(scale)
    return net.eval()


def networks() -> dict[str, nn.Module]:
    return {
        "resnet": randomised(timm.create_model(RESNET[0], num_classes=0, **RESNET[1])),
        "vit": randomised(timm.create_model(VIT[0], num_classes=0, **VIT[1])),
    }


def pictures() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def features(net: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return net.eval()(images)


def under(prefix: str, state: Mapping[str, Tensor], **more: Tensor) -> State:
    return {
        **{prefix + key: t for key, t in state.items()},
        **{k.replace("__", "."): t for k, t in more.items()},
    }


def other(state: Mapping[str, Tensor]) -> State:
    """A second network of the same shape, as a momentum encoder is."""
    return {k: t + 1 if t.is_floating_point() else t for k, t in state.items()}


def numbered(state: Mapping[str, Tensor]) -> State:
    """`nn.Sequential(*resnet.children())` names."""
    place = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    return {f"{place[k.split('.')[0]]}.{k.split('.', 1)[1]}": t for k, t in state.items()}


def detectron2(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    out = {}
    for key, tensor in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        name = key if key.startswith("layer") else f"stem.{key}"
        for i in (4, 3, 2, 1):
            name = name.replace(f"layer{i}.", f"res{i + 1}.").replace(f".bn{i}.", f".conv{i}.norm.")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        out[name] = tensor.numpy()
    return out


def mm_vit(state: Mapping[str, Tensor]) -> State:
    out = {}
    for key, tensor in state.items():
        name = re.sub(r"^blocks\.(\d+)\.norm(\d)", r"layers.\1.ln\2", key)
        name = name.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1").replace("blocks", "layers")
        name = name.replace("patch_embed.proj.", "patch_embed.projection.")
        out["ln1" + name[4:] if name.startswith("norm.") else name] = tensor
    return out


HEAD = torch.zeros(4, 64)
# family: (network, prefix that must be chosen, what is saved)
FAMILIES: dict[str, tuple[str, str, Callable[[State], Any]]] = {
    "bare": ("resnet", "", lambda s: {**s, "fc.weight": HEAD, "fc.bias": HEAD[:, 0]}),
    "vit_bare": ("vit", "", lambda s: {**s, "head.weight": HEAD}),
    "moco_v2": (
        "resnet",
        "module.encoder_q.",
        lambda s: {
            "epoch": 1,
            "arch": "resnet18",
            "state_dict": {
                **under("module.encoder_k.", other(s)),
                **under("module.encoder_q.", s, module__encoder_q__fc__0__weight=HEAD, module__queue=HEAD),
            },
            "optimizer": {"state": {0: {"momentum_buffer": HEAD}}, "param_groups": [{"lr": 0.1}]},
        },
    ),
    "moco_v3": (
        "resnet",
        "module.base_encoder.",
        lambda s: {
            "state_dict": {
                **under("module.momentum_encoder.", other(s)),
                **under("module.base_encoder.", s),
                "module.predictor.0.weight": HEAD,
            }
        },
    ),
    "simsiam": (
        "resnet",
        "module.encoder.",
        lambda s: {"state_dict": under("module.encoder.", s, module__predictor__0__weight=HEAD)},
    ),
    "swav": ("resnet", "module.", lambda s: under("module.", s, module__prototypes__weight=HEAD)),
    "dino": (
        "vit",
        "teacher.backbone.",
        lambda s: {
            "student": under("module.backbone.", other(s), module__head__mlp__0__weight=HEAD),
            "teacher": under("backbone.", s, head__mlp__0__weight=HEAD),
            "dino_loss": {"center": HEAD},
            "args": argparse.Namespace(arch="vit_tiny", lr=0.1),
        },
    ),
    "mae": (
        "vit",
        "",
        lambda s: {
            "model": {
                **s,
                "mask_token": HEAD,
                "decoder_pos_embed": HEAD,
                "decoder_blocks.0.norm1.weight": HEAD,
            },
            "args": argparse.Namespace(output_dir="x"),
            "scaler": {"scale": 65536.0},
            "epoch": 3,
        },
    ),
    "barlow_twins": (
        "resnet",
        "module.backbone.",
        lambda s: {"epoch": 1, "model": under("module.backbone.", s, module__projector__0__weight=HEAD)},
    ),
    "mmselfsup": (
        "resnet",
        "backbone.",
        lambda s: {"meta": {"epoch": 1}, "state_dict": under("backbone.", s, neck__fc0__weight=HEAD)},
    ),
    "mmselfsup_moco": (
        "resnet",
        "encoder_q.0.",
        lambda s: {
            "state_dict": {
                **under("encoder_k.0.", other(s)),
                **under("encoder_q.0.", s),
                "encoder_q.1.mlp.0.weight": HEAD,
            }
        },
    ),
    "mmselfsup_byol": (
        "resnet",
        "online_net.0.",
        lambda s: {
            "state_dict": {
                **under("target_net.0.", other(s)),
                **under("online_net.0.", s),
                "head.predictor.fc0.weight": HEAD,
            }
        },
    ),
    "mmpretrain_vit": (
        "vit",
        "backbone.",
        lambda s: {"state_dict": under("backbone.", mm_vit(s), neck__mask_token=HEAD)},
    ),
    "lightly": (
        "resnet",
        "backbone.",
        lambda s: {"state_dict": under("backbone.", numbered(s), projection_head__layers__0__weight=HEAD)},
    ),
    "lightly_dino": (
        "resnet",
        "teacher_backbone.",
        lambda s: {
            "state_dict": {
                **under("student_backbone.", numbered(other(s))),
                **under("teacher_backbone.", numbered(s)),
            }
        },
    ),
    "solo_learn": (
        "resnet",
        "backbone.",
        lambda s: {
            "pytorch-lightning_version": "1.6",
            "hyper_parameters": {"backbone": "resnet18"},
            "callbacks": defaultdict(list, {"a": [1]}),
            "state_dict": {
                **under("momentum_backbone.", other(s)),
                **under("backbone.", s),
                "classifier.weight": HEAD,
            },
        },
    ),
    "vissl": (
        "resnet",
        "classy_state_dict.base_model.model.trunk._feature_blocks.",
        lambda s: {
            "classy_state_dict": {
                "base_model": {
                    "model": {
                        "trunk": under("_feature_blocks.", s),
                        "heads": {"0.weight": HEAD, "0.bias": HEAD},
                    }
                },
                "loss": {"queue": HEAD},
            },
            "phase_idx": 3,
        },
    ),
}
