# SPDX-License-Identifier: Apache-2.0
"""Tables: where each project keeps its backbone in a checkpoint, and its names for the tensors.

A naming is a table of pairs (timm's name, the other name); `*` stands for one number. The first pair that
fits the start of a name is applied, the rest of the name stays.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Source:
    """A place of a backbone inside a checkpoint.

    Attributes:
        prefix: what stands before the backbone's names, at the end of the whole prefix.
        family: the projects that write it.
        heads: attention heads by width, where a project's vision transformers differ from timm's.
    """

    prefix: str
    family: str
    heads: Mapping[int, int] = field(default_factory=dict)


# Where a file holds several complete backbones the earlier line wins: the one that its project evaluates.
SOURCES: tuple[Source, ...] = (
    Source("teacher.backbone.", "DINO (teacher)"),
    Source("teacher.module.backbone.", "DINO (teacher)"),
    Source("module.base_encoder.", "MoCo v3", {384: 12}),
    Source("base_encoder.", "MoCo v3", {384: 12}),
    Source("module.encoder_q.", "MoCo v1/v2"),
    Source("encoder_q.0.", "MMSelfSup MoCo (online)"),
    Source("encoder_q.", "MoCo (online)"),
    Source("online_net.0.", "MMSelfSup BYOL (online)"),
    Source("trunk._feature_blocks.", "VISSL"),
    Source("_feature_blocks.", "VISSL"),
    Source("trunk.", "VISSL"),
    Source("teacher_backbone.vit.", "lightly (teacher)"),
    Source("teacher_backbone.", "lightly (teacher)"),
    Source("module.backbone.", "Barlow Twins, VICReg"),
    Source("backbone.bottom_up.", "detectron2 model"),
    Source("backbone.vit.", "lightly"),
    Source("backbone.", "MMSelfSup, MMPretrain, lightly, solo-learn"),
    Source("encoder.0.", "MMSelfSup SimSiam"),
    Source("module.encoder.", "SimSiam"),
    Source("encoder.", "solo-learn (old)"),
    Source("module.", "SwAV, DeepCluster (DistributedDataParallel)"),
    Source("", "bare state dict"),
    Source("state_dict.", "bare state dict"),
    Source("model.", "bare state dict"),
    Source("teacher.", "teacher"),
    Source("state_dict_ema.", "timm (moving average)"),
    Source("model_ema.", "moving average"),
    Source("module.momentum_encoder.", "MoCo v3 (momentum)", {384: 12}),
    Source("momentum_encoder.", "MoCo v3 (momentum)", {384: 12}),
    Source("encoder_k.0.", "MMSelfSup MoCo (momentum)"),
    Source("encoder_k.module.0.", "MMSelfSup MoCo (momentum)"),
    Source("module.encoder_k.", "MoCo v1/v2 (momentum)"),
    Source("encoder_k.", "MoCo (momentum)"),
    Source("target_net.0.", "MMSelfSup BYOL (target)"),
    Source("target_net.module.0.", "MMSelfSup BYOL (target)"),
    Source("student.module.backbone.", "DINO (student)"),
    Source("student.backbone.", "DINO (student)"),
    Source("student_backbone.vit.", "lightly (student)"),
    Source("student_backbone.", "lightly (student)"),
    Source("student.", "student"),
    Source("momentum_backbone.", "solo-learn (momentum)"),
    Source("backbone_momentum.", "lightly (momentum)"),
)


@dataclass(frozen=True)
class Naming:
    """How a project names the tensors of a network family.

    Attributes:
        name: shown to people.
        anchors: names of which every such network has at least one.
        pairs: (timm's, theirs).
        value: gives a tensor, under timm's name, timm's layout.
        inverse: the way back.
    """

    name: str
    anchors: tuple[str, ...]
    pairs: Pairs = ()
    value: Callable[[str, Tensor], Tensor] | None = None
    inverse: Callable[[str, Tensor], Tensor] | None = None

    def to_timm(self, key: str) -> str:
        """Timm's name of one of theirs."""
        return _translate(key, self.pairs, 1)

    def from_timm(self, key: str) -> str:
        """Their name of one of timm's."""
        return _translate(key, self.pairs, 0)


def _residual(theirs: Callable[[int], str]) -> Pairs:
    """Blocks and layers 1 to 4 where only the layer's name differs."""
    return tuple((f"layer{i}", theirs(i)) for i in (1, 2, 3, 4))


def _detectron2() -> Pairs:
    pairs: list[tuple[str, str]] = [("conv1", "stem.conv1"), ("bn1", "stem.conv1.norm")]
    for i in (1, 2, 3, 4):
        pairs += [(f"layer{i}.*.bn{j}", f"res{i + 1}.*.conv{j}.norm") for j in (1, 2, 3)]
        pairs += [(f"layer{i}.*.conv{j}", f"res{i + 1}.*.conv{j}") for j in (1, 2, 3)]
        pairs += [(f"layer{i}.*.downsample.1", f"res{i + 1}.*.shortcut.norm")]
        pairs += [(f"layer{i}.*.downsample.0", f"res{i + 1}.*.shortcut")]
    return tuple(sorted(pairs, key=lambda pair: not pair[1].endswith("norm")))


def _stage_shift(timm: str, theirs: str) -> Pairs:
    """Timm puts the down-sampling at the start of a stage, others at the end of the one before."""
    return tuple((f"{timm}.{i}.downsample", f"{theirs}.{i - 1}.downsample") for i in (1, 2, 3))


def _convnext(dw: str, fc1: str, fc2: str, final: str) -> Pairs:
    block, theirs = "stages.*.blocks.*", "stages.*.*"
    return (
        ("stem", "downsample_layers.0"),
        *((f"stages.{i}.downsample", f"downsample_layers.{i}") for i in (1, 2, 3)),
        (f"{block}.conv_dw", f"{theirs}.{dw}"),
        (f"{block}.mlp.fc1", f"{theirs}.{fc1}"),
        (f"{block}.mlp.fc2", f"{theirs}.{fc2}"),
        (f"{block}.mlp.grn.weight", f"{theirs}.grn.gamma"),
        (f"{block}.mlp.grn.bias", f"{theirs}.grn.beta"),
        (block, theirs),
        ("head.norm", final),
    )


def _flat_grn(name: str, tensor: Tensor) -> Tensor:
    return tensor.flatten() if ".grn." in name else tensor


def _unfold_to_concat(name: str, tensor: Tensor) -> Tensor:
    """Patch merging: MM unfolds a 2×2 patch to (channel, row, column), timm to (column, row, channel)."""
    if ".downsample." not in name or tensor.dim() == 0 or tensor.shape[-1] % 4:
        return tensor
    return tensor.unflatten(-1, (-1, 2, 2)).transpose(-1, -2).movedim(-3, -1).flatten(-3).contiguous()


def _concat_to_unfold(name: str, tensor: Tensor) -> Tensor:
    if ".downsample." not in name:
        return tensor
    return tensor.unflatten(-1, (2, 2, -1)).movedim(-1, -3).transpose(-1, -2).flatten(-3).contiguous()


_MM_VIT: Pairs = (
    ("blocks.*.norm1", "layers.*.ln1"),
    ("blocks.*.norm2", "layers.*.ln2"),
    ("blocks.*.mlp.fc1", "layers.*.ffn.layers.0.0"),
    ("blocks.*.mlp.fc2", "layers.*.ffn.layers.1"),
    ("blocks.*.ls1.gamma", "layers.*.attn.gamma1.weight"),
    ("blocks.*.ls2.gamma", "layers.*.ffn.gamma2.weight"),
    ("blocks.*", "layers.*"),
    ("patch_embed.proj", "patch_embed.projection"),
    ("norm", "ln1"),
    ("fc_norm", "ln2"),
)
_MM_STEM: Pairs = (*((f"conv1.{i}", f"stem.{i}") for i in (0, 1, 3, 4, 6)), ("bn1", "stem.7"))
_TORCHVISION_VIT: Pairs = (
    ("blocks.*.norm1", "encoder.layers.encoder_layer_*.ln_1"),
    ("blocks.*.norm2", "encoder.layers.encoder_layer_*.ln_2"),
    ("blocks.*.attn.qkv.weight", "encoder.layers.encoder_layer_*.self_attention.in_proj_weight"),
    ("blocks.*.attn.qkv.bias", "encoder.layers.encoder_layer_*.self_attention.in_proj_bias"),
    ("blocks.*.attn.proj", "encoder.layers.encoder_layer_*.self_attention.out_proj"),
    ("blocks.*.mlp.fc1", "encoder.layers.encoder_layer_*.mlp.0"),
    ("blocks.*.mlp.fc2", "encoder.layers.encoder_layer_*.mlp.3"),
    ("blocks.*.mlp.fc1", "encoder.layers.encoder_layer_*.mlp.linear_1"),
    ("blocks.*.mlp.fc2", "encoder.layers.encoder_layer_*.mlp.linear_2"),
    ("patch_embed.proj", "conv_proj"),
    ("cls_token", "class_token"),
    ("pos_embed", "encoder.pos_embedding"),
    ("norm", "encoder.ln"),
)
_MM_SWIN: Pairs = (
    *_stage_shift("layers", "stages"),
    ("layers.*.blocks.*.attn", "stages.*.blocks.*.attn.w_msa"),
    ("layers.*.blocks.*.mlp.fc1", "stages.*.blocks.*.ffn.layers.0.0"),
    ("layers.*.blocks.*.mlp.fc2", "stages.*.blocks.*.ffn.layers.1"),
    ("layers.*.blocks.*", "stages.*.blocks.*"),
    ("patch_embed.proj", "patch_embed.projection"),
    ("norm", "norm3"),
)

NAMINGS: Mapping[str, Naming] = {
    n.name: n
    for n in (
        Naming("ResNet (torchvision, timm)", ("layer1.0.conv1.weight", "layer2.0.conv1.weight"), _MM_STEM),
        Naming("ResNet (detectron2)", ("res2.0.conv1.weight", "res3.0.conv1.weight"), _detectron2()),
        Naming(
            "ResNet (numbered, torchvision)",
            ("4.0.conv1.weight", "7.0.conv1.weight"),
            (("conv1", "0"), ("bn1", "1"), *_residual(lambda i: str(i + 3))),
        ),
        Naming("ViT (timm)", ("blocks.0.norm1.weight", "blocks.0.attn.qkv.weight")),
        Naming("ViT (MMPretrain)", ("layers.0.ln1.weight", "layers.1.ln1.weight"), _MM_VIT),
        Naming("ViT (torchvision)", ("encoder.layers.encoder_layer_0.ln_1.weight",), _TORCHVISION_VIT),
        Naming("Swin (timm)", ("layers.0.blocks.0.norm1.weight", "layers.1.downsample.norm.weight")),
        Naming(
            "Swin (official)",
            ("layers.0.blocks.0.norm1.weight", "layers.0.downsample.norm.weight"),
            _stage_shift("layers", "layers"),
        ),
        Naming(
            "Swin (MMPretrain)",
            ("stages.0.blocks.0.attn.w_msa.qkv.weight",),
            _MM_SWIN,
            _unfold_to_concat,
            _concat_to_unfold,
        ),
        Naming("ConvNeXt (timm)", ("stages.0.blocks.0.conv_dw.weight",)),
        Naming(
            "ConvNeXt (official)",
            ("stages.0.0.dwconv.weight",),
            _convnext("dwconv", "pwconv1", "pwconv2", "norm"),
            _flat_grn,
        ),
        Naming(
            "ConvNeXt (MMPretrain)",
            ("stages.0.0.depthwise_conv.weight",),
            _convnext("depthwise_conv", "pointwise_conv1", "pointwise_conv2", "norm3"),
            _flat_grn,
        ),
    )
}


def source_of(prefix: str) -> tuple[int, Source | None]:
    """Rank (lower is preferred) and line of SOURCES for a whole prefix; the longest that fits its end."""
    fits = [(i, s) for i, s in enumerate(SOURCES) if prefix == s.prefix or (s.prefix and prefix.endswith("." + s.prefix))]
    return max(fits, key=lambda item: len(item[1].prefix)) if fits else (len(SOURCES), None)


def prefixes(keys: Iterable[str], anchors: Iterable[str]) -> list[str]:
    """What stands before an anchor in the keys, in order of appearance."""
    anchors = tuple(anchors)
    found = {
        key[: -len(a)]: None for key in keys for a in anchors if key.endswith(a) and key[-len(a) - 1 : -len(a)] in ("", ".")
    }
    return list(found)


def _translate(key: str, pairs: Pairs, column: int) -> str:
    for pattern, template in _compiled(pairs, column):
        match = pattern.match(key)
        if match:
            numbers = iter(match.groups())
            return re.sub(r"\*", lambda _, n=numbers: next(n), template) + key[match.end() :]  # type: ignore[misc]
    return key


@functools.lru_cache
def _compiled(pairs: Pairs, column: int) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple(
        (re.compile(re.escape(pair[column]).replace(r"\*", r"(\d+)") + r"(?=\.|$)"), pair[1 - column]) for pair in pairs
    )
