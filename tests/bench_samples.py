# SPDX-License-Identifier: Apache-2.0
"""Evaluators through the real bench, on a few embedded pictures and networks of a few thousand weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from suite import measure
from suite.backbone import Backbone
from suite.bench import Place
from suite.data import Sources, load
from suite.data.imageset import ImageSet, digest
from suite.features import FeatureStore
from suite.progress import Reporter
from suite.record import Result
from suite.spec import Evaluator
from suite.store import Run

SIDE = 32
KIND = {"classification": "digits", "multilabel": "digit-scenes", "detection": "digit-scenes", "segmentation": "digit-scenes"}
LENGTHS = {"epochs": 2, "search_epochs": 1, "iterations": 4, "warmup": 0, "draws": 2}
"""Settings that say how long something takes."""


@dataclass(frozen=True)
class Given(Sources):
    """Sources that hand out the sets of a test."""

    sets: Mapping[tuple[str, str], ImageSet] = field(default_factory=dict)
    "By data set name and `train` or `test`."

    def name(self, task: str, wanted: str = "") -> str:
        return wanted or KIND[task]

    def load(self, name: str, split: str, reporter: Reporter | None = None) -> ImageSet:
        return self.sets[name, split]

    def fingerprint(self, name: str, split: str) -> str:
        return self.sets[name, split].fingerprint

    def changed(self, split: str, change: Callable[[ImageSet], ImageSet]) -> Given:
        """The same with one split of every data set changed."""
        sets = {key: change(images) if key[1] == split else images for key, images in self.sets.items()}
        return replace(self, sets=sets)


def embedded(train: int = 240, test: int = 100) -> Given:
    """The first pictures of `digits` and, half as many, of `digit-scenes`."""
    sets = {}
    for name, share in (("digits", 1), ("digit-scenes", 2)):
        parts = ("train", "test") if name == "digits" else ("trainval", "test")
        for split, part, count in zip(("train", "test"), parts, (train // share, test // share), strict=True):
            images = load(name, part)
            sets[name, split] = images.subset(np.arange(min(count, len(images))))
    return Given("digits", sets=sets)


def relabelled(images: ImageSet, labels: np.ndarray | None, classes: tuple[str, ...] | None = None) -> ImageSet:
    """The same pictures with other labels; another fingerprint, as for any other annotation."""
    mark = digest(images.fingerprint, "none" if labels is None else labels)
    return dataclasses.replace(images, labels=labels, classes=classes or images.classes, fingerprint=mark)


def network(seed: int = 0) -> Backbone:
    """A narrow ResNet-18, random weights.

    No stage has 8 channels: there oneDNN's backward pass of strided 1×1 convolutions writes outside its memory (torch 2.14,
    AVX-512, two threads, odd batch).
    """
    torch.manual_seed(seed)
    return Backbone("resnet18", {"channels": [16, 32, 48, 64]})


def saved(folder: Path, backbone: Backbone) -> Run:
    """A run that holds nothing but these weights."""
    run = Run(folder)
    backbone.save(run.weights, {"size": str(SIDE)})
    return run


def evaluate(
    evaluator: Evaluator,
    run: Run,
    sources: Sources,
    preset: str = "",
    assignments: Sequence[str] = (),
    debug: bool = True,
) -> Result:
    """One evaluator on one run's weights."""
    sha = Backbone.load(run.weights).sha256()
    wanted = measure.order(evaluator, preset or evaluator.default, sha, sources, assignments)
    place = Place(sources=sources, store=FeatureStore(run.path / "features"), size=SIDE, reporter=Reporter())
    return measure.evaluate(wanted, run, place, debug=debug)


def short(evaluator: Evaluator, preset: str = "") -> list[str]:
    """Assignments that cut a preset to a moment, whatever its config calls it."""
    config = evaluator.presets[preset or evaluator.default]
    names = {f.name for f in dataclasses.fields(config)}
    found = [f"{name}={value}" for name, value in LENGTHS.items() if name in names]
    found += ["precision=32"] if "precision" in names else []
    return found + (["network.side=0"] if "network" in names else [])
