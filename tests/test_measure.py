# SPDX-License-Identifier: Apache-2.0
"""Running evaluators on a run: one extraction for all of them, partial results, failures that stay their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from suite import measure, plugins
from suite.backbone import Backbone
from suite.bench import Bench, Place
from suite.benchmarks import Benchmarks, benchmark
from suite.data import Sources
from suite.errors import JobError, UsageError
from suite.features import FeatureStore
from suite.progress import Reporter
from suite.run import Options
from suite.store import Store
from tests.data_samples import tree

FEATURE_BENCHES = "knn,linear,linear:fast,retrieval,rank,tsne"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.fixture
def adopted(store):
    """A run with random weights, as `suite run --algo random` leaves it."""
    from suite.run import prepare, pretrain

    job = prepare("random", "digits", [], 0, "", {})
    run = store.run(job.id)
    return run, pretrain(job, run, Options(), Reporter())


@pytest.fixture
def few(monkeypatch):
    """A few hundred pictures of the embedded set."""
    whole = Sources.load

    def load(self, name, split, reporter=None):
        images = whole(self, name, split, reporter)
        return replace(images.subset(np.arange(0, len(images), 8)), fingerprint=images.fingerprint)

    monkeypatch.setattr(Sources, "load", load)


def test_one_pass_over_the_images_serves_every_evaluator_of_frozen_features(adopted, store, few, monkeypatch):
    run, record = adopted
    seen = []
    forward = Backbone.pooled_and_stages
    monkeypatch.setattr(Backbone, "pooled_and_stages", lambda self, x: seen.append(len(x)) or forward(self, x))
    plain = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, x: seen.append(len(x)) or plain(self, x))
    benchmarks = Benchmarks.parse("knn,linear,retrieval,tsne")
    where = Sources("digits")
    results = benchmark(run, record, benchmarks, where, store, Options(), Reporter())
    assert {result.status for result in results} == {"ok"}, [result.why for result in results]
    assert sum(seen) == sum(len(where.load("digits", split)) for split in ("train", "test"))


def make_bench(tmp_path, name="knn"):
    evaluator = plugins.load("evaluators", name)
    place = Place(sources=Sources("digits"), store=FeatureStore(tmp_path / "features"), size=32, reporter=Reporter())
    return Bench(evaluator, "0" * 64, place, tmp_path / "out")


def test_an_intermediate_result_is_computed_once(tmp_path):
    calls = []
    for _ in range(2):
        assert make_bench(tmp_path).once("grid-0.1", lambda: calls.append(1) or {"top1": 12.5}) == {"top1": 12.5}
    assert calls == [1]
    (tmp_path / "out" / "kept" / "grid-0.1.json").write_text('{"top1": 1')  # cut short by a crash
    assert make_bench(tmp_path).once("grid-0.1", lambda: {"top1": 3.0}) == {"top1": 3.0}


def test_what_an_interrupted_evaluator_kept_belongs_to_its_settings(adopted, store, few, monkeypatch):
    run, record = adopted
    evaluator = plugins.load("evaluators", "knn")
    calls = []

    def partial(backbone, cfg, bench):
        value = bench.once("half", lambda: calls.append(cfg.temperature) or 1.0)
        if len(calls) < 2:
            raise JobError("the lights went out")
        return {"top1": value}

    place = Place(sources=Sources("digits"), store=FeatureStore(store.root / ".features"), size=32, reporter=Reporter())
    half = replace(evaluator, run=partial)

    def go(*assignments):
        order = measure.order(half, "default", record.weights.sha256, place.sources, assignments)
        return measure.evaluate(order, run, place)

    assert (go().status, calls) == ("failed", [0.07])
    assert (go().status, calls) == ("failed", [0.07])  # read back
    assert (go("temperature=0.2").status, calls) == ("ok", [0.07, 0.2])
    assert (go().status, calls) == ("ok", [0.07, 0.2])
    assert not (run.path / "work").exists()


def test_a_failure_is_one_line_and_the_others_go_on(adopted, store, few, monkeypatch):
    run, record = adopted
    knn, linear = (plugins.load("evaluators", name) for name in ("knn", "linear"))

    def broken(backbone, cfg, bench):
        raise RuntimeError("first line\nsecond line")

    benchmarks = Benchmarks([(replace(knn, run=broken), "default"), (linear, "pooled")])
    first, second = benchmark(run, record, benchmarks, Sources("digits"), store, Options(), Reporter())
    assert (first.status, first.why) == ("failed", "RuntimeError: first line") and second.status == "ok"


def test_results_on_other_data_stand_beside_those_on_the_own(adopted, store, few, tmp_path):
    run, record = adopted
    photos, less = ({f"{split}/{name}": count for split in ("train", "test") for name in "ab"} for count in (48, 32))
    roots = {"imagefolder": tree(tmp_path / "photos", photos), "imagefolder-less": tree(tmp_path / "less", less)}
    where = Sources("digits", roots)

    def knn(asked, *assignments):
        (result,) = benchmark(run, record, Benchmarks.parse(asked, {"knn": assignments}), where, store, Options(), Reporter())
        return result

    own, other = knn("knn"), knn("knn", "dataset=imagefolder")
    assert (own.status, own.key, other.status, other.key) == ("ok", "knn", "ok", "knn.default@imagefolder"), other.why
    assert knn("knn:default@imagefolder") == other and run.results()[0] == {own.key: own, other.key: other}
    third = knn("knn:default@imagefolder-less")
    assert (third.status, third.key) == ("ok", "knn.default@imagefolder-less") and len(run.results()[0]) == 3
    with pytest.raises(UsageError, match="preset of knn"):
        Benchmarks.parse("knn:defualt@imagefolder")
    with pytest.raises(UsageError, match="did you mean 'cifar10'"):
        Benchmarks.parse("knn:default@cifar11")
    with pytest.raises(UsageError, match="did you mean 'cifar10'"):
        Benchmarks.parse("knn", {"knn": ["dataset=cifar11"]})


def test_a_reason_for_not_running_does_not_replace_a_number(adopted, store, few):
    run, record = adopted
    (kept,) = benchmark(run, record, Benchmarks.parse("knn"), Sources("digits"), store, Options(), Reporter())
    evaluator = plugins.load("evaluators", "knn")
    wanted = measure.order(replace(evaluator, needs=("no_such_module",)), "default", record.weights.sha256, Sources("digits"))
    place = Place(sources=Sources("digits"), store=FeatureStore(store.root / "f"), size=32, reporter=Reporter())
    assert "no_such_module" in measure.evaluate(wanted, run, place).why
    assert run.results()[0]["knn"] == kept
    moved = replace(wanted, result=replace(wanted.result, weights="1" * 64))
    measure.evaluate(moved, run, place)
    assert run.results()[0]["knn"].status == "skipped"


def test_artifacts_lie_beside_the_result(adopted, store, few):
    run, record = adopted
    (result,) = benchmark(run, record, Benchmarks.parse("tsne"), Sources("digits"), store, Options(), Reporter())
    arrays = run.artifact(result, "tsne")
    assert arrays["xy"].shape == (len(arrays["label"]), 2) and run.artifact(result, "other") is None
