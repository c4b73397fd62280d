# SPDX-License-Identifier: Apache-2.0
"""Nothing is chosen on test data: other test labels give the same choices and the same predictions.

Every evaluator in the folder is held to it, through the real bench, also one that does not exist yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from suite import measure, plugins
from suite.data.imageset import ImageSet
from suite.spec import Evaluator
from suite.store import Run
from tests.bench_samples import Given, embedded, evaluate, network, relabelled, saved, short

Arrays = dict[str, np.ndarray]
EVALUATORS: dict[str, Evaluator] = plugins.load_all("evaluators")
LIGHT = [name for name, evaluator in EVALUATORS.items() if not evaluator.needs]
TRUTH, PREDICTED = ("label", "targets"), ("pred", "scores")
"""Arrays of the stored predictions: the test labels themselves, and what may not depend on them."""
OTHERS = [
    pytest.param(name, preset, marks=pytest.mark.slow)
    for name in LIGHT
    for preset in EVALUATORS[name].presets
    if preset not in (EVALUATORS[name].default, "sklearn")
]
MARKED = [
    pytest.param(name, preset, marks=pytest.mark.slow)
    for name, evaluator in EVALUATORS.items()
    for preset in evaluator.selects_on_test
]


@pytest.fixture(scope="module")
def sources() -> Given:
    return embedded(160, 80)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("leaks") / "run", network())


def shuffled(seed: int) -> Callable[[ImageSet], ImageSet]:
    def change(images: ImageSet) -> ImageSet:
        assert images.labels is not None
        return relabelled(images, np.random.default_rng(seed).permutation(images.labels))

    return change


def outcome(name: str, preset: str, sources: Given, run: Run) -> tuple[dict[str, Any], Arrays, Arrays]:
    """What was chosen, what was predicted, and the truth beside it."""
    evaluator = EVALUATORS[name]
    result = evaluate(evaluator, run, sources, preset, [*short(evaluator, preset), 'dataset=""'])
    assert result.status == "ok", result.why
    arrays = run.predictions(result) or {}
    predicted, truth = ({key: arrays[key] for key in keys if key in arrays} for keys in (PREDICTED, TRUTH))
    return dict(result.selected), predicted, truth


def reaction(name: str, preset: str, sources: Given, run: Run, seeds: tuple[int, ...]) -> list[str]:
    """Parts of the outcome that change when test labels are shuffled."""
    chosen, predicted, truth = outcome(name, preset, sources, run)
    found = []
    for seed in seeds:
        chosen_blind, predicted_blind, truth_blind = outcome(name, preset, sources.changed("test", shuffled(seed)), run)
        assert all((truth[key] != truth_blind[key]).any() for key in truth), "the labels were not shuffled"
        found += [key for key in {*chosen, *chosen_blind} if chosen.get(key) != chosen_blind.get(key)]
        found += [key for key in predicted if not np.array_equal(predicted[key], predicted_blind[key])]
    return sorted(set(found))


@pytest.mark.parametrize("name", LIGHT)
def test_default_presets_do_not_react_to_test_labels(name, sources, run):
    assert reaction(name, EVALUATORS[name].default, sources, run, (1, 2)) == []


@pytest.mark.parametrize(("name", "preset"), OTHERS)
def test_every_preset_that_reacts_is_marked(name, preset, sources, run):
    found = reaction(name, preset, sources, run, (1, 2, 3))
    assert not found or preset in EVALUATORS[name].selects_on_test, f"{name}:{preset} selects on test data: {found}"


@pytest.mark.parametrize(("name", "preset"), MARKED)
def test_a_marked_preset_does_react(name, preset, sources, run):
    """The check above can see a leak, and no preset is marked without need."""
    assert reaction(name, preset, sources, run, (1, 2, 3, 4))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, evaluator in EVALUATORS.items() if evaluator.needs])
def test_detection_and_segmentation_select_nothing(name, run):
    evaluator = EVALUATORS[name]
    if measure.missing_need(evaluator):
        pytest.skip(measure.missing_need(evaluator))
    result = evaluate(evaluator, run, embedded(32, 16), "", [*short(evaluator), "workers=0"])
    assert result.status == "ok" and not any("test" in f"{key} {value}" for key, value in result.selected.items())


def test_a_leak_would_be_seen(sources, run):
    """An evaluator that looks at the test labels for its choice is caught."""
    honest = EVALUATORS["knn"]

    def leak(backbone, cfg, bench):
        metrics = dict(honest.run(backbone, cfg, bench))
        best = max((key for key in metrics if ".k" in key), key=lambda key: metrics[key])
        bench.select(k=best)
        return metrics

    EVALUATORS["leak"] = replace(honest, name="leak", run=leak)
    try:
        assert "k" in reaction("leak", "default", sources, run, (1, 2, 3, 4))
    finally:
        del EVALUATORS["leak"]
