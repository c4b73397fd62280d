# SPDX-License-Identifier: Apache-2.0
"""The SVM protocol on a bench made of arrays: what is reported, what is chosen where, no leaks."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from evaluators import svm as evaluator
from evaluators.svm import EVALUATOR, SVMConfig, draw, fits, summary
from suite import config
from suite.data.imageset import ImageSet
from suite.errors import JobError, UsageError
from suite.features import five_layers
from suite.metrics import average_precision, mean_average_precision
from suite.nn import samples as sample_rows
from suite.nn.svm_select import quick_ap

CLASSES = 4
SMALL = SVMConfig(costs=(0.01, 1.0, 100.0), shots=(1, 2, 4, 96), draws=3)
BACKBONE = SimpleNamespace(stage_dims=(8, 16), strides=(4, 8), is_vit=False)


class FakeBench:
    """Two layers of noisy features of a shared hidden state; the second is the better one."""

    device, size, classes = torch.device("cpu"), 32, tuple("abcd")

    def __init__(self, seed=0, test_labels=None, samples=120, noise=(3.0, 1.0)):
        rng = np.random.default_rng(seed)
        self.sets, self.matrices = {}, {"train": {}, "test": {}}
        mixing = rng.standard_normal((CLASSES, 40))
        for split in ("train", "test"):
            labels = np.where(rng.random((samples, CLASSES)) < 0.25, 1, -1).astype(np.int8)
            hidden = (labels > 0) @ mixing
            for layer, scale in zip(five_layers(BACKBONE, self.size), noise, strict=True):
                noisy = hidden + scale * rng.standard_normal(hidden.shape)
                self.matrices[split][layer] = noisy.astype(np.float32)
            labels[rng.random(labels.shape) < 0.05] = 0
            self.sets[split] = labels
        if test_labels is not None:
            self.sets["test"] = test_labels(self.sets["test"])
        self.chosen, self.stored, self.kept = {}, {}, {}

    def data(self, cfg, split):
        labels = self.sets[split]
        array = np.zeros((len(labels), 1, 1, 3), np.uint8)
        return ImageSet("fake", split, self.classes, labels, array, "0" * 16, array=array)

    def features(self, backbone, images, layers, warp=False):
        assert warp  # the protocol resizes to a square
        return {layer: self.matrices[images.split][layer] for layer in layers}

    def select(self, **chosen):
        self.chosen |= chosen

    def predictions(self, kind, **arrays):
        self.stored[kind] = arrays

    def once(self, key, compute):
        """As the bench does it: through JSON, and kept."""
        assert re.fullmatch(r"[\w.-]+", key)
        if key not in self.kept:
            self.kept[key] = json.dumps(compute())
        return json.loads(self.kept[key])

    @contextlib.contextmanager
    def progress(self, total, what):
        done = []
        yield done.append
        assert sum(done) in (0, total)


def run(cfg=SMALL, **options):
    bench = FakeBench(**options)
    return EVALUATOR.run(BACKBONE, cfg, bench), bench


def shuffled(labels):
    return np.random.default_rng(9).permuted(labels, axis=0)


def test_metrics_predictions_and_choices():
    metrics, bench = run()
    expected = {"map", "map.stage1", "map.stage2"}
    expected |= {
        f"{name}.k{k}" for name in ("lowshot", "lowshot_std", "lowshot_low", "lowshot_high") for k in (1, 2, 4)
    }  # 96 does not fit
    assert set(metrics) == expected
    assert {name.partition(".")[0] for name in metrics} <= {metric.name for metric in EVALUATOR.metrics}
    arrays = bench.stored["map"]
    assert arrays["scores"].dtype == np.float32 and arrays["scores"].shape == arrays["targets"].shape
    assert metrics["map"] == mean_average_precision(arrays["targets"], arrays["scores"])[0]
    assert metrics["map"] == metrics["map.stage2"] > metrics["map.stage1"] > 30
    assert metrics["lowshot.k1"] < metrics["lowshot.k4"] < metrics["map"]
    assert bench.chosen["layer"] == "stage2@2" and bench.chosen["certificate"] <= 1e-8
    assert len(bench.chosen["costs"]) == CLASSES and set(bench.chosen["costs"]) <= set(SMALL.costs)
    assert set(bench.chosen["lowshot_costs"]) == {"k1", "k2", "k4"}
    assert bench.chosen["lowshot_costs"]["k1"] == [1.0] * 3


def held_out_precision(x, y, cost, folds):
    """The published way to rate a cost: scikit-learn's cross-validation of one class against the rest."""
    machine = LinearSVC(C=cost, dual=False, tol=1e-8, class_weight={1: 2, -1: 1})
    return cross_val_score(machine, x, y, cv=folds, scoring="average_precision").mean()


