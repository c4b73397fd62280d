# SPDX-License-Identifier: Apache-2.0
"""Evaluators of frozen features together against one extraction and their solvers; many linear heads against separate runs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from recipes.mocov2 import RECIPE
from suite import engine, measure
from suite.backbone import Backbone
from suite.bench import Bench, Place
from suite.data import ImageSet, Sources
from suite.features import FeatureStore, cached, five_layers
from suite.method import TrainSet
from suite.nn.probes import Probes, ProbeSettings, rate_rules
from suite.plugins import load_all
from suite.progress import Reporter
from suite.record import Result
from suite.spec import Optim
from suite.store import Run
from tests.bench import paired
from tests.bench.paired import Effort, Row, Side, row
from tests.bench.training import CIFAR

TOGETHER = ("knn", "linear", "retrieval", "tsne")
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def network() -> Backbone:
    """ResNet-18 with the CIFAR stem."""
    config = RECIPE.presets[CIFAR]
    return Backbone(config.arch, config.arch_options, config.stem)


class Few(Sources):
    """The embedded pictures, a small part of them where one short repetition is asked for."""

    def load(self, name: str, split: str, reporter: Reporter | None = None) -> ImageSet:
        """Every sixteenth picture of the training split."""
        images = super().load(name, split, reporter)
        return replace(images.subset(np.arange(0, len(images), 16)), fingerprint=images.fingerprint)


def together_rows(images: ImageSet, effort: Effort) -> list[Row]:
    """One command with all evaluators of frozen features; the other side is one extraction and each solver on its features."""
    sources: Sources = Few("digits") if effort.most == 1 else Sources("digits")
    ours, theirs = [], []
    for _ in range(min(3, effort.repetitions)):
        with tempfile.TemporaryDirectory() as folder:
            cold, solvers, extraction = command(Path(folder), sources)
        ours.append(1 / cold)
        theirs.append(1 / (solvers + extraction))
    name = f"{', '.join(TOGETHER)} in one command / one extraction + solvers, ResNet-18"
    return [Row(name, 1 / 1.5, ours, theirs, unit="per second")]


def command(folder: Path, sources: Sources) -> tuple[float, float, float]:
    """Seconds of the whole command, of the evaluators when the features are there, and of one extraction."""
    run = Run(folder / "run")
    backbone = network()
    sha = backbone.save(run.weights, {"size": "32"})
    place = Place(sources=sources, store=FeatureStore(folder / "features"), size=32, reporter=Reporter())
    evaluators = load_all("evaluators")
    orders = [measure.order(evaluators[name], "default", sha, sources) for name in TOGETHER]

    def all_of_them() -> list[Result]:
        return [measure.evaluate(order, run, place, together=orders) for order in orders]

    began = time.perf_counter()
    results = all_of_them()
    cold = time.perf_counter() - began
    assert {result.status for result in results} == {"ok"}, [result.why for result in results]
    began = time.perf_counter()
    all_of_them()
    solvers = time.perf_counter() - began
    other = FeatureStore(folder / "other")
    layers = [f"stage{i + 1}" for i in range(len(backbone.stage_dims))] + ["pooled"]
    bench = Bench(orders[0].evaluator, sha, place, folder / "out")
    began = time.perf_counter()
    for split in ("train", "test"):
        some = sources.load("digits", split)
        cached(other, backbone, some, bench.view(some), layers, weights=sha, device=engine.default_device())
    return cold, solvers, time.perf_counter() - began


def linear_rows(images: ImageSet, effort: Effort) -> list[Row]:
    """Six layers times eight learning rates in one pass against six runs of one layer and one rate, an epoch of each."""
    few = images.subset(np.arange(min(len(images), 512)))
    layers = [*five_layers(network(), 32), "pooled"]
    sides = [
        Side("one pass", passes(few, [{layer: RATES for layer in layers}])),
        Side("six runs", passes(few, [{layer: RATES[:1]} for layer in layers])),
    ]
    speeds = paired.measure(sides, replace(effort, repetitions=min(3, effort.repetitions)))
    name = f"linear, {len(layers)} layers x {len(RATES)} rates in one pass / {len(layers)} runs of one layer and rate"
    return [row(name, speeds, "one pass", "six runs", 5.0)]


def passes(images: ImageSet, grids: list[dict[str, tuple[float, ...]]]) -> Callable[[int], int]:
    """An epoch over augmented pictures for each grid of heads, one after the other; speeds count the images once."""
    backbone, evaluator = network(), load_all("evaluators")["linear"]
    place = Place(sources=Sources("digits"), store=FeatureStore(Path("unused")), size=32, reporter=Reporter())
    bench = Bench(evaluator, "", place, Path("unused"))

    def run(epochs: int) -> int:
        for grid in grids:
            heads = {layer: len(rates) for layer, rates in grid.items()}
            probes = Probes(ProbeSettings(heads=heads, size=32, norm="batch"), backbone, TrainSet(images))
            settings = Optim(lr=1.0, rules=rate_rules(grid, 1.0))
            batch = min(256, len(images))
            bench.fit(probes, images, (bench.train_view(),), settings, batch=batch, epochs=epochs)
        return epochs * len(images)

    return run
