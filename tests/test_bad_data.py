# SPDX-License-Identifier: Apache-2.0
"""Data and weights that an evaluator cannot measure: one line that names the thing, or a result that explains itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from suite import measure, plugins
from suite.backbone import Backbone
from suite.benchmarks import Benchmarks, benchmark
from suite.data import Sources
from suite.data.imageset import ImageSet
from suite.progress import Reporter
from suite.record import Result, RunRecord, Weights
from suite.run import Options
from suite.spec import Evaluator
from suite.store import Run, Store
from tests.bench_samples import KIND, SIDE, Given, embedded, evaluate, network, relabelled, saved, short
from tests.data_samples import coco_tree, tree, voc_tree

EVALUATORS: dict[str, Evaluator] = plugins.load_all("evaluators")
LIGHT = [name for name, evaluator in EVALUATORS.items() if not evaluator.needs]
ALL = [pytest.param(name, marks=[pytest.mark.slow] if e.needs else []) for name, e in EVALUATORS.items()]
INTERNAL = re.compile(r"Traceback|\bat 0x|^(?!UsageError|JobError)\w*(Error|Exception|Interrupt|Warning)\b")
"""What an error looks like that nobody meant for a person."""


@pytest.fixture(scope="module")
def sources() -> Given:
    return embedded(160, 80)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return saved(tmp_path_factory.mktemp("bad") / "run", network())


def check(result: Result, words: str, explain: bool = True) -> None:
    """A failure is one line with one of `words`; a result is finite and, where wanted, explains itself with one of them."""
    text = result.why if result.status != "ok" else json.dumps(dict(result.selected))
    assert "\n" not in result.why and not INTERNAL.search(result.why), f"{result.key}: {result.why}"
    if result.status == "ok":
        assert all(np.isfinite(value) for value in result.metrics.values()), result.metrics
    if result.status != "ok" or explain:
        assert re.search(words, text), f"{result.key}: {result.status}: {text}"


def attempt(name: str, run: Run, sources: Sources) -> Result:
    return evaluate(EVALUATORS[name], run, sources, "", short(EVALUATORS[name]), debug=False)


def one_class(images: ImageSet) -> ImageSet:
    """Every picture shows the same one class, and there is no other."""
    if images.multilabel:
        return relabelled(images, np.ones((len(images), 1), dtype=np.int8), ("zero",))
    return relabelled(images, np.zeros(len(images), dtype=np.int64), ("zero",))


def without_nine(images: ImageSet) -> ImageSet:
    """The last class is listed and no picture shows it."""
    assert images.labels is not None
    if images.multilabel:
        labels = images.labels.copy()
        labels[:, 9] = -1
        return relabelled(images, labels)
    return images.subset(np.flatnonzero(images.labels != 9))


def single_nine(images: ImageSet) -> ImageSet:
    """One picture of the last class is left."""
    assert images.labels is not None
    shown = images.labels[:, 9] == 1 if images.multilabel else images.labels == 9
    return images.subset(np.sort(np.concatenate([np.flatnonzero(~shown), np.flatnonzero(shown)[:1]])))


def seven(images: ImageSet) -> ImageSet:
    """Seven pictures of three classes, fewer than any usual k."""
    assert images.labels is not None
    if images.multilabel:
        labels = np.full((7, 3), -1, dtype=np.int8)
        labels[np.arange(7), np.arange(7) % 3] = 1
        return relabelled(images.subset(np.arange(7)), labels, images.classes[:3])
    return relabelled(images.subset(np.arange(7)), np.arange(7) % 3, images.classes[:3])


def unlabelled(images: ImageSet) -> ImageSet:
    return relabelled(images, None)


Change = Callable[[ImageSet], ImageSet]
# What is changed in the training and in the test split, and the words of which the line must hold one.
CASES: dict[str, tuple[Change | None, Change | None, str]] = {
    "one class": (one_class, one_class, "class"),
    "class absent from test": (None, without_nine, "nine"),
    "class absent from training": (without_nine, None, "nine"),
    "one training image of a class": (single_nine, None, "nine|too few|held|left out"),
    "fewer than k training images": (seven, seven, r"few|held|left out|\b7\b|no more than|at most|two|class"),
    "training labels missing": (unlabelled, None, "label"),
    "test labels missing": (None, unlabelled, "label"),
}
HARMLESS = {("class absent from test", "classification"), *(("one training image of a class", task) for task in KIND)}
"""Where a plain number still is what it says, so nothing needs explaining: (case, task)."""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LIGHT)
def test_labels_that_cannot_be_measured(name, case, run, sources):
    evaluator = EVALUATORS[name]
    train, test, words = CASES[case]
    given = sources.changed("train", train) if train else sources
    given = given.changed("test", test) if test else given
    result = attempt(name, run, given)
    read = {key.rpartition("/")[2] for key in result.data}  # names of the splits that were looked at
    touched = bool(train and read - {"test"}) or bool(test and "test" in read)
    check(result, words, explain=touched and not evaluator.diagnostic and (case, evaluator.task) not in HARMLESS)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Weights of a run that diverged."""
    backbone = network()
    with torch.no_grad():
        backbone.net.layer4[1].conv2.weight[3] = float("nan")
    return saved(tmp_path_factory.mktemp("nan") / "run", backbone)


