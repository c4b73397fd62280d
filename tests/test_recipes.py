# SPDX-License-Identifier: Apache-2.0
"""Conformance of every recipe, and every paper preset against a data file of published settings."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from suite import config as configs
from suite import plugins
from suite.data import load
from suite.nn.gather import world_size
from suite.testing import build, check_recipe, started, trainer

SETTINGS = [row for path in sorted((Path(__file__).parent / "settings").glob("*.csv")) for row in csv.DictReader(path.open())]


@pytest.mark.parametrize("name", plugins.find("recipes"))
def test_conformance(name):
    check_recipe(plugins.load("recipes", name))


@pytest.mark.parametrize("name", [name for name, r in plugins.load_all("recipes").items() if r.method and not r.labels])
def test_the_loop_can_see_a_collapse(name, digits):
    """Every method without labels returns embeddings of one view, a row per image."""
    recipe = plugins.load("recipes", name)
    fresh = trainer(recipe, configs.override(recipe.presets["tiny"], ["precision=32"]), digits)
    batch = next(started(fresh))
    fresh.method.on_step_start(fresh._progress(0))
    features = fresh.method(batch)["features"]
    assert features.ndim == 2 and len(features) == len(batch.index)


@pytest.mark.parametrize("row", SETTINGS, ids=lambda r: f"{r['recipe']}:{r['preset']}:{r['key']}")
def test_settings_equal_the_published_ones(row):
    recipe = plugins.load("recipes", row["recipe"])
    value = configs.to_dict(recipe.presets[row["preset"]])
    for part in row["key"].split("."):
        value = value[part]
    assert value == json.loads(row["value"]), row["source"]


CORE = {"arch", "batch", "epochs", "optim.name", "optim.lr", "optim.weight_decay", "optim.schedule"}


def test_the_settings_files_hold_the_core_of_every_paper_preset():
    listed = {}
    for row in SETTINGS:
        listed.setdefault((row["recipe"], row["preset"]), set()).add(row["key"])
    for name, recipe in plugins.load_all("recipes").items():
        for preset in recipe.presets:
            if "_in1k" in preset and recipe.method is not None:
                assert listed.get((name, preset), set()) >= CORE, f"{name}:{preset}"


def test_mocov2_queue_and_momentum_follow_the_paper(digits):
    assert world_size() == 1
    recipe = plugins.load("recipes", "mocov2")
    fresh = trainer(recipe, recipe.presets["tiny"], digits)
    method, before = fresh.method, [p.clone() for p in fresh.method.f_k.module.parameters()]
    keys = method.queue.keys.clone()
    batch = next(fresh.loader.epoch(0))
    with torch.no_grad():
        for p in method.backbone.parameters():
            p.add_(1.0)
    method.on_step_start(fresh._progress(0))
    method(batch)
    moved = [(new - old).mean().item() for new, old in zip(method.f_k.module.parameters(), before, strict=True)]
    assert max(moved) == pytest.approx(1 - 0.9, rel=1e-3)
    n = len(batch.index)
    assert int(method.queue.position) == n and torch.equal(method.queue.keys[n:], keys[n:])
    assert not torch.equal(method.queue.keys[:n], keys[:n])
    assert torch.allclose(method.queue.keys.norm(dim=1), torch.ones(len(keys)), atol=1e-4)


def test_random_is_what_the_seed_says():
    recipe = plugins.load("recipes", "random")
    assert recipe.method is None and recipe.control
    assert recipe.presets["digits"].arch_options == plugins.load("recipes", "mocov2").presets["digits"].arch_options


def test_tiny_losses_are_golden():
    """A change of these numbers changes every published run: it needs a version bump and a note in the changelog.

    Two steps: from the third on these small networks amplify rounding beyond any tolerance that would still find a change.
    """
    golden = json.loads((Path(__file__).parent / "golden" / "losses.json").read_text())
    images = load("digits", "train")
    for name, expected in golden.items():
        recipe = plugins.load("recipes", name)
        config = configs.override(recipe.presets["tiny"], ["precision=32", "max_steps=2"])
        some, losses = trainer(recipe, config, images, log_every=1), []
        some.log = lambda row, losses=losses: losses.append(row["loss"])
        from suite.progress import Reporter

        some.run(Reporter(), name)
        np.testing.assert_allclose(losses, expected, rtol=2e-3)
    assert set(golden) == {name for name, recipe in plugins.load_all("recipes").items() if recipe.method is not None}


def test_build_is_seeded(digits):
    recipe = plugins.load("recipes", "simclr")
    first, second = (build(recipe, recipe.presets["tiny"], digits) for _ in range(2))
    assert first.backbone.sha256() == second.backbone.sha256()
