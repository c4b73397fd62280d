# SPDX-License-Identifier: Apache-2.0
"""CAE: loss against the paper in float64, regressor and decoder against loops over the paper's formulas, targets, tokenizers.

No installable package has CAE; attention is compared with torch's own MultiheadAttention.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from recipes.cae import RECIPE, Decoder, Regressor, RegressorBlock, losses
from suite import config as configs
from suite import optim
from suite.draws import Draws
from suite.errors import UsageError
from suite.nn.masks import block_mask, visible_and_hidden
from suite.nn.position import sincos_2d
from suite.nn.tokenizer import DalleTokenizer, PatchCodebook
from suite.nn.vit import visible_tokens
from suite.testing import build, trainer
from tests.equations import Claim, both, randn

EQUATION_1 = Claim("cae", "eq. 1: cross entropy of tokens, squared error of representations")
PAPER = "vit-base-p16_8xb256-amp-coslr-300e_in1k"


def tiny(*assignments):
    return configs.override(RECIPE.presets["tiny"], list(assignments))


def naive(logits, tokens, z, target, weight):
    """Eq. 1, one hidden patch at a time."""
    main = align = 0.0
    for i in range(len(logits)):
        for j in range(logits.shape[1]):
            p = torch.exp(logits[i, j]) / torch.exp(logits[i, j]).sum()
            main = main - torch.log(p[tokens[i, j]])
            align = align + ((z[i, j] - target[i, j]) ** 2).sum() / z.shape[2]
    return (main + weight * align) / tokens.numel()


@pytest.mark.parametrize(("n", "m", "d", "v", "scale"), [(3, 4, 5, 7, 1.0), (1, 1, 3, 4, 10.0), (2, 6, 8, 50, 0.01)])
def test_loss_is_equation_1(ledger, n, m, d, v, scale):
    tokens = torch.randint(v, (n, m), generator=torch.Generator().manual_seed(4))
    (l32, l64), (z32, z64) = both(randn(n, m, v) * scale), both(randn(n, m, d, seed=1) * scale)
    target = randn(n, m, d, seed=2)
    main, align = losses(l32, tokens, z32, target.float())
    ledger.agree(EQUATION_1, main + 2 * align, naive(l64, tokens, z64, target, 2), [l32, z32], [l64, z64])


def test_loss_at_chance_is_the_logarithm_of_the_vocabulary():
    main, align = losses(torch.zeros(2, 3, 8192), torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, 4), torch.ones(2, 3, 4))
    assert main.item() == pytest.approx(math.log(8192), rel=1e-6) and align.item() == 0


def test_half_precision_inputs_accumulate_in_float32():
    tokens, z, target = torch.arange(6).view(2, 3), randn(2, 3, 64).float(), randn(2, 3, 64, seed=1).float()
    logits = randn(2, 3, 512, seed=2).float()
    exact = losses(logits, tokens, z, target)
    rough = losses(logits.bfloat16(), tokens, z.bfloat16(), target.bfloat16())
    for a, b in zip(rough, exact, strict=True):
        assert a.dtype == torch.float32 and a.item() == pytest.approx(b.item(), rel=1e-2)


def test_regressor_block_is_cross_attention():
    """norm2(x + scale·attention(norm_q(x + p), norm_k(c + p_c), norm_v(c))), then an MLP on top of that."""
    torch.manual_seed(0)
    block, (x, context) = RegressorBlock(8, 2, 0.3), (randn(2, 3, 8).float(), randn(2, 5, 8, seed=1).float())
    for p in block.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    at, context_at = randn(2, 3, 8, seed=2).float(), randn(2, 5, 8, seed=3).float()
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    attention.in_proj_weight.data = torch.cat([block.q.weight, block.k.weight, block.v.weight])
    attention.in_proj_bias.data = torch.cat([block.q.bias, torch.zeros(8), block.v.bias])
    attention.out_proj.load_state_dict(block.proj.state_dict())
    mixed, _ = attention(block.norm_q(x + at), block.norm_k(context + context_at), block.norm_v(context))
    y = block.norm2(x + block.scale1.gamma * mixed)
    hidden = F.gelu(block.mlp.fc1(y))
    torch.testing.assert_close(block(x, context, at, context_at), y + block.scale2.gamma * block.mlp.fc2(hidden))


def test_regressor_changes_the_hidden_stream_only_and_sees_both():
    """The visible representations enter every block unchanged; queries see hidden ones of the block before."""
    torch.manual_seed(0)
    regressor = Regressor(8, 2, tiny("regressor_depth=2"))
    visible, visible_at, hidden_at = randn(1, 3, 8).float(), randn(1, 3, 8, seed=1).float(), randn(1, 2, 8, seed=2).float()
    first, second = regressor.blocks
    x = regressor.mask_token.expand(1, 2, 8)
    places = torch.cat([visible_at, hidden_at], 1)
    x = first(x, torch.cat([visible, x], 1), hidden_at, places)
    x = second(x, torch.cat([visible, x], 1), hidden_at, places)
    torch.testing.assert_close(regressor(visible, visible_at, hidden_at), regressor.norm(x))


def test_decoder_sees_predicted_representations_and_places_alone():
    torch.manual_seed(0)
    decoder, z, at = Decoder(8, 2, tiny("decoder_depth=2"), 11), randn(2, 3, 8).float(), randn(2, 3, 8, seed=1).float()
    y = z + at
    for block in decoder.blocks:
        y = y + block.ls1(block.attn(block.norm1(y)))
        y = y + block.ls2(block.mlp(block.norm2(y)))
    torch.testing.assert_close(decoder(z, at), decoder.head(decoder.norm(y)))
    assert decoder(z, at).shape == (2, 3, 11)


def test_forward_is_the_papers(digits):
    """Written out with the blocks above: who sees which patches, and what is compared."""
    method = build(RECIPE, tiny(), digits)
    fresh = trainer(RECIPE, tiny(), digits)
    batch = next(fresh.loader.epoch(0))
    values = method(batch)
    mask = block_mask(Draws(0, 0, batch.index).fold("cae"), 4, 4, 6, 2)
    visible, hidden = visible_and_hidden(mask.flatten(1), 6)
    net, at = method.backbone.net, method.backbone.net.pos_embed[0, 1:]
    z_m = method.regressor(visible_tokens(net, batch.views[0], visible)[:, 1:], at[visible], at[hidden])
    target = visible_tokens(net, batch.views[0], hidden)[:, 1:]
    book = method.tokenizer(batch.views[1])
    tokens = torch.stack([book[i, hidden[i]] for i in range(len(book))])
    main, align = losses(method.decoder(z_m, at[hidden]), tokens, z_m, target)
    assert values["main"].item() == pytest.approx(main.item(), rel=1e-6)
    assert values["align"].item() == pytest.approx(align.item(), rel=1e-5)
    assert values["loss"].item() == pytest.approx(main.item() + 2 * align.item(), rel=1e-5)
    assert values["main"].item() == pytest.approx(math.log(16), abs=0.3)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_targets_have_no_gradient_and_the_encoder_has(digits, precision):
    """Also under autocast, which in older torch loses it if the pass without gradient comes first."""
    some = trainer(RECIPE, tiny(f'precision="{precision}"', "align=0.0"), digits)
    some.method.train()
    some.fabric.backward(some.model(next(some.loader.epoch(0)))["loss"])
    for name, p in some.method.backbone.named_parameters():
        if p.requires_grad and "cls_token" not in name:
            assert p.grad is not None and p.grad.abs().max() > 0, name
    assert not any(p.requires_grad for p in some.method.tokenizer.parameters())


def test_alignment_alone_reaches_regressor_and_encoder_but_not_the_decoder(digits):
    some = trainer(RECIPE, tiny(), digits)
    some.method(next(some.loader.epoch(0)))["align"].backward()
    assert some.method.regressor.mask_token.grad.abs().max() > 0
    assert some.method.backbone.net.blocks[0].attn.qkv.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in some.method.decoder.parameters())


def test_both_views_are_one_crop(digits):
    """The tokenizer's picture is the network's, in [0, 1] and at its own size."""
    some = trainer(RECIPE, tiny("token_size=16", "code_side=4", "flip=0.5"), digits)
    x, pixels = next(some.loader.epoch(0)).views
    assert pixels.shape[2:] == (16, 16) and pixels.min() >= 0 and pixels.max() <= 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    plain = x * std[:, None, None] + mean[:, None, None]
    small = F.avg_pool2d(plain, 2)
    assert (small - pixels).abs().mean() < 0.02
    assert (small - pixels.flip(3)).abs().mean() > 0.04  # the comparison can tell a mirrored picture


def test_the_model_zoos_shapes():
    config = RECIPE.presets[PAPER]
    first, second = RECIPE.views(config)
    assert [type(op).__name__ for op in first.ops] == ["RandomResizedCrop", "HorizontalFlip", "Normalize"]
    assert [type(op).__name__ for op in second.ops] == ["RandomResizedCrop", "HorizontalFlip"] and second.like == 0
    assert [(view.size, view.ops[0].interpolation) for view in (first, second)] == [(224, "bicubic"), (112, "lanczos")]
    with torch.device("meta"):
        assert config.token_size == 14 * DalleTokenizer().stride
    mask = block_mask(Draws(0, 0, torch.arange(20)), 14, 14, config.hidden, config.smallest)
    assert (mask.sum((1, 2)) == 75).all()


def test_initialisation_and_layer_scale(digits):
    net = build(RECIPE, tiny("arch_options.embed_dim=192"), digits).backbone.net
    assert (net.blocks[0].ls1.gamma == 0.1).all() and (net.blocks[1].ls2.gamma == 0.1).all()
    assert net.blocks[0].attn.qkv.weight.abs().max().item() == pytest.approx((6 / (4 * 192)) ** 0.5, rel=1e-2)
    assert torch.equal(net.pos_embed[0], sincos_2d(4, 4, 192, first="row", class_tokens=1)) and not net.pos_embed.requires_grad
    for weight in (net.patch_embed.proj.weight, net.cls_token):
        assert weight.std().item() == pytest.approx(0.02, rel=0.25)
    assert not net.patch_embed.proj.bias.any()


def test_norms_biases_and_scales_are_not_decayed(digits):
    method = build(RECIPE, tiny(), digits)
    names = {id(p): name for name, p in method.named_parameters()}
    groups = method.param_groups(RECIPE.presets[PAPER].optim)
    free = {names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert free == {name for name, p in method.named_parameters() if p.ndim <= 1 and p.requires_grad}
    assert {"backbone.net.blocks.0.norm1.weight", "backbone.net.blocks.0.ls1.gamma", "decoder.head.bias"} <= free


def test_schedule_of_the_model_zoo():
    per, total = 625, 625 * 300
    for name, start in ((PAPER, 1.5e-7), ("vit-base-p16_8xb256-fp16-coslr-300e_in1k", 0.0)):
        rates = [optim.rate(RECIPE.presets[name].optim, epoch * per, per, total) for epoch in (0, 10, 155, 300)]
        assert rates == pytest.approx([start, 1.5e-3, 7.55e-4, 1e-5])


def test_codebook_is_learned_from_the_training_pictures_and_saved(digits):
    first, second = (build(RECIPE, tiny(), digits).tokenizer for _ in range(2))
    assert isinstance(first, PatchCodebook) and first.title == "k-means patch codebook"
    assert torch.equal(first.codes, second.codes) and first.codes.shape == (16, 3 * 8 * 8) and first.codes.std() > 0.01
    assert "tokenizer.codes" in build(RECIPE, tiny(), digits).state_dict()


def test_the_published_tokenizer_comes_from_a_file(digits, tmp_path):
    encoder = DalleTokenizer(8, 24)
    for i, p in enumerate(encoder.parameters()):
        p.copy_(randn(*p.shape, seed=i) * 0.2)
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    some = trainer(RECIPE, tiny(f'tokenizer="{tmp_path / "encoder.pth"}"'), digits)
    batch = next(some.loader.epoch(0))
    assert isinstance(some.method.tokenizer, DalleTokenizer) and some.method.decoder.head.out_features == 24
    assert torch.equal(some.method.tokenizer(batch.views[1]), encoder(batch.views[1]))
    before = {name: p.clone() for name, p in some.method.tokenizer.named_parameters()}
    some._step(0, iter([batch]))
    assert all(torch.equal(p, before[name]) for name, p in some.method.tokenizer.named_parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": ""}, r"cae needs tokenizer=FILE.*tokenizer=codebook"),
        ({"tokenizer": "nowhere/encoder.pkl"}, r"'nowhere/encoder.pkl' does not exist"),
        ({"token_size": 40}, "token_size 40 must be 4 patches x 8 pixels per token = 32"),
        ({"arch": "resnet18", "arch_options": {}}, "vision transformer"),
        ({"hidden": 16}, "16 hidden patches of 4x4"),
    ],
)
def test_what_does_not_fit_is_one_line(digits, changes, message):
    config = dataclasses.replace(tiny(), **changes)
    with pytest.raises(UsageError, match=message) as caught:
        some = trainer(RECIPE, config, digits)
        some.method(next(some.loader.epoch(0)))
    assert "\n" not in str(caught.value)


def test_paper_presets_name_no_tokenizer():
    """It is the user's to give; nothing is fetched."""
    assert all(config.tokenizer == "" for name, config in RECIPE.presets.items() if name.endswith("_in1k"))
