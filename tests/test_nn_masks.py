# SPDX-License-Identifier: Apache-2.0
"""Masks, positions and what vision transformers do with both."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.draws import Draws
from suite.errors import UsageError
from suite.nn import masks
from suite.nn.masks import (
    block_mask,
    hidden_patches,
    masked_l1,
    random_mask,
    random_masking,
    simmim_mask,
    take_tokens,
    visible_and_hidden,
)
from suite.nn.position import sincos_2d
from suite.nn.vit import fix_positions, visible_tokens, xavier_linears_, xavier_patch_embed_


def draws(n=32, seed=0, epoch=0):
    return Draws(seed, epoch, torch.arange(n))


def small_vit(**options):
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, **options
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.data())
def test_random_masking_is_a_permutation_and_its_inverse(length, data):
    keep = data.draw(st.integers(1, length))
    found = random_masking(draws(5, data.draw(st.integers(0, 99))), length, keep)
    assert found.keep.shape == (5, keep) and (found.mask.sum(1) == length - keep).all()
    tokens = torch.arange(5 * length).view(5, length, 1)
    visible = take_tokens(tokens, found.keep)
    assert not found.mask.gather(1, found.keep).any()
    full = torch.cat([visible, torch.full((5, length - keep, 1), -1)], 1)
    back = take_tokens(full, found.restore)
    assert torch.equal(back, torch.where(found.mask[..., None], -1, tokens))


def test_masks_belong_to_the_sample_not_to_the_batch():
    whole = draws(16)
    for draw in (lambda d: random_masking(d, 20, 5).keep, lambda d: simmim_mask(d, 64, 16, 4), block_mask):
        assert torch.equal(draw(whole)[3:9], draw(whole[3:9]))
        assert not torch.equal(draw(whole), draw(draws(16, epoch=1)))


def test_random_masks_hide_every_place_alike():
    share = random_mask(draws(4000), 10, 3).float().mean(0)
    assert (share - 0.3).abs().max() < 0.04  # 5 standard deviations
    for keep in (0, 11):
        with pytest.raises(UsageError, match="visible patches"):
            random_masking(draws(1), 10, keep)
    with pytest.raises(UsageError, match="hidden patches"):
        random_mask(draws(1), 10, 10)


def test_simmim_masks_22_of_36_blocks():
    mask = simmim_mask(draws())
    assert mask.shape == (32, 48, 48)
    blocks = mask.view(32, 6, 8, 6, 8)
    assert torch.equal(blocks.all(4).all(2), blocks.any(4).any(2))  # blocks are hidden as wholes
    assert (blocks[:, :, 0, :, 0].sum((1, 2)) == 22).all()
    with pytest.raises(UsageError, match="divide"):
        simmim_mask(draws(), 200)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 14), st.integers(3, 14), st.data())
def test_block_masks_hide_exactly_the_number(height, width, data):
    hidden = data.draw(st.integers(0, height * width - 1))
    mask = block_mask(draws(6, data.draw(st.integers(0, 99))), height, width, hidden, smallest=data.draw(st.integers(1, 20)))
    assert mask.shape == (6, height, width) and (mask.sum((1, 2)) == hidden).all()


def naive_block_mask(rng, hidden=75, smallest=16, aspect=0.3):
    """BEiT, algorithm 1, one sample and one proposal at a time."""
    mask = np.zeros((14, 14), bool)
    while mask.sum() < hidden:
        missing = hidden - mask.sum()
        target = rng.uniform(smallest, missing) if missing >= smallest else rng.uniform(missing, smallest)
        ratio = math.exp(rng.uniform(math.log(aspect), math.log(1 / aspect)))
        h, w = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if h < 14 and w < 14:
            top, left = rng.integers(0, 14 - h + 1), rng.integers(0, 14 - w + 1)
            new = h * w - mask[top : top + h, left : left + w].sum()
            if 0 < new <= missing:
                mask[top : top + h, left : left + w] = True
    return mask


def edges(mask):
    """Neighbouring places of which one is hidden: few in blocks, many among single places."""
    return (mask[..., 1:, :] != mask[..., :-1, :]).sum((-1, -2)) + (mask[..., :, 1:] != mask[..., :, :-1]).sum((-1, -2))


def test_block_masks_look_like_the_papers():
    rng = np.random.default_rng(0)
    ours = block_mask(draws(2000)).numpy()
    theirs = np.stack([naive_block_mask(rng) for _ in range(500)])
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 0.12  # centre is hidden more often than the border, in both
    assert edges(ours).mean() == pytest.approx(edges(theirs).mean(), rel=0.03)
    assert np.std(edges(ours)) == pytest.approx(np.std(edges(theirs)), rel=0.1)
    dots = random_mask(draws(200), 196, 75).view(-1, 14, 14).numpy()
    assert edges(dots).mean() > 2 * edges(ours).mean()


def test_few_rounds_still_hide_the_number(monkeypatch):
    monkeypatch.setattr(masks, "ROUNDS", 1)
    assert (block_mask(draws()).sum((1, 2)) == 75).all()


def test_visible_and_hidden_places_in_order():
    mask = random_mask(draws(7), 12, 5)
    visible, hidden = visible_and_hidden(mask, 5)
    for row, seen, unseen in zip(mask, visible, hidden, strict=True):
        assert torch.equal(seen, (~row).nonzero()[:, 0]) and torch.equal(unseen, row.nonzero()[:, 0])
    mask[0, hidden[0, 0]] = False
    with pytest.raises(ValueError, match="does not hide 5"):
        visible_and_hidden(mask, 5)


@pytest.mark.parametrize("arch", ["vit", "swin"])
def test_hidden_patches_change_nothing_else(arch):
    if arch == "vit":
        net, side = small_vit(), 4
    else:
        net = timm.create_model(
            "swin_tiny_patch4_window7_224", num_classes=0, img_size=32, window_size=4, embed_dim=8,
            depths=(1, 1), num_heads=(1, 2),
        )  # fmt: skip
        side = 8
    net.eval()
    x, token = torch.randn(3, 3, 32, 32), torch.randn(net.embed_dim, requires_grad=True)
    mask = random_mask(draws(3), side**2, side**2 // 2).view(3, side, side)
    plain = net(x)
    with hidden_patches(net, torch.zeros_like(mask), token):
        assert torch.equal(net(x), plain)
    with hidden_patches(net, mask, token):
        shown = net(x)
        # What is hidden cannot be seen: other pixels there give the same output.
        pixels = masks.upsample(mask, 32 // side)[:, None]
        again = net(torch.where(pixels, torch.randn_like(x), x))
    torch.testing.assert_close(shown, again)
    assert not torch.allclose(shown, plain)
    shown.sum().backward()
    assert token.grad.abs().sum() > 0
    assert torch.equal(net(x), plain)


def test_masked_l1_is_the_mean_over_hidden_pixels():
    prediction, target = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 3, 8, 8)
    mask = random_mask(draws(2), 4, 2).view(2, 2, 2)
    values = [
        abs(prediction[n, c, i, j] - target[n, c, i, j])
        for n in range(2) for c in range(3) for i in range(8) for j in range(8) if mask[n, i // 4, j // 4]
    ]  # fmt: skip
    loss = masked_l1(prediction, target, mask)
    assert loss.item() == pytest.approx(sum(v.item() for v in values) / len(values), rel=1e-5)
    loss.backward()
    assert torch.equal(prediction.grad[:, 0] != 0, masks.upsample(mask, 4))


@pytest.mark.parametrize("first", ["row", "column"])
def test_positions_equal_the_naive_formula(first):
    table = sincos_2d(3, 5, 16, first=first, class_tokens=1).double()
    assert table.shape == (16, 16) and (table[0] == 0).all()
    for row in range(3):
        for column in range(5):
            a, b = (row, column) if first == "row" else (column, row)
            omega = [1 / 10000 ** (i / 4) for i in range(4)]
            expected = [f(axis * w) for axis in (a, b) for f in (math.sin, math.cos) for w in omega]
            torch.testing.assert_close(table[1 + row * 5 + column], torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="divides by 4"):
        sincos_2d(2, 2, 6)


def test_the_two_layouts_are_transposes():
    row, column = sincos_2d(4, 4, 8, first="row"), sincos_2d(4, 4, 8, first="column")
    assert torch.equal(row.view(4, 4, 8).transpose(0, 1), column.view(4, 4, 8))
    assert len(row.unique(dim=0)) == 16


def test_fixed_positions_are_state_without_gradient():
    net = small_vit()
    fix_positions(net, "row")
    assert not net.pos_embed.requires_grad and "pos_embed" in net.state_dict()
    assert torch.equal(net.pos_embed[0], sincos_2d(4, 4, 16, first="row", class_tokens=1))
    for other in (timm.create_model("resnet18", num_classes=0), small_vit(class_token=False, global_pool="avg")):
        with pytest.raises(UsageError, match="vision transformer"):
            fix_positions(other)


def test_all_tokens_visible_is_the_whole_network():
    net = small_vit().eval()
    x = torch.randn(2, 3, 32, 32)
    everything = random_masking(draws(2), 16, 16)
    tokens = visible_tokens(net, x, everything.keep)
    whole = net.forward_features(x)
    torch.testing.assert_close(tokens[:, 0], whole[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(take_tokens(tokens[:, 1:], everything.restore), whole[:, 1:], rtol=1e-4, atol=1e-5)


def test_hidden_pixels_do_not_reach_visible_tokens():
    net, x = small_vit().eval(), torch.randn(2, 3, 32, 32)
    chosen = random_masking(draws(2), 16, 4)
    hidden = masks.upsample(chosen.mask.view(2, 4, 4), 8)[:, None]
    first, second = (visible_tokens(net, y, chosen.keep) for y in (x, torch.where(hidden, 0.0, x)))
    assert first.shape == (2, 5, 16)
    torch.testing.assert_close(first, second)


def test_xavier_bounds():
    net = small_vit()
    xavier_linears_(net, split_qkv=True)
    xavier_patch_embed_(net)
    qkv, fc = net.blocks[0].attn.qkv, net.blocks[0].mlp.fc1
    for weight, fans in ((qkv.weight, 16 + 16), (fc.weight, 16 + 64), (net.patch_embed.proj.weight, 3 * 64 + 16)):
        bound = math.sqrt(6 / fans)
        assert 0.9 * bound < weight.abs().max() <= bound
    assert (qkv.bias == 0).all() and (fc.bias == 0).all()
    xavier_linears_(net)
    assert qkv.weight.abs().max() <= math.sqrt(6 / 64)
