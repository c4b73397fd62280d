# SPDX-License-Identifier: Apache-2.0
"""Linear evaluation: presets against the published constants, choices without leaks, bad input."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from evaluators import linear
from evaluators._linear_augmented import choose, train_view
from evaluators._linear_presets import LinearConfig, layers_of
from evaluators.linear import EVALUATOR
from suite.bench import Bench, Place
from suite.data import Sources
from suite.errors import SuiteError, UsageError
from suite.features import FeatureStore
from suite.method import TrainSet
from suite.nn.probes import Probes, ProbeSettings
from suite.nn.rows import Rows
from suite.progress import Reporter
from suite.testing import check_evaluator
from suite.views import ColorJitter, Lighting, Normalize, RandomCrop, RandomResizedCrop, Warp
from tests.probe_samples import VIEW

CPU = torch.device("cpu")


def test_layers_of_both_kinds_of_network(backbone, vit):
    presets = EVALUATOR.presets
    assert layers_of(backbone, presets["mhead"], 32) == ["stage1@12", "stage2@6", "stage3@4", "stage4@3", "stage5@2", "pooled"]
    assert layers_of(backbone, presets["dinov2"], 32) == ["last1", "last4"]
    assert len(layers_of(vit, presets["dinov2"], 32)) == 4
    assert layers_of(vit, presets["mhead"], 32)[-1] == layers_of(vit, presets["moco"], 32)[0] == "pooled"
    assert layers_of(backbone, presets["vissl"], 32)[-2:] == ["pooled+plain", "pooled"]
    assert EVALUATOR.layers(backbone, presets["fast"], 32) == [*(f"stage{i}" for i in range(1, 6)), "pooled"]
    assert not EVALUATOR.layers(backbone, presets["mhead"], 32)


PUBLISHED = {
    "mhead": dict(lrs=(0.01,), batch=256, epochs=90, weight_decay=1e-4, nesterov=True, optimizer="sgd", schedule="step",
                  milestones=(30, 60, 90), norm="batch", layers="five", jitter=0.4, lighting=0.1, crop="resized"),
    "mhead_places205": dict(lrs=(0.01,), batch=256, epochs=28, milestones=(7, 14, 21), crop="random", dataset="places205"),
    "mhead_inat2018": dict(lrs=(0.01,), batch=256, epochs=84, milestones=(24, 48, 72), dataset="inat2018"),
    "moco": dict(lrs=(30.0,), batch=256, epochs=100, weight_decay=0, schedule="step", milestones=(60, 80), norm="none"),
    "lars": dict(lrs=(1.6,), batch=4096, epochs=90, weight_decay=0, optimizer="lars", schedule="cosine"),
    "swav": dict(lrs=(0.3,), batch=256, epochs=100, weight_decay=1e-6, optimizer="sgd", schedule="cosine"),
    "mocov3": dict(lrs=(12.0,), batch=1024, epochs=90, weight_decay=0, schedule="cosine", optimizer="sgd"),
    "mocov3_r50": dict(lrs=(0.4,), batch=1024, epochs=90, weight_decay=0, schedule="cosine", optimizer="sgd"),
    "mae": dict(lrs=(6.4,), batch=16384, epochs=90, weight_decay=0, warmup=10, optimizer="lars", norm="batch"),
    "dinov2": dict(lrs=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1), batch=1024, lr_batch=256,
                   epochs=10, weight_decay=0, schedule="cosine", layers="last", best_layer=True, select="test"),
    "dinov2_heldout": dict(batch=1024, lr_batch=256, epochs=10, select="held-out"),
    "vissl": dict(lrs=(0.01,), batch=256, epochs=28, weight_decay=5e-4, nesterov=True, schedule="step", milestones=(8, 16, 24)),
    "cifar": dict(lrs=(0.01,), batch=256, epochs=28, weight_decay=5e-4, milestones=(8, 16, 24), layers="pooled", crop="whole"),
    "default": dict(lrs=(0.01, 0.03, 0.1, 0.3, 1.0), epochs=30, batch=256, weight_decay=0, held_out=0.2, layers="stages"),
    "pooled": dict(lrs=(0.01, 0.03, 0.1, 0.3, 1.0), epochs=30, layers="pooled"),
    "fast": dict(mode="lbfgs", copies=4, select="held-out"),
}  # fmt: skip


def test_presets_are_the_published_protocols():
    check_evaluator(EVALUATOR)
    assert set(PUBLISHED) == set(EVALUATOR.presets) and EVALUATOR.selects_on_test == ("dinov2",)
    for name, constants in PUBLISHED.items():
        preset = EVALUATOR.presets[name]
        for key, value in constants.items():
            assert getattr(preset, key) == value, f"{name}.{key}"
        assert preset.lr_batch == preset.batch or name.startswith("dinov2")
        assert (preset.select == "test") == (name in EVALUATOR.selects_on_test)


def bench_of(backbone, tmp_path, train=None, test=None, sources=None):
    """The real bench, over given sets if any."""
    place = Place(sources=sources or Sources("digits"), store=FeatureStore(tmp_path / "features"), size=32, reporter=Reporter())
    bench = Bench(EVALUATOR, backbone.sha256(), place, tmp_path / "out")
    if train is not None:
        bench.data = lambda cfg, split: train if split == "train" else test
    return bench


def test_views_of_the_presets(backbone, tmp_path):
    bench = bench_of(backbone, tmp_path)
    kinds = {name: [type(op) for op in train_view(EVALUATOR.presets[name], bench).ops] for name in EVALUATOR.presets}
    assert kinds["moco"][0] is RandomResizedCrop and ColorJitter not in kinds["moco"]
    assert kinds["mhead"].index(ColorJitter) < kinds["mhead"].index(Lighting) < kinds["mhead"].index(Normalize)
    assert RandomCrop in kinds["mhead_places205"] and RandomResizedCrop not in kinds["mhead_places205"]
    assert kinds["cifar"][0] is Warp


def test_train_heads_reaches_the_logistic_regression_optimum():
    x, y = clusters(600, noise=1.2)
    rows = Rows.of([x[:500]], CPU)
    cfg = LinearConfig(lrs=(0.5,), epochs=150, batch=100, weight_decay=1e-2)
    (head,) = linear.train_heads({"pooled": rows}, y, np.arange(500), 4, cfg).values()
    # Same objective: mean cross entropy + wd/2 |w|^2  =  C = 1 / (n wd).
    z, test = rows.take(np.arange(500)).numpy(), rows.like(x[500:]).take(np.arange(100))
    reference = LogisticRegression(C=1 / (500 * 1e-2), tol=1e-8, max_iter=2000).fit(z, y[:500])
    ours, theirs = linear.scores(head, test)[:, 0], torch.from_numpy(reference.predict_log_proba(test.numpy()))
    assert (ours.softmax(1) - theirs.exp()).abs().mean() < 0.01
    assert (ours.argmax(1) == theirs.argmax(1)).float().mean() >= 0.98


def test_cached_heads_do_not_influence_each_other():
    x, y = clusters(300)
    rows, cfg = {"pooled": Rows.of([x], CPU)}, LinearConfig(lrs=(0.1, 1.0), epochs=3)
    both = linear.train_heads(rows, y, np.arange(300), 4, cfg)["pooled"][0]
    alone = linear.train_heads(rows, y, np.arange(300), 4, replace(cfg, lrs=(1.0,)))["pooled"][0]
    torch.testing.assert_close(both[:, 1:], alone, rtol=1e-4, atol=1e-6)


def clusters(n=300, d=16, classes=4, seed=0, noise=0.7):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = rng.normal(size=(classes, d))
    return (centres[labels] + noise * rng.normal(size=(n, d))).astype(np.float32), labels


class FakeBench:
    """The bench's face towards the cached modes, over given features."""

    device = CPU

    def __init__(self, train, test, features):
        self.train, self.test, self.matrix, self.selected, self.size = train, test, features, {}, 32

    def data(self, cfg, split):
        return self.train if split == "train" else self.test

    def features(self, backbone, images, layers):
        return {layer: self.matrix[images.split][: len(images)] for layer in layers}

    def augmented(self, backbone, images, layers, view, copies):
        rng = np.random.default_rng(5)
        base = self.features(backbone, images, layers)
        return [{k: v + 0.3 * rng.normal(size=v.shape).astype(np.float32) for k, v in base.items()} for _ in range(copies)]

    def train_view(self, *args):
        return VIEW

    def once(self, key, compute):
        return compute()

    def select(self, **chosen):
        self.selected.update(chosen)

    def predictions(self, kind, **arrays):
        self.arrays = arrays

    def progress(self, total, what):
        return contextlib.nullcontext(lambda n=1: None)


