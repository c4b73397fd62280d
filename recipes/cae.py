# SPDX-License-Identifier: Apache-2.0
"""Context Autoencoder for Self-Supervised Representation Learning (CAE).

Xiaokang Chen, Mingyu Ding, Xiaodi Wang, Ying Xin, Shentong Mo, Yunhao Wang, Shumin Han, Ping Luo, Gang Zeng,
Jingdong Wang. IJCV 2024. https://arxiv.org/abs/2202.03026

From the visible patches a regressor predicts the representations of the hidden ones, and a decoder their visual tokens;
the encoder is left with nothing but encoding.

Run: suite run --algo cae --preset vit-base-p16_8xb256-amp-coslr-300e_in1k tokenizer=encoder.pkl --data-root imagenet=DIR
Expected: ImageNet fine-tuning 83.6, linear 64.5 (official, ViT-B, 300 epochs, half of the patches hidden); MMSelfSup 83.3.
Differs: the tokenizer is an input and never fetched. `tokenizer=codebook`, as in `digits`, `tiny` and `photos`, is no dVAE
but k-means over patches of the training pictures. Representations to align with come from the encoder as it is, as in the
paper (MMSelfSup: a copy one step old). All norms are left out of weight decay (MMSelfSup's pattern misses the blocks').
The flip comes after the crop instead of before it, which is the same distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from suite.backbone import Backbone
from suite.draws import Draws
from suite.errors import UsageError
from suite.method import Batch, Method, Progress, TrainSet
from suite.nn.masks import block_mask, visible_and_hidden
from suite.nn.tokenizer import DalleTokenizer, PatchCodebook, Tokenizer, sample_pictures
from suite.nn.vit import fix_positions, visible_tokens, xavier_linears_
from suite.optim import NORM_AND_BIAS
from suite.presets import DIGITS, PHOTOS, TINY
from suite.spec import Config, Optim, Paper, Published, Recipe, Rule
from suite.views import HorizontalFlip, Normalize, RandomResizedCrop, View

NORM: Any = partial(nn.LayerNorm, eps=1e-6)


@dataclass(frozen=True, kw_only=True)
class CAEConfig(Config):
    """Settings of CAE; the defaults are MMSelfSup's, the paper hides 98 patches."""

    tokenizer: str = ""
    "Local file of the published DALL-E encoder, or `codebook`: k-means over patches of the training pictures, a stand-in."
    codes: PositiveInt = 512
    "Tokens of the codebook; the file brings its own number."
    code_side: PositiveInt = 8
    "Pixels per token of the codebook."
    token_size: PositiveInt = 112
    "Side of the view that the tokenizer sees: the same crop as the network's."
    hidden: PositiveInt = 75
    "Patches hidden of every image, in blocks."
    smallest: PositiveInt = 16
    "Least area of a block."
    regressor_depth: PositiveInt = 4
    decoder_depth: PositiveInt = 4
    layer_scale: PositiveFloat = 0.1
    "Of regressor and decoder; the encoder's is `arch_options.init_values`."
    align: NonNegativeFloat = 2.0
    "Weight of the alignment loss."
    crop_min: float = 0.08
    flip: float = 0.5


class RegressorBlock(nn.Module):
    """Cross attention from hidden places to everything, then an MLP (section 3.1, "Latent contextual regressor")."""

    def __init__(self, width: int, heads: int, scale: float) -> None:
        from timm.layers import LayerScale, Mlp

        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_k, self.norm_v, self.norm2 = (NORM(width) for _ in range(4))
        # A bias of the keys would shift all of a query's logits alike.
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.proj, self.mlp = nn.Linear(width, width), Mlp(width, 4 * width)
        self.scale1, self.scale2 = LayerScale(width, scale), LayerScale(width, scale)

    def forward(self, x: Tensor, context: Tensor, at: Tensor, context_at: Tensor) -> Tensor:
        """Queries N×M×D and context N×L×D with their positions -> N×M×D."""
        q = self.q(self.norm_q(x + at))
        k, v = self.k(self.norm_k(context + context_at)), self.v(self.norm_v(context))
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))  # N×heads×·×D/heads
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # N×M×D
        x = self.norm2(x + self.scale1(self.proj(mixed)))
        return x + self.scale2(self.mlp(x))


