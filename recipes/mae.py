# SPDX-License-Identifier: Apache-2.0
"""Masked Autoencoders Are Scalable Vision Learners (MAE).

Kaiming He, Xinlei Chen, Saining Xie, Yanghao Li, Piotr Dollár, Ross Girshick. CVPR 2022. https://arxiv.org/abs/2111.06377

A transformer encodes a quarter of an image's patches; a small decoder, dropped afterwards, must paint in all the others.

Run: suite run --algo mae --preset vit-base-p16_8xb512-amp-coslr-1600e_in1k --data-root imagenet=DIR
Expected: ImageNet fine-tuning 83.6, linear 68.0 (paper, ViT-B, 1600 epochs); MMSelfSup 83.5 and 67.1.
Differs: class and mask tokens are not decayed, as in MMSelfSup (the official code decays them). Positions are in the
official order, column before row, where MMSelfSup has the transpose: the same thing for a network trained with it. The
presets `digits`, `tiny` and `photos` read the mean of the patches instead of the class token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from suite.backbone import Backbone
from suite.draws import Draws
from suite.method import Batch, Method, Progress, TrainSet
from suite.nn.masks import Kept, random_masking, take_tokens
from suite.nn.patches import patchify
from suite.nn.position import sincos_2d
from suite.nn.vit import fix_positions, visible_tokens, xavier_linears_, xavier_patch_embed_
from suite.optim import NO_DECAY, NORM_AND_BIAS
from suite.presets import DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe, Rule
from suite.views import HorizontalFlip, Normalize, RandomResizedCrop, View


@dataclass(frozen=True, kw_only=True)
class MAEConfig(Config):
    """Settings of MAE; the defaults are the paper's."""

    mask_ratio: PositiveFloat = 0.75
    "Share of hidden patches."
    decoder_dim: PositiveInt = 512
    decoder_depth: PositiveInt = 8
    decoder_heads: PositiveInt = 16
    norm_pix: bool = True
    "Targets are normalised patch by patch."
    crop_min: float = 0.2
    flip: float = 0.5


def targets(x: Tensor, side: int, norm_pix: bool) -> Tensor:
    """What to predict: the pixels of every patch, by the patch's own mean and (unbiased) variance (section 3).

    Args:
        x: N×3×H×W.
        side: of the patches, p.
        norm_pix: False leaves the pixels as they are.

    Returns:
        N×L×3p² float32.
    """
    patches = patchify(x.float(), side)
    if not norm_pix:
        return patches
    variance, mean = torch.var_mean(patches, 2, keepdim=True)  # N×L×1
    return (patches - mean) / (variance + 1e-6).sqrt()


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the pixels of hidden patches only (section 3, "Reconstruction target").

    Args:
        prediction: N×L×3p².
        target: N×L×3p².
        mask: N×L bool, True for hidden.
    """
    error = (prediction.float() - target).square().mean(2)  # N×L
    return (error * mask).sum() / mask.sum()


class Decoder(nn.Module):
    """A narrow transformer over all places: encoded patches at theirs, the mask token elsewhere (section 3)."""

    def __init__(self, wide: int, grid: tuple[int, int], config: MAEConfig, out: int) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        width = config.decoder_dim
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.embed = nn.Linear(wide, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_2d(*grid, width, class_tokens=1)[None], requires_grad=False)
        blocks = [Block(width, config.decoder_heads, qkv_bias=True, norm_layer=norm) for _ in range(config.decoder_depth)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm(width)
        self.predict = nn.Linear(width, out)
        nn.init.normal_(self.mask_token, std=0.02)
        xavier_linears_(self)

    def forward(self, tokens: Tensor, kept: Kept) -> Tensor:
        """Class token and visible patches N×(1+K)×D -> predictions for all patches N×L×out."""
        first, visible = self.embed(tokens).split([1, tokens.shape[1] - 1], 1)  # N×1×d, N×K×d
        hidden = self.mask_token.expand(len(tokens), kept.mask.shape[1] - visible.shape[1], -1)
        everywhere = take_tokens(torch.cat([visible, hidden], 1), kept.restore)  # N×L×d
        x = torch.cat([first, everywhere], 1) + self.pos_embed  # N×(1+L)×d
        return self.predict(self.norm(self.blocks(x)))[:, 1:]


class MAE(Method):
    """Encode the visible patches, decode all, compare the hidden ones."""

    def __init__(self, config: MAEConfig, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        self.norm_pix, self.seed, self.epoch = config.norm_pix, data.seed, 0
        net = backbone.net
        fix_positions(net)
        xavier_linears_(net)
        xavier_patch_embed_(net)
        nn.init.normal_(net.cls_token, std=0.02)
        self.side: int = net.patch_embed.patch_size[0]
        grid = net.patch_embed.grid_size
        self.length = grid[0] * grid[1]
        self.keep = int(self.length * (1 - config.mask_ratio))
        self.decoder = Decoder(net.embed_dim, grid, config, 3 * self.side**2)

    def on_step_start(self, progress: Progress) -> None:
        """Which patches of an image are hidden depends on the epoch."""
        self.epoch = progress.epoch

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Section 3: an encoder that never sees the hidden patches, a decoder that sees only where they are."""
        (x,) = batch.views
        draws = Draws(self.seed, self.epoch, batch.index).fold("mae")
        kept = random_masking(draws, self.length, self.keep)
        latent = visible_tokens(self.backbone.net, x, kept.keep)  # N×(1+K)×D
        prediction = self.decoder(latent, kept)  # N×L×3p²
        loss = masked_mse(prediction, targets(x, self.side, self.norm_pix), kept.mask)
        return {"loss": loss, "features": latent[:, 1:].mean(1)}


