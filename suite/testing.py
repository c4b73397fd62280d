# SPDX-License-Identifier: Apache-2.0
"""Conformance checks for plug-ins, for our own tests and for those of other packages.

Each raises AssertionError with a sentence that says what is wrong.
"""

from __future__ import annotations

import io
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from suite import config as configs
from suite import engine
from suite.backbone import Backbone
from suite.data import load
from suite.data.imageset import ImageSet
from suite.interrupt import Interrupted
from suite.method import Batch, Method, Progress, TrainSet
from suite.progress import Reporter
from suite.record import Result, RunRecord
from suite.spec import Config, Document, Evaluator, Page, Recipe
from suite.train import Plan, Trainer

HALF_TOLERANCE = 0.02
"""How far bf16 may move a first loss: of a loss above 1 relatively, of a smaller one absolutely. bf16 keeps 8 bits, so a single
rounding is up to 0.4 %."""


def build(recipe: Recipe, config: Config, images: ImageSet) -> Method:
    """A freshly initialised method, as `suite run` makes it."""
    assert recipe.method is not None, f"{recipe.name} trains nothing"
    torch.manual_seed(config.seed)
    backbone = Backbone(config.arch, config.arch_options, config.stem)
    return recipe.method(config, backbone, TrainSet(images, config.seed))


def trainer(recipe: Recipe, config: Config, images: ImageSet, folder: Path | None = None, **changes: object) -> Trainer:
    """A trainer over a fresh method on the CPU."""
    fabric = engine.make_fabric(config.precision)
    engine.make_deterministic(fabric.device)
    plan = Plan.of(config, **changes)
    return Trainer(build(recipe, config, images), images, recipe.views(config), plan, fabric, folder)


def check_recipe(recipe: Recipe) -> None:
    """A recipe is complete, its configs survive JSON, and its `tiny` preset trains as it should.

    Gradients reach the backbone and nothing frozen, training changes the backbone, a kill and a resume change nothing, a
    method's state is all that it knows, and bf16 gives the loss of float32 within `HALF_TOLERANCE`.
    """
    assert {"digits", "tiny"} <= set(recipe.presets), f"{recipe.name} lacks a digits or tiny preset"
    assert recipe.default in recipe.presets, f"{recipe.name}: default preset {recipe.default!r} does not exist"
    assert recipe.title and recipe.paper.title and recipe.paper.summary, f"{recipe.name} lacks title, paper or summary"
    for name, config in recipe.presets.items():
        again = configs.from_dict(type(config), configs.to_dict(config))
        assert configs.digest(again) == configs.digest(config), f"{recipe.name}:{name} changes on its way through JSON"
    for preset in recipe.reference:
        assert preset in recipe.presets, f"{recipe.name}: published figures for {preset!r}, which does not exist"
    if recipe.method is not None:
        _check_training(recipe)


