# SPDX-License-Identifier: Apache-2.0
"""What anybody who writes these methods anew should check first: losses at chance, collapse, the field's round numbers.

Further ones stand with their recipes: patches kept or hidden (MAE 49 of 196, SimMIM 22 of 36, CAE 75 of 196), the eight crops
of SwAV, Barlow Twins on noise, the first losses of BYOL, SimSiam, MAE and SimMIM.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from recipes.byol import regression_loss
from recipes.simsiam import negative_cosine
from suite import config as configs
from suite import plugins
from suite.backbone import Backbone
from suite.data.catalogue import card
from suite.method import TrainSet
from suite.nn.cluster import weighted_cross_entropy
from suite.nn.collapse import feature_std
from suite.nn.contrast import info_nce, nt_xent
from suite.testing import started, trainer
from tests.equations import randn

FLAT = "temperature=1000"
"""So warm that all similarities are alike."""
AT_CHANCE = {
    "mocov1": (FLAT, lambda c: math.log(c.queue + 1)),
    "mocov2": (FLAT, lambda c: math.log(c.queue + 1)),
    "densecl": (FLAT, lambda c: math.log(c.queue + 1)),
    "mocov3": (FLAT, lambda c: 2 * 2 * c.temperature * math.log(c.batch)),
    "simclr": (FLAT, lambda c: math.log(2 * c.batch - 1)),
    "swav": (FLAT, lambda c: math.log(c.prototypes)),
    "npid": (FLAT, lambda c: math.log(c.negatives + 1)),
    "relative-loc": ("seed=0", lambda c: math.log(8)),
    "rotation-pred": ("seed=0", lambda c: math.log(4)),
    "deepcluster": ("seed=0", lambda c: math.log(c.clusters)),
    "odc": ("seed=0", lambda c: math.log(c.clusters)),
    "cae": ("align=0.0", lambda c: math.log(c.codes)),
    "supervised": ("seed=0", lambda c: math.log(10)),
}
"""Of recipes whose loss is that of a choice: a setting, and the logarithm that an untrained network pays."""
NO_CHOICE = {"byol", "simsiam", "barlowtwins", "mae", "simmim"}


def trained():
    return {name for name, recipe in plugins.load_all("recipes").items() if recipe.method is not None}


def test_every_recipe_is_checked_at_chance_or_has_nothing_to_choose():
    assert set(AT_CHANCE) | NO_CHOICE == trained() and not set(AT_CHANCE) & NO_CHOICE


@pytest.mark.parametrize("name", AT_CHANCE)
def test_first_loss_is_the_logarithm_of_the_choices(digits, name):
    recipe, (setting, expected) = plugins.load("recipes", name), AT_CHANCE[name]
    config = configs.override(recipe.presets["tiny"], ["precision=32", setting])
    fresh = trainer(recipe, config, digits)
    batch = next(started(fresh))
    fresh.method.on_step_start(fresh._progress(0))
    rel = 0.06 if name == "cae" else 0.01  # its logits start at a standard deviation of a few tenths, the others' near 0
    assert fresh.method(batch)["loss"].item() == pytest.approx(expected(config), rel=rel)


def test_logarithms_at_the_papers_sizes():
    same = F.normalize(torch.ones(256, 4), dim=1)
    assert info_nce(same[:4], same[:4], same[:1].expand(65536, 4), 0.07).item() == pytest.approx(11.09, abs=0.005)
    assert nt_xent(same, same, 0.1).item() == pytest.approx(6.24, abs=0.005)  # 512 views
    flat = weighted_cross_entropy(torch.zeros(4, 10_000), torch.arange(4), torch.ones(10_000))
    assert flat.item() == pytest.approx(9.21, abs=0.005)


@pytest.mark.parametrize("d", [64, 2048])
def test_collapse_is_a_similarity_of_one_without_spread(d):
    """Healthy directions have standard deviation 1/sqrt(d) and no similarity; one direction for all has none and all of it."""
    p, z = randn(256, d).float(), randn(256, d, seed=1).float()
    assert F.normalize(z, dim=1).std(0).mean().item() == pytest.approx(d**-0.5, rel=0.02)
    assert feature_std(z).item() == pytest.approx(1, abs=0.02)
    assert negative_cosine(p, z).item() == pytest.approx(0, abs=0.05)
    assert regression_loss(p, z).item() == pytest.approx(2, abs=0.1)
    one = z[:1].expand(256, d)
    assert feature_std(one).item() == pytest.approx(0, abs=1e-5)
    assert negative_cosine(one, one).item() == pytest.approx(-1) and regression_loss(one, one).item() == pytest.approx(
        0, abs=1e-6
    )


def test_queues_hold_whole_batches():
    sizes = {}
    for name, recipe in plugins.load_all("recipes").items():
        for preset, config in recipe.presets.items():
            if getattr(config, "queue", 0) and "_in1k" in preset:
                sizes[name] = config.queue
                assert config.queue % config.batch == 0, f"{name}:{preset}"
    assert sizes == {"mocov1": 65536, "mocov2": 65536, "densecl": 65536, "swav": 3840}


MEMORIES = [("npid", "bank.features", (128,)), ("odc", "memory.features", (256,)), ("deepcluster", "labels", ())]


@pytest.mark.parametrize(("name", "buffer", "row"), MEMORIES)
def test_memories_have_a_row_for_each_of_imagenets_1281167_images(name, buffer, row):
    images = range(card("imagenet").splits["train"])
    assert len(images) == 1281167
    recipe = plugins.load("recipes", name)
    config = next(config for preset, config in recipe.presets.items() if preset.endswith("_in1k"))
    with torch.device("meta"):
        method = recipe.method(config, Backbone("resnet18", {}, "imagenet"), TrainSet(images))
    assert dict(method.named_buffers())[buffer].shape == (1281167, *row)
