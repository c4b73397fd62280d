# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: published settings, layer decay, changes to the network, and whole small trainings."""

from __future__ import annotations

import contextlib
import csv
import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from evaluators import _finetuning, finetune, semi_supervised
from evaluators._finetuning import Augment, Network, adapted, choosing, seen, train_view
from evaluators._finetuning import finetune as train_whole
from suite import config, optim
from suite.backbone import Backbone
from suite.bench import Bench, Place
from suite.data import Sources
from suite.errors import UsageError
from suite.features import FeatureStore
from suite.presets import SMALL_RESNET
from suite.progress import Reporter
from suite.spec import Optim
from suite.train import Interrupted
from suite.views import Normalize, RandAugment, Resize

HERE = Path(__file__).parent
VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
STRONG = replace(finetune.STRONG, jitter=(0.2, 0.2, 0.2, 0.1))


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Backbone(SMALL_RESNET["arch"], SMALL_RESNET["arch_options"], SMALL_RESNET["stem"])


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return Backbone("vit_tiny_patch16_224", VIT)


def bench_for(folder, evaluator=finetune.EVALUATOR, reporter=None, size=32):
    place = Place(sources=Sources("digits"), store=FeatureStore(folder / "store"), size=size, reporter=reporter or Reporter())
    return Bench(evaluator, "0" * 64, place, folder / "work")


@pytest.fixture
def sides(digits):
    return digits.subset(range(96), "train"), digits.subset(range(96, 160), "test")


def on(bench, train, test):
    bench.data = lambda cfg, split: train if split == "train" else test
    return bench


# Published settings