class FakeBackbone:
    stage_dims = (4, 8)


@pytest.fixture
def sides(digits):
    train, test = digits.subset(range(400), "train"), digits.subset(range(400, 512), "test")
    shuffled = replace(test, labels=np.random.default_rng(1).permutation(test.labels))
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 12))
    features = {s.split: (centres[s.labels] + rng.normal(size=(len(s), 12))).astype(np.float32) for s in (train, test)}
    return train, test, shuffled, features


@pytest.mark.parametrize("preset", ["default", "fast"])
def test_shuffling_test_labels_changes_no_choice(preset, sides):
    train, test, shuffled, features = sides
    cfg = EVALUATOR.presets[preset]
    honest, blind = FakeBench(train, test, features), FakeBench(train, shuffled, features)
    right, wrong = linear.run(FakeBackbone(), cfg, honest), linear.run(FakeBackbone(), cfg, blind)
    assert honest.selected == blind.selected and honest.selected["on"].endswith("held-out training images")
    assert right["top1"] > wrong["top1"] + 20
    np.testing.assert_array_equal(honest.arrays["pred"], blind.arrays["pred"])
    assert right["top5"] >= right["top1"]


def test_a_published_grid_chooses_on_test_and_its_twin_does_not(backbone, sides, tmp_path):
    train, test, shuffled, _ = sides
    train, test, shuffled = train.subset(range(160)), test.subset(range(60)), shuffled.subset(range(60))
    chosen = {}
    for preset in ("dinov2", "dinov2_heldout"):
        cfg = replace(EVALUATOR.presets[preset], lrs=(1e-4, 0.1), batch=64, epochs=1, held_out=0.3)
        for name, side in (("honest", test), ("blind", shuffled)):
            bench = bench_of(backbone, tmp_path / preset / name, train, side)
            linear.run(backbone, cfg, bench)
            chosen[preset, name] = bench.selected
    assert chosen["dinov2_heldout", "honest"] == chosen["dinov2_heldout", "blind"]
    assert chosen["dinov2", "honest"]["on"] == "test images"
    assert "held-out training images" in chosen["dinov2_heldout", "honest"]["on"]
    assert set(chosen["dinov2", "honest"]["lr"].values()) <= {1e-4 * 64 / 256, 0.1 * 64 / 256}


