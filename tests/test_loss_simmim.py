# SPDX-License-Identifier: Apache-2.0
"""SimMIM: loss against the paper in float64 and torch's l1_loss, masks, what the network sees, both kinds of network."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch

from recipes.simmim import RECIPE, VIT, SimMIM, last_map
from suite import config as configs
from suite import optim
from suite.backbone import Backbone
from suite.draws import Draws
from suite.method import TrainSet
from suite.nn.masks import hidden_patches, masked_l1, simmim_mask, upsample
from suite.testing import build, check_recipe, trainer
from tests.equations import Claim, both, randn

MASKED_L1 = Claim("simmim", "eq. 1: l1 error of hidden pixels", "torch l1_loss of the hidden pixels")
SWIN = "swin-base_16xb128-amp-coslr-100e_in1k-192"
BEIT = {**VIT["arch_options"], "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


@pytest.fixture(scope="module")
def tiny_vit():
    changes = {"arch": VIT["arch"], "arch_options": BEIT, "block": 16}
    return dataclasses.replace(RECIPE.presets["tiny"], **changes)


def masks(n, size, block, stride, ratio=0.6):
    return simmim_mask(Draws(0, 0, torch.arange(n)), size, block, stride, ratio)


def naive(prediction, x, mask):
    """Eq. 1: the masked pixels' absolute errors over their number, pixel by pixel."""
    side, total, count = x.shape[3] // mask.shape[2], 0.0, 0
    for i in range(len(x)):
        for row in range(x.shape[2]):
            for column in range(x.shape[3]):
                if mask[i, row // side, column // side]:
                    total = total + (prediction[i, :, row, column] - x[i, :, row, column]).abs().sum()
                    count += 3
    return total / count


@pytest.mark.parametrize(
    ("n", "size", "block", "stride", "scale"), [(3, 16, 8, 4, 1.0), (1, 8, 4, 2, 50.0), (2, 16, 4, 4, 1e-2)]
)
def test_loss_is_equation_1(ledger, n, size, block, stride, scale):
    x, mask = randn(n, 3, size, size, seed=1), masks(n, size, block, stride)
    p32, p64 = both(randn(n, 3, size, size) * scale)
    ours = masked_l1(p32, x.float(), mask)
    ledger.agree(MASKED_L1, ours, naive(p64, x, mask), [p32], [p64])
    pixels = upsample(mask, size // mask.shape[1])[:, None].expand(-1, 3, -1, -1)
    ledger.independent(MASKED_L1, ours, torch.nn.functional.l1_loss(p32[pixels], x.float()[pixels]))
    assert (p32.grad[~pixels] == 0).all() and (p32.grad[pixels] != 0).all()


def test_a_perfect_prediction_costs_nothing():
    x = randn(4, 3, 16, 16).float()
    assert masked_l1(x, x, masks(4, 16, 8, 4)).item() == 0


def test_half_precision_predictions_accumulate_in_float32():
    prediction, x, mask = randn(4, 3, 16, 16).float(), randn(4, 3, 16, 16, seed=1).float(), masks(4, 16, 8, 4)
    rough = masked_l1(prediction.bfloat16(), x, mask)
    assert rough.dtype == torch.float32 and rough.item() == pytest.approx(masked_l1(prediction, x, mask).item(), rel=1e-2)


def test_22_of_36_blocks_are_hidden_on_a_grid_of_48():
    config = RECIPE.presets[SWIN]
    mask = masks(5, config.size, config.block, 4, config.mask_ratio)
    assert mask.shape == (5, 48, 48) and (mask[:, ::8, ::8].sum((1, 2)) == 22).all()
    assert torch.equal(mask, upsample(mask[:, ::8, ::8], 8))


@pytest.mark.parametrize("kind", ["swin", "vit"])
def test_network_never_sees_a_covered_pixel(digits, tiny_vit, kind):
    """And what it makes of the picture without a mask is what an evaluation sees."""
    method = build(RECIPE, tiny_vit if kind == "vit" else RECIPE.presets["tiny"], digits).eval()
    x = randn(2, 3, 32, 32).float()
    mask = masks(2, 32, method.block, method.patch)
    covered = upsample(mask, method.patch)[:, None]
    net = method.backbone.net
    with hidden_patches(net, mask, method.mask_token):
        first, second = last_map(net, x), last_map(net, torch.where(covered, 7.0, x))
    torch.testing.assert_close(first, second)
    plain = last_map(net, x)
    assert not torch.allclose(plain, first)
    torch.testing.assert_close(plain.mean((2, 3)), method.backbone(x), rtol=1e-4, atol=1e-5)


def test_decoder_is_one_layer_and_its_pixels_lie_where_they_belong(digits):
    """A map position's output fills its own stride×stride square, channel by channel, row by row."""
    method = build(RECIPE, RECIPE.presets["tiny"], digits)
    conv, shuffle = method.decoder
    assert conv.kernel_size == (1, 1) and conv.out_channels == 3 * 8**2 and shuffle.upscale_factor == 8
    z = randn(1, method.backbone.dim, 4, 4).float()
    flat, picture = conv(z), method.decoder(z)
    assert picture.shape == (1, 3, 32, 32)
    assert torch.equal(picture[0, :, 8:16, 16:24].reshape(-1), flat[0, :, 1, 2])


def test_swin_b_has_the_papers_shapes():
    config = RECIPE.presets[SWIN]
    options = {**config.arch_options, "depths": (2, 2, 2, 2)}
    backbone = Backbone(config.arch, options)
    net = backbone.net
    assert (backbone.stage_dims, backbone.strides[-1]) == ((128, 256, 512, 1024), 32)
    assert [stage.blocks[0].attn.num_heads for stage in net.layers] == [4, 8, 16, 32]
    assert [stage.blocks[1].window_size for stage in net.layers] == [(6, 6)] * 4
    assert [stage.blocks[1].shift_size for stage in net.layers] == [(3, 3)] * 3 + [(0, 0)]  # 6×6 is one window
    method = SimMIM(config, backbone, TrainSet([]))
    assert method.decoder[0].weight.shape == (3072, 1024, 1, 1)
    with torch.device("meta"):
        full = timm.create_model(config.arch, num_classes=0, **config.arch_options)
    assert [len(stage.blocks) for stage in full.layers] == [2, 2, 18, 2]


def test_the_vit_is_the_official_one():
    with torch.device("meta"):
        net = timm.create_model(VIT["arch"], num_classes=0, **VIT["arch_options"])
    assert net.pos_embed is None and net.rel_pos_bias.relative_position_bias_table.shape == (27 * 27 + 3, 12)
    assert net.blocks[0].attn.relative_position_bias_table is None and net.blocks[0].gamma_1.shape == (768,)
    assert {"q_bias", "v_bias"} <= dict(net.blocks[0].attn.named_parameters()).keys()
    assert isinstance(net.norm, torch.nn.LayerNorm) and len(net.blocks) == 12


@pytest.mark.slow
def test_vit_conforms(tiny_vit):
    check_recipe(dataclasses.replace(RECIPE, presets={**RECIPE.presets, "tiny": tiny_vit}))


def test_masks_depend_on_epoch_and_image_alone(digits):
    some = trainer(RECIPE, RECIPE.presets["tiny"], digits)
    batch = next(some.loader.epoch(0))
    first = some.method(batch)["loss"]
    assert torch.equal(some.method(batch)["loss"], first)
    some.method.on_step_start(some._progress(1))
    assert not torch.equal(some.method(batch)["loss"], first)


def test_first_loss_is_that_of_predicting_nothing(digits):
    """A fresh head predicts about 0: the mean absolute value of the covered pixels."""
    some = trainer(RECIPE, RECIPE.presets["tiny"], digits)
    batch = next(some.loader.epoch(0))
    assert some.method(batch)["loss"].item() == pytest.approx(batch.views[0].abs().mean().item(), rel=0.2)


def test_what_is_not_decayed(digits, tiny_vit):
    """Norms, biases, tables of relative positions; the mask token is decayed, as in MMSelfSup."""
    for config in (RECIPE.presets["tiny"], tiny_vit):
        method = build(RECIPE, config, digits)
        names = {id(p): name for name, p in method.named_parameters()}
        groups = method.param_groups(RECIPE.presets[SWIN].optim)
        decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
        expected = {n for n, p in method.named_parameters() if p.ndim > 1 and "relative_position_bias" not in n}
        assert decayed == expected and "mask_token" in decayed


def test_schedules_of_the_model_zoo():
    per, total = 625, 625 * 100
    old, new = (RECIPE.presets[name].optim for name in ("swin-base_16xb128-coslr-100e_in1k-192", SWIN))
    assert optim.rate(new, 10 * per, per, total) == pytest.approx(8e-4)
    assert optim.rate(old, 10 * per, per, total) == pytest.approx(4e-5 + 7.6e-4 * 0.97553, rel=1e-4)
    for settings in (old, new):
        assert optim.rate(settings, 0, per, total) == pytest.approx(4e-6)
        assert optim.rate(settings, total, per, total) == pytest.approx(4e-5)
    long = RECIPE.presets["swin-base_16xb128-amp-coslr-800e_in1k-192"].optim
    rates = [optim.rate(long, epoch * per, per, 800 * per) for epoch in (0, 10, 699, 700, 799)]
    assert rates == pytest.approx([2e-6, 4e-4, 4e-4, 4e-5, 4e-5])


def test_view_is_crop_and_flip():
    (view,) = RECIPE.views(RECIPE.presets[SWIN])
    assert [type(op).__name__ for op in view.ops] == ["RandomResizedCrop", "HorizontalFlip", "Normalize"]
    assert view.ops[0].interpolation == "bilinear" and view.ops[0].scale == (0.67, 1.0) and view.size == 192


def test_sides_that_do_not_divide_are_refused(digits):
    from suite.errors import UsageError

    some = trainer(RECIPE, configs.override(RECIPE.presets["tiny"], ["block=12"]), digits)
    with pytest.raises(UsageError, match="divide"):
        some.method(next(some.loader.epoch(0)))