def test_costs_are_the_best_of_scikit_learns_cross_validation():
    """Full training data: per class. Low-shot: one cost for all classes of a draw, within its own samples."""
    cfg = replace(SMALL, costs=(1e-5, 0.1, 100.0), shots=(2, 4), draws=2)
    _, bench = run(cfg, noise=(3.0, 3.0))
    x = bench.matrices["train"][bench.chosen["layer"]].astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True) + 1e-5
    spread = 0.0

    def check(targets, folds, cost):
        rows = [(x[y != 0], y[y != 0]) for y in targets]
        values = {c: np.mean([held_out_precision(*row, c, folds) for row in rows]) for c in cfg.costs}
        assert values[cost] >= max(values.values()) - 1e-3
        return max(values.values()) - min(values.values())

    for column, cost in zip(bench.sets["train"].T, bench.chosen["costs"], strict=True):
        spread = max(spread, check([column], 3, cost))
    for k, folds in ((2, 2), (4, 3)):
        targets = draw(bench.sets["train"], k, cfg).numpy()
        for one, cost in zip(targets, bench.chosen["lowshot_costs"][f"k{k}"], strict=True):
            spread = max(spread, check(one, folds, cost))
    assert spread > 0.02  # else any cost would have passed


def test_default_chooses_nothing_on_test_data():
    metrics, honest = run()
    for labels in (shuffled, lambda labels: -labels):
        other_metrics, other = run(test_labels=labels)
        assert other_metrics["map"] != metrics["map"] and other.chosen == honest.chosen
        np.testing.assert_array_equal(other.stored["map"]["scores"], honest.stored["map"]["scores"])


def test_published_presets_choose_on_test_data_and_say_so():
    published = replace(EVALUATOR.presets["mmselfsup"], costs=SMALL.costs, shots=(1, 4), draws=3)
    _, bench = run(published)
    _, other = run(published, test_labels=lambda labels: -labels)
    assert other.chosen["lowshot_costs"] != bench.chosen["lowshot_costs"]
    assert bench.chosen["costs"] and set(EVALUATOR.selects_on_test) == {"mmselfsup", "vissl"}
    assert all(len(set(costs)) == 1 for costs in bench.chosen["lowshot_costs"].values())
    for name, preset in EVALUATOR.presets.items():
        assert (preset.selection == "test") == (name in EVALUATOR.selects_on_test)


def test_low_shot_cost_of_the_published_preset_is_the_best_mean_on_test():
    cfg = replace(SMALL, selection="test", shots=(4,))
    metrics, bench = run(cfg)
    single = {c: run(replace(cfg, costs=(c,)))[0]["lowshot.k4"] for c in cfg.costs}
    best = max(single, key=single.get)
    assert bench.chosen["lowshot_costs"]["k4"] == [best] * 3
    assert metrics["lowshot.k4"] == pytest.approx(single[best], abs=0.05)


def test_published_layer_is_the_best_on_test():
    cfg = replace(SMALL, selection="test", shots=())
    metrics, bench = run(cfg, test_labels=shuffled)
    best = "stage1" if metrics["map.stage1"] >= metrics["map.stage2"] else "stage2"
    assert bench.chosen["layer"].startswith(best)
    assert metrics["map"] == max(metrics["map.stage1"], metrics["map.stage2"])


def test_difficult_images_are_ignored_or_trained_as_negatives():
    """A difficult image's features may be anything when ignored, and matter when they count as negatives."""
    for difficult, matters in (("ignore", False), ("negative", True)):
        scores = []
        for wild in (False, True):
            bench = FakeBench()
            column = bench.sets["train"]
            column[:, 1:] = column[:, :1]  # one label pattern, so that a difficult image is so for all classes
            for matrix in bench.matrices["train"].values():
                matrix[column[:, 0] == 0] *= -1 if wild else 1
            EVALUATOR.run(BACKBONE, replace(SMALL, difficult=difficult, shots=()), bench)
            scores.append(bench.stored["map"]["scores"])
        assert np.allclose(*scores, atol=1e-5) != matters


