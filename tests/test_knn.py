# SPDX-License-Identifier: Apache-2.0
"""kNN against a float64 brute force and scikit-learn, its choice of k, and data sets at the edge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from evaluators.knn import EVALUATOR, vote
from suite.backbone import Backbone
from suite.bench import Bench, Place
from suite.data import Sources
from suite.data.imageset import ImageSet
from suite.features import FeatureStore
from suite.nn.neighbours import search
from suite.progress import Reporter
from tests.bench import neighbours as bench
from tests.bench_samples import embedded, evaluate, network, relabelled, saved

CLASSES = tuple("abcdefghijk")


def clusters(n=300, d=16, classes=4, seed=0, noise=0.7):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = rng.normal(size=(classes, d))
    return (centres[labels] + noise * rng.normal(size=(n, d))).astype(np.float32), labels


def naive_knn(bank, labels, queries, classes, k, temperature):
    """Cosine similarity and weighted votes in float64, one query at a time."""
    bank = bank.astype(np.float64) / np.linalg.norm(bank.astype(np.float64), axis=1, keepdims=True)
    out = []
    for q in queries.astype(np.float64):
        similarity = bank @ (q / np.linalg.norm(q))
        nearest = np.argsort(-similarity, kind="stable")[:k]
        votes = np.zeros(classes)
        for i in nearest:
            votes[labels[i]] += np.exp(similarity[i] / temperature) if temperature else 1
        out.append(votes.argmax())
    return np.array(out)


def predict(bank, labels, queries, classes, ks, temperature):
    similarity, position = search(bank, queries, max(ks))
    return vote(similarity, labels[position], classes, ks, temperature)


@pytest.mark.parametrize("temperature", [0.07, 0.1, 0.0])
@pytest.mark.parametrize(("tests", "classes"), [(70, 4), (1, 2), (150, 11), (9, 1)])
def test_predictions_are_those_of_brute_force_in_float64(temperature, tests, classes):
    x, y = clusters(300 + tests, classes=classes, noise=2.0)
    ours = predict(x[:300], y[:300], x[300:], classes, [1, 10, 200], temperature)
    for k, predicted in ours.items():
        np.testing.assert_array_equal(predicted, naive_knn(x[:300], y[:300], x[300:], classes, k, temperature))


def test_predictions_of_two_thousand_queries_are_those_of_float64():
    x, y = clusters(4500, d=64, classes=10, noise=3.0)
    ours = predict(x[:2500], y[:2500], x[2500:], 10, [20], 0.07)[20]
    wide = x.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    similarity = wide[2500:] @ wide[:2500].T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :20]
    votes = np.zeros((2000, 10))
    np.add.at(votes, (np.arange(2000)[:, None], y[:2500][nearest]), np.exp(np.take_along_axis(similarity, nearest, 1) / 0.07))
    assert 0.2 < (ours == y[2500:]).mean() < 0.9
    np.testing.assert_array_equal(ours, votes.argmax(1))


def test_majority_agrees_with_scikit_learn():
    x, y = clusters(400, noise=1.5)
    reference = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(x[:300], y[:300])
    np.testing.assert_array_equal(predict(x[:300], y[:300], x[300:], 4, [5], 0.0)[5], reference.predict(x[300:]))


def test_votes_are_counted_in_blocks():
    """Many classes: the table of votes does not fit one block."""
    rng = np.random.default_rng(0)
    similarity, labels = np.sort(rng.random((10, 6)))[:, ::-1].astype(np.float32), rng.integers(0, 1 << 21, (10, 6))
    labels[:, 4] = labels[:, 5]
    for k, predicted in vote(similarity, labels, 1 << 21, [6, 1], 1e9).items():
        for row, prediction in zip(labels, predicted, strict=True):
            assert prediction == (row[5] if k == 6 else row[0])


def test_a_tie_goes_to_the_lower_class():
    assert vote(np.ones((1, 2), np.float32), np.array([[3, 1]]), 5, [2], 0.0)[2] == [1]


def image_set(split, labels, classes=CLASSES[:4]):
    labels = np.asarray(labels)
    return ImageSet(
        "made", split, classes, labels, np.zeros((len(labels), 2, 2, 3), np.uint8), f"{split}{labels.tobytes().hex()}"
    )


class Fixed(Bench):
    """A bench that hands out given sets and features."""

    def __init__(self, monkeypatch, train, test, features):
        nowhere = Path("nowhere")
        place = Place(sources=Sources("digits"), store=FeatureStore(nowhere), size=32, reporter=Reporter())
        super().__init__(EVALUATOR, "", place, nowhere)
        self.sets, self.matrix = {"train": train, "test": test}, features
        monkeypatch.setattr(self, "data", lambda cfg, split: self.sets[split])
        monkeypatch.setattr(self, "features", lambda backbone, images, layers: {layers[0]: self.matrix[images.split]})


def measured(monkeypatch, train_labels, test_labels, preset="default", noise=0.7, **changes):
    """Metrics and bench of a run on clusters."""
    centres = np.random.default_rng(0).normal(size=(4, 16))
    features = {
        split: (centres[labels] + noise * np.random.default_rng(seed).normal(size=(len(labels), 16))).astype(np.float32)
        for seed, (split, labels) in enumerate((("train", train_labels), ("test", test_labels)))
    }
    made = Fixed(monkeypatch, image_set("train", train_labels), image_set("test", test_labels), features)
    return EVALUATOR.run(None, replace(EVALUATOR.presets[preset], **changes), made), made


def test_k_is_chosen_on_held_out_training_images(monkeypatch):
    """Training labels that are half wrong ask for many neighbours, clean ones need one."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    clean, made = measured(monkeypatch, labels, labels[:80], noise=0.1)
    assert made.selected == {"k": 1, "on": "80 held-out training images"} and clean["top1"] == clean["top1.k1"] == 100
    monkeypatch.undo()
    train = image_set("train", np.where(rng.random(400) < 0.5, rng.integers(0, 4, 400), labels))
    features = {"train": made.matrix["train"], "test": made.matrix["test"]}
    noisy = Fixed(monkeypatch, train, image_set("test", labels[:80]), features)
    out = EVALUATOR.run(None, EVALUATOR.presets["default"], noisy)
    assert noisy.selected["k"] >= 5 and out["top1"] > out["top1.k1"] + 10