@pytest.mark.parametrize("module", [finetune, semi_supervised])
def test_presets_equal_the_published_figures(module):
    name = module.EVALUATOR.name
    with open(HERE / f"protocols_{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        value = config.to_dict(module.EVALUATOR.presets[row["preset"]])
        for part in row["key"].split("."):
            value = value[part]
        assert value == json.loads(row["value"]), (row["preset"], row["key"])
        assert row["source"]
    published = {row["preset"] for row in rows}
    assert set(module.EVALUATOR.presets) - published <= {"default"}
    assert set(module.EVALUATOR.describe) == set(module.EVALUATOR.presets)


def test_cosine_warm_up_and_floor_of_the_masked_image_presets():
    settings = finetune.EVALUATOR.presets["mae_vit_base_100e"].optim(2e-3)
    rates = [optim.rate(settings, step, 10, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(2e-7) and rates[50] == pytest.approx(2e-3) and rates[25] == pytest.approx(1e-3, rel=1e-3)
    assert min(rates[50:]) == pytest.approx(1e-6, rel=0.02) and rates[525] == pytest.approx((2e-3 + 1e-6) / 2)


# Layer-wise decay


def depths(arch, options=None):
    """Name of every parameter to its depth, of a classifier on a network without memory for its weights."""
    with torch.device("meta"):
        module = nn.ModuleDict({"backbone": Backbone(arch, options), "head": nn.Linear(2, 2)})
    depth = optim.LayerDepth(module)
    return {name: depth(name) for name, _ in module.named_parameters()}, depth.last


def prefix(found, start):
    return {depth for name, depth in found.items() if name.startswith(f"backbone.net.{start}")}


def test_layer_decay_of_vit_base():
    found, last = depths("vit_base_patch16_224")
    assert last == 13
    assert prefix(found, "patch_embed") == prefix(found, "pos_embed") == prefix(found, "cls_token") == {0}
    assert all(prefix(found, f"blocks.{k}.") == {k + 1} for k in range(12))
    assert prefix(found, "norm.") == {13} and found["head.weight"] == 13
    assert 0.65**last == pytest.approx(0.0037, abs=1e-4)
    pooled, _ = depths("vit_tiny_patch16_224", {**VIT, "global_pool": "avg"})
    assert prefix(pooled, "fc_norm") == {3}


def test_layer_decay_of_swin_base():
    found, last = depths("swin_base_patch4_window7_224")
    assert last == 25
    assert prefix(found, "patch_embed") == {0}
    starts = [0, 2, 4, 22]
    for stage, number in enumerate((2, 2, 18, 2)):
        for block in range(number):
            assert prefix(found, f"layers.{stage}.blocks.{block}.") == {starts[stage] + block + 1}
        if stage:
            assert prefix(found, f"layers.{stage}.downsample") == {starts[stage]}
    assert prefix(found, "norm.") == {25} and found["head.bias"] == 25
    assert 0.9**last == pytest.approx(0.0718, abs=1e-4)


def test_layer_decay_of_resnet_50_counts_stages():
    found, last = depths("resnet50")
    assert last == 5 and prefix(found, "conv1") == prefix(found, "bn1") == {0}
    assert [prefix(found, f"layer{k}.") for k in range(1, 5)] == [{1}, {2}, {3}, {4}]
    assert found["head.weight"] == 5


def test_layer_decay_reaches_the_optimizer_and_norms_do_not_decay(vit):
    settings = finetune.EVALUATOR.presets["mae_vit_base_100e"].optim(1.0)
    module = nn.ModuleDict({"backbone": vit, "head": nn.Linear(16, 2)})
    groups = {id(p): group for group in optim.param_groups(module, settings) for p in group["params"]}
    parameters = dict(module.named_parameters())
    for name, depth in {"backbone.net.cls_token": 0, "backbone.net.blocks.1.mlp.fc1.weight": 2, "head.weight": 3}.items():
        assert groups[id(parameters[name])]["lr"] == pytest.approx(0.65 ** (3 - depth))
    decayed = {name for name, p in parameters.items() if groups[id(p)]["weight_decay"]}
    assert all(p.ndim > 1 for name, p in parameters.items() if name in decayed)
    assert not decayed & {"backbone.net.cls_token", "backbone.net.pos_embed"} and "head.weight" in decayed
    swin = Backbone("swin_tiny_patch4_window7_224", {"img_size": 56, "depths": [1, 1], "embed_dim": 8, "num_heads": [1, 2]})
    tables = [group["weight_decay"] for group in optim.param_groups(swin, settings) for p in group["params"]
              if any(p is q for name, q in swin.named_parameters() if name.endswith("bias_table"))]  # fmt: skip
    assert tables == [0.0, 0.0]


# Changes to the network


@pytest.mark.parametrize("arch", ["vit", "small"])
def test_drop_path_changes_no_tensor_and_nothing_in_evaluation_mode(arch, request):
    backbone = request.getfixturevalue(arch).eval()
    own = adapted(backbone, Network(drop_path=0.5))
    x = torch.rand(4, 3, 32, 32)
    assert own.sha256() == backbone.sha256()
    torch.testing.assert_close(own(x), backbone(x))
    own.train()
    for module in own.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    rows = torch.stack([own(x[:1])[0] for _ in range(30)]).detach()
    assert len({tuple(row.tolist()) for row in rows}) > 1
    assert own.net is not backbone.net


def test_nothing_asked_is_a_plain_copy(vit):
    own = adapted(vit, Network())
    assert own.sha256() == vit.sha256() and own.options == vit.options and own.net is not vit.net


def test_mean_pooling_takes_patch_tokens_and_a_new_norm(vit):
    with torch.no_grad():
        vit.net.norm.weight.fill_(3.0)
    own = adapted(vit, Network(mean_pooling=True)).eval()
    assert not hasattr(own.net.norm, "weight") and own.net.fc_norm.weight.eq(1).all()
    x = torch.rand(2, 3, 32, 32)
    tokens = vit.eval().net.forward_intermediates(x, intermediates_only=True, output_fmt="NLC", norm=False)[-1]
    want = nn.functional.layer_norm(tokens.mean(1), (16,), eps=own.net.fc_norm.eps)
    torch.testing.assert_close(own(x), want)


def test_mean_pooling_leaves_other_networks_alone(small):
    assert adapted(small, Network(mean_pooling=True)).sha256() == small.sha256()


def test_swin_moves_to_larger_pictures_and_windows():
    options = {"img_size": 48, "window_size": 6, "depths": [1, 1], "embed_dim": 8, "num_heads": [1, 2]}
    swin = Backbone("swin_tiny_patch4_window7_224", options)
    own = adapted(swin, Network(side=56, window=7, drop_path=0.1))
    assert own(torch.rand(1, 3, 56, 56)).shape == (1, own.dim)
    old, new = dict(swin.net.named_parameters()), dict(own.net.named_parameters())
    tables = [name for name in old if name.endswith("relative_position_bias_table")]
    assert tables and all(new[name].shape[0] == 13 * 13 for name in tables)
    assert all(torch.equal(new[name], old[name]) for name in old if name not in tables)
    centre = 13 * 13 // 2, 11 * 11 // 2
    torch.testing.assert_close(new[tables[0]][centre[0]], old[tables[0]][centre[1]], atol=1e-3, rtol=0)


def test_architectures_that_refuse_say_so(vit):
    with pytest.raises(
        UsageError, match="'vit_tiny_patch16_224' cannot be built with {'img_size': 64}: size mismatch"
    ) as error:
        adapted(vit, Network(side=64))
    assert "\n" not in str(error.value)


# Pictures


def test_views_follow_side_normalisation_and_interpolation(tmp_path, sides):
    bench, half = bench_for(tmp_path), (0.5, 0.5, 0.5)
    network, augment = Network(side=48, mean=half, std=half), STRONG
    own = seen(bench, network)
    assert (own.size, own.mean, own.std) == (48, half, half) and bench.size == 32
    view = _finetuning.test_view(own, sides[1], "bicubic")
    resize = view.ops[0]
    assert isinstance(resize, Resize) and (resize.size, resize.interpolation) == (55, "bicubic")
    assert Normalize(half, half) in view.ops
    kinds = [type(op).__name__ for op in train_view(own, finetune.FinetuneConfig(flip=0.5), augment).ops]
    assert kinds == ["RandomResizedCrop", "HorizontalFlip", "ColorJitter", "RandAugment", "Normalize", "NoiseErasing"]
    (rand,) = (op for op in train_view(own, finetune.FinetuneConfig(), augment).ops if isinstance(op, RandAugment))
    assert (rand.magnitude, rand.std, rand.layers, rand.p, rand.fill, rand.interpolation) == (9, 0.5, 2, 0.5, half, "bicubic")


def test_default_views_are_those_of_the_bench(tmp_path, sides):
    bench, cfg = bench_for(tmp_path), finetune.FinetuneConfig()
    own = seen(bench, Network())
    assert _finetuning.test_view(own, sides[1], "bilinear") == bench.view(sides[1])
    assert train_view(own, cfg, Augment()) == bench.train_view(cfg.crop_min, cfg.flip)


# Whole trainings


FULL = finetune.FinetuneConfig(
    lrs=(2e-3,), optimizer="adamw", epochs=1, batch=32, weight_decay=0.05, exempt=True, layer_decay=0.65, warmup=0.3,
    min_lr=1e-6, clip=5.0, precision="32", label_smoothing=0.1, flip=0.5, augment=STRONG,
    network=Network(drop_path=0.2, mean_pooling=True, head_std=2e-5),
)  # fmt: skip


class Stops(Reporter):
    """Sends SIGTERM to this process at a step of a training."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    @contextlib.contextmanager
    def task(self, what, total, unit="it", start=0):
        with super().task(what, total, unit, start) as task:

            def count(n=1, **values):
                task(n)
                if unit == "steps" and task.done == self.step:
                    signal.raise_signal(signal.SIGTERM)

            yield count


@pytest.mark.parametrize("arch", ["vit", "small"])
def test_everything_on_trains_and_resumes_to_the_same_scores(arch, request, tmp_path, sides):
    backbone, (train, test) = request.getfixturevalue(arch), sides
    before = backbone.sha256()

    def scores(folder, reporter=None):
        bench = bench_for(tmp_path / folder, reporter=reporter)
        return train_whole(
            bench, backbone, train, test, FULL.optim(2e-3), FULL, epochs=2, what="training", augment=FULL.augment,
            network=FULL.network,
        )  # fmt: skip

    straight = scores("a")
    assert straight.shape == (64, 10) and np.isfinite(straight).all() and straight.std() > 0
    with pytest.raises(Interrupted):
        scores("b", Stops(4))
    assert list((tmp_path / "b").rglob("training/last.pt"))
    np.testing.assert_array_equal(scores("b"), straight)
    assert backbone.sha256() == before


def test_evaluator_runs_the_whole_way(small, tmp_path, sides):
    bench = on(bench_for(tmp_path), *sides)
    cfg = replace(FULL, lrs=(1e-3, 3e-3))
    out = finetune.run(small, cfg, bench)
    assert set(out) == {"top1", "top5"} and 0 <= out["top1"] <= out["top5"] <= 100
    assert bench.selected["lr"] in cfg.lrs and set(bench.selected["trials"]) == {"lr 0.001", "lr 0.003"}
    assert sorted(path.name for path in (bench.out / "kept").iterdir()) == ["lr0.001.json", "lr0.003.json"]
    assert not (bench.out / "lr0.001").exists()  # checkpoints of trials go, the final one stays until the record is written
    again = on(bench_for(tmp_path), *sides)
    assert finetune.run(small, cfg, again) == out and again.selected == bench.selected


def test_semi_supervised_runs_the_whole_way(small, tmp_path, digits):
    train, test = digits.subset(range(448), "train"), digits.subset(range(448, 512), "test")
    for preset in ("default", "mmselfsup"):
        bench = on(bench_for(tmp_path / preset, semi_supervised.EVALUATOR), train, test)
        cfg = replace(
            semi_supervised.EVALUATOR.presets[preset], fractions=(0.3,), lrs=(0.01, 0.1), head_multipliers=(1.0,), epochs=1,
            weight_decays=(), precision="32",
        )  # fmt: skip
        out = semi_supervised.run(small, cfg, bench)
        assert set(out) == {"top1", "top5", "top1.30pct", "top5.30pct"}
        assert len(bench.selected["30pct"]["trials"]) == 2
        accuracy = 100 * (bench.arrays["pred"] == bench.arrays["label"]).mean()
        assert out["top1"] == pytest.approx(accuracy)


def test_training_learns(tmp_path, small, digits):
    few, cfg = digits.subset(range(256)), finetune.FinetuneConfig(precision="32", batch=32, crop_min=0.9)
    scores = train_whole(bench_for(tmp_path), small, few, few, Optim(lr=0.1, warmup=1), cfg, epochs=8)
    assert (scores.argmax(1) == few.labels).mean() > 0.3


@pytest.mark.parametrize(("labels", "message"), [("one", "fewer than two classes"), ("none", "no single label")])
def test_unusable_labels_are_one_line(labels, message, small, tmp_path, sides):
    train = sides[0].subset(np.flatnonzero(sides[0].labels == 1))
    train = train if labels == "one" else replace(train, labels=None)
    with pytest.raises(UsageError, match=message):
        finetune.run(small, finetune.FinetuneConfig(), on(bench_for(tmp_path), train, sides[1]))
    with pytest.raises(UsageError, match="digits/test has no single label"):
        finetune.run(small, finetune.FinetuneConfig(), on(bench_for(tmp_path), sides[0], replace(sides[1], labels=None)))


def test_nothing_to_choose_on_is_said(small, tmp_path, digits):
    plain = replace(digits, groups=None)
    lonely = plain.subset([int(np.flatnonzero(plain.labels == c)[0]) for c in range(4)], "train")
    assert choosing(lonely, 0.2, 0) is None
    bench = on(bench_for(tmp_path), lonely, plain)
    with pytest.raises(UsageError, match="choose the learning rate"):
        finetune.run(small, finetune.FinetuneConfig(), bench)
    assert "fewer than 128" in bench.selected["batch"]
