# SPDX-License-Identifier: Apache-2.0
"""Probes: every head as if trained alone, a backbone that never moves, norms, blocks, checkpoints."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from suite import engine, optim
from suite.method import TrainSet
from suite.nn.probes import Probes, ProbeSettings, rate_rules, read
from suite.progress import Reporter
from suite.spec import Optim, Rule
from suite.train import Plan, Trainer, fit
from tests.probe_samples import VIEW


def pictures(images, view=VIEW):
    """All of a set under a view that draws nothing."""
    from suite.data.loader import Loader

    return next(Loader(images, (view,), len(images), shuffle=False).epoch(0)).views[0]


def trained(backbone, images, heads, settings, norm="batch", steps=3, seed=0):
    """Probes after some steps, each on the whole set."""
    probes = Probes(ProbeSettings(heads=heads, size=32, norm=norm, seed=seed), backbone, TrainSet(images))
    fit(probes, images, (VIEW,), Plan(settings, len(images), steps), engine.make_fabric("32"))
    return probes


def settings_for(rates, name, **changes):
    top = max(max(values) for values in rates.values())
    return Optim(name=name, lr=top, rules=rate_rules(rates, top), **changes)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(("name", "rates"), [("sgd", (0.1, 0.01)), ("lars", (2.0, 0.3))])
def test_every_head_is_trained_as_if_alone(backbone, few, name, rates, norm):
    """Against one nn.Linear per head, with an optimizer of its own, on features computed once."""
    grid = {"stage2@2": rates, "pooled": rates}
    nesterov = name == "sgd"
    probes = trained(
        backbone, few, dict.fromkeys(grid, 2), settings_for(grid, name, weight_decay=1e-3, nesterov=nesterov), norm
    )
    values, labels = read(backbone, pictures(few), list(grid)), torch.as_tensor(few.labels)
    for layer in grid:
        x = F.batch_norm(values[layer], None, None, training=True) if norm == "batch" else values[layer]
        for i, rate in enumerate(rates):
            head = nn.Linear(x.shape[1] * x.shape[2], 10)
            nn.init.normal_(head.weight, std=0.01, generator=torch.Generator().manual_seed(0))
            nn.init.zeros_(head.bias)
            alone = Optim(name=name, lr=rate, weight_decay=1e-3, nesterov=nesterov)
            optimizer = optim.build(optim.param_groups(head, alone), alone)
            for step in range(3):
                optim.set_rate(optimizer, alone, optim.rate(alone, step, 1, 3))
                optimizer.zero_grad()
                F.cross_entropy(head(x.flatten(1)), labels).backward()
                optimizer.step()
            found = probes.heads[layer][i]
            torch.testing.assert_close(found.weight, head.weight, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(found.bias, head.bias, rtol=1e-3, atol=1e-5)


def test_the_backbone_never_moves(backbone, few):
    before, statistics = backbone.sha256(), [b.clone() for b in backbone.buffers()]
    probes = trained(backbone, few, {"stage1@4": 2, "pooled": 2}, Optim(lr=0.5, weight_decay=0.1), norm="batch")
    probes.train()
    assert not any(module.training for module in backbone.modules()) and probes.norms["pooled"].training
    assert backbone.sha256() == before and all(p.grad is None for p in backbone.parameters())
    assert all(torch.equal(a, b) for a, b in zip(statistics, backbone.buffers(), strict=True))
    assert not torch.equal(probes.norms["pooled"].running_mean, torch.zeros(16))


def test_checkpoints_hold_the_heads_alone_and_resume(backbone, few, tmp_path):
    plan = ProbeSettings(heads={"pooled": 2}, size=32, norm="batch")

    def trainer(epochs):
        probes = Probes(plan, backbone, TrainSet(few))
        return Trainer(
            probes, few, (VIEW,), Plan(Optim(lr=0.5, schedule="constant"), 16, epochs), engine.make_fabric("32"), tmp_path
        )

    first = trainer(1)
    first.run(Reporter(), "x")
    assert not any(name.startswith("backbone.") for name in first.method.state_dict())
    second = trainer(2)
    second.run(Reporter(), "x")
    assert second.outcome.steps == 6
    straight = Probes(plan, backbone, TrainSet(few))
    fit(straight, few, (VIEW,), Plan(Optim(lr=0.5, schedule="constant"), 16, 2), engine.make_fabric("32"))
    assert torch.equal(second.method.heads["pooled"][0].weight, straight.heads["pooled"][0].weight)


def test_norm_works_by_channel_over_positions(backbone, few):
    probes = Probes(ProbeSettings(heads={"stage2@4": 1}, size=32, norm="batch"), backbone, TrainSet(few))
    x = pictures(few)
    with torch.no_grad():
        maps = F.adaptive_avg_pool2d(backbone.pooled_and_stages(x)[1][1], 4)
        flat = F.batch_norm(maps, None, None, training=True).flatten(1)
        (head,) = probes.heads["stage2@4"]
        torch.testing.assert_close(probes.train().scores(x)["stage2@4"][:, 0], head(flat), rtol=1e-3, atol=1e-5)


def test_blocks_change_nothing(backbone, few):
    plan = ProbeSettings(heads={"stage3@2": 2, "pooled": 1, "pooled+plain": 1}, size=32)
    one = Probes(plan, backbone, TrainSet(few)).features(pictures(few))
    parts = Probes(replace(plan, block=7), backbone, TrainSet(few)).features(pictures(few))
    for layer in plan.heads:
        torch.testing.assert_close(one[layer], parts[layer], rtol=1e-4, atol=1e-5)


def test_last_blocks_of_a_transformer(vit):
    x = torch.randn(3, 3, 32, 32)
    vit.eval()
    with torch.no_grad():
        found = read(vit, x, ["last1", "last4", "last1+avg", "last4+avg"])
        tokens = (
            vit.net.norm(vit.net.forward_intermediates(x, intermediates_only=False)[0])
            if False
            else vit.net.forward_features(x)
        )
        torch.testing.assert_close(found["last1"][:, :, 0], tokens[:, 0])
        torch.testing.assert_close(found["last1"][:, :, 0], vit(x))
        torch.testing.assert_close(found["last1+avg"][:, 12:, 0], tokens[:, 1:].mean(1))
        inner, block = [], vit.net.blocks[1]
        handle = block.register_forward_hook(lambda module, args, out: inner.append(out))
        vit(x)
        handle.remove()
        torch.testing.assert_close(found["last4"][:, :12, 0], vit.net.norm(inner[0])[:, 0])
    assert {name: value.shape[1] for name, value in found.items()} == {
        "last1": 12,
        "last4": 48,
        "last1+avg": 24,
        "last4+avg": 60,
    }


def test_affine_norms_are_not_decayed(backbone, few):
    settings = Optim(
        lr=0.1, weight_decay=1.0, rules=(*rate_rules({"pooled": [0.1]}, 0.1), Rule(pattern=r"^norms\.", weight_decay=0.0))
    )
    probes = Probes(ProbeSettings(heads={"pooled": 1}, size=32, norm="affine"), backbone, TrainSet(few))
    decays = {id(p): group["weight_decay"] for group in probes.param_groups(settings) for p in group["params"]}
    assert [decays[id(p)] for p in probes.norms.parameters()] == [0.0, 0.0]
    assert {decays[id(p)] for p in probes.heads.parameters()} == {1.0} and len(decays) == 4
