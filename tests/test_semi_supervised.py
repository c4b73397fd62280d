# SPDX-License-Identifier: Apache-2.0
"""Semi-supervised evaluation: which labels, which setting, chosen on what, and what survives an interruption."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from evaluators import semi_supervised
from evaluators.semi_supervised import EVALUATOR, SemiConfig
from suite.data import load
from suite.data.split import held_out, labelled_subset, listed, published_subset
from suite.errors import UsageError
from suite.progress import Reporter


class Scripted:
    """The bench's face towards an evaluator; what training gives is scripted by `tuned`."""

    def __init__(self, train, test, folder):
        self.train, self.test, self.out = train, test, folder
        self.evaluator, self.reporter, self.selected, self.calls = EVALUATOR, Reporter(), {}, []

    def data(self, cfg, split):
        return self.train if split == "train" else self.test

    def once(self, key, compute):
        path = self.out / f"{key}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(compute()))
        return json.loads(path.read_text())

    def select(self, **chosen):
        json.dumps(chosen)
        self.selected.update(chosen)

    def predictions(self, kind, **arrays):
        self.arrays = arrays


@pytest.fixture
def tuned(monkeypatch):
    """Training replaced by scores that are better for settings near `best`; every call is noted on the bench."""
    wanted = SimpleNamespace(lr=0.01, truth=None)

    def finetune(bench, backbone, train, test, settings, cfg, *, epochs, what=""):
        head = settings.rules[0].lr_mult
        bench.calls.append((what, len(train), test.split, settings.lr, head, settings.weight_decay, epochs))
        rng = np.random.default_rng(len(train) + int(1000 * settings.lr) + int(head))
        true = np.asarray(wanted.truth.labels if test.split == "test" and wanted.truth is not None else test.labels)
        noise = 1 + abs(np.log10(settings.lr / wanted.lr)) + 0.1 * head
        return np.eye(10)[true] + noise * rng.random((len(test), 10))

    monkeypatch.setattr(semi_supervised, "finetune", finetune)
    return wanted


@pytest.fixture
def sides(digits):
    return digits.subset(range(400), "train"), digits.subset(range(400, 512), "test")


def run(preset, train, test, folder, **changes):
    bench = Scripted(train, test, folder)
    config = replace(EVALUATOR.presets[preset], **changes)
    return bench, semi_supervised.run(None, config, bench)


@pytest.mark.parametrize("preset", ["default", "grid9"])
def test_shuffling_test_labels_changes_no_choice(preset, sides, tuned, tmp_path):
    train, test = sides
    tuned.truth = test
    shuffled = replace(test, labels=np.random.default_rng(1).permutation(test.labels))
    honest, right = run(preset, train, test, tmp_path / "a")
    blind, wrong = run(preset, train, shuffled, tmp_path / "b")
    assert honest.selected == blind.selected and honest.calls == blind.calls
    assert right["top1"] > wrong["top1"]
    assert all(call[2] != "test" for call in honest.calls if "-lr" in call[0])


def test_published_preset_reads_the_setting_off_the_test_images(sides, tuned, tmp_path):
    train, test = sides
    bench, out = run("mmselfsup", train, test, tmp_path)
    assert EVALUATOR.selects_on_test == ("mmselfsup",)
    assert len(bench.calls) == 18 and all(call[2] == "test" for call in bench.calls)
    trials = bench.selected["10pct"]["trials"]
    assert len(trials) == 9 and out["top1"] == max(trials.values())
    chosen = bench.selected["10pct"]
    assert trials[f"lr {chosen['lr']:g} head {chosen['head']:g}"] == out["top1"]
    assert out["top1"] == pytest.approx(100 * np.mean(bench.arrays["pred"] == bench.arrays["label"]))
    assert "test" in chosen["on"] and out["top5"] >= out["top1"]


def test_grid_and_weight_decays_are_the_published_ones(sides, tuned, tmp_path):
    bench, _ = run("mmselfsup", *sides, tmp_path)
    points = {(call[3], call[4]) for call in bench.calls}
    assert points == {(lr, head) for lr in (1e-3, 1e-2, 1e-1) for head in (1.0, 10.0, 100.0)}
    assert {(call[0][:4], call[5]) for call in bench.calls} == {("1pct", 5e-4), ("10pc", 1e-4)}
    assert {call[6] for call in bench.calls} == {20}
    optim = EVALUATOR.presets["grid9"].optim(0.1, 10.0, 5e-4)
    assert (optim.name, optim.momentum, optim.schedule, optim.milestones, optim.gamma) == ("sgd", 0.9, "step", (12, 16), 0.2)
    with pytest.raises(UsageError, match="weight_decays has 1 values for 2"):
        run("default", *sides, tmp_path / "x", weight_decays=(0.1,))


