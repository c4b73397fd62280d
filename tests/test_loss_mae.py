# SPDX-License-Identifier: Apache-2.0
"""MAE: loss against the paper in float64 and against lightly, encoder and decoder against lightly's, masks, schedule."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch
from lightly.models import utils
from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

from recipes.mae import RECIPE, Decoder, masked_mse, targets
from suite import config as configs
from suite import optim
from suite.draws import Draws
from suite.nn.masks import random_masking
from suite.nn.position import sincos_2d
from suite.nn.vit import visible_tokens
from suite.testing import build, trainer
from tests.equations import Claim, both, randn

RECONSTRUCTION = Claim("mae", "section 3: squared error of normalised hidden patches", "lightly patch targets, torch MSELoss")


def kept(n, length, keep, seed=0):
    return random_masking(Draws(seed, 0, torch.arange(n)), length, keep)


def naive(prediction, x, mask, side, norm_pix):
    """Section 3 in a loop over images, patches and pixels' own mean and variance."""
    losses = []
    columns = x.shape[3] // side
    for i in range(len(x)):
        for place in range(mask.shape[1]):
            if not mask[i, place]:
                continue
            top, left = place // columns * side, place % columns * side
            pixels = x[i, :, top : top + side, left : left + side].permute(1, 2, 0).flatten()
            if norm_pix:
                mean = pixels.sum() / pixels.numel()
                variance = ((pixels - mean) ** 2).sum() / (pixels.numel() - 1)
                pixels = (pixels - mean) / (variance + 1e-6) ** 0.5
            losses.append(((prediction[i, place] - pixels) ** 2).mean())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize(("n", "side", "scale", "keep"), [(3, 4, 1.0, 2), (1, 2, 1.0, 1), (2, 8, 20.0, 3)])
def test_loss_is_section_3(ledger, n, side, scale, keep, norm_pix):
    x = (randn(n, 3, 2 * side, 2 * side) * scale + 3).float().double()
    prediction, mask = randn(n, 4, 3 * side**2, seed=1), kept(n, 4, keep).mask
    p32, p64 = both(prediction)
    ours, theirs = masked_mse(p32, targets(x.float(), side, norm_pix), mask), naive(p64, x, mask, side, norm_pix)
    ledger.agree(RECONSTRUCTION, ours, theirs, [p32], [p64])
    assert p32.grad[~mask].abs().max() == 0 and (p32.grad[mask] != 0).all()


def test_targets_equal_an_independent_implementation(ledger):
    x = randn(2, 3, 8, 8).float()
    theirs = utils.normalize_mean_var(utils.patchify(x, 4))
    torch.testing.assert_close(targets(x, 4, True), theirs)
    mask, prediction = kept(2, 4, 1).mask, randn(2, 4, 48, seed=1).float()
    expected = torch.nn.MSELoss()(prediction[mask], theirs[mask])
    ledger.independent(RECONSTRUCTION, masked_mse(prediction, targets(x, 4, True), mask), expected)


def test_a_patch_of_one_colour_has_a_finite_target():
    assert targets(torch.full((1, 3, 4, 4), 0.3), 4, True).abs().max() < 1e-2


def test_loss_of_a_perfect_prediction_is_0_and_of_the_mean_is_the_variance():
    x = randn(4, 3, 16, 16).float()
    target, mask = targets(x, 8, True), kept(4, 4, 1).mask
    assert masked_mse(target, target, mask).item() == 0
    # Unbiased variance of 192 numbers: their mean square is 191/192.
    assert masked_mse(torch.zeros_like(target), target, mask).item() == pytest.approx(191 / 192, rel=1e-4)


def test_half_precision_predictions_accumulate_in_float32():
    target, prediction, mask = targets(randn(4, 3, 16, 16).float(), 4, True), randn(4, 16, 48).float(), kept(4, 16, 4).mask
    rough = masked_mse(prediction.bfloat16(), target, mask)
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(masked_mse(prediction, target, mask).item(), rel=1e-2)


def test_encoder_equals_an_independent_implementation(digits):
    method = build(RECIPE, RECIPE.presets["tiny"], digits).eval()
    x, chosen = randn(2, 3, 32, 32).float(), kept(2, 16, 4)
    theirs = MaskedVisionTransformerTIMM(method.backbone.net, weight_initialization="skip", pos_embed_initialization="skip")
    index = torch.cat([torch.zeros(2, 1, dtype=torch.long), chosen.keep + 1], 1)
    torch.testing.assert_close(visible_tokens(method.backbone.net, x, chosen.keep), theirs.encode(x, idx_keep=index))


def test_decoder_equals_an_independent_implementation():
    config = configs.override(RECIPE.presets["tiny"], ["decoder_depth=2"])
    torch.manual_seed(0)
    ours = Decoder(24, (4, 4), config, 192)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = MAEDecoderTIMM(16, 8, embed_dim=24, decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=2)
    names = {"embed": "decoder_embed", "pos_embed": "decoder_pos_embed", "blocks": "decoder_blocks", "norm": "decoder_norm"}
    names |= {"predict": "decoder_pred"}
    renamed = {
        ".".join([names.get(k.split(".")[0], k.split(".")[0]), *k.split(".")[1:]]): v for k, v in ours.state_dict().items()
    }
    theirs.load_state_dict(renamed)
    tokens, chosen = randn(3, 5, 24).float(), kept(3, 16, 4)
    embedded = theirs.embed(tokens)
    full = torch.cat([torch.zeros(3, 1, 16), theirs.mask_token.expand(3, 16, -1)], 1)
    full[:, 0] = embedded[:, 0]
    for i in range(3):
        for k, place in enumerate(chosen.keep[i].tolist()):
            full[i, 1 + place] = embedded[i, 1 + k]
    torch.testing.assert_close(ours(tokens, chosen), theirs.predict(theirs.decode(full))[:, 1:])