def test_headline_of_a_published_preset_is_its_last_k(monkeypatch):
    labels = np.arange(400) % 4
    out, made = measured(monkeypatch, labels, labels, "mmselfsup", noise=3.0)
    assert set(out) == {"top1", "top1.k10", "top1.k20", "top1.k100", "top1.k200"}
    assert out["top1"] == out["top1.k200"] != out["top1.k10"] and not made.selected
    assert made.arrays is not None and set(made.arrays) == {"kind", "label", "pred"}


def test_presets_differ_in_what_they_should():
    settings = {name: (cfg.ks, cfg.temperature, cfg.choose) for name, cfg in EVALUATOR.presets.items()}
    published = (10, 20, 100, 200)
    assert settings["mmselfsup"] == settings["dinov2"] == (published, 0.07, False)
    assert settings["moco"] == settings["lightly"] == ((200,), 0.1, False)
    assert settings["majority"] == ((1, 5, 10, 20, 100, 200), 0.0, True)
    assert settings["default"] == ((1, 5, 10, 20, 100, 200), 0.07, True)


def test_fewer_images_than_k_is_said(monkeypatch):
    labels = np.arange(60) % 4
    out, made = measured(monkeypatch, labels, labels[:9], "mmselfsup")
    assert set(out) == {"top1", "top1.k10", "top1.k20"} and out["top1"] == out["top1.k20"]
    assert made.selected == {"ks": "10, 20: there are 60 training images"}
    monkeypatch.undo()
    out, made = measured(monkeypatch, labels[:7], labels[:9], "moco")
    assert set(out) == {"top1", "top1.k7"} and made.selected == {"ks": "7: there are 7 training images"}
    monkeypatch.undo()
    out, made = measured(monkeypatch, labels[:12], labels[:9], ks=(10,))
    assert set(out) == {"top1", "top1.k10"} and made.selected["k"] == 10