def test_difficult_images_are_ignored_at_test():
    figures = []
    for column in (0, 1):  # images difficult for all classes, and images present for all classes
        for wild in (False, True):
            bench = FakeBench()
            labels = bench.sets["test"]
            labels[:, 1:] = labels[:, :1]
            assert (labels == column).any()
            for matrix in bench.matrices["test"].values():
                matrix[labels[:, 0] == column] *= -1 if wild else 1
            figures.append(EVALUATOR.run(BACKBONE, replace(SMALL, shots=(2,)), bench))
    assert figures[0] == figures[1] and figures[2] != figures[3]


def test_runs_repeat_and_seeds_differ():
    first, second = run()[0], run()[0]
    assert first == second
    other = run(replace(SMALL, seed=1))[0]
    assert other["map"] == first["map"] and other["lowshot.k1"] != first["lowshot.k1"]


def test_draws_have_the_published_size_and_respect_labels():
    labels = FakeBench().sets["train"]
    targets = draw(labels, 4, SMALL).numpy()
    assert targets.shape == (3, CLASSES, len(labels))
    assert ((targets == 1).sum(2) == 4).all() and ((targets == -1).sum(2) == 4 * (CLASSES - 1)).all()
    assert (labels.T[None].repeat(3, 0)[targets != 0] == targets[targets != 0]).all()
    assert len({row.tobytes() for row in targets.reshape(-1, len(labels))}) == 3 * CLASSES
    assert fits(labels, 4) and not fits(labels, 96)


def test_low_shot_costs_depend_on_the_draw_alone():
    """Features of images outside a draw may be anything: the choice and the machines stay."""
    cfg = replace(SMALL, shots=(4,), draws=1)
    bench, wild = FakeBench(), FakeBench()
    used = (draw(bench.sets["train"], 4, cfg).numpy() != 0).any((0, 1))
    assert not used.all()
    outputs = []
    for one in (bench, wild):
        if one is wild:
            one.matrices["train"]["stage2@2"][~used] *= -5
        fitter = evaluator.make_fitter(one.matrices["train"]["stage2@2"], one.matrices["test"]["stage2@2"], one.device)
        outputs.append(evaluator.low_shot(fitter, one.sets["train"], one.sets["test"], 4, cfg))
    assert outputs[0].costs == outputs[1].costs
    np.testing.assert_allclose(outputs[0].maps, outputs[1].maps, atol=0.05)


def test_both_solvers_report_the_same():
    cfg = replace(SMALL, costs=(0.01, 1.0), shots=(2,), draws=2)
    ours, theirs = run(cfg)[0], run(replace(cfg, solver="liblinear"))[0]
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == pytest.approx(theirs[name], abs=0.1)
    assert EVALUATOR.presets["sklearn"].solver == "liblinear"


def test_presets_are_the_published_settings():
    mmselfsup, vissl = EVALUATOR.presets["mmselfsup"], EVALUATOR.presets["vissl"]
    assert mmselfsup.costs[:3] == (1, 10, 100) and mmselfsup.costs[3:] == tuple(2.0**-p for p in range(4, 20))
    assert len(mmselfsup.costs) == 19 and len(vissl.costs) == 11
    assert mmselfsup.shots == (1, 2, 4, 8, 16, 32, 64, 96) and mmselfsup.draws == 5
    assert mmselfsup.difficult == vissl.difficult == "negative" and mmselfsup.positive_weight == 2
    assert set(EVALUATOR.describe) == set(EVALUATOR.presets) and EVALUATOR.metrics[0].name == "map"
    for preset in EVALUATOR.presets.values():
        assert config.from_dict(SVMConfig, config.to_dict(preset)) == preset


@pytest.mark.parametrize(
    "change",
    [{"costs": ()}, {"costs": (1.0, -1.0)}, {"folds": 1}, {"shots": (0,)}, {"draws": 0}, {"tol": 0.0}],
)
def test_bad_settings_are_refused(change):
    with pytest.raises(UsageError, match=next(iter(change))):
        run(replace(SMALL, **change))


def test_bad_data_is_refused():
    bench = FakeBench()
    bench.sets["train"][:, 2] = -1
    with pytest.raises(UsageError, match="'c' of 'fake' has no positive"):
        EVALUATOR.run(BACKBONE, SMALL, bench)
    bench = FakeBench()
    bench.sets["train"] = bench.sets["train"][:, 0].astype(np.int64)
    with pytest.raises(UsageError, match="multi-label"):
        EVALUATOR.run(BACKBONE, SMALL, bench)


