# SPDX-License-Identifier: Apache-2.0
"""SimMIM: A Simple Framework for Masked Image Modeling.

Zhenda Xie, Zheng Zhang, Yue Cao, Yutong Lin, Jianmin Bao, Zhuliang Yao, Qi Dai, Han Hu. CVPR 2022.
https://arxiv.org/abs/2111.09886

Large patches of an image are covered by a learned token; one linear layer on top of the network must predict their pixels.

Run: suite run --algo simmim --preset swin-base_16xb128-amp-coslr-800e_in1k-192 --data-root imagenet=DIR
Expected: ImageNet fine-tuning of Swin-B 82.8 (official, 100 epochs, 192 pixels), 84.0 (800 epochs); MMSelfSup 82.7 and 83.8.
Differs: stochastic depth 0.1 in the Swin presets, as in MMSelfSup (official: none before fine-tuning). The ViT preset has
the official settings; its pooled features are the mean of the normalised patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from suite.backbone import Backbone
from suite.draws import Draws
from suite.method import Batch, Method, Progress, TrainSet
from suite.nn.masks import hidden_patches, masked_l1, simmim_mask
from suite.optim import NORM_AND_BIAS
from suite.presets import DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe, Rule
from suite.views import HorizontalFlip, Normalize, RandomResizedCrop, View


@dataclass(frozen=True, kw_only=True)
class SimMIMConfig(Config):
    """Settings of SimMIM; the defaults are the paper's."""

    block: PositiveInt = 32
    "Side in pixels of what is hidden together."
    mask_ratio: PositiveFloat = 0.6
    crop_min: float = 0.67
    flip: float = 0.5


