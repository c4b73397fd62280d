# SPDX-License-Identifier: Apache-2.0
"""Optimizers, parameter groups by rule, layer-wise decay, and learning rates as a pure function of the step."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from suite.spec import Optim, Rule

NO_DECAY = (Rule(pattern=r"(^|\.)(bias|pos_embed|cls_token|mask_token)$", weight_decay=0.0, adapt=False),)
"""Rule for the parameters that transformer recipes exempt from weight decay by name."""

NORM_AND_BIAS = "norm-and-bias"
"""A rule with this pattern matches every parameter of at most one dimension: biases and norm scales."""


def param_groups(module: nn.Module, settings: Optim) -> list[dict[str, Any]]:
    """Group trainable parameters that share all their settings; every rule that matches applies, in order.

    Each group carries `lr_scale` (the schedule multiplies it), `weight_decay`, `adapt` (LARS) and `fixed_lr`.
    """
    groups: dict[tuple, dict[str, Any]] = {}
    depth = LayerDepth(module) if settings.layer_decay is not None else None
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        values: dict[str, Any] = {
            "lr_scale": 1.0,
            "weight_decay": settings.weight_decay,
            "adapt": True,
            "fixed_lr": False,
            "momentum": settings.momentum,
        }
        for rule in settings.rules:
            if _matches(rule, name, parameter):
                values["lr_scale"] *= rule.lr_mult
                values["adapt"] = values["adapt"] and rule.adapt
                values["fixed_lr"] = values["fixed_lr"] or rule.fixed_lr
                values["weight_decay"] = values["weight_decay"] if rule.weight_decay is None else rule.weight_decay
                values["momentum"] = values["momentum"] if rule.momentum is None else rule.momentum
        if depth is not None and settings.layer_decay is not None:
            values["lr_scale"] *= settings.layer_decay ** (depth.last - depth(name))
        key = tuple(values.values())
        groups.setdefault(key, {"params": [], "lr": settings.lr * values["lr_scale"], **values})["params"].append(parameter)
    return list(groups.values())


def _matches(rule: Rule, name: str, parameter: Tensor) -> bool:
    return parameter.ndim <= 1 if rule.pattern == NORM_AND_BIAS else re.search(rule.pattern, name) is not None


class LayerDepth:
    """Depth of a parameter for layer-wise decay: embedding 0, block k -> k + 1, the rest (head) last.

    BEiT's rule for ViT (MAE and CAE use it too) and SimMIM's for Swin: a stage's downsampling shares the depth
    of the last block before it. CNN stages count as one layer each.
    """

    def __init__(self, module: nn.Module) -> None:
        names = [name for name, _ in module.named_parameters()]
        blocks = sorted({key for name in names if (key := self._block(name)) is not None})
        self.order = {key: position + 1 for position, key in enumerate(blocks)}
        self.last = len(blocks) + 1

    @staticmethod
    def _block(name: str) -> tuple[int, ...] | None:
        if match := re.search(r"(?:layers|stages)[._](\d+)\.blocks\.(\d+)\.", name):
            return int(match[1]), int(match[2])
        if match := re.search(r"(?:blocks|layer)\.?(\d+)\.", name):
            return (int(match[1]),)
        return None

    def __call__(self, name: str) -> int:
        """Depth of the parameter called `name`, 0 to `last`."""
        key = self._block(name)
        if key is not None:
            return self.order[key]
        if match := re.search(r"(?:layers|stages)[._](\d+)\.downsample", name):
            earlier = [position for block, position in self.order.items() if block[0] < int(match[1])]
            return max(earlier, default=0)
        stem = r"patch_embed|pos_embed|cls_token|mask_token|reg_token|(^|\.)(conv1|bn1|stem)\b"
        return 0 if re.search(stem, name) else self.last


def build(groups: Iterable[dict[str, Any]], settings: Optim) -> torch.optim.Optimizer:
    """The optimizer of a recipe over groups from `param_groups`."""
    groups = list(groups)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)
    for group in groups:
        group.pop("momentum") if settings.name != "lars" else None
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)
    if settings.name == "adam":
        return torch.optim.Adam(groups, lr=settings.lr, betas=settings.betas)
    if settings.name == "lars":
        return LARS(groups, lr=settings.lr)
    from timm.optim import Lamb

    return Lamb(groups, lr=settings.lr, betas=settings.betas)


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling with momentum (You, Gitman, Ginsburg 2017, arXiv 1708.03888).

    The form of the official BYOL, Barlow Twins and MoCo v3 code: g' = g + wd·w, r = eta·‖w‖/‖g'‖ (1 where a norm is 0
    or the group has `adapt` False), buf = m·buf + r·g', w = w - lr·buf. The rate stays outside the buffer.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, eta: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # a closure is never used here
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                g = w.grad.add(w, alpha=group["weight_decay"])
                if group["adapt"]:
                    w_norm, g_norm = torch.linalg.vector_norm(w), torch.linalg.vector_norm(g)
                    ratio = group["eta"] * w_norm / g_norm
                    g = g * torch.where((w_norm > 0) & (g_norm > 0), ratio, torch.ones_like(ratio))
                state = self.state[w]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(w)
                buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(g)
                w.add_(buffer, alpha=-group["lr"])


def rate(settings: Optim, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Learning rate (absolute) of optimizer step `step`, for a parameter with lr_scale 1.

    `every="epoch"` holds the rate within an epoch. Warm-up is linear from `warmup_ratio` of the regular rate. With
    `shift` the cosine covers what follows the warm-up; without, it runs underneath (the form of mmcv's CosineAnnealing).
    """
    warm = settings.warmup * steps_per_epoch
    at = step - step % steps_per_epoch if settings.every == "epoch" else step
    regular = settings.lr
    if settings.schedule == "cosine":
        start = warm if settings.shift else 0
        fraction = min(1.0, max(0.0, at - start) / max(1, total_steps - start))
        regular = settings.min_lr + (settings.lr - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * fraction))
    elif settings.schedule == "step":
        passed = sum(at >= milestone * steps_per_epoch for milestone in settings.milestones)
        regular = settings.lr * settings.gamma**passed
    if step < warm:
        return regular * (settings.warmup_ratio + (1 - settings.warmup_ratio) * step / warm)
    return regular


def set_rate(optimizer: torch.optim.Optimizer, settings: Optim, now: float) -> None:
    """Give every group its learning rate: `now` times its scale, or the fixed one."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr_scale"] * (settings.lr if group["fixed_lr"] else now)
