# SPDX-License-Identifier: Apache-2.0
"""Every constant of every published preset against `protocols.csv`, as evaluators really use it.

A plain key is a field of the preset. `fit.…` is what reaches the training loop on 40,000 images with a ResNet-50 at 224
pixels: `fit.optim.lr`, `fit.batch`, `fit.view.ops`. `resnet50.layers` and `resnet50.dims` are the features of that network,
`vit.layers` those of a vision transformer, `warp.ops` how the SVM's pictures are prepared, `liblinear.…` what its
reference solver gets.
"""

from __future__ import annotations

import csv
import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from suite import config as configs
from suite import features, plugins
from suite.backbone import Backbone
from suite.bench import Bench, Place
from suite.data.imageset import ImageSet
from suite.features import FeatureStore
from suite.progress import Reporter
from suite.spec import Evaluator
from tests.bench_samples import Given

FOLDER = Path(__file__).parent
ROWS = list(csv.DictReader((FOLDER / "protocols.csv").open()))
OURS = ("default", "tiny", "pooled", "fast", "sklearn", "train")
"""Presets of our own making, for which nothing is published; so are those whose name starts with `digits`."""
IMAGES, SIDE = 40_000, 224


class Captured(Exception):
    """Training was about to begin."""


class Recorder(Bench):
    """A bench that stops where training would begin and keeps what it would have been."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.calls: list[SimpleNamespace] = []

    def fit(self, method, images, views, settings, *, batch, epochs, precision="32", seed=0, what=""):  # type: ignore[override]
        (view,) = views
        jitter = [[op.brightness, op.contrast, op.saturation, op.hue] for op in view.ops if hasattr(op, "saturation")]
        heads = list(getattr(method, "heads", {}).values()) if hasattr(method, "layers") else []
        call = SimpleNamespace(
            optim=settings, batch=batch, epochs=epochs, layers=list(getattr(method, "layers", [])),
            heads=sum(len(h) for h in heads),
            view=SimpleNamespace(
                ops=[type(op).__name__ for op in view.ops], jitter=jitter[0] if jitter else None,
                sizes=[op.size for op in view.ops if hasattr(op, "size")],
            ),
        )  # fmt: skip
        self.calls.append(call)
        raise Captured


@functools.cache
def backbone(kind: str) -> Backbone:
    if kind == "vit":
        return Backbone("vit_tiny_patch16_224", {"depth": 4})
    return Backbone("resnet50")


def plenty(name: str, split: str) -> ImageSet:
    """Empty pictures of ten classes, more than the largest batch."""
    count = IMAGES if split == "train" else 20
    pixels = np.broadcast_to(np.zeros((1, 2, 2, 3), dtype=np.uint8), (count, 2, 2, 3))
    return ImageSet(name, split, tuple("abcdefghij"), np.arange(count) % 10, pixels, f"{name}-{split}", array=pixels)


@functools.cache
def recorded(name: str, preset: str, kind: str) -> SimpleNamespace:
    """The first training of a preset."""
    evaluator: Evaluator = plugins.load("evaluators", name)
    sets = {(data, split): plenty(data, split) for data in ("digits", "places205", "inat2018") for split in ("train", "test")}
    place = Place(sources=Given("digits", sets=sets), store=FeatureStore(Path("nowhere")), size=SIDE, reporter=Reporter())
    bench = Recorder(evaluator, "0" * 64, place, Path("nowhere"))
    bench.device = torch.device("cpu")
    with pytest.raises(Captured):
        evaluator.run(backbone(kind), evaluator.presets[preset], bench)
    return bench.calls[0]


def layers(name: str, preset: str, kind: str) -> list[str]:
    """Feature layers of a preset, cached or trained on directly."""
    evaluator: Evaluator = plugins.load("evaluators", name)
    assert evaluator.layers is not None, f"{name} does not say which layers it uses"
    return list(evaluator.layers(backbone(kind), evaluator.presets[preset], SIDE)) or recorded(name, preset, kind).layers


@functools.cache
def maps() -> tuple[torch.Tensor, list[torch.Tensor]]:
    with torch.no_grad():
        return backbone("resnet50").eval().pooled_and_stages(torch.zeros(1, 3, SIDE, SIDE))


def warp_ops(name: str) -> list[list[Any]]:
    place = Place(sources=Given("digits"), store=FeatureStore(Path("nowhere")), size=SIDE, reporter=Reporter())
    bench = Bench(plugins.load("evaluators", name), "0" * 64, place, Path("nowhere"))
    view = bench.view(plenty("digits", "test"), warp=bench.evaluator.warp)
    return [[type(op).__name__, getattr(op, "size", None)] for op in view.ops]


def normalised_eps() -> float:
    """eps of x / (norm + eps), read off a row of norm eps."""
    from suite.nn.svm_fitter import normalise

    tiny = normalise(np.array([[1e-5, 0.0]], dtype=np.float32), torch.device("cpu"))
    return 1e-5 / float(tiny[0, 0]) - 1e-5


def liblinear() -> dict[str, Any]:
    """The parameters that scikit-learn's machine is built with."""
    import sklearn.svm

    from suite.nn.svm_fitter import make_fitter

    seen: list[dict[str, Any]] = []

    class Machine(sklearn.svm.LinearSVC):  # type: ignore[misc]
        def fit(self, x, y, sample_weight=None):
            seen.append(self.get_params())
            return super().fit(x, y, sample_weight)

    usual, sklearn.svm.LinearSVC = sklearn.svm.LinearSVC, Machine
    try:
        x = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
        fitter = make_fitter(x, x, torch.device("cpu"), 1e-8, "liblinear")
        targets = torch.tensor([[1.0, -1.0] * 6], dtype=torch.float64)
        list(fitter(targets, torch.ones_like(targets), [1.0]))
    finally:
        sklearn.svm.LinearSVC = usual
    return seen[0]


