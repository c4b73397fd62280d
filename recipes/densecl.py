# SPDX-License-Identifier: Apache-2.0
"""Dense Contrastive Learning for Self-Supervised Visual Pre-Training (DenseCL).

Xinlong Wang, Rufeng Zhang, Chunhua Shen, Tao Kong, Lei Li. CVPR 2021. https://arxiv.org/abs/2011.09157

MoCo v2 for whole images and for the cells of the last feature map at once: each cell's positive is the most similar cell
of the other view.

Run: suite run --algo densecl --preset resnet50_8xb32-coslr-200e_in1k --data-root imagenet=DIR
Expected: ImageNet linear 63.34 (MMSelfSup 0.x README; its metafile says 63.62), 63.5 (1.x); VOC07+12 AP50 82.14.
Differs: lambda is 0 during the first 1000 steps; both other codes have this warm-up but register it in no config, so
`lam_warmup=0` repeats the published runs. The heads start from PyTorch's defaults, as MMSelfSup's (official: Kaiming).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from suite.backbone import Backbone
from suite.method import Batch, Method, Progress, TrainSet
from suite.nn.contrast import info_nce
from suite.nn.ema import EMA
from suite.nn.gather import gather_detached, permutation, shuffled, unshuffled, world_size
from suite.nn.heads import mlp
from suite.nn.queue import Queue
from suite.presets import DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe
from suite.views import ColorJitter, GaussianBlur, Grayscale, HorizontalFlip, Normalize, RandomResizedCrop, View


@dataclass(frozen=True, kw_only=True)
class DenseCLConfig(Config):
    """Settings of DenseCL; what it does not name is MoCo v2's."""

    dim: PositiveInt = 128
    hidden: PositiveInt = 2048
    queue: PositiveInt = 65536
    "Negatives of either loss."
    m: NonNegativeFloat = 0.999
    "Momentum of the key encoder."
    temperature: PositiveFloat = 0.2
    lam: NonNegativeFloat = 0.5
    "Lambda, the weight of the dense loss; the global one has 1 - lambda."
    lam_warmup: NonNegativeInt = 1000
    "Steps at the start during which lambda is 0, because random features give wrong correspondences."
    crop_min: float = 0.2
    blur: float = 0.5
    "Probability of Gaussian blur."
    head_norm: bool = False
    "Batch norm in the heads: not in the paper, quicker to train where a run lasts a minute."
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)


class Neck(nn.Module):
    """The global projection head and the dense one, which has 1×1 convolutions instead of linear layers."""

    def __init__(self, width: int, hidden: int, dim: int, norm: bool) -> None:
        super().__init__()
        self.image = mlp((width, hidden, dim), norm=norm, bias=True)
        norms = [nn.BatchNorm2d(hidden)] if norm else []
        self.cells = nn.Sequential(nn.Conv2d(width, hidden, 1), *norms, nn.ReLU(inplace=True), nn.Conv2d(hidden, dim, 1))


class Encoder(nn.Module):
    """Backbone and both heads."""

    def __init__(self, backbone: Backbone, neck: Neck) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Unit vectors: of the image N×d, of its cells N×S²×d, of the cells' mean N×d, and the cells' features N×S²×D."""
        pooled, maps = self.backbone.pooled_and_stages(x)
        cells = self.neck.cells(maps[-1]).float().flatten(2).mT  # N×S²×d
        features = maps[-1].float().flatten(2).mT  # N×S²×D
        image = self.neck.image(pooled).float()  # N×d
        return unit(image), unit(cells), unit(cells.mean(1)), unit(features)


def unit(x: Tensor) -> Tensor:
    """L2-normalised over the last dimension."""
    return F.normalize(x, dim=-1)


class DenseCL(Method):
    """L = (1 - lambda) L_q + lambda L_r (eq. 3), both against keys of a momentum encoder."""

    def __init__(self, config: DenseCLConfig, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        self.settings, self.lam = config, config.lam
        self.neck = Neck(backbone.dim, config.hidden, config.dim, config.head_norm)
        self.f_k = EMA(self.f_q)
        self.queue = Queue(config.queue, config.dim)
        self.dense_queue = Queue(config.queue, config.dim)

    @property
    def f_q(self) -> nn.Module:
        """The query encoder."""
        return Encoder(self.backbone, self.neck)

    def on_step_start(self, progress: Progress) -> None:
        """The key encoder follows; lambda is 0 while correspondences are still random."""
        self.f_k.update(self.f_q, self.settings.m)
        self.lam = self.settings.lam if progress.step >= self.settings.lam_warmup else 0.0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 1 for images, eq. 2 for cells, eq. 3 for both."""
        x_q, x_k = batch.views
        q, r, _, f_q = self.f_q(x_q)  # N×d, N×S²×d, N×d, N×S²×D
        k, t, mean, f_k = self.keys(x_k)
        positive = matched(t, correspondence(f_q.detach(), f_k))  # N×S²×d
        negatives, dense_negatives = self.queue.keys.clone(), self.dense_queue.keys.clone()  # K×d, before this batch
        self.queue.push(gather_detached(k))
        self.dense_queue.push(gather_detached(mean))
        l_q = info_nce(q, k, negatives, self.settings.temperature)
        l_r = info_nce(r.flatten(0, 1), positive.flatten(0, 1), dense_negatives, self.settings.temperature)
        loss = (1 - self.lam) * l_q + self.lam * l_r
        return {"loss": loss, "global_loss": l_q, "dense_loss": l_r, "features": q}

    @torch.no_grad()
    def keys(self, x: Tensor) -> Sequence[Tensor]:
        """The momentum encoder's outputs, batch norm seeing a shuffled batch (MoCo, section 3.3)."""
        if world_size() == 1:
            return self.f_k(x)
        order = permutation(len(x) * world_size(), x.device)
        return [unshuffled(output, order) for output in self.f_k(shuffled(x, order))]