def views(config: MAEConfig) -> Sequence[View]:
    """One view, cropped and mirrored only (appendix A.1)."""
    crop = RandomResizedCrop(config.size, scale=(config.crop_min, 1.0), interpolation="bicubic")
    return (View((crop, HorizontalFlip(config.flip), Normalize())),)


EXEMPT = (Rule(pattern=NORM_AND_BIAS, weight_decay=0.0), *NO_DECAY)


def _adamw(lr: float, warmup: float, warmup_ratio: float = 0.0) -> Optim:
    return Optim(
        name="adamw", lr=lr, betas=(0.9, 0.95), weight_decay=0.05, warmup=warmup, warmup_ratio=warmup_ratio, rules=EXEMPT
    )


def _vit(
    epochs: int, arch: str = "vit_base_patch16_224", precision: Literal["32", "16"] = "16", ratio: float = 1e-4
) -> MAEConfig:
    """A preset of the model zoo: batch 4096 at 1.5e-4 per 256."""
    return MAEConfig(arch=arch, epochs=epochs, batch=4096, precision=precision, workers=8, optim=_adamw(2.4e-3, 40, ratio))


LARGE, HUGE = "vit_large_patch16_224", "vit_huge_patch14_224"


def _small(side: int, patch: int, width: int, depth: int) -> dict[str, Any]:
    options: dict[str, Any] = {"img_size": side, "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": 4}
    options |= {"global_pool": "avg", "fc_norm": False}
    return {"arch": "vit_tiny_patch16_224", "arch_options": options, "stem": "imagenet"}


_OLD, _NEW = "MMSelfSup 0.x configs/selfsup/mae/README.md", "MMSelfSup 1.x configs/selfsup/mae/metafile.yml"


def _figures(linear: float | None, finetune: float, note: str = "") -> tuple[Published, ...]:
    probe = () if linear is None else (Published("linear/top1", linear, _NEW),)
    return (*probe, Published("finetune/top1", finetune, _NEW, note))