def test_nothing_to_hold_out_is_said(monkeypatch):
    out, made = measured(monkeypatch, np.arange(4), np.arange(4), noise=0.1)
    assert out == {"top1": 100, "top1.k1": 100}
    assert made.selected["k"] == 1 and "too small to hold out" in made.selected["on"]


def test_one_class_one_test_image_and_a_class_absent_from_test(monkeypatch):
    out, _ = measured(monkeypatch, np.zeros(50, int), np.zeros(5, int))
    assert out["top1"] == 100
    monkeypatch.undo()
    out, _ = measured(monkeypatch, np.arange(100) % 4, np.array([2]), noise=0.1)
    assert out["top1"] == 100
    monkeypatch.undo()
    out, _ = measured(monkeypatch, np.arange(100) % 4, np.arange(30) % 3, noise=0.1)
    assert out["top1"] == 100
    monkeypatch.undo()
    out, _ = measured(monkeypatch, np.arange(100) % 3, np.arange(40) % 4, noise=0.1)
    assert out["top1"] == 75


def test_at_most_ten_thousand_images_choose_k(monkeypatch):
    monkeypatch.setattr("evaluators.knn.HELD_OUT", 40)
    _, made = measured(monkeypatch, np.arange(400) % 4, np.arange(40) % 4)
    assert made.selected["on"] == "40 held-out training images"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("knn") / "run", network())


def test_every_preset_through_the_real_bench(run):
    sources = embedded(240, 60)
    for preset in EVALUATOR.presets:
        result = evaluate(EVALUATOR, run, sources, preset)
        assert result.status == "ok" and 5 < result.metrics["top1"] < 70, preset


def test_a_vision_transformer_and_one_test_image(tmp_path):
    backbone = Backbone("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3})
    sources = embedded(120, 60)
    for test in (sources, sources.changed("test", lambda images: images.subset([3]))):
        assert evaluate(EVALUATOR, saved(tmp_path / "run", backbone), test).status == "ok"


def test_speed_comparison_runs_on_both_sides():
    rng = np.random.default_rng(0)
    bank, queries = (bench.unit_rows(count, seed, 16) for seed, count in enumerate((250, 30)))
    labels = rng.integers(0, bench.CLASSES, 250)
    assert bench.neighbours(bank, labels, queries)(2) == bench.plain(bank, labels, queries)(2) == 60
    assert bench.flops(bank, queries)(10) == 2 * 10 * 250 * 30 * 16 // 1_000_000 and bench.product(100)(2) == 4


def test_layers_announces_what_run_asks_for(run, monkeypatch):
    asked = []
    real = Bench.features
    monkeypatch.setattr(
        Bench, "features", lambda self, b, i, layers, **k: asked.extend(layers) or real(self, b, i, layers, **k)
    )
    result = evaluate(EVALUATOR, run, embedded(60, 20), "default", ["layer=stage3"])
    assert result.status == "ok" and set(asked) == {"stage3"}
    assert list(EVALUATOR.layers(None, replace(EVALUATOR.presets["default"], layer="stage3"), 32)) == ["stage3"]


def test_bad_input_is_one_line(run, monkeypatch):
    sources = embedded(60, 20)
    for split in ("train", "test"):
        result = evaluate(EVALUATOR, run, sources.changed(split, lambda images: relabelled(images, None)), debug=False)
        assert result.status == "failed" and "one label per image" in result.why and split in result.why
    broken = {split: np.full((n, 4), np.nan, np.float32) for split, n in (("train", 60), ("test", 20))}
    monkeypatch.setattr(Bench, "features", lambda self, b, images, layers: {layers[0]: broken[images.split]})
    result = evaluate(EVALUATOR, run, sources, debug=False)
    assert result.status == "failed" and "features of pooled are not finite" in result.why