def test_interval_is_students():
    for maps in ([10.0, 12.0, 11.0, 14.0, 9.0], [50.0, 52.5]):
        found = summary(4, maps)
        wanted = stats.t.interval(0.95, len(maps) - 1, loc=np.mean(maps), scale=stats.sem(maps))
        np.testing.assert_allclose((found["lowshot_low.k4"], found["lowshot_high.k4"]), wanted, rtol=1e-12)
        assert found["lowshot.k4"] == pytest.approx(np.mean(maps)) and found["lowshot_std.k4"] == pytest.approx(np.std(maps))
    assert set(summary(1, [3.0])) == {"lowshot.k1", "lowshot_std.k1"}  # one draw says nothing of the spread


def test_interrupted_run_continues_at_its_layer(monkeypatch):
    expected, usual, seen = run()[0], evaluator.full, []

    def failing(*args, fail, **options):
        seen.append(1)
        if len(seen) == fail:
            raise KeyboardInterrupt
        return usual(*args, **options)

    bench = FakeBench()
    monkeypatch.setattr(evaluator, "full", partial(failing, fail=2))
    with pytest.raises(KeyboardInterrupt):
        EVALUATOR.run(BACKBONE, SMALL, bench)
    metrics = EVALUATOR.run(BACKBONE, SMALL, bench)
    assert len(seen) == 3 and metrics == expected
    assert EVALUATOR.run(BACKBONE, SMALL, bench) == metrics and len(seen) == 3


@pytest.mark.parametrize("split", ["train", "test"])
def test_features_that_are_no_numbers_name_their_layer(split):
    bench = FakeBench()
    bench.matrices[split]["stage2@2"][7, 3] = np.nan
    with pytest.raises(JobError, match="layer 'stage2@2'") as error:
        EVALUATOR.run(BACKBONE, SMALL, bench)
    assert "\n" not in str(error.value)


def test_classes_absent_from_the_test_set_and_shots_left_out_are_told():
    def without_c(labels):
        labels[:, 2] = -1
        return labels

    metrics, bench = run(test_labels=without_c)
    assert bench.chosen["classes_without_test_positives"] == ["c"] and bench.chosen["shots_left_out"] == [96]
    assert np.isfinite(list(metrics.values())).all() and run()[1].chosen["classes_without_test_positives"] == []
    with pytest.raises(UsageError, match="nothing to test on"):
        run(test_labels=lambda labels: -np.abs(labels))


def test_a_single_class_has_no_low_shot_problems():
    bench = FakeBench()
    bench.sets = {split: labels[:, :1] for split, labels in bench.sets.items()}
    bench.classes = ("a",)
    metrics = EVALUATOR.run(BACKBONE, SMALL, bench)
    assert set(metrics) == {"map", "map.stage1", "map.stage2"} and bench.chosen["shots_left_out"] == list(SMALL.shots)


def test_features_mapped_from_disk_are_read_in_blocks(tmp_path, monkeypatch):
    expected, bench = run(samples=80)[0], FakeBench(samples=80)
    for split, layers in bench.matrices.items():
        for layer, matrix in layers.items():
            np.save(tmp_path / f"{split}-{layer}.npy", matrix)
            layers[layer] = np.load(tmp_path / f"{split}-{layer}.npy", mmap_mode="r")
    monkeypatch.setattr(sample_rows, "ROWS", 50)
    most, usual = [], sample_rows.Rows._raw

    def raw(self, rows, *args):
        out = usual(self, rows, *args)
        most.append(len(out))
        return out

    monkeypatch.setattr(sample_rows.Rows, "_raw", raw)
    got = EVALUATOR.run(BACKBONE, SMALL, bench)
    assert max(most) <= 50
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=0.05)


def test_quick_average_precision_is_that_of_the_metrics():
    rng = np.random.default_rng(0)
    for rate in (0.02, 0.3, 0.9):
        target, scores = rng.choice([1, 0, -1], 300, p=[rate, 0.05, 0.95 - rate]), rng.standard_normal((5, 300))
        wanted = [average_precision(target, row) for row in scores]
        np.testing.assert_allclose(quick_ap(target, scores), wanted, rtol=1e-12)
    assert np.isnan(quick_ap(-np.ones(4), np.zeros((2, 4)))).all()