class Regressor(nn.Module):
    """Representations of hidden patches from those of visible ones."""

    def __init__(self, width: int, heads: int, config: CAEConfig) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(RegressorBlock(width, heads, config.layer_scale) for _ in range(config.regressor_depth))
        self.norm = NORM(width)
        xavier_linears_(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, visible: Tensor, visible_at: Tensor, hidden_at: Tensor) -> Tensor:
        """N×K×D, positions N×K×D and N×M×D -> N×M×D; the visible ones stay as they are."""
        x = self.mask_token.expand(hidden_at.shape)
        everywhere = torch.cat([visible_at, hidden_at], 1)
        for block in self.blocks:
            x = block(x, torch.cat([visible, x], 1), hidden_at, everywhere)
        return self.norm(x)


class Decoder(nn.Module):
    """Visual tokens of hidden patches from their predicted representations alone."""

    def __init__(self, width: int, heads: int, config: CAEConfig, vocabulary: int) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        one = partial(Block, width, heads, qkv_bias=True, init_values=config.layer_scale, norm_layer=NORM)
        self.blocks = nn.Sequential(*(one() for _ in range(config.decoder_depth)))
        self.norm, self.head = NORM(width), nn.Linear(width, vocabulary)
        xavier_linears_(self)
        nn.init.trunc_normal_(self.head.weight, std=0.02)

    def forward(self, z: Tensor, at: Tensor) -> Tensor:
        """N×M×D and positions -> logits N×M×V."""
        return self.head(self.norm(self.blocks(z + at)))