def test_encoder_never_sees_a_hidden_pixel(digits):
    method = build(RECIPE, RECIPE.presets["tiny"], digits).eval()
    x, chosen = randn(2, 3, 32, 32).float(), kept(2, 16, 4)
    hidden = chosen.mask.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    latent = visible_tokens(method.backbone.net, x, chosen.keep)
    assert torch.equal(latent, visible_tokens(method.backbone.net, torch.where(hidden, 9.0, x), chosen.keep))
    assert latent.shape == (2, 5, 32)


def test_a_vit_b_keeps_49_of_196_patches_and_a_vit_h_64_of_256():
    for preset, length, keep in (
        ("vit-base-p16_8xb512-amp-coslr-300e_in1k", 196, 49),
        ("vit-huge-p16_8xb512-amp-coslr-1600e_in1k", 256, 64),
    ):
        config = RECIPE.presets[preset]
        with torch.device("meta"):
            net = timm.create_model(config.arch, num_classes=0)
        grid = net.patch_embed.grid_size
        assert grid[0] * grid[1] == length and int(length * (1 - config.mask_ratio)) == keep
        assert net.norm.eps == 1e-6 and net.blocks[0].attn.qkv.bias is not None


def test_masks_depend_on_epoch_and_image_alone(digits):
    some = trainer(RECIPE, RECIPE.presets["tiny"], digits)
    batch = next(some.loader.epoch(0))
    first = some.method(batch)["loss"]
    assert torch.equal(some.method(batch)["loss"], first)
    some.method.on_step_start(some._progress(1))
    assert not torch.equal(some.method(batch)["loss"], first)
    assert first.item() == pytest.approx(1, abs=0.5)  # of an untrained network that predicts nearly nothing


def test_initialisation_is_the_papers(digits):
    config = configs.override(RECIPE.presets["tiny"], ["arch_options.embed_dim=192", "decoder_dim=256"])
    method = build(RECIPE, config, digits)
    net, decoder = method.backbone.net, method.decoder
    for weight in (net.blocks[0].attn.qkv.weight, net.patch_embed.proj.weight.flatten(1), decoder.embed.weight):
        bound = (6 / sum(weight.shape)) ** 0.5
        assert weight.abs().max().item() == pytest.approx(bound, rel=1e-2)
    assert not net.blocks[1].mlp.fc1.bias.any() and net.patch_embed.proj.bias.any()
    for token in (net.cls_token, decoder.mask_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.2)
    for positions, width in ((net.pos_embed, 192), (decoder.pos_embed, 256)):
        assert not positions.requires_grad and torch.equal(positions[0], sincos_2d(4, 4, width, class_tokens=1))


def test_norms_biases_and_tokens_are_not_decayed(digits):
    method = build(RECIPE, RECIPE.presets["tiny"], digits)
    names = {id(p): name for name, p in method.named_parameters()}
    settings = RECIPE.presets["vit-base-p16_8xb512-amp-coslr-300e_in1k"].optim
    free = {names[id(p)] for g in method.param_groups(settings) if g["weight_decay"] == 0 for p in g["params"]}
    decayed = {names[id(p)] for g in method.param_groups(settings) if g["weight_decay"] == 0.05 for p in g["params"]}
    assert {"backbone.net.cls_token", "decoder.mask_token", "backbone.net.norm.weight", "decoder.norm.bias"} <= free
    assert decayed == {
        name for name, p in method.named_parameters() if p.ndim > 1 and not name.endswith(("token", "pos_embed"))
    }


def test_schedule_of_the_model_zoo():
    """A straight warm-up to 2.4e-3 at epoch 40, then half a cosine to 0."""
    settings, per = RECIPE.presets["vit-base-p16_8xb512-coslr-400e_in1k"].optim, 312
    rates = [optim.rate(settings, epoch * per, per, 400 * per) for epoch in (0, 20, 40, 220, 400)]
    assert rates == pytest.approx([0, 1.2e-3, 2.4e-3, 1.2e-3, 0], abs=1e-12)
    assert optim.rate(RECIPE.presets["vit-base-p16_8xb512-amp-coslr-400e_in1k"].optim, 0, per, 400 * per) == pytest.approx(
        2.4e-7
    )


def test_view_is_crop_and_flip():
    (view,) = RECIPE.views(RECIPE.presets["vit-base-p16_8xb512-coslr-400e_in1k"])
    assert [type(op).__name__ for op in view.ops] == ["RandomResizedCrop", "HorizontalFlip", "Normalize"]
    assert view.ops[0].interpolation == "bicubic" and view.ops[0].scale == (0.2, 1.0)
