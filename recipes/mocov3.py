# SPDX-License-Identifier: Apache-2.0
"""An Empirical Study of Training Self-Supervised Vision Transformers (MoCo v3).

Xinlei Chen, Saining Xie, Kaiming He. ICCV 2021. https://arxiv.org/abs/2104.02057

A predicted query must find its key, another view of the image through a momentum encoder, among those of a large batch;
no queue, and a patch embedding that stays random so that transformers train stably.

Run: suite run --algo mocov3 --preset vit-small-p16_16xb256-amp-coslr-300e_in1k --data-root imagenet=DIR
Expected: ImageNet linear 73.2 (official, ViT-S/16, 300 epochs), 68.9 (ResNet-50, 100 epochs); MMSelfSup 73.6 and 69.6.
Differs: the key encoder moves after the optimizer step, as in the paper's algorithm 1 (the official code moves it before
the next keys, the same up to one step of its schedule). The ResNet-50 presets start all residual branches at
full strength, as MMSelfSup does (official: zero), and LARS keeps the learning rate out of its momentum buffer, as the
official code does. With accumulation the key encoder moves once per optimizer step (MMSelfSup 1.x: per micro-batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from suite.backbone import Backbone
from suite.method import Batch, Method, Progress, TrainSet
from suite.nn.ema import EMA, cosine_momentum
from suite.nn.gather import gather_detached, rank
from suite.nn.heads import mlp
from suite.nn.vit import fix_positions, xavier_linears_, xavier_patch_embed_
from suite.optim import NORM_AND_BIAS
from suite.presets import DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe, Rule
from suite.views import ColorJitter, GaussianBlur, Grayscale, HorizontalFlip, Normalize, RandomResizedCrop, Solarize, View


@dataclass(frozen=True, kw_only=True)
class MoCoV3Config(Config):
    """Settings of MoCo v3; the defaults are the paper's for ViT, the batch norm is over the global batch."""

    dim: PositiveInt = 256
    hidden: PositiveInt = 4096
    projector_layers: PositiveInt = 3
    "2 for a ResNet."
    predictor_norm: bool = True
    "Batch norm after the predictor's last layer; not for a ResNet."
    m: NonNegativeFloat = 0.99
    "Momentum of the key encoder at the start; it ends at 1."
    temperature: PositiveFloat = 0.2
    freeze_patches: bool = True
    "A ViT's patch embedding stays as it was drawn (section 4.2)."
    sync_bn: bool = True
    crop_min: float = 0.08
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    blur: tuple[float, float] = (1.0, 0.1)
    "Probability of Gaussian blur in the first and the second view."
    solarize: tuple[float, float] = (0.0, 0.2)
    "Probability of solarisation in the first and the second view."


def ctr(q: Tensor, k: Tensor, tau: float) -> Tensor:
    """InfoNCE against the keys of the global batch, times 2 tau (eq. 1 and algorithm 1).

    Args:
        q: N×d queries of this process, of any length.
        k: N×d keys of the same images.
        tau: temperature.
    """
    q, k = F.normalize(q.float(), dim=1), F.normalize(k.float(), dim=1)
    keys = gather_detached(k)  # WN×d
    with torch.autocast(q.device.type, enabled=False):
        logits = q @ keys.T / tau  # N×WN
    own = torch.arange(len(q), device=q.device) + rank() * len(q)
    return 2 * tau * F.cross_entropy(logits, own)


