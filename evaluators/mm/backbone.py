# SPDX-License-Identifier: Apache-2.0
"""Our backbones inside OpenMMLab models: stage maps for necks and dense heads, or a C4 trunk with its last stage as RoI head.

Adapters are built from a `Backbone` and own a copy of its network, so fine-tuning leaves the original alone. They define
an empty `init_weights`, because mmengine calls that method of every child module and timm networks have one that draws
new weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from suite.backbone import Backbone
from suite.errors import JobError, UsageError

C4_PARTS = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4")


def copy_of(source: Backbone | Path, **options: Any) -> Backbone:
    """A new backbone with the same tensors, rebuilt with more timm options (`output_stride=8`, `dynamic_img_size=True`).

    Raises:
        UsageError: the architecture does not take the options, or they change the shape of a tensor.
    """
    backbone = Backbone.load(source) if isinstance(source, Path) else source
    try:
        copy = Backbone(backbone.arch, {**backbone.options, **options}, backbone.stem, backbone.in_chans)
    except (AssertionError, ValueError, NotImplementedError) as error:
        raise UsageError(f"architecture {backbone.arch!r} cannot be built with {options} ({type(error).__name__})") from None
    try:
        copy.net.load_state_dict(backbone.net.state_dict(), strict=True)
    except RuntimeError as error:
        line = str(error).splitlines()[1].strip()
        raise UsageError(f"architecture {backbone.arch!r} cannot take its weights with {options}: {line}") from None
    return copy


def any_size(backbone: Backbone | Path) -> Backbone:
    """A copy that takes pictures of any size that its strides divide."""
    backbone = Backbone.load(backbone) if isinstance(backbone, Path) else backbone
    if backbone.is_vit:
        return copy_of(backbone, dynamic_img_size=True)
    if getattr(getattr(backbone.net, "patch_embed", None), "img_size", None) is not None:  # Swin
        return copy_of(backbone, strict_img_size=False)
    return copy_of(backbone)


def dilated(backbone: Backbone, stride: int) -> Backbone:
    """A copy whose last stages are dilated instead of strided, until a map has one pixel per `stride` input pixels.

    Raises:
        UsageError: the architecture cannot do that.
    """
    # timm counts from a stem of stride 4, also where the stem was replaced by one of stride 1
    copy = copy_of(backbone, output_stride=stride * 32 // backbone.strides[-1])
    if copy.strides[-1] != stride:
        raise UsageError(f"architecture {backbone.arch!r} cannot be dilated to a stride of {stride}")
    return copy


def size_divisor(backbone: Backbone) -> int:
    """What the sides of a picture must be multiples of: 1 for convolutional networks, which take any size."""
    return backbone.strides[-1] if hasattr(backbone.net, "patch_embed") else 1


def has_c4(backbone: Backbone) -> bool:
    """True for ResNet-like networks, which fall apart into a stem and four residual stages."""
    return all(hasattr(backbone.net, part) for part in C4_PARTS)


def freeze(backbone: Backbone, stages: int) -> None:
    """Give the stem and the first residual stages of a ResNet-like network no gradient and keep their BatchNorm statistics.

    Args:
        backbone: changed in place; a network without such stages is left as it is.
        stages: 0: nothing; 1: the stem; 2: the stem and the first residual stage; and so on.
    """
    if not has_c4(backbone) or not stages:
        return
    for part in (*C4_PARTS[:3], *C4_PARTS[4 : 3 + stages]):
        getattr(backbone.net, part).requires_grad_(False)


class Adapter(nn.Module):
    """Base of the adapters: keeps its weights, and the statistics of BatchNorm layers that are not trained."""

    def init_weights(self) -> None:
        """Keep the given weights."""

    def train(self, mode: bool = True) -> Adapter:
        """Set the mode, of frozen BatchNorm layers to evaluation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.weight.requires_grad:
                module.eval()
        return self