def test_the_first_of_equal_heads_is_chosen(backbone, few, tmp_path):
    probes = Probes(ProbeSettings(heads={"stage5": 3, "pooled": 3}, size=32), backbone, TrainSet(few)).eval()
    bench = bench_of(backbone, tmp_path)
    assert choose(probes, few, LinearConfig(), bench) == ({"stage5": 0, "pooled": 0}, "pooled")
    counts = np.bincount(few.labels, minlength=10)
    with torch.no_grad():
        for head in probes.heads["stage5"]:
            head.bias[counts.argmin()] += 100
        probes.heads["stage5"][2].bias[counts.argmax()] += 200
    assert choose(probes, few, LinearConfig(best_layer=True), bench) == ({"stage5": 2, "pooled": 0}, "stage5")


def test_multi_head_protocol_end_to_end(backbone, digits, tmp_path):
    train, test = digits.subset(np.arange(256), "train"), digits.subset(np.arange(256, 320), "test")
    before, bench = backbone.sha256(), bench_of(backbone, tmp_path, train, test)
    cfg = replace(EVALUATOR.presets["mhead"], epochs=4, batch=32, lr_batch=32, milestones=(2, 3))
    metrics = linear.run(backbone, cfg, bench)
    layers = layers_of(backbone, cfg, 32)
    assert set(metrics) == {"top1", "top5", *(f"top1.{layer}" for layer in layers)}
    assert metrics["top1"] == metrics["top1.pooled"] <= metrics["top5"]
    assert backbone.sha256() == before and bench.selected["on"] == "fixed by the protocol"
    assert bench.arrays["label"].tolist() == test.labels.tolist() and len(bench.arrays["pred"]) == 64
    again = bench_of(backbone, tmp_path, train, test)
    assert linear.run(backbone, cfg, again) == metrics
    other = linear.run(backbone, replace(cfg, seed=1), bench_of(backbone, tmp_path / "other", train, test))
    assert other != metrics


