# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite import config as configs
from suite.errors import UsageError
from suite.spec import Config, Optim


@dataclass(frozen=True, kw_only=True)
class Mine(Config):
    temperature: float = 0.2
    jitter: tuple[float, float] = (0.4, 0.4)
    optim: Optim = field(default_factory=lambda: Optim(lr=0.1))


def test_override_nested_keeps_the_original():
    base = Mine()
    changed = configs.override(base, ["optim.lr=0.5", "epochs=3", "jitter=[0.1,0.2]", "arch=resnet18"])
    assert (changed.optim.lr, changed.epochs, changed.jitter, changed.arch) == (0.5, 3, (0.1, 0.2), "resnet18")
    assert base == Mine()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("temprature=1", "did you mean 'temperature'"),
        ("optim.lrr=1", "did you mean 'optim.lr'"),
        ("epochs=many", "'epochs' = 'many'"),
        ("epochs=-1", "should be greater than 0"),
        ("optim.lr=0", "'optim.lr' = 0"),
        ("precision=8", "precision"),
        ("epochs", "not key=value"),
        ("epochs.x=1", "plain value"),
    ],
)
def test_bad_override_is_one_line_that_names_it(assignment, message):
    with pytest.raises(UsageError) as caught:
        configs.override(Mine(), [assignment])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_digest_ignores_seed_and_workers_and_nothing_else():
    base = configs.digest(Mine())
    assert configs.digest(Mine(seed=5, workers=9)) == base
    assert configs.digest(Mine(epochs=199)) != base
    assert configs.digest(Mine(optim=Optim(lr=0.2))) != base


@given(st.floats(1e-6, 10), st.integers(1, 1000), st.sampled_from(["sgd", "lars", "adamw"]))
def test_configs_survive_json(lr, epochs, name):
    config = Mine(optim=Optim(lr=lr, name=name), epochs=epochs)
    assert configs.from_dict(Mine, configs.to_dict(config)) == config
