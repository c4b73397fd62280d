# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from suite import optim
from suite.backbone import Backbone
from suite.spec import Optim, Rule


def test_cosine_with_warmup_shifted_and_not():
    settings = Optim(lr=1.0, warmup=2, min_lr=0.1)
    rates = [optim.rate(settings, step, 10, 100) for step in range(100)]
    assert rates[0] == 0 and rates[10] == pytest.approx(0.5) and rates[20] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 40 / 80)))
    # Unshifted, the peak is base * (1 + cos(pi W/T)) / 2.
    unshifted = Optim(lr=1.0, warmup=2, shift=False)
    assert optim.rate(unshifted, 20, 10, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.2)))


def test_rate_by_epoch_holds_within_an_epoch():
    settings = Optim(lr=1.0, every="epoch")
    assert len({optim.rate(settings, step, 10, 100) for step in range(30, 40)}) == 1


def test_step_schedule_drops_at_milestones():
    settings = Optim(lr=1.0, schedule="step", milestones=(3, 5), gamma=0.1)
    assert [round(optim.rate(settings, 10 * epoch, 10, 100), 6) for epoch in (0, 2, 3, 4, 5, 9)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_rules_later_ones_override_and_multiply():
    net = nn.ModuleDict({"head": nn.Linear(3, 2), "norm": nn.BatchNorm1d(3)})
    rules = (Rule(pattern=optim.NORM_AND_BIAS, weight_decay=0.0, adapt=False), Rule(pattern=r"^head\.", lr_mult=10.0))
    groups = optim.param_groups(net, Optim(lr=0.1, weight_decay=0.5, rules=rules))
    found = {name: group for group in groups for name, p in net.named_parameters() if any(p is q for q in group["params"])}
    assert (found["head.weight"]["lr"], found["head.weight"]["weight_decay"]) == (1.0, 0.5)
    assert (found["head.bias"]["weight_decay"], found["head.bias"]["adapt"]) == (0.0, False)
    assert found["norm.weight"]["lr"] == 0.1


def test_lars_equals_the_formula_in_numpy():
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(4, 3))
    start, grads = w.detach().numpy().astype(np.float64), np.random.default_rng(0).normal(size=(3, 4, 3))
    optimizer = optim.build([{"params": [w], "lr": 0.3, "lr_scale": 1.0, "weight_decay": 0.01, "adapt": True, "fixed_lr": False,
                              "momentum": 0.9}], Optim(name="lars", lr=0.3))  # fmt: skip
    expected, buffer = start.copy(), np.zeros_like(start)
    for g in grads:
        w.grad = torch.tensor(g, dtype=torch.float32)
        optimizer.step()
        g = g + 0.01 * expected
        buffer = 0.9 * buffer + 1e-3 * np.linalg.norm(expected) / np.linalg.norm(g) * g
        expected = expected - 0.3 * buffer
    np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw", "adam", "lars", "lamb"])
def test_every_optimizer_descends(name):
    torch.manual_seed(0)
    net, x = nn.Linear(5, 1), torch.randn(64, 5)
    y = x.sum(1, keepdim=True)
    settings = Optim(name=name, lr={"lars": 5.0, "adamw": 0.1, "adam": 0.1, "lamb": 0.1}.get(name, 0.1))
    optimizer = optim.build(optim.param_groups(net, settings), settings)
    losses = []
    for _ in range(100):
        loss = (net(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_layer_decay_of_vit_counts_blocks_and_head():
    vit = Backbone("vit_tiny_patch16_224", {"img_size": 32, "depth": 4})
    depth = optim.LayerDepth(vit)
    assert depth.last == 5
    assert depth("net.patch_embed.proj.weight") == 0 and depth("net.cls_token") == 0
    assert depth("net.blocks.0.attn.qkv.weight") == 1 and depth("net.blocks.3.mlp.fc1.weight") == 4
    assert depth("net.norm.weight") == 5 and depth("head.weight") == 5


def test_layer_decay_of_swin_gives_downsample_the_block_before():
    names = ["net.patch_embed.proj.weight", "net.layers.0.blocks.0.x", "net.layers.0.blocks.1.x",
             "net.layers.1.downsample.reduction.weight", "net.layers.1.blocks.0.x", "net.norm.weight"]  # fmt: skip

    class Fake(nn.Module):
        def named_parameters(self, *a, **k):
            return ((name, None) for name in names)

    depth = optim.LayerDepth(Fake())
    assert [depth(name) for name in names] == [0, 1, 2, 2, 3, 4]