def test_probes_learn_what_features_hold(backbone, digits, tmp_path):
    """Brightness is in the average of any layer: two classes of it are told apart after a few epochs."""
    light = np.clip(digits.array[:160].astype(int) // 2 + np.where(np.arange(160) % 2, 120, 0)[:, None, None, None], 0, 255)
    images = replace(digits.subset(np.arange(160), "train"), array=light.astype(np.uint8), images=light.astype(np.uint8),
                     labels=np.arange(160) % 2, classes=("dark", "light"), groups=None)  # fmt: skip
    bench = bench_of(backbone, tmp_path, images.subset(np.arange(120), "train"), images.subset(np.arange(120, 160), "test"))
    cfg = replace(EVALUATOR.presets["mhead"], epochs=6, batch=30, lr_batch=30, jitter=0.0, milestones=())
    assert linear.run(backbone, cfg, bench)["top1.stage1@12"] > 90


def test_small_sets_cut_batch_and_rate(backbone, few, tmp_path):
    bench = bench_of(backbone, tmp_path, few, few)
    linear.run(backbone, replace(EVALUATOR.presets["lars"], epochs=1), bench)
    assert bench.selected["lr"] == {"pooled": pytest.approx(1.6 * 48 / 4096)}
    assert bench.selected["batch"].startswith("48 instead of 4096")


def test_an_interrupted_choice_is_kept(backbone, sides, tmp_path, monkeypatch):
    train, test = sides[0].subset(range(120)), sides[1].subset(range(40))
    cfg = replace(EVALUATOR.presets["dinov2_heldout"], lrs=(1e-4, 0.1), batch=32, epochs=1)
    whole = bench_of(backbone, tmp_path / "whole", train, test)
    expected = linear.run(backbone, cfg, whole)
    bench = bench_of(backbone, tmp_path / "part", train, test)
    usual = bench.fit
    monkeypatch.setattr(bench, "fit", lambda *a, what, **k: usual(*a, what=what, **k) if what == "trial" else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        linear.run(backbone, cfg, bench)
    bench = bench_of(backbone, tmp_path / "part", train, test)
    seen, usual = [], bench.fit
    monkeypatch.setattr(bench, "fit", lambda *a, what, **k: (seen.append(what), usual(*a, what=what, **k)))
    assert linear.run(backbone, cfg, bench) == expected and seen == ["training"]
    assert bench.selected == whole.selected


def broken(sides, kind):
    train, test, _, features = sides
    if kind == "nan":
        features["train"][7, 3] = np.nan
    if kind == "unlabelled":
        train = replace(train, labels=None)
    if kind == "multilabel":
        train = replace(train, labels=np.ones((len(train), 10), np.int8))
    if kind == "one class":
        train = replace(train, labels=np.full(len(train), 3))
    return FakeBench(train, test, features)


@pytest.mark.parametrize("preset", ["default", "fast"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [("nan", "layer 'stage1'.*image 7"), ("unlabelled", "one label per image"), ("multilabel", "one label per image"),
     ("one class", "two classes.*'three'")],
)  # fmt: skip
def test_bad_data_is_one_line(sides, preset, kind, message):
    with pytest.raises(SuiteError, match=message) as caught:
        linear.run(FakeBackbone(), EVALUATOR.presets[preset], broken(sides, kind))
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_named_by_layer(backbone, few, tmp_path):
    with torch.no_grad():
        backbone.net.layer2[0].conv1.weight[0] = float("nan")
    cfg = replace(EVALUATOR.presets["mhead"], epochs=1, batch=16)
    with pytest.raises(SuiteError, match="layer 'stage3@4'.*not finite") as caught:
        linear.run(backbone, cfg, bench_of(backbone, tmp_path, few, few))
    assert "\n" not in str(caught.value)


def test_a_class_absent_from_test_is_fine(sides):
    train, test, _, features = sides
    kept = np.flatnonzero(test.labels != 3)
    features["test"] = features["test"][kept]
    assert linear.run(FakeBackbone(), EVALUATOR.presets["pooled"], FakeBench(train, test.subset(kept), features))["top1"] > 50


@pytest.mark.parametrize(
    "changes",
    [dict(lrs=()), dict(lrs=(0.1, -1)), dict(epochs=0), dict(batch=0), dict(held_out=1.0), dict(mode="lbfgs", costs=(0.0,)),
     dict(mode="augmented", warmup=10, epochs=5), dict(layers="last"), dict(select="test"), dict(copies=-1)],
)  # fmt: skip
def test_settings_that_mean_nothing(sides, changes):
    with pytest.raises(UsageError, match="config key"):
        linear.run(FakeBackbone(), replace(LinearConfig(), **changes), FakeBench(*sides[:2], sides[3]))


def test_an_affine_norm_takes_one_rate(backbone, few, tmp_path):
    cfg = replace(EVALUATOR.presets["vissl"], epochs=1, batch=16, layers="pooled")
    with pytest.raises(UsageError, match="affine"):
        linear.run(backbone, replace(cfg, lrs=(0.1, 0.2)), bench_of(backbone, tmp_path / "a", few, few))
    linear.run(backbone, cfg, bench_of(backbone, tmp_path / "b", few, few))