def resolved(row: dict[str, str]) -> Any:
    """What the evaluator uses for one row."""
    name, preset, key = row["evaluator"], row["preset"], row["key"]
    head, _, rest = key.partition(".")
    if head in ("resnet50", "vit"):
        found = layers(name, preset, head)
        return found if rest == "layers" else [features.pool(layer, *maps()).shape[1] for layer in found]
    if head == "warp":
        return warp_ops(name)
    if head == "liblinear":
        return liblinear()[rest]
    if key == "eps":
        return normalised_eps()
    value: Any = configs.to_dict(plugins.load("evaluators", name).presets[preset])
    if head == "fit":
        value, key = recorded(name, preset, "vit" if name == "linear" and preset.startswith("dinov2") else "resnet50"), rest
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return list(value) if isinstance(value, tuple) else value


def same(a: Any, b: Any) -> bool:
    """Equal, numbers up to rounding."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)) and not isinstance(a, bool):
        return math.isclose(a, b, rel_tol=1e-6)
    return a == b


GROUPS = sorted({(row["evaluator"], row["preset"]) for row in ROWS})


@pytest.mark.parametrize(("name", "preset"), GROUPS)
def test_presets_are_the_published_protocols(name, preset):
    wrong = []
    for row in ROWS:
        if (row["evaluator"], row["preset"]) != (name, preset):
            continue
        wanted = json.loads(row["value"])
        try:
            value = resolved(row)
        except (KeyError, AttributeError) as error:
            value = f"nothing ({type(error).__name__}: {error})"
        if not same(value, wanted):
            wrong.append(f"{row['key']} is {value}, published: {wanted} ({row['source']})")
    assert not wrong, f"{name}:{preset}:\n" + "\n".join(wrong)


def listed() -> set[tuple[str, str]]:
    """(evaluator, preset) of all tables; `protocols_<evaluator>.csv` need not repeat the evaluator."""
    return {
        (row.get("evaluator") or path.stem.removeprefix("protocols_"), row["preset"])
        for path in FOLDER.glob("protocols*.csv")
        for row in csv.DictReader(path.open())
    }


def test_every_published_preset_is_in_a_table():
    known = listed()
    missing = [
        f"{name}:{preset}"
        for name, evaluator in plugins.load_all("evaluators").items()
        for preset in evaluator.presets
        if preset not in OURS and not preset.startswith("digits") and (name, preset) not in known
    ]
    assert not missing


def test_presets_that_choose_on_test_data_are_marked():
    """Whatever a table says is chosen on test data carries the mark that pages show."""
    for row in ROWS:
        if row["key"] in ("selection", "select", "choose_on"):
            evaluator = plugins.load("evaluators", row["evaluator"])
            assert (row["preset"] in evaluator.selects_on_test) == (json.loads(row["value"]) == "test"), row
