# SPDX-License-Identifier: Apache-2.0
"""Shapes tell the architecture; names of rarer layouts are translated."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from suite.archs import infer_arch
from suite.keymaps import NAMINGS, SOURCES, source_of
from tests.checkpoint_samples import randomised

ARCHS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d")),
    *((name, {}) for name in ("resnet50d", "resnest50d", "resnet18d", "convnext_tiny", "convnextv2_atto")),
    ("resnet50", {"channels": [32, 64, 128, 256]}),
    *((f"vit_{name}_224", {}) for name in ("small_patch16", "base_patch16", "base_patch32", "large_patch16")),
    ("vit_tiny_patch16_224", {"patch_size": 4, "img_size": 32, "qkv_bias": False}),
    ("vit_base_patch16_224", {"global_pool": "avg", "fc_norm": True}),
    ("vit_small_patch16_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    ("swin_tiny_patch4_window7_224", {}),
    ("swin_base_patch4_window12_384", {}),
    ("swin_base_patch4_window7_224", {"window_size": 6, "img_size": 192}),
]


@pytest.mark.parametrize(("arch", "options"), ARCHS)
def test_shapes_tell_the_architecture(arch: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        state = timm.create_model(arch, num_classes=0, **options).state_dict()
    assert infer_arch(state) == (arch, options, "imagenet")
    assert infer_arch({}) is None


@pytest.mark.parametrize("arch", ["seresnet50", "vit_small_patch14_reg4_dinov2", "regnety_002", "resnet50_gn"])
def test_lookalikes_are_not_guessed_or_do_not_fit(arch: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(arch, num_classes=0).state_dict()
        guess = infer_arch(state)
        assert guess is None or set(timm.create_model(guess[0], num_classes=0).state_dict()) != set(state)


def reference_names(naming: str) -> dict[str, str]:
    """A few names written out by hand: theirs to timm's."""
    return {
        "Swin (official)": {
            "layers.0.downsample.norm.weight": "layers.1.downsample.norm.weight",
            "norm.bias": "norm.bias",
        },
        "Swin (MMPretrain)": {
            "stages.0.downsample.reduction.weight": "layers.1.downsample.reduction.weight",
            "stages.2.blocks.5.attn.w_msa.qkv.bias": "layers.2.blocks.5.attn.qkv.bias",
            "stages.3.blocks.1.ffn.layers.0.0.bias": "layers.3.blocks.1.mlp.fc1.bias",
            "stages.3.blocks.1.ffn.layers.1.bias": "layers.3.blocks.1.mlp.fc2.bias",
            "stages.3.blocks.1.norm2.bias": "layers.3.blocks.1.norm2.bias",
            "patch_embed.projection.weight": "patch_embed.proj.weight",
            "norm3.weight": "norm.weight",
        },
        "ConvNeXt (official)": {
            "downsample_layers.0.1.weight": "stem.1.weight",
            "downsample_layers.2.0.weight": "stages.2.downsample.0.weight",
            "stages.1.2.dwconv.weight": "stages.1.blocks.2.conv_dw.weight",
            "stages.1.2.pwconv2.bias": "stages.1.blocks.2.mlp.fc2.bias",
            "stages.1.2.gamma": "stages.1.blocks.2.gamma",
            "norm.weight": "head.norm.weight",
        },
        "ResNet (torchvision, timm)": {
            "stem.3.weight": "conv1.3.weight",
            "stem.7.running_var": "bn1.running_var",
        },
    }[naming]


@pytest.mark.parametrize(
    "naming",
    [
        "Swin (official)",
        "Swin (MMPretrain)",
        "ConvNeXt (official)",
        "ResNet (torchvision, timm)",
    ],
)
def test_names_of_rarer_layouts(naming: str) -> None:
    for theirs, timms in reference_names(naming).items():
        assert NAMINGS[naming].to_timm(theirs) == timms and NAMINGS[naming].from_timm(timms) == theirs


def test_mm_patch_merging_is_the_same_function() -> None:
    """MM: unfold, norm, linear. The same map through timm's module after translation."""
    timms = randomised(timm.create_model("swin_tiny_patch4_window7_224", num_classes=0).layers[1].downsample)
    naming = NAMINGS["Swin (MMPretrain)"]
    theirs = {k: naming.inverse(f"layers.1.downsample.{k}", t) for k, t in timms.state_dict().items()}  # type: ignore[misc]
    x = torch.randn(2, 8, 8, 96)
    patches = nn.functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)  # N×16×4C
    patches = nn.functional.layer_norm(patches, (384,), theirs["norm.weight"], theirs["norm.bias"])
    expected = patches @ theirs["reduction.weight"].T
    torch.testing.assert_close(timms(x).flatten(1, 2), expected, rtol=1e-4, atol=1e-4)
    for key, tensor in timms.state_dict().items():
        assert torch.equal(naming.value(f"layers.1.downsample.{key}", theirs[key]), tensor)  # type: ignore[misc]


def test_sources_are_unambiguous() -> None:
    assert len({s.prefix for s in SOURCES}) == len(SOURCES)
    assert source_of("student.module.backbone.")[0] > source_of("teacher.backbone.")[0]
    assert source_of("state_dict.module.encoder_q.")[1].prefix == "module.encoder_q."  # type: ignore[union-attr]
    assert source_of("module.encoder_k.")[0] > source_of("module.encoder_q.")[0]
    assert source_of("nothing.like.it.")[1] is None