class SimMIM(Method):
    """Encode the image with covered patches, predict all pixels, compare the covered ones."""

    def __init__(self, config: SimMIMConfig, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        self.block, self.ratio, self.seed, self.epoch = config.block, config.mask_ratio, data.seed, 0
        self.patch: int = backbone.net.patch_embed.patch_size[0]
        stride = backbone.strides[-1]
        self.mask_token = nn.Parameter(torch.empty(1, 1, backbone.stage_dims[0]))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.decoder = nn.Sequential(nn.Conv2d(backbone.dim, 3 * stride**2, 1), nn.PixelShuffle(stride))

    def on_step_start(self, progress: Progress) -> None:
        """Which patches of an image are hidden depends on the epoch."""
        self.epoch = progress.epoch

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Section 3: raw pixels of the masked area by a one-layer head, under an l1 loss."""
        (x,) = batch.views
        draws = Draws(self.seed, self.epoch, batch.index).fold("simmim")
        mask = simmim_mask(draws, x.shape[-1], self.block, self.patch, self.ratio)  # N×h×w
        with hidden_patches(self.backbone.net, mask, self.mask_token):
            z = last_map(self.backbone.net, x)  # N×D×h'×w'
        prediction = self.decoder(z)  # N×3×H×W
        return {"loss": masked_l1(prediction, x, mask), "features": z.mean((2, 3))}


def last_map(net: Any, x: Tensor) -> Tensor:
    """What a timm Swin or ViT makes of N×3×H×W after its last norm, without class token: N×D×h×w."""
    z = net.forward_features(x)
    if z.ndim == 4:
        return z.permute(0, 3, 1, 2)  # Swin gives N×h×w×D
    return z[:, net.num_prefix_tokens :].transpose(1, 2).unflatten(2, net.patch_embed.grid_size)


def views(config: SimMIMConfig) -> Sequence[View]:
    """One view, cropped lightly and mirrored (section 4.1)."""
    crop = RandomResizedCrop(config.size, scale=(config.crop_min, 1.0))
    return (View((crop, HorizontalFlip(config.flip), Normalize())),)


EXEMPT = (Rule(pattern=NORM_AND_BIAS, weight_decay=0.0), Rule(pattern="relative_position_bias_table", weight_decay=0.0))


def _adamw(lr: float, warmup: float = 10, warmup_ratio: float = 0.0, **more: Any) -> Optim:
    return Optim(
        name="adamw", lr=lr, weight_decay=0.05, warmup=warmup, warmup_ratio=warmup_ratio, clip=5.0, rules=EXEMPT, **more
    )  # fmt: skip


COSINE_OLD = _adamw(8e-4, warmup_ratio=5e-3, min_lr=4e-5, shift=False)
COSINE = _adamw(8e-4, warmup_ratio=5e-3, min_lr=4e-5)
STEP = _adamw(4e-4, warmup_ratio=5e-3, schedule="step", milestones=(700,))


def _swin(optim: Optim, epochs: int = 100, size: Literal["base", "large"] = "base", window: int = 6) -> SimMIMConfig:
    """A preset of the model zoo: batch 2048, 192 pixels."""
    return SimMIMConfig(
        arch=f"swin_{size}_patch4_window7_224", size=192, epochs=epochs, batch=2048, precision="16", workers=8, optim=optim,
        arch_options={"img_size": 192, "window_size": window, "drop_path_rate": 0.1},
    )  # fmt: skip


# The official ViT: BEiT's blocks (layer scale, no bias for keys) with one table of relative positions for all.
VIT: dict[str, Any] = {
    "arch": "beit_base_patch16_224",
    "arch_options": {
        "use_abs_pos_emb": False, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "init_values": 0.1,
        "drop_path_rate": 0.1, "use_fc_norm": False,
    },
}  # fmt: skip


def _small(side: int, patch: int, width: int, *depths: int) -> dict[str, Any]:
    heads = [2 * 2**stage for stage in range(len(depths))]
    options = {
        "img_size": side, "patch_size": patch, "embed_dim": width, "depths": list(depths), "num_heads": heads,
        "window_size": 4, "drop_path_rate": 0.0,
    }  # fmt: skip
    return {"arch": "swin_tiny_patch4_window7_224", "arch_options": options, "stem": "imagenet"}


_ZOO = "MMSelfSup 1.x configs/selfsup/simmim/metafile.yml"
_OFFICIAL = "github.com/microsoft/SimMIM README"

RECIPE = Recipe(
    name="simmim",
    title="SimMIM",
    paper=Paper(
        title="SimMIM: A Simple Framework for Masked Image Modeling",
        authors="Zhenda Xie, Zheng Zhang, Yue Cao, Yutong Lin, Jianmin Bao, Zhuliang Yao, Qi Dai, Han Hu",
        venue="CVPR 2022",
        url="https://arxiv.org/abs/2111.09886",
        summary="Large patches of an image are covered by a learned token, and one linear layer on top of the network must "
        "predict their raw pixels. It works for windowed and for plain transformers.",
    ),
    method=SimMIM,
    views=views,
    presets={
        # MMSelfSup 0.x, whose cosine runs under the warm-up.
        "swin-base_16xb128-coslr-100e_in1k-192": _swin(COSINE_OLD),
        "swin-base_8xb256-coslr-100e_in1k-192": _swin(COSINE_OLD),
        # MMSelfSup 1.x; the names say coslr, the long runs have one step.
        "swin-base_16xb128-amp-coslr-100e_in1k-192": _swin(COSINE),
        "swin-base_8xb256-amp-coslr-100e_in1k-192": _swin(COSINE),
        "swin-base_16xb128-amp-coslr-800e_in1k-192": _swin(STEP, 800),
        "swin-large_16xb128-amp-coslr-800e_in1k-192": _swin(STEP, 800, "large", 12),
        # The official repository's simmim_pretrain__vit_base__img224__800ep.
        "vit-base-p16_16xb128-amp-steplr-800e_in1k": SimMIMConfig(
            **VIT, epochs=800, batch=2048, precision="16", workers=8, optim=STEP
        ),
        "photos": SimMIMConfig(**{**PHOTOS, **_small(96, 4, 64, 2, 2, 4)}, optim=_adamw(1e-3, 5), block=16),
        "digits": SimMIMConfig(
            **{**DIGITS, **_small(32, 4, 48, 2, 4)}, batch=128, epochs=20, optim=_adamw(3e-3, 2), block=8, flip=0.0,
            crop_min=0.5,
        ),
        "tiny": SimMIMConfig(**{**TINY, **_small(32, 4, 16, 1, 1)}, optim=_adamw(1e-3, 0), block=8, flip=0.0),
    },
    reference={
        "swin-base_16xb128-coslr-100e_in1k-192": (Published("finetune/top1", 82.8, _OFFICIAL, "at 192 pixels"),),
        "swin-base_8xb256-coslr-100e_in1k-192": (
            Published("finetune/top1", 82.9, "MMSelfSup 0.x configs/selfsup/simmim/README.md", "at 192 pixels"),
            Published("finetune/top1", 83.5, "MMSelfSup 0.x configs/selfsup/simmim/README.md", "at 224 pixels"),
        ),
        "swin-base_8xb256-amp-coslr-100e_in1k-192": (
            Published("finetune/top1", 82.7, _ZOO, "at 192 pixels"),
            Published("finetune/top1", 83.5, _ZOO, "at 224 pixels"),
        ),
        "swin-base_16xb128-amp-coslr-800e_in1k-192": (
            Published("finetune/top1", 83.8, _ZOO, "at 224 pixels"),
            Published("finetune/top1", 84.0, _OFFICIAL, "at 224 pixels"),
        ),
        "swin-large_16xb128-amp-coslr-800e_in1k-192": (Published("finetune/top1", 84.8, _ZOO, "at 224 pixels"),),
        "vit-base-p16_16xb128-amp-steplr-800e_in1k": (Published("finetune/top1", 83.8, _OFFICIAL),),
    },
)  # fmt: skip
