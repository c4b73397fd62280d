# SPDX-License-Identifier: Apache-2.0
"""Features of the whole training set between epochs, for methods that cluster it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from suite.data.imageset import ImageSet
from suite.data.loader import Loader
from suite.nn.cluster import agree
from suite.nn.gather import gather_detached, rank, world_size
from suite.views import View


@torch.no_grad()
def sweep(
    net: nn.Module,
    images: ImageSet,
    view: View,
    *,
    batch: int,
    device: torch.device,
    workers: int = 0,
    channels_last: bool = False,
) -> Tensor:
    """Outputs of `net` in evaluation mode for every image, in the set's order.

    The processes share the work and all get everything. They first take over process 0's buffers (running statistics of plain
    batch norm differ between processes), so that one clustering sees one network.

    Args:
        net: from N×3×S×S to N×d; left in the mode it was in.
        images: the training set.
        view: without randomness: resize and central crop.
        batch: over all processes.
        device: where `net` is.
        workers: decoding processes of each process.
        channels_last: memory format of the views.

    Returns:
        n×d float32 on the CPU.
    """
    share = -(-batch // world_size()) * world_size()
    loader = Loader(
        images, (view,), share, device=device, workers=workers, rank=rank(), world=world_size(),
        channels_last=channels_last, shuffle=False,
    )  # fmt: skip
    # The last image fills up the last batch: all processes need batches of one size.
    order = torch.arange(loader.steps_per_epoch * share).clamp_max(len(images) - 1)
    was_training = net.training
    net.eval()
    agree(*net.buffers())
    try:
        rows = [gather_detached(net(b.views[0]).float()).cpu() for b in loader.epoch(0, order)]
    finally:
        net.train(was_training)
    return torch.cat(rows)[: len(images)]