class MoCoV3(Method):
    """q = pred(proj(f(x))), k = proj'(f'(x)); ctr(q1, k2) + ctr(q2, k1)."""

    def __init__(self, config: MoCoV3Config, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        self.m, self.tau = config.m, config.temperature
        if backbone.is_vit:
            prepare(backbone.net, config.freeze_patches)
        hidden = [config.hidden] * (config.projector_layers - 1)
        self.projector = mlp((backbone.dim, *hidden, config.dim), last_norm="plain", last_bias=False)
        last_norm: Any = "plain" if config.predictor_norm else "none"
        self.predictor = mlp((config.dim, config.hidden, config.dim), last_norm=last_norm, last_bias=False)
        self.f_k = EMA(self.base)

    @property
    def base(self) -> nn.Module:
        """What the key encoder averages: backbone and projector, without the predictor."""
        return nn.Sequential(self.backbone, self.projector)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Algorithm 1."""
        x1, x2 = batch.views
        z1, z2 = self.projector(self.backbone(x1)), self.projector(self.backbone(x2))  # N×d
        q1, q2 = self.predictor(z1), self.predictor(z2)  # N×d
        k1, k2 = self.f_k(x1), self.f_k(x2)  # N×d
        return {"loss": ctr(q1, k2, self.tau) + ctr(q2, k1, self.tau), "features": z1}

    def after_step(self, progress: Progress) -> None:
        """f_k <- m f_k + (1 - m) f_q, with m on half a cosine from its start to 1 (section 3)."""
        self.f_k.update(self.base, cosine_momentum(self.m, progress.fraction))


def prepare(net: Any, freeze_patches: bool) -> None:
    """The paper's ViT: fixed positions, Xavier weights, a class token near 0, a patch embedding that stays random."""
    fix_positions(net, first="row")
    xavier_linears_(net, split_qkv=True)
    xavier_patch_embed_(net)
    nn.init.zeros_(net.patch_embed.proj.bias)
    nn.init.normal_(net.cls_token, std=1e-6)
    if freeze_patches:
        net.patch_embed.proj.requires_grad_(False)


def views(config: MoCoV3Config) -> Sequence[View]:
    """Two views by BYOL's two augmentations (section 3 and the official code)."""

    def view(blur: float, solarize: float) -> View:
        return View(
            (
                RandomResizedCrop(config.size, scale=(config.crop_min, 1.0)),
                ColorJitter(*config.jitter, p=0.8),
                Grayscale(0.2),
                GaussianBlur((0.1, 2.0), blur),
                Solarize(p=solarize),
                HorizontalFlip(config.flip),
                Normalize(),
            )
        )

    return tuple(view(*chances) for chances in zip(config.blur, config.solarize, strict=True))


EXCLUDED = (Rule(pattern=NORM_AND_BIAS, weight_decay=0.0, adapt=False),)
RESNET: dict[str, Any] = {"projector_layers": 2, "predictor_norm": False}


def _vit(arch: str, shift: bool = True, clip: float | None = None, **options: Any) -> MoCoV3Config:
    """A preset of the model zoo: 300 epochs, batch 4096 at 1.5e-4 per 256; everything is decayed."""
    optim = Optim(name="adamw", lr=2.4e-3, weight_decay=0.1, warmup=40, warmup_ratio=1e-4, shift=shift, clip=clip)
    return MoCoV3Config(arch=arch, arch_options=options, epochs=300, batch=4096, optim=optim, precision="16", workers=8)


def _resnet50(epochs: int, lr: float, weight_decay: float = 1e-6, m: float = 0.99) -> MoCoV3Config:
    """A preset of MMSelfSup 1.x: batch 4096."""
    optim = Optim(name="lars", lr=lr, weight_decay=weight_decay, warmup=10, warmup_ratio=1e-4, rules=EXCLUDED)
    return MoCoV3Config(
        **RESNET, arch_options={"zero_init_last": False}, epochs=epochs, batch=4096, optim=optim, precision="16", workers=8,
        m=m, temperature=1.0, crop_min=0.2,
    )  # fmt: skip


_ZOO = "MMSelfSup 1.x configs/selfsup/mocov3/metafile.yml"
_OFFICIAL = "github.com/facebookresearch/moco-v3 README"

RECIPE = Recipe(
    name="mocov3",
    title="MoCo v3",
    paper=Paper(
        title="An Empirical Study of Training Self-Supervised Vision Transformers",
        authors="Xinlei Chen, Saining Xie, Kaiming He",
        venue="ICCV 2021",
        url="https://arxiv.org/abs/2104.02057",
        summary="A predicted query must find its key, another view of the same image seen by a slowly moving encoder, among "
        "the keys of a large batch. For transformers, a patch embedding that is never trained keeps the training stable.",
    ),
    method=MoCoV3,
    views=views,
    presets={
        # MMSelfSup 0.x, whose cosine runs under the warm-up.
        "vit-small-p16_32xb128-fp16-coslr-300e_in1k-224": _vit("vit_small_patch16_224", shift=False, num_heads=12),
        # MMSelfSup 1.x.
        "vit-small-p16_16xb256-amp-coslr-300e_in1k": _vit("vit_small_patch16_224", num_heads=12),
        "vit-base-p16_16xb256-amp-coslr-300e_in1k": _vit("vit_base_patch16_224"),
        "vit-large-p16_64xb64-amp-coslr-300e_in1k": _vit("vit_large_patch16_224", clip=5.0),
        "resnet50_8xb512-amp-coslr-100e_in1k": _resnet50(100, lr=9.6),
        "resnet50_8xb512-amp-coslr-300e_in1k": _resnet50(300, lr=4.8),
        "resnet50_8xb512-amp-coslr-800e_in1k": _resnet50(800, lr=4.8, weight_decay=1.5e-6, m=0.996),
        "photos": MoCoV3Config(**PHOTOS, **RESNET, optim=Optim(lr=0.1, weight_decay=1e-4, warmup=2), hidden=1024),
        "digits": MoCoV3Config(
            **DIGITS, **RESNET, batch=128, epochs=25, optim=Optim(lr=0.5, weight_decay=1e-4, warmup=1), precision="bf16",
            hidden=512, dim=128, m=0.95, flip=0.0, blur=(0.0, 0.0), solarize=(0.0, 0.0), crop_min=0.5,
            jitter=(0.8, 0.8, 0.8, 0.5),
        ),
        "tiny": MoCoV3Config(**TINY, **RESNET, optim=Optim(lr=0.02), hidden=32, dim=16, m=0.9, flip=0.0),
    },
    reference={
        "vit-small-p16_32xb128-fp16-coslr-300e_in1k-224": (
            Published("linear/top1", 73.19, "MMSelfSup 0.x configs/selfsup/mocov3/README.md"),
        ),
        "vit-small-p16_16xb256-amp-coslr-300e_in1k": (
            Published("linear/top1", 73.6, _ZOO),
            Published("linear/top1", 73.2, _OFFICIAL),
        ),
        "vit-base-p16_16xb256-amp-coslr-300e_in1k": (
            Published("linear/top1", 76.9, _ZOO),
            Published("linear/top1", 76.7, _OFFICIAL),
            Published("finetune/top1", 83.0, _ZOO),
            Published("finetune/top1", 83.2, _OFFICIAL),
        ),
        "vit-large-p16_64xb64-amp-coslr-300e_in1k": (Published("finetune/top1", 83.7, _ZOO),),
        "resnet50_8xb512-amp-coslr-100e_in1k": (
            Published("linear/top1", 69.6, _ZOO),
            Published("linear/top1", 68.9, _OFFICIAL),
        ),
        "resnet50_8xb512-amp-coslr-300e_in1k": (
            Published("linear/top1", 72.8, _ZOO),
            Published("linear/top1", 72.8, _OFFICIAL),
        ),
        "resnet50_8xb512-amp-coslr-800e_in1k": (Published("linear/top1", 74.4, _ZOO),),
    },
    batch_dependent="negatives and batch norm statistics are those of the micro-batch of all processes, so accumulation "
    "means fewer of them",
)  # fmt: skip