class Stages(Adapter):
    """Maps of some stages.

    Args:
        backbone: a backbone of its own (`any_size` or `copy_of` makes one).
        indices: stages, counted from 0.

    Attributes:
        dims: channels per level.
        strides: input pixels per output pixel, per level.
    """

    def __init__(self, backbone: Backbone, indices: Sequence[int]) -> None:
        super().__init__()
        self.body = backbone
        self.indices = sorted(i % len(backbone.stage_dims) for i in indices)
        self.dims = [backbone.stage_dims[i] for i in self.indices]
        self.strides = [backbone.strides[i] for i in self.indices]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """N×3×H×W -> one N×dims[i]×H/strides[i]×W/strides[i] per level."""
        return tuple(self.body.stages(x, self.indices))

    def source_tensors(self) -> dict[str, Tensor]:
        """The tensors that come from the weights file, by their name there."""
        return dict(self.body.net.state_dict())


class Pyramid(Stages):
    """Four levels, at 1/4, 1/2, 1 and 2 times the patch size, from the last block of a plain transformer.

    The simple feature pyramid of Li et al. 2022, "Exploring Plain Vision Transformer Backbones for Object Detection",
    section 3, without its per-level convolutions, which the FPN behind it has.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone, [-1])
        dim, stride = self.dims[0], self.strides[0]
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.up_again = nn.Sequential(nn.GroupNorm(1, dim), nn.GELU(), nn.ConvTranspose2d(dim, dim, 2, stride=2))
        self.dims, self.strides = [dim] * 4, [stride // 4, stride // 2, stride, stride * 2]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """N×3×H×W -> four N×dim×h×w, finest first."""
        (last,) = self.body.stages(x, self.indices)
        double = self.up(last)
        return self.up_again(double), double, last, functional.max_pool2d(last, 2)


class Trunk(Adapter):
    """A ResNet-like network up to its third residual stage ("C4"): N×3×H×W -> one map."""

    conv1: nn.Module
    bn1: nn.Module
    act1: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        for part in C4_PARTS[:-1]:
            setattr(self, part, getattr(backbone.net, part))
        self.dim, self.stride = backbone.stage_dims[-2], backbone.strides[-2]

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """N×3×H×W -> (N×dim×H/stride×W/stride,)."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        return (self.layer3(self.layer2(self.layer1(x))),)

    def source_tensors(self) -> dict[str, Tensor]:
        """The tensors that come from the weights file, by their name there."""
        return dict(self.state_dict())


class Res5(Adapter):
    """The last residual stage as shared RoI head, followed by a BatchNorm of its own.

    Fine-tuning a network whose last stage was not trained with labels needs that extra normalisation
    (He et al. 2020, "Momentum Contrast", section 4.2).
    """

    layer4: nn.Module

    def __init__(self, backbone: Backbone, extra_norm: bool = True) -> None:
        super().__init__()
        self.layer4 = backbone.net.get_submodule("layer4")
        self.dim = backbone.stage_dims[-1]
        self.stride = backbone.strides[-1] // backbone.strides[-2]
        self.norm = nn.BatchNorm2d(self.dim) if extra_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """R×C×14×14 -> R×dim×7×7 for a stage of stride 2."""
        return self.norm(self.layer4(x))

    def source_tensors(self) -> dict[str, Tensor]:
        """The tensors that come from the weights file, by their name there."""
        return {f"layer4.{name}": tensor for name, tensor in self.layer4.state_dict().items()}


def given(module: nn.Module) -> dict[str, Any]:
    """A config that "builds" this very module, for places where OpenMMLab models expect a config."""
    return {"type": partial(_same, module)}


def _same(module: nn.Module) -> nn.Module:
    return module


def check_loaded(state: Mapping[str, Tensor], *adapters: Stages | Trunk | Res5) -> None:
    """Compare the tensors inside a built model with those of the weights file, all of them and exactly.

    Raises:
        JobError: a tensor is missing, left over or different; names it.
    """
    found: dict[str, Tensor] = {}
    for adapter in adapters:
        found.update(adapter.source_tensors())
    odd = sorted(state.keys() ^ found.keys())
    if odd:
        side = "lacks" if odd[0] in state else "has, but the weights do not,"
        raise JobError(f"the model built on this backbone {side} {odd[0]!r} ({len(odd)} such tensors)")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise JobError(f"the weights are broken: {name!r} is not finite")
        if not torch.equal(tensor.cpu(), found[name].detach().cpu()):
            raise JobError(f"the model built on this backbone differs from the weights in {name!r}")
