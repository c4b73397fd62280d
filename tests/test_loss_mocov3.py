# SPDX-License-Identifier: Apache-2.0
"""MoCo v3: loss against algorithm 1 in float64, key encoder, heads, the paper's ViT, schedules, augmentations.

No package has this loss as it is (lightly's NT-Xent takes both views as negatives): each query is compared with lightly's
loss whose memory bank holds the other keys.
"""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch.nn import functional as F

from recipes.mocov3 import RECIPE, ctr, prepare
from suite import config as configs
from suite import optim
from suite.nn.position import sincos_2d
from suite.testing import build, check_recipe, trainer
from tests.equations import Claim, both, lightly_info_nce, randn

CTR = Claim("mocov3", "eq. 1 and algorithm 1: InfoNCE in the batch, times 2 tau", "lightly NTXentLoss, query by query")
VIT = 'arch_options={"img_size":32,"patch_size":8,"embed_dim":32,"depth":2,"num_heads":4}'
TINY_VIT = ['arch="vit_tiny_patch16_224"', VIT, 'stem="imagenet"', "projector_layers=3", "predictor_norm=true"]


@pytest.fixture(scope="module")
def tiny_vit():
    return configs.override(RECIPE.presets["tiny"], [*TINY_VIT, "optim.name=adamw", "optim.lr=1e-3"])


def naive(q, k, tau):
    """Algorithm 1's ctr, one query at a time."""
    total = 0.0
    for i in range(len(q)):
        similarities = [(q[i] / (q[i] @ q[i]).sqrt()) @ (key / (key @ key).sqrt()) / tau for key in k]
        total = total - torch.log(torch.exp(similarities[i]) / sum(torch.exp(s) for s in similarities))
    return 2 * tau * total / len(q)


def pair(n, d, seed=0):
    return randn(n, d, seed=seed), randn(n, d, seed=seed + 1)


@pytest.mark.parametrize(
    ("n", "d", "tau", "scale"), [(6, 5, 0.2, 1.0), (2, 3, 1.0, 1e3), (9, 16, 0.2, 1e-3), (4, 2, 0.05, 1.0)]
)
def test_loss_is_algorithm_1(ledger, n, d, tau, scale):
    q, k = pair(n, d)
    q32, q64 = both(q * scale)
    ledger.agree(CTR, ctr(q32, k.float(), tau), naive(q64, k, tau), [q32], [q64])


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_loss_equals_the_queue_loss_with_the_other_keys_as_queue(ledger, tau):
    q, k = (F.normalize(x.float(), dim=1) for x in pair(7, 4))
    each = [lightly_info_nce(q[i : i + 1], k[i : i + 1], torch.cat([k[:i], k[i + 1 :]]), tau) for i in range(7)]
    ledger.independent(CTR, ctr(q, k, tau), 2 * tau * sum(each) / 7)


def test_loss_at_chance_and_at_the_extremes():
    same = torch.ones(8, 4)
    assert ctr(same, same, 0.2).item() == pytest.approx(0.4 * math.log(8), rel=1e-5)
    assert ctr(same[:1], same[:1], 0.2).item() == 0
    apart = torch.eye(4)
    assert ctr(apart, apart, 0.01).item() == pytest.approx(0, abs=1e-6)
    zero = torch.zeros(2, 4, requires_grad=True)
    ctr(zero, same[:2], 0.2).backward()
    assert torch.isfinite(zero.grad).all()


def test_half_precision_inputs_accumulate_in_float32():
    q, k = (x.float() for x in pair(32, 64))
    rough = ctr(q.bfloat16(), k.bfloat16(), 0.2)
    assert rough.dtype == torch.float32 and rough.item() == pytest.approx(ctr(q, k, 0.2).item(), rel=1e-2)


def test_loss_is_symmetric_and_keys_have_no_gradient(digits):
    fresh = trainer(RECIPE, RECIPE.presets["tiny"], digits)
    batch = next(fresh.loader.epoch(0))
    loss = fresh.method(batch)["loss"]
    loss.backward()
    assert all(p.grad is None for p in fresh.method.f_k.parameters())
    batch.views.reverse()
    assert fresh.method(batch)["loss"].item() == pytest.approx(loss.item(), rel=1e-5)


def test_key_encoder_begins_as_a_copy_without_predictor(digits):
    method = build(RECIPE, RECIPE.presets["tiny"], digits)
    mine, theirs = list(method.base.parameters()), list(method.f_k.parameters())
    assert len(mine) == len(theirs) and all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert not any(p.requires_grad for p in theirs)


def test_key_encoder_moves_after_the_step_by_the_scheduled_momentum(digits):
    some = trainer(RECIPE, RECIPE.presets["tiny"], digits)
    batches = some.loader.epoch(0)
    for t in range(3):
        before = [p.clone() for p in some.method.f_k.parameters()]
        some._step(0, batches)
        m = 1 - (1 - 0.9) * (math.cos(math.pi * t / some.total) + 1) / 2
        for old, new, theta in zip(before, some.method.f_k.parameters(), some.method.base.parameters(), strict=True):
            torch.testing.assert_close(new, m * old + (1 - m) * theta, rtol=1e-5, atol=1e-7)
    assert some.total == 4


