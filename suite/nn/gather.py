# SPDX-License-Identifier: Apache-2.0
"""Tensors of all processes, with and without gradient, and batch normalisation over the global batch."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums the gradients that every process has for a slice."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]  # autograd's own type
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        ctx.rows = x.shape[0]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]  # autograd's own type
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather(x: Tensor) -> Tensor:
    """N×… of every process -> (W·N)×…, in rank order, with gradient to all of them. Equal N is required."""
    return x if world_size() == 1 else _Gather.apply(x)


@torch.no_grad()
def gather_detached(x: Tensor) -> Tensor:
    """`gather` without gradient."""
    return gather(x)


def shuffled(x: Tensor, permutation: Tensor) -> Tensor:
    """This process's share of the globally permuted batch (MoCo's shuffled batch norm, section 3.3)."""
    rows = x.shape[0]
    return gather_detached(x)[permutation[rank() * rows : (rank() + 1) * rows]]


def unshuffled(x: Tensor, permutation: Tensor) -> Tensor:
    """Undo `shuffled` on the outputs: this process's own rows."""
    rows = x.shape[0]
    return gather_detached(x)[permutation.argsort()[rank() * rows : (rank() + 1) * rows]]


def permutation(count: int, device: torch.device) -> Tensor:
    """One random order that all processes share."""
    order = torch.randperm(count, device=device)
    if world_size() > 1:
        dist.broadcast(order, 0)
    return order


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the batches of all processes, on any device (torch's own takes only GPU tensors)."""

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"batch norm needs N×C×…, got {x.ndim} dimensions")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise N×C×… with the statistics of W·N samples."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        axes, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
        values = x.float()
        n = all_sum(values.new_tensor(values.numel() / values.shape[1]))
        mean = all_sum(values.sum(axes)) / n
        centred = values - mean.view(shape)
        # The mean first, then the squares around it: a difference of large sums would lose half the digits.
        variance = all_sum(centred.square().sum(axes)) / n
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum or 0.1)
                self.running_var.lerp_((variance * n / (n - 1)).to(self.running_var.dtype), self.momentum or 0.1)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)


class _Sum(torch.autograd.Function):
    """All-reduce whose backward is an all-reduce: the sum over processes as an ordinary function."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]  # autograd's own type
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]  # autograd's own type
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def all_sum(x: Tensor) -> Tensor:
    """Sum over processes; gradients of all of them reach every process's own `x`."""
    return _Sum.apply(x) if world_size() > 1 else x


def synchronise_batch_norm(module: M, device: torch.device) -> M:
    """Replace every batch norm by one over the global batch; alone, nothing changes."""
    if world_size() == 1:
        return module
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            synced = SyncBatchNorm(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            synced.load_state_dict(child.state_dict())
            synced.train(child.training)
            for mine, theirs in zip(synced.parameters(), child.parameters(), strict=True):
                mine.requires_grad_(theirs.requires_grad)
            module.add_module(name, _like(child, synced))
        else:
            synchronise_batch_norm(child, device)
    return module


def _like(child: nn.Module, synced: SyncBatchNorm) -> nn.Module:
    """Keep what timm's fused norm-activation layers do after the norm."""
    drop, act = getattr(child, "drop", None), getattr(child, "act", None)
    return nn.Sequential(synced, drop, act) if drop is not None and act is not None else synced
