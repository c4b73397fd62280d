# SPDX-License-Identifier: Apache-2.0
"""Many linear classifiers on one frozen backbone, trained in one pass: a head per layer and learning rate."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suite import features
from suite.backbone import Backbone
from suite.errors import JobError, UsageError
from suite.method import Batch, Method, TrainSet
from suite.spec import Rule

PLAIN = "+plain"
"""Suffix of a layer whose heads get no norm, whatever the others have."""
LAST = re.compile(r"last(\d+)(\+avg)?")


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """What `Probes` builds.

    Attributes:
        heads: layer to number of heads. Layers are those of `suite.features`, and `last4` or `last4+avg`: the class tokens of
            the last four blocks, with the mean of the last block's patches (networks of stages: the averages of the last
            stages).
        size: side of the pictures.
        norm: `batch`: batch norm without affine parameters in front of a layer's heads; `affine`: with them, for one head.
        eps: of the norm.
        block: pictures that go through the backbone at once.
        seed: of the heads' weights.
    """

    heads: Mapping[str, int]
    size: int
    norm: Literal["none", "batch", "affine"] = "none"
    eps: float = 1e-5
    block: int = 256
    seed: int = 0


class Probes(Method):
    """Linear heads on frozen features; the loss is the sum of their cross entropies, so that no head touches another.

    The norm of a layer is shared by its heads. It works by channel, over the positions of a spatially pooled layer.

    Args:
        config: what to build.
        backbone: stays in evaluation mode and never changes.
        data: labelled images.

    Raises:
        UsageError: the training set has no single class per image; an unknown layer; several heads on an affine norm.
    """

    def __init__(self, config: ProbeSettings, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)  # type: ignore[arg-type]  # settings of a method, not of a recipe
        labels = data.images.labels
        if labels is None or labels.ndim != 1:
            raise UsageError(f"data set {data.images.name!r} has no single label per image, which a linear probe needs")
        if config.norm == "affine" and max(config.heads.values()) > 1:
            raise UsageError("config key 'norm' = 'affine' is trained with the head and takes one learning rate")
        backbone.requires_grad_(False).eval()
        self.layers, self.classes, self.block, self.checked = tuple(config.heads), data.num_classes, config.block, False
        with torch.no_grad():
            sample = next(backbone.parameters()).new_zeros(1, backbone.in_chans, config.size, config.size)
            found = read(backbone, sample, self.layers)
        self.heads, self.norms = nn.ModuleDict(), nn.ModuleDict()
        for layer, count in config.heads.items():
            generator = torch.Generator().manual_seed(config.seed)
            linear = nn.Linear(found[layer].shape[1] * found[layer].shape[2], self.classes)
            nn.init.normal_(linear.weight, std=0.01, generator=generator)
            nn.init.zeros_(linear.bias)
            self.heads[layer] = nn.ModuleList(_copy(linear) for _ in range(count))
            if config.norm != "none" and not layer.endswith(PLAIN):
                self.norms[layer] = nn.BatchNorm1d(found[layer].shape[1], config.eps, affine=config.norm == "affine")

    def train(self, mode: bool = True) -> Probes:
        """The heads' norms follow `mode`; the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # as torch's, filtered
        """Without the backbone, which does not change: checkpoints hold the heads."""
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if "backbone." not in name}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """What `state_dict` gave."""
        frozen = {f"backbone.{name}": value for name, value in self.backbone.state_dict().items()}
        return super().load_state_dict({**frozen, **state_dict}, strict, assign)

    @torch.no_grad()
    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Float32 N×C×P (positions P) per layer; the pictures go through in blocks, smaller ones where memory is short.

        Raises:
            JobError: features of the first batch are not finite.
        """
        while True:
            try:
                parts = [read(self.backbone, part, self.layers) for part in x.split(self.block)]
                break
            except torch.cuda.OutOfMemoryError:
                if self.block == 1:
                    raise
                self.block = max(1, min(self.block, len(x)) // 2)
                torch.cuda.empty_cache()
        found = {layer: torch.cat([part[layer] for part in parts]).float() for layer in self.layers}
        for layer, value in {} if self.checked else found.items():
            if not torch.isfinite(value).all():
                raise JobError(f"layer {layer!r}: features are not finite, the weights are damaged or overflow")
        self.checked = True
        return found

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """Class scores N×R×C of the R heads of every layer, in float32 under any autocast."""
        out = {}
        with torch.autocast(x.device.type, enabled=False):
            for layer, value in self.features(x).items():
                value = self.norms[layer](value) if layer in self.norms else value
                heads = [head for head in self.heads[layer].children() if isinstance(head, nn.Linear)]
                weight = torch.cat([head.weight for head in heads]) if len(heads) > 1 else heads[0].weight  # RC×d
                bias = torch.cat([head.bias for head in heads])
                out[layer] = F.linear(value.flatten(1), weight, bias).unflatten(1, (len(heads), self.classes))
        return out

    def guesses(self, x: Tensor) -> Tensor:
        """Predicted class of every head, N×heads, layer by layer."""
        return torch.cat([value.argmax(2) for value in self.scores(x).values()], 1)

    def answers(self, x: Tensor, heads: Mapping[str, int], headline: str) -> Tensor:
        """Predicted class of one head per layer, then the C class scores of the headline's: N×(layers + C)."""
        chosen = {layer: value[:, heads[layer]] for layer, value in self.scores(x).items()}  # N×C each
        return torch.cat([torch.stack([value.argmax(1) for value in chosen.values()], 1), chosen[headline]], 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Sum of the heads' mean cross entropies; and per layer the mean over its heads."""
        (x,) = batch.views
        assert batch.label is not None
        label = batch.label
        losses = {
            layer: F.cross_entropy(value.transpose(1, 2), label[:, None].expand(-1, value.shape[1]), reduction="none").mean(0)
            for layer, value in self.scores(x).items()
        }  # R each
        total = torch.stack([value.sum() for value in losses.values()]).sum()
        return {"loss": total, **{layer: value.detach().mean() for layer, value in losses.items()}}


def _copy(linear: nn.Linear) -> nn.Linear:
    """A head of its own with the same weights."""
    other = nn.Linear(linear.in_features, linear.out_features)
    other.load_state_dict(linear.state_dict())
    return other


def rate_rules(rates: Mapping[str, Sequence[float]], base: float) -> tuple[Rule, ...]:
    """Rules that give head i of a layer the i-th learning rate, where the optimizer's own is `base`."""
    return tuple(
        Rule(pattern=rf"^heads\.{re.escape(layer)}\.{i}\.", lr_mult=rate / base)
        for layer, values in rates.items()
        for i, rate in enumerate(values)
    )


def read(backbone: Backbone, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Features of a batch, N×C×P per layer: C channels at P pooled positions.

    Raises:
        UsageError: an unknown layer.
    """
    out: dict[str, Tensor] = {}
    plain = {layer: layer.removesuffix(PLAIN) for layer in layers}
    last = {layer: match for layer, name in plain.items() if (match := LAST.fullmatch(name))}
    if last:
        tokens = last_tokens(backbone, x, max(int(match[1]) for match in last.values()))
        for layer, match in last.items():
            parts = [pair[0] for pair in tokens[-int(match[1]) :]] + ([tokens[-1][1]] if match[2] else [])
            out[layer] = torch.cat(parts, 1)[:, :, None]
    rest = {layer: name for layer, name in plain.items() if layer not in last}
    if all(name == "pooled" for name in rest.values()):
        pooled = backbone(x)[:, :, None] if rest else None
        out |= {layer: pooled for layer in rest if pooled is not None}
    else:
        pooled, maps = backbone.pooled_and_stages(x)
        for layer, name in rest.items():
            stage = features.parse_layer(name, len(maps)).stage
            channels = pooled.shape[1] if stage is None else maps[stage].shape[1]
            out[layer] = features.pool(name, pooled, maps).unflatten(1, (channels, -1))
    return {layer: out[layer] for layer in layers}


def last_tokens(backbone: Backbone, x: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Class token and mean patch token (N×d each) of the last `count` blocks, after the final norm (DINOv2's protocol).

    A transformer without a class token gives the mean in its place; a network of stages the average of each stage, and the
    pooled vector of the last.
    """
    if not backbone.is_vit:
        pooled, maps = backbone.pooled_and_stages(x)
        means = [*(m.mean((2, 3)) for m in maps[:-1]), pooled]
        return [(m, m) for m in means[-count:]]
    found = backbone.net.forward_intermediates(
        x, indices=min(count, len(backbone.stage_dims)), return_prefix_tokens=True, norm=True, output_fmt="NLC",
        intermediates_only=True,
    )  # fmt: skip
    pairs = [(patches.mean(1), prefix) for patches, prefix in found]
    return [(prefix[:, 0] if prefix is not None and prefix.shape[1] else mean, mean) for mean, prefix in pairs]
