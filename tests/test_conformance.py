# SPDX-License-Identifier: Apache-2.0
"""The conformance checks find what they are for: each faulty recipe below fails with a sentence that says what is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from recipes.simsiam import RECIPE, SimSiam
from suite.testing import check_recipe


class Forgetful(SimSiam):
    """Knows something that is not in its state."""

    steps = 0

    def forward(self, batch):
        found = super().forward(batch)
        return {**found, "loss": found["loss"] * (1 + self.steps)}

    def after_step(self, progress):
        self.steps += 1


class Rough(SimSiam):
    """Computes its loss in whatever precision is around it."""

    def forward(self, batch):
        z = self.projector(self.backbone(batch.views[0]))
        return {"loss": torch.nn.functional.linear(z, z).mean()}


class Blurred(SimSiam):
    """A difference of large numbers, of which bf16 leaves little."""

    def forward(self, batch):
        z1, z2 = (self.projector(self.backbone(x)) for x in batch.views)
        return {"loss": ((1000 + z1).float() - (1000 + z2).float()).square().mean()}


class Detached(SimSiam):
    """Its loss does not reach the backbone."""

    def forward(self, batch):
        z = self.projector(self.backbone(batch.views[0]).detach())
        return {"loss": z.float().square().mean()}


class Shapeless(SimSiam):
    """Returns one number per image as its features."""

    def forward(self, batch):
        found = super().forward(batch)
        return {**found, "features": found["features"].mean(1)}


class Infinite(SimSiam):
    """Diverges at once."""

    def forward(self, batch):
        return {"loss": super().forward(batch)["loss"] / 0}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Forgetful, "the next loss is .*, with the state read back"),
        (Rough, "computed in torch.bfloat16 under bf16"),
        (Blurred, "in float32 and .* in bf16"),
        (Detached, "no gradient reaches backbone"),
        (Shapeless, "'features' are not N×d"),
        (Infinite, "not one finite number"),
    ],
)
def test_a_faulty_method_fails(method, message, cache):
    with pytest.raises(AssertionError, match=f"faulty: .*{message}"):
        check_recipe(replace(RECIPE, name="faulty", method=method))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"presets": {"digits": RECIPE.presets["digits"]}}, "lacks a digits or tiny preset"),
        ({"default": "elsewhere"}, "default preset 'elsewhere' does not exist"),
        ({"title": ""}, "lacks title, paper or summary"),
        ({"reference": {"elsewhere": ()}}, "published figures for 'elsewhere', which does not exist"),
    ],
)
def test_an_incomplete_recipe_fails(changes, message):
    with pytest.raises(AssertionError, match=message):
        check_recipe(replace(RECIPE, **changes))