def _check_training(recipe: Recipe) -> None:
    config = replace(recipe.presets["tiny"], precision="32")
    images = load(config.dataset, "train")
    _check_gradients(recipe, trainer(recipe, config, images))
    _check_state(recipe, *(trainer(recipe, config, images) for _ in range(2)))
    _check_precision(recipe, *(trainer(recipe, config, images) for _ in range(2)))
    straight = trainer(recipe, config, images)
    before = straight.method.backbone.sha256()
    straight.run(Reporter(), recipe.name)
    assert straight.method.backbone.sha256() != before, f"{recipe.name}: training did not change the backbone"
    with tempfile.TemporaryDirectory() as folder:
        first = trainer(recipe, config, images, Path(folder))
        _stop_after(first, max(1, first.total // 2))
        try:
            first.run(Reporter(), recipe.name)
        except Interrupted:
            pass
        else:
            raise AssertionError(f"{recipe.name}: SIGTERM did not stop the training")
        second = trainer(recipe, config, images, Path(folder))
        second.run(Reporter(), recipe.name)
    assert second.method.backbone.sha256() == straight.method.backbone.sha256(), f"{recipe.name}: a resume changes the weights"


def _stop_after(some: Trainer, steps: int) -> None:
    """Have SIGTERM arrive during step number `steps`."""
    usual = some.method.after_step

    def after_step(progress: Progress) -> None:
        usual(progress)
        if progress.step + 1 == steps:
            signal.raise_signal(signal.SIGTERM)

    some.method.after_step = after_step  # type: ignore[method-assign]  # this one instance, this one run


def started(fresh: Trainer) -> Iterator[Batch]:
    """The first epoch's batches, after what the method does before an epoch; the method in training mode."""
    chosen = fresh.method.on_epoch_start(fresh._progress(0), fresh.data)
    fresh.method.train()
    return fresh.loader.epoch(0, None if chosen is None else chosen.cpu())


def _values(some: Trainer, batch: Batch, half: bool = False) -> dict[str, Tensor]:
    """What the method returns for a batch at the trainer's step, with a known state of torch's generator."""
    torch.manual_seed(some.step)
    some.method.on_step_start(some._progress(0))
    with torch.autocast(some.fabric.device.type, torch.bfloat16, enabled=half):
        return some.method(batch)


def _check_gradients(recipe: Recipe, fresh: Trainer) -> None:
    """One backward pass reaches every trainable backbone parameter and nothing that is frozen."""
    values = _values(fresh, next(started(fresh)))
    loss, features = values["loss"], values.get("features")
    assert loss.ndim == 0 and torch.isfinite(loss), f"{recipe.name}: the loss is not one finite number"
    assert features is None or features.ndim == 2, f"{recipe.name}: 'features' are not N×d, so collapse cannot be seen"
    fresh.fabric.backward(loss)
    for name, parameter in fresh.method.named_parameters():
        if parameter.requires_grad and name.startswith("backbone."):
            assert parameter.grad is not None, f"{recipe.name}: no gradient reaches {name}"
        if not parameter.requires_grad:
            assert parameter.grad is None, f"{recipe.name}: {name} is frozen and has a gradient"


def _check_state(recipe: Recipe, trained: Trainer, other: Trainer) -> None:
    """After two steps, saved, read back and given to a fresh method, the state gives the same next loss to the last bit."""
    batches = started(trained)
    for _ in range(2):
        trained._step(0, batches)
    file = io.BytesIO()
    torch.save(trained.state(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    fresh = other.method.state_dict()
    assert any(not torch.equal(value, fresh[name]) for name, value in state["method"].items()), (
        f"{recipe.name}: two steps leave the state as it was"
    )
    other.method.load_state_dict(state["method"])
    other.method.train()
    other.step, batch = state["step"], next(batches)
    mine, theirs = (_values(some, batch)["loss"].item() for some in (trained, other))
    assert mine == theirs, f"{recipe.name}: the next loss is {mine:g}, with the state read back {theirs:g}"


def _check_precision(recipe: Recipe, whole: Trainer, half: Trainer) -> None:
    """The first losses in float32 and under autocast to bf16, whether or not this device is quick at it."""
    exact = _values(whole, next(started(whole)))["loss"].item()
    rough = _values(half, next(started(half)), half=True)["loss"]
    assert rough.dtype == torch.float32, f"{recipe.name}: the loss is computed in {rough.dtype} under bf16"
    assert abs(rough.item() - exact) <= HALF_TOLERANCE * max(1.0, abs(exact)), (
        f"{recipe.name}: the first loss is {exact:g} in float32 and {rough.item():g} in bf16"
    )


def check_evaluator(evaluator: Evaluator) -> None:
    """An evaluator is complete and its configs survive JSON; that it runs is for its own tests, which know its data."""
    assert evaluator.default in evaluator.presets, f"{evaluator.name}: default preset {evaluator.default!r} does not exist"
    assert evaluator.metrics, f"{evaluator.name} declares no metric"
    names = [metric.name for metric in evaluator.metrics]
    assert len(set(names)) == len(names), f"{evaluator.name} declares a metric twice"
    for name, config in evaluator.presets.items():
        again = configs.from_dict(type(config), configs.to_dict(config))
        assert configs.digest(again) == configs.digest(config), f"{evaluator.name}:{name} changes on its way through JSON"
        assert evaluator.describe.get(name), f"{evaluator.name}:{name} has no one-line description"
    for name in evaluator.selects_on_test:
        assert name in evaluator.presets, f"{evaluator.name}: {name!r} is marked but does not exist"
    assert evaluator.default not in evaluator.selects_on_test, f"{evaluator.name}: the default preset selects on test data"


class Nothing:
    """An archive that keeps nothing beside the records."""

    def predictions(self, record: RunRecord, result: Result) -> None:
        """No per-sample arrays."""

    def artifact(self, record: RunRecord, result: Result, name: str) -> None:
        """No arrays for pages."""

    def log(self, record: RunRecord) -> tuple[()]:
        """No training log."""
        return ()


EMPTY = Nothing()


def check_page(page: Page, records: Sequence[RunRecord], recipes: dict[str, Recipe], evaluators: dict[str, Evaluator]) -> None:
    """A page builds from any records, even none, and twice the same."""
    for some in ([], records):
        first, second = (page.build(some, recipes, evaluators, EMPTY) for _ in range(2))
        assert all(isinstance(document, Document) for document in first), f"{page.name} builds something else than documents"
        assert first == second, f"{page.name} depends on more than its records"