def test_default_uses_the_stated_share_of_labels_and_says_how(sides, tuned, tmp_path):
    bench, out = run("default", *sides, tmp_path)
    assert set(out) == {"top1", "top5", "top1.1pct", "top5.1pct", "top1.10pct", "top5.10pct"}
    final = [call for call in bench.calls if "-lr" not in call[0]]
    assert [call[0] for call in final] == ["1pct", "10pct"] and 10 <= final[0][1] < final[1][1] <= 60
    assert bench.selected["1pct"]["list"] == "seeded stratified subset (seed 0)"
    assert "fewer than 64" in bench.selected["1pct"]["batch"]
    assert bench.selected["10pct"]["lr"] == 0.01 and len(bench.selected["10pct"]["trials"]) == 4


def test_results_of_the_grid_survive_an_interruption(sides, tuned, tmp_path, monkeypatch):
    whole, _ = run("grid9", *sides, tmp_path / "whole")
    usual, left = semi_supervised.finetune, [4]

    def dies(bench, *args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return usual(bench, *args, **kwargs)

    monkeypatch.setattr(semi_supervised, "finetune", dies)
    with pytest.raises(KeyboardInterrupt):
        run("grid9", *sides, tmp_path / "cut")
    monkeypatch.setattr(semi_supervised, "finetune", usual)
    resumed, _ = run("grid9", *sides, tmp_path / "cut")
    assert resumed.selected == whole.selected
    assert len(resumed.calls) == len(whole.calls) - 3  # the finished fraction only reads its checkpoint


def test_classes_with_one_image_are_trained_on_and_the_rest_chooses(digits, tuned, tmp_path):
    plain = replace(digits, groups=None)
    many = np.flatnonzero(plain.labels == 0)[:30], np.flatnonzero(plain.labels == 1)[:30], np.flatnonzero(plain.labels == 2)[:1]
    train = plain.subset(np.concatenate(many), "train")
    bench, _ = run("default", train, plain.subset(range(50), "test"), tmp_path, fractions=(0.2,))
    assert "1 classes have too few" in bench.selected["20pct"]["on"]
    lonely = plain.subset([part[0] for part in many], "train")
    bench, _ = run("default", lonely, plain.subset(range(50), "test"), tmp_path / "b")
    assert bench.selected["1pct"]["on"].startswith("middle of the grid")
    assert (bench.selected["1pct"]["lr"], bench.selected["1pct"]["head"]) == (0.1, 1.0)


def test_one_class_is_refused(digits, tuned, tmp_path):
    one = digits.subset(np.flatnonzero(digits.labels == 3), "train")
    with pytest.raises(UsageError, match="fewer than two classes"):
        run("default", one, digits, tmp_path)
    with pytest.raises(UsageError, match="no single label"):
        run("default", replace(one, labels=None), digits, tmp_path)


# Parts of a set


def test_held_out_is_stratified_disjoint_and_keeps_groups_together(digits):
    rest, val = held_out(digits, 0.25, 0)
    assert not set(rest) & set(val) and len(rest) + len(val) == len(digits)
    assert digits.groups is not None and not set(digits.groups[rest]) & set(digits.groups[val])
    share = np.bincount(digits.labels[val], minlength=10) / np.bincount(digits.labels, minlength=10)
    assert share.min() > 0.1 and share.max() < 0.45
    assert len(labelled_subset(digits, 0.001, 0)) >= 10


def test_small_classes_stay_with_the_rest_only_on_request(digits):
    plain = replace(digits, groups=None)
    few = plain.subset(np.concatenate([np.flatnonzero(plain.labels == 0)[:20], np.flatnonzero(plain.labels == 5)[:1]]))
    with pytest.raises(UsageError, match="'five' is too small"):
        held_out(few, 0.25, 0)
    rest, val = held_out(few, 0.25, 0, keep_small=True)
    assert 20 in rest and len(val) == 5 and sorted([*rest, *val]) == list(range(21))
    with pytest.raises(UsageError, match="too small"):
        held_out(few.subset([0, 20]), 0.25, 0, keep_small=True)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A data root in the layout of ImageNet: 3 classes of 4 pictures."""
    root = tmp_path_factory.mktemp("imagenet")
    for split in ("train", "val"):
        for wnid in ("n01440764", "n01443537", "n01484850"):
            (root / split / wnid).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8 + i, 8)).save(root / split / wnid / f"{wnid}_{i}.JPEG")
    return root


@contextlib.contextmanager
def written(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode())
    try:
        yield path
    finally:
        path.unlink()


SIMCLR = "n01484850_3.JPEG\nn01440764_1.JPEG\n"
MMSELFSUP = "n01440764/n01440764_1.JPEG 0\r\n\r\nn01484850/n01484850_3.JPEG 2\r\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("1percent.txt", SIMCLR),
        ("imagenet_subsets/1percent.txt", SIMCLR),
        ("meta/train_1percent.txt", MMSELFSUP),
        ("meta/train_1pct.txt", MMSELFSUP),
        ("meta/train_1percent.txt", "train/n01440764/n01440764_1.JPEG 0\ntrain/n01484850/n01484850_3.jpg 2\n"),
    ],
)
def test_published_lists_are_found_and_followed(imagenet, name, text):
    with written(imagenet / name, text) as file:
        train = load("imagenet", "train", imagenet)
        subset = published_subset(train, 0.01, 0, "train-1pct")
        assert [path.name for path in subset.images.paths] == ["n01440764_1.JPEG", "n01484850_3.JPEG"]
        assert list(subset.images.labels) == [0, 2] and subset.images.split == "train-1pct"
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        assert subset.source == f"{file.name}, sha256 {sha256}"
        assert published_subset(train, 0.1, 0, "x").source == "seeded stratified subset (seed 0)"
        part = train.subset(np.arange(len(train))[::-1])
        assert [path.name for path in part.subset(listed(part, file)).paths] == ["n01484850_3.JPEG", "n01440764_1.JPEG"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "n01440764_1.JPEG\nn01440764_9.JPEG\nn9_1.JPEG\n",
            "2 of 3 images are not in imagenet/train, first 'n01440764_9.JPEG'",
        ),
        ("n01443537/n01440764_1.JPEG 1\n", "1 of 1 images are not in"),
        ("\n\n", "is empty"),
        ("n01440764_1.JPEG\nn01440764_1.JPEG\n", "names an image twice"),
    ],
)
def test_lists_that_do_not_fit_are_refused_in_one_line(imagenet, text, message):
    with written(imagenet / "1percent.txt", text):
        train = load("imagenet", "train", imagenet)
        with pytest.raises(UsageError, match=message) as error:
            published_subset(train, 0.01, 0, "x")
        assert "\n" not in str(error.value)


def test_ambiguous_and_unreadable_lists_are_refused(tmp_path):
    for wnid in ("a", "b"):
        (tmp_path / "train" / wnid).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8)).save(tmp_path / "train" / wnid / f"{i}.png")
    train = load("imagenet", "train", tmp_path)
    with written(tmp_path / "10percent.txt", "0.png\n"), pytest.raises(UsageError, match="fits several images"):
        published_subset(train, 0.1, 0, "x")
    with written(tmp_path / "10percent.txt", "a/0.png\n"):
        assert len(published_subset(train, 0.1, 0, "x").images) == 1
    (tmp_path / "1percent.txt").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(UsageError, match="not readable text"):
        published_subset(train, 0.01, 0, "x")


def test_list_goes_into_the_record(imagenet, tuned, tmp_path):
    with written(imagenet / "1percent.txt", SIMCLR):
        train, test = load("imagenet", "train", imagenet), load("imagenet", "val", imagenet)
        bench, _ = run("default", train, test, tmp_path, fractions=(0.01,))
    assert bench.selected["1pct"]["list"].startswith("1percent.txt, sha256 ")
    assert bench.selected["1pct"]["images"] == 2


def test_defaults_are_what_they_were():
    cfg = SemiConfig()
    assert (cfg.fractions, cfg.lrs, cfg.head_multipliers) == ((0.01, 0.1), (0.01, 0.1), (1.0, 10.0))
    assert (cfg.epochs, cfg.batch, cfg.weight_decay, cfg.milestones, cfg.gamma) == (12, 64, 5e-4, (7, 10), 0.2)
    assert (cfg.crop_min, cfg.flip, cfg.label_smoothing, cfg.held_out) == (0.5, 0.0, 0.0, 0.25)
