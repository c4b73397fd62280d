# SPDX-License-Identifier: Apache-2.0
"""Evaluators measure the weights they are given: other weights, other figures; the same function, the same figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from suite import plugins
from suite.backbone import Backbone
from suite.record import Result
from suite.spec import Evaluator
from suite.store import Run
from tests.bench_samples import SIDE, Given, embedded, evaluate, network, saved, short

EVALUATORS: dict[str, Evaluator] = plugins.load_all("evaluators")
LIGHT = [name for name, evaluator in EVALUATORS.items() if not evaluator.needs]
HEAVY = [pytest.param(name, marks=pytest.mark.slow) for name, evaluator in EVALUATORS.items() if evaluator.needs]
TEST = 80
CHAOTIC = {"tsne": 3.0}
"""Points by which rounding may move the figures of a layout that gradient descent finds."""


@pytest.fixture(scope="module")
def sources() -> Given:
    return embedded(160, TEST)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Two networks, and the first one with its channels in another order."""
    folder = tmp_path_factory.mktemp("weights")
    networks = {"one": settled(network(0)), "other": settled(network(1))}
    networks["permuted"] = permuted(networks["one"])
    return {name: saved(folder / name, backbone) for name, backbone in networks.items()}


def settled(backbone: Backbone) -> Backbone:
    """Batch-norm statistics and scales of a network that has seen something, none of them a default."""
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            for tensor, low in ((module.weight.data, 0.8), (module.running_var, 0.8), (module.bias.data, -0.1),
                                (module.running_mean, -0.1)):  # fmt: skip
                tensor.copy_(low + 0.4 * torch.rand(len(tensor), generator=generator))
    return backbone


def permuted(backbone: Backbone, stage: str = "layer3") -> Backbone:
    """The same function: inside every block of a stage the hidden channels in another order."""
    twin = Backbone(backbone.arch, backbone.options, backbone.stem)
    twin.load_state_dict(backbone.state_dict())
    generator = torch.Generator().manual_seed(0)
    for block in getattr(twin.net, stage):
        order = torch.randperm(block.conv1.out_channels, generator=generator)
        block.conv1.weight.data = block.conv1.weight.data[order]
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(block.bn1, name).data = getattr(block.bn1, name).data[order]
        block.conv2.weight.data = block.conv2.weight.data[:, order]
    return twin


def measured(name: str, run: Run, sources: Given) -> Result:
    """Short, except what has to be fine-tuned until it finds anything at all."""
    evaluator = EVALUATORS[name]
    result = evaluate(evaluator, run, sources, "", [] if evaluator.needs else short(evaluator))
    assert result.status == "ok", result.why
    return result


def test_the_permuted_network_is_the_same_function_of_other_weights() -> None:
    first = settled(network(0)).eval()
    second = permuted(first).eval()
    assert first.sha256() != second.sha256()
    x = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(first(x), second(x), rtol=1e-4, atol=1e-5)
        for a, b in zip(first.stages(x), second.stages(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*LIGHT, *HEAVY])
def test_another_network_gives_another_result(name, runs, sources):
    if EVALUATORS[name].needs:
        pytest.importorskip(EVALUATORS[name].needs[0])
    one, other = measured(name, runs["one"], sources), measured(name, runs["other"], sources)
    assert one.weights != other.weights and one.metrics != other.metrics


@pytest.mark.parametrize("name", LIGHT)
def test_the_order_of_channels_changes_no_result(name, runs, sources):
    """Up to rounding: one image in an accuracy, a tenth of a point or a thousandth of a figure elsewhere."""
    one, same = measured(name, runs["one"], sources), measured(name, runs["permuted"], sources)
    assert one.weights != same.weights and one.metrics.keys() == same.metrics.keys()
    image = 100 / TEST
    for metric, value in one.metrics.items():
        allowed = image if metric.startswith("top") else max(CHAOTIC.get(name, 0.1), 1e-3 * abs(value))
        assert abs(value - same.metrics[metric]) <= allowed * (1 + 1e-6), metric
    first, second = runs["one"].predictions(one), runs["permuted"].predictions(same)
    if first and "pred" in first:
        assert (first["pred"] != second["pred"]).sum() <= 1
    elif first and "scores" in first:
        np.testing.assert_allclose(first["scores"], second["scores"], atol=1e-2 * np.abs(first["scores"]).max())