@pytest.mark.parametrize("name", ALL)
def test_weights_that_are_not_numbers(name, broken, sources):
    evaluator = EVALUATORS[name]
    if measure.missing_need(evaluator):
        pytest.skip(measure.missing_need(evaluator))
    result = attempt(name, broken, sources)
    assert result.status == "failed", result.metrics
    check(result, "(?i)nan|finite|diverge")


@pytest.mark.parametrize("name", [name for name in LIGHT if EVALUATORS[name].frozen])
def test_features_that_are_not_numbers_in_one_image(name, run, sources, tmp_path, monkeypatch):
    """An infinite value in one picture's features, as half precision gives."""
    usual = Backbone.pooled_and_stages
    plain = Backbone.forward

    def spoil(x):
        x = x.clone()
        x[0, 1] = float("inf")
        return x

    def stages(self, x):
        pooled, maps = usual(self, x)
        return spoil(pooled), [spoil(m) for m in maps]

    monkeypatch.setattr(Backbone, "pooled_and_stages", stages)
    monkeypatch.setattr(Backbone, "forward", lambda self, x: spoil(plain(self, x)))
    fresh = saved(tmp_path / "run", Backbone.load(run.weights))
    result = attempt(name, fresh, sources)
    assert result.status == "failed", result.metrics
    check(result, "(?i)nan|inf|finite")


@pytest.mark.parametrize("name", [n for n, e in EVALUATORS.items() if e.task in ("multilabel", "detection", "segmentation")])
def test_a_voc_folder_without_an_annotation(name, run, tmp_path):
    """Found where the data is opened: the same line from every evaluator, and nothing is computed."""
    objects = {f"00000{i}": [("dog" if i % 2 else "cat", 0)] for i in range(1, 9)}
    root = voc_tree(tmp_path, objects)
    voc_tree(tmp_path, {f"1{name}": items for name, items in objects.items()}, "test")
    (root / "VOCdevkit" / "VOC2007" / "Annotations" / "000003.xml").unlink()
    result = attempt(name, run, Sources("voc07", {"voc07": root}))
    assert result.status != "ok"
    check(result, r"000003\.xml|needs|label map|Segmentation")


@pytest.mark.parametrize("name", [n for n, e in EVALUATORS.items() if e.task in ("multilabel", "detection")])
def test_a_coco_file_that_names_a_missing_image(name, run, tmp_path):
    root = coco_tree(tmp_path)
    (root / "val2017" / "1.jpg").unlink()
    result = attempt(name, run, Sources("coco", {"coco": root}))
    assert result.status != "ok"
    check(result, r"1\.jpg|needs")


def finished(store: Store, backbone: Backbone) -> tuple[Run, RunRecord]:
    """A run in a store, as pre-training leaves it."""
    run = store.run("small")
    sha = backbone.save(run.weights, {"size": str(SIDE)})
    record = RunRecord(id="small", recipe="random", recipe_version=1, preset="tiny", config={"workers": 0}, digest="0",
                       seed=0, weights=Weights(sha, backbone.arch, backbone.parameters_count()))  # fmt: skip
    run.save(record)
    return run, record


def everything(store: Store, backbone: Backbone, where: Sources) -> dict[str, Result]:
    """`--bench all` with short trainings."""
    run, record = finished(store, backbone)
    assignments = {name: short(EVALUATORS[name]) for name in LIGHT}
    results = benchmark(run, record, Benchmarks.parse("all", assignments), where, store, Options(), Reporter())
    return {result.evaluator: result for result in results}


def test_the_other_evaluators_go_on(tmp_path):
    """A folder of photographs with a class of one picture: what cannot be measured says so, the rest is measured."""
    root = tree(tmp_path / "photos", {"train/ant": 6, "train/bee": 6, "train/cow": 1, "test/ant": 2, "test/bee": 2})
    results = everything(Store(tmp_path / "runs"), network(), Sources("imagefolder", {"imagefolder": root}))
    assert set(results) == set(EVALUATORS)
    for result in results.values():
        check(result, ".", explain=False)
    assert results["knn"].status == "ok" and results["svm"].status == "skipped"
    assert "multilabel" in results["svm"].why


def test_a_failing_evaluator_stops_no_other(tmp_path, sources, monkeypatch):
    def run(backbone, cfg, bench):
        raise ValueError("first line\nsecond line")

    names = [name for name in LIGHT if EVALUATORS[name].frozen][:4]
    monkeypatch.setitem(EVALUATORS[names[0]].__dict__, "run", run)
    store = Store(tmp_path / "runs")
    chosen = Benchmarks.parse(",".join(names), {name: short(EVALUATORS[name]) for name in names})
    results = benchmark(*finished(store, network()), chosen, sources, store, Options(), Reporter())
    assert [result.status for result in results] == ["failed", "ok", "ok", "ok"]
    assert results[0].why == "ValueError: first line"


def test_a_folder_with_missing_files_is_one_line_per_evaluator(tmp_path):
    root = tree(tmp_path / "photos", {"train/ant": 4, "train/bee": 4, "test/ant": 2, "test/bee": 2})
    broken: Path = root / "test" / "bee" / "1.jpg"
    broken.write_bytes(b"not a picture")
    results = everything(Store(tmp_path / "runs"), network(), Sources("imagefolder", {"imagefolder": root}))
    for name, result in results.items():
        assert result.status == "skipped" or not EVALUATORS[name].needs
        check(result, r"1\.jpg|needs|no data set")