def losses(logits: Tensor, tokens: Tensor, z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of the tokens, squared error of the representations (eq. 1's two terms), means over hidden patches.

    Args:
        logits: N×M×V.
        tokens: N×M int64.
        z: N×M×D predicted representations.
        target: N×M×D the encoder's, without gradient.
    """
    main = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
    return main, F.mse_loss(z.float(), target.float())


class CAE(Method):
    """Z_v = F(X_v); Z_m = H(Z_v); tokens of X_m from G(Z_m), and Z_m near F(X_m)."""

    def __init__(self, config: CAEConfig, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        self.config, self.seed, self.epoch = config, data.seed, 0
        net = backbone.net
        fix_positions(net, first="row")
        xavier_linears_(net)
        nn.init.trunc_normal_(net.patch_embed.proj.weight, std=0.02)
        nn.init.zeros_(net.patch_embed.proj.bias)
        nn.init.trunc_normal_(net.cls_token, std=0.02)
        self.grid: tuple[int, int] = net.patch_embed.grid_size
        self.tokenizer = tokenizer(config, data)
        if config.token_size != self.grid[0] * self.tokenizer.stride:
            stride = self.tokenizer.stride
            raise UsageError(
                f"token_size {config.token_size} must be {self.grid[0]} patches x {stride} pixels per token = "
                f"{self.grid[0] * stride}"
            )
        width, heads = net.embed_dim, net.blocks[0].attn.num_heads
        self.regressor = Regressor(width, heads, config)
        self.decoder = Decoder(width, heads, config, self.tokenizer.vocabulary)

    def on_step_start(self, progress: Progress) -> None:
        """Which patches of an image are hidden depends on the epoch."""
        self.epoch = progress.epoch

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Section 3.1 and eq. 1."""
        x, pixels = batch.views
        net, config = self.backbone.net, self.config
        draws = Draws(self.seed, self.epoch, batch.index).fold("cae")
        mask = block_mask(draws, *self.grid, config.hidden, config.smallest)  # N×h×w
        visible, hidden = visible_and_hidden(mask.flatten(1), config.hidden)  # N×K, N×M
        z_v = visible_tokens(net, x, visible)[:, 1:]  # N×K×D
        # After the pass with gradient: older torch reuses weights that autocast has cast, and those cast here have none.
        with torch.no_grad():
            target = visible_tokens(net, x, hidden)[:, 1:]  # N×M×D
        at = net.pos_embed[0, 1:]  # L×D
        z_m = self.regressor(z_v, at[visible], at[hidden])  # N×M×D
        logits = self.decoder(z_m, at[hidden])  # N×M×V
        main, align = losses(logits, self.tokenizer(pixels).gather(1, hidden), z_m, target)
        return {"loss": main + config.align * align, "main": main, "align": align, "features": z_v.mean(1)}


def tokenizer(config: CAEConfig, data: TrainSet) -> Tokenizer:
    """The published tokenizer from the user's file, or the codebook of this data.

    Raises:
        UsageError: no file given, or one that is missing or something else.
    """
    if config.tokenizer == "codebook":
        pictures = sample_pictures(data.images, config.token_size, seed=data.seed)
        return PatchCodebook(config.codes, config.code_side).fit(pictures, seed=data.seed)
    if not config.tokenizer:
        raise UsageError(
            "cae needs tokenizer=FILE, the DALL-E encoder (encoder.pkl or its state dict) on your disk, "
            "or tokenizer=codebook, k-means over patches of the training pictures"
        )
    return DalleTokenizer.load(Path(config.tokenizer))


def views(config: CAEConfig) -> Sequence[View]:
    """One crop at two sizes: for the network, and in plain [0, 1] for the tokenizer."""
    scale, flip = (config.crop_min, 1.0), HorizontalFlip(config.flip)
    return (
        View((RandomResizedCrop(config.size, scale, interpolation="bicubic"), flip, Normalize())),
        View((RandomResizedCrop(config.token_size, scale, interpolation="lanczos"), flip), like=0),
    )


EXEMPT = (Rule(pattern=NORM_AND_BIAS, weight_decay=0.0),)


def _adamw(lr: float, warmup: float, **more: Any) -> Optim:
    return Optim(name="adamw", lr=lr, weight_decay=0.05, warmup=warmup, min_lr=1e-5, clip=3.0, rules=EXEMPT, **more)


def _vit(warmup_ratio: float = 0.0) -> CAEConfig:
    """A preset of the model zoo: ViT-B/16, batch 2048."""
    return CAEConfig(
        arch="vit_base_patch16_224", arch_options={"init_values": 0.1}, epochs=300, batch=2048, precision="16", workers=8,
        optim=_adamw(1.5e-3, 10, warmup_ratio=warmup_ratio),
    )  # fmt: skip


def _small(side: int, patch: int, width: int, depth: int) -> dict[str, Any]:
    options = {
        "img_size": side, "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": 4, "init_values": 0.1,
        "global_pool": "avg", "fc_norm": False,
    }  # fmt: skip
    stand_in = {"tokenizer": "codebook", "token_size": side, "code_side": patch}
    return {"arch": "vit_tiny_patch16_224", "arch_options": options, "stem": "imagenet", **stand_in}


RECIPE = Recipe(
    name="cae",
    title="CAE",
    paper=Paper(
        title="Context Autoencoder for Self-Supervised Representation Learning",
        authors="Xiaokang Chen, Mingyu Ding, Xiaodi Wang, Ying Xin, Shentong Mo, Yunhao Wang, Shumin Han, Ping Luo, "
        "Gang Zeng, Jingdong Wang",
        venue="IJCV 2024",
        url="https://arxiv.org/abs/2202.03026",
        summary="From the representations of an image's visible patches a regressor predicts those of the hidden ones, and a "
        "decoder turns the predictions into visual tokens. Encoding and solving the task are separate. On the small presets "
        "the tokens come from a k-means codebook of patches instead of a trained dVAE.",
    ),
    method=CAE,
    views=views,
    presets={
        # MMSelfSup 0.x, whose warm-up starts at 0, and 1.x.
        **{f"vit-base-p16_{devices}-fp16-coslr-300e_in1k": _vit() for devices in ("32xb64", "16xb128", "8xb256")},
        **{f"vit-base-p16_{devices}-amp-coslr-300e_in1k": _vit(1e-4) for devices in ("32xb64", "16xb128", "8xb256")},
        "photos": CAEConfig(
            **{**PHOTOS, **_small(96, 8, 192, 6)}, optim=_adamw(1e-3, 5), hidden=55, regressor_depth=2, decoder_depth=2
        ),
        "digits": CAEConfig(
            **{**DIGITS, **_small(32, 4, 64, 4)}, batch=128, epochs=15, optim=_adamw(2e-3, 2), codes=128, hidden=24,
            smallest=4, regressor_depth=1, decoder_depth=1, flip=0.0, crop_min=0.5,
        ),
        "tiny": CAEConfig(
            **{**TINY, **_small(32, 8, 32, 2)}, optim=_adamw(1e-3, 0), codes=16, hidden=6, smallest=2, regressor_depth=1,
            decoder_depth=1, flip=0.0,
        ),
    },
    reference={
        "vit-base-p16_8xb256-fp16-coslr-300e_in1k": (
            Published("finetune/top1", 83.2, "MMSelfSup 0.x configs/selfsup/cae/metafile.yml"),
        ),
        "vit-base-p16_8xb256-amp-coslr-300e_in1k": (
            Published("finetune/top1", 83.3, "MMSelfSup 1.x docs/en/model_zoo.md"),
            Published("finetune/top1", 83.6, "github.com/Atten4Vis/CAE README", "hides 98 of 196 patches"),
            Published("linear/top1", 64.5, "github.com/Atten4Vis/CAE README", "hides 98 of 196 patches"),
        ),
    },
)  # fmt: skip