def test_heads_are_the_papers(digits, tiny_vit):
    """Batch norm everywhere, the last ones without scale and shift; a ResNet has a layer less and no last norm."""
    for config, layers, last in ((RECIPE.presets["tiny"], 2, False), (tiny_vit, 3, True)):
        method = build(RECIPE, config, digits)
        linears = [m for m in method.projector if isinstance(m, torch.nn.Linear)]
        norms = [m for m in method.projector if isinstance(m, torch.nn.BatchNorm1d)]
        assert len(linears) == len(norms) == layers and all(m.bias is None for m in linears)
        assert [m.affine for m in norms] == [True] * (layers - 1) + [False]
        assert [m.out_features for m in linears] == [32] * (layers - 1) + [16]
        norms = [m.affine for m in method.predictor if isinstance(m, torch.nn.BatchNorm1d)]
        assert norms == ([True, False] if last else [True])
        assert [m.out_features for m in method.predictor if isinstance(m, torch.nn.Linear)] == [32, 16]


def test_the_vit_is_the_papers():
    """Section 4 and the official code: sin-cos positions, Xavier by matrix, 12 heads in ViT-S, random patches."""
    config = RECIPE.presets["vit-small-p16_16xb256-amp-coslr-300e_in1k"]
    torch.manual_seed(0)
    net = timm.create_model(config.arch, num_classes=0, **{**config.arch_options, "depth": 1})
    prepare(net, config.freeze_patches)
    assert net.blocks[0].attn.num_heads == 12 and net.embed_dim == 384 and net.norm.eps == 1e-6
    assert (
        torch.equal(net.pos_embed[0], sincos_2d(14, 14, 384, first="row", class_tokens=1)) and not net.pos_embed.requires_grad
    )
    bounds = {
        net.blocks[0].attn.qkv.weight: (6 / (384 + 384)) ** 0.5,
        net.blocks[0].mlp.fc1.weight: (6 / (384 + 1536)) ** 0.5,
        net.patch_embed.proj.weight: (6 / (3 * 16**2 + 384)) ** 0.5,
    }
    for weight, bound in bounds.items():
        assert weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert not any(p.any() for name, p in net.named_parameters() if name.endswith("bias"))
    assert 0 < net.cls_token.abs().max() < 1e-5
    assert not any(p.requires_grad for p in net.patch_embed.parameters())


def test_the_patch_embedding_stays_and_the_rest_learns(digits, tiny_vit):
    some = trainer(RECIPE, tiny_vit, digits)
    before = {name: p.clone() for name, p in some.method.named_parameters()}
    some._step(0, some.loader.epoch(0))
    moved = {name for name, p in some.method.named_parameters() if not torch.equal(p, before[name])}
    fixed = {"net.patch_embed.proj.weight", "net.patch_embed.proj.bias", "net.pos_embed"}
    assert {name.removeprefix("backbone.") for name in before if name.startswith("backbone.")} - fixed == {
        name.removeprefix("backbone.") for name in moved if name.startswith("backbone.")
    }


@pytest.mark.slow
def test_vit_conforms(tiny_vit):
    import dataclasses

    check_recipe(dataclasses.replace(RECIPE, presets={**RECIPE.presets, "tiny": tiny_vit}))


def test_a_vit_decays_everything_and_a_resnet_neither_norms_nor_biases(digits, tiny_vit):
    vit = build(RECIPE, tiny_vit, digits).param_groups(RECIPE.presets["vit-base-p16_16xb256-amp-coslr-300e_in1k"].optim)
    assert [group["weight_decay"] for group in vit] == [0.1]
    settings = RECIPE.presets["resnet50_8xb512-amp-coslr-800e_in1k"].optim
    for group in build(RECIPE, RECIPE.presets["tiny"], digits).param_groups(settings):
        plain = all(p.ndim <= 1 for p in group["params"])
        assert (group["weight_decay"], group["adapt"]) == ((0.0, False) if plain else (1.5e-6, True))


def test_schedules_of_the_model_zoo():
    """The cosine of 0.x runs under the warm-up: it peaks at .9568 of the rate; that of 1.x starts after it."""
    per, total = 312, 312 * 300
    old, new = (
        RECIPE.presets[name].optim
        for name in ("vit-small-p16_32xb128-fp16-coslr-300e_in1k-224", "vit-small-p16_16xb256-amp-coslr-300e_in1k")
    )
    assert optim.rate(old, 40 * per, per, total) == pytest.approx(2.4e-3 * 0.9568, rel=1e-4)
    assert optim.rate(new, 40 * per, per, total) == pytest.approx(2.4e-3)
    assert optim.rate(new, 0, per, total) == pytest.approx(2.4e-7)
    assert optim.rate(old, total, per, total) == optim.rate(new, total, per, total) == pytest.approx(0, abs=1e-12)


def test_views_are_the_papers_two():
    first, second = RECIPE.views(RECIPE.presets["vit-small-p16_16xb256-amp-coslr-300e_in1k"])
    names = [type(op).__name__ for op in first.ops]
    assert names == [
        "RandomResizedCrop", "ColorJitter", "Grayscale", "GaussianBlur", "Solarize", "HorizontalFlip", "Normalize"
    ]  # fmt: skip
    assert first.ops[0].interpolation == "bilinear" and first.ops[:3] == second.ops[:3]
    assert [view.ops[3].p for view in (first, second)] == [1.0, 0.1]
    assert [view.ops[4].p for view in (first, second)] == [0.0, 0.2]