@torch.no_grad()
def correspondence(f_q: Tensor, f_k: Tensor) -> Tensor:
    """For every cell of the query's features the most similar cell of the key's (section 3.4, eq. 4).

    Args:
        f_q: N×L×D unit vectors.
        f_k: N×M×D unit vectors.

    Returns:
        N×L indices below M.
    """
    with torch.autocast(f_q.device.type, enabled=False):
        return torch.bmm(f_q.float(), f_k.float().mT).argmax(2)


def matched(t: Tensor, index: Tensor) -> Tensor:
    """The cells t, N×M×d, that `index`, N×L, names: N×L×d."""
    return t.gather(1, index[..., None].expand(*index.shape, t.shape[2]))


def views(config: DenseCLConfig) -> Sequence[View]:
    """Two views by MoCo v2's augmentation (section 4.1)."""
    view = View(
        (
            RandomResizedCrop(config.size, scale=(config.crop_min, 1.0)),
            ColorJitter(*config.jitter, p=0.8),
            Grayscale(0.2),
            GaussianBlur((0.1, 2.0), config.blur),
            HorizontalFlip(config.flip),
            Normalize(),
        )
    )
    return (view, view)


RESNET50: dict[str, Any] = {
    "arch_options": {"zero_init_last": False},
    "optim": Optim(lr=0.03, weight_decay=1e-4, every="epoch"),
    "workers": 8,
}

RECIPE = Recipe(
    name="densecl",
    title="DenseCL",
    paper=Paper(
        title="Dense Contrastive Learning for Self-Supervised Visual Pre-Training",
        authors="Xinlong Wang, Rufeng Zhang, Chunhua Shen, Tao Kong, Lei Li",
        venue="CVPR 2021",
        url="https://arxiv.org/abs/2011.09157",
        summary="MoCo v2 for whole images and for the cells of the last feature map at once. Each cell must find the cell "
        "of the other view that looks most like it, which gives better features for detection and segmentation.",
    ),
    method=DenseCL,
    views=views,
    presets={
        "resnet50_8xb32-coslr-200e_in1k": DenseCLConfig(**RESNET50),
        "photos": DenseCLConfig(
            **PHOTOS, optim=Optim(lr=0.06, weight_decay=1e-4), queue=1024, m=0.99, hidden=512, head_norm=True,
            lam_warmup=100,
        ),
        "digits": DenseCLConfig(
            **DIGITS, batch=128, epochs=25, optim=Optim(lr=0.2, weight_decay=1e-4, warmup=1), precision="bf16",
            queue=1024, m=0.95, hidden=128, dim=64, head_norm=True, lam_warmup=42, flip=0.0, blur=0.0, crop_min=0.5,
            jitter=(0.8, 0.8, 0.8, 0.5),
        ),
        "tiny": DenseCLConfig(**TINY, optim=Optim(lr=0.05), queue=64, hidden=32, dim=16, m=0.9, lam_warmup=1, flip=0.0),
    },
    reference={
        "resnet50_8xb32-coslr-200e_in1k": (
            Published("linear/top1", 63.34, "MMSelfSup 0.x configs/selfsup/densecl/README.md", "63.62 in its metafile"),
            Published("linear/top1", 63.5, "MMSelfSup 1.x configs/selfsup/densecl/metafile.yml"),
            Published("svm/map", 82.5, "MMSelfSup 0.x configs/selfsup/densecl/README.md"),
            Published("detection/ap50", 82.14, "MMSelfSup 0.x configs/selfsup/densecl/README.md", "VOC07+12, Faster R-CNN C4"),
            Published("segmentation/miou", 69.47, "MMSelfSup 0.x configs/selfsup/densecl/README.md", "VOC12 aug, FCN"),
        ),
    },
    batch_dependent="batch norm statistics are per device (shuffled across processes)",
)  # fmt: skip