RECIPE = Recipe(
    name="mae",
    title="MAE",
    paper=Paper(
        title="Masked Autoencoders Are Scalable Vision Learners",
        authors="Kaiming He, Xinlei Chen, Saining Xie, Yanghao Li, Piotr Dollár, Ross Girshick",
        venue="CVPR 2022",
        url="https://arxiv.org/abs/2111.06377",
        summary="A transformer encodes the quarter of an image's patches that it is shown. A small decoder, thrown away "
        "afterwards, must predict the pixels of the other three quarters.",
    ),
    method=MAE,
    views=views,
    presets={
        # MMSelfSup 0.x, whose warm-up starts at 0.
        "vit-base-p16_8xb512-coslr-400e_in1k": _vit(400, precision="32", ratio=0.0),
        "vit-base-p16_8xb512-coslr-800e_in1k": _vit(800, precision="32", ratio=0.0),
        "vit-base-p16_8xb512-coslr-1600e_in1k": _vit(1600, precision="32", ratio=0.0),
        "vit-base-p16_8xb512-coslr-400e-fp16_in1k": _vit(400, ratio=0.0),
        # MMSelfSup 1.x.
        "vit-base-p16_8xb512-amp-coslr-300e_in1k": _vit(300),
        "vit-base-p16_8xb512-amp-coslr-400e_in1k": _vit(400),
        "vit-base-p16_8xb512-amp-coslr-800e_in1k": _vit(800, ratio=1e-9),
        "vit-base-p16_8xb512-amp-coslr-1600e_in1k": _vit(1600),
        "vit-large-p16_8xb512-amp-coslr-300e_in1k": _vit(300, LARGE),
        "vit-large-p16_8xb512-amp-coslr-400e_in1k": _vit(400, LARGE),
        "vit-large-p16_8xb512-amp-coslr-800e_in1k": _vit(800, LARGE),
        "vit-large-p16_8xb512-amp-coslr-1600e_in1k": _vit(1600, LARGE),
        # The name says p16, the network has patches of 14 pixels.
        "vit-huge-p16_8xb512-amp-coslr-1600e_in1k": _vit(1600, HUGE),
        "photos": MAEConfig(
            **{**PHOTOS, **_small(96, 8, 192, 6)}, optim=_adamw(1e-3, 5), decoder_dim=96, decoder_depth=2, decoder_heads=4
        ),
        "digits": MAEConfig(
            **{**DIGITS, **_small(32, 4, 96, 3)}, batch=128, epochs=25, optim=_adamw(3e-3, 2),
            decoder_dim=48, decoder_depth=1, decoder_heads=4, flip=0.0, crop_min=0.5,
        ),
        "tiny": MAEConfig(
            **{**TINY, **_small(32, 8, 32, 2)}, optim=_adamw(1e-3, 0), decoder_dim=16, decoder_depth=1,
            decoder_heads=2, flip=0.0,
        ),
    },
    reference={
        "vit-base-p16_8xb512-coslr-400e_in1k": (Published("finetune/top1", 83.1, _OLD),),
        "vit-base-p16_8xb512-amp-coslr-300e_in1k": _figures(60.8, 82.8),
        "vit-base-p16_8xb512-amp-coslr-400e_in1k": _figures(62.5, 83.3),
        "vit-base-p16_8xb512-amp-coslr-800e_in1k": _figures(65.1, 83.3),
        "vit-base-p16_8xb512-amp-coslr-1600e_in1k": (
            *_figures(67.1, 83.5),
            Published("linear/top1", 67.8, "github.com/facebookresearch/mae FINETUNE.md"),
            Published("finetune/top1", 83.6, "github.com/facebookresearch/mae FINETUNE.md"),
        ),
        "vit-large-p16_8xb512-amp-coslr-400e_in1k": _figures(70.7, 85.2),
        "vit-large-p16_8xb512-amp-coslr-800e_in1k": _figures(73.7, 85.4),
        "vit-large-p16_8xb512-amp-coslr-1600e_in1k": _figures(75.5, 85.7),
        "vit-huge-p16_8xb512-amp-coslr-1600e_in1k": _figures(None, 86.9, "87.3 at 448 pixels"),
    },
)  # fmt: skip
