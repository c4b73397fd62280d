# SPDX-License-Identifier: Apache-2.0
"""Layer names and poolings, extraction, and what the store's keys depend on."""

from __future__ import annotations

import copy
import dataclasses
import functools
import multiprocessing
import os
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from suite import features
from suite.backbone import Backbone
from suite.errors import JobError, UsageError
from suite.features import FeatureStore
from suite.presets import SMALL_RESNET
from suite.views import CenterCrop, HorizontalFlip, Normalize, RandomResizedCrop, View

VIEW = View((CenterCrop(32), Normalize()))
RANDOM = View((RandomResizedCrop(32), HorizontalFlip(0.5), Normalize()))
CPU = torch.device("cpu")


def small_resnet():
    torch.manual_seed(0)
    return Backbone(SMALL_RESNET["arch"], SMALL_RESNET["arch_options"], SMALL_RESNET["stem"])


@pytest.fixture(scope="module")
def backbone():
    return small_resnet()


@pytest.fixture
def few(digits):
    return digits.subset(np.arange(50))


def extract(backbone, images, view=VIEW, layers=("pooled",), **options):
    return features.extract(backbone, images, view, layers, device=CPU, **options)


BAD = (
    "stage0", "stage6", "stage", "pool", "stage2@", "stage1@0x", "stage1@0", "stage1@k3", "pooled@2", "stage1@k0s1p0",
    "stage1@k3s0p0", "stage1@k3s1p2", "stage6@k3s1p1", "stage1@k3s1p1 ",
)  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_layer_names(name):
    with pytest.raises(UsageError) as error:
        features.parse_layer(name, 5)
    assert repr(name) in str(error.value)


def test_layer_names():
    assert features.parse_layer("pooled", 5) == (None, 1, None)
    assert features.parse_layer("stage3", 5) == (2, 1, None)
    assert features.parse_layer("stage3@4", 5) == (2, 4, None)
    assert features.parse_layer("stage12@k10s9p4", 12) == (11, 1, (10, 9, 4))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(kernel=st.integers(1, 6), stride=st.integers(1, 5), data=st.data(), height=st.integers(6, 11), width=st.integers(6, 11))
def test_pooling_is_that_of_torch(kernel, stride, data, height, width):
    padding = data.draw(st.integers(0, kernel // 2))
    maps = [torch.randn(2, 3, height, width), torch.randn(2, 5, height, width)]
    found = features.pool(f"stage2@k{kernel}s{stride}p{padding}", torch.zeros(2, 7), maps)
    expected = nn.AvgPool2d(kernel, stride, padding, count_include_pad=True)(maps[1]).flatten(1)
    torch.testing.assert_close(found, expected)


def test_padding_counts_as_zeros_and_other_layers():
    maps, pooled = [torch.ones(1, 2, 4, 6)], torch.rand(1, 3)
    assert features.pool("stage1@k2s2p1", pooled, maps)[0, :4].tolist() == [0.25, 0.5, 0.5, 0.25]
    assert features.pool("pooled", pooled, maps) is pooled
    maps = [torch.randn(2, 3, 4, 6)]
    torch.testing.assert_close(features.pool("stage1", pooled, maps), maps[0].mean((2, 3)))
    torch.testing.assert_close(features.pool("stage1@2", pooled, maps), nn.AdaptiveAvgPool2d(2)(maps[0]).flatten(1))


def test_a_window_larger_than_the_map():
    with pytest.raises(UsageError, match="'stage1@k5s1p0': a window of 5 does not fit the 4×6 map"):
        features.pool("stage1@k5s1p0", torch.zeros(1, 2), [torch.zeros(1, 2, 4, 6)])


def test_published_layers_of_a_real_resnet50():
    resnet = Backbone("resnet50").eval()
    layers = features.five_layers(resnet, 224)
    assert layers == ["stage1@k10s10p4", "stage2@k16s8p0", "stage3@k13s5p0", "stage4@k8s3p0", "stage5@k6s1p0"]
    torch.manual_seed(0)
    with torch.no_grad():
        pooled, maps = resnet.pooled_and_stages(torch.randn(1, 3, 224, 224))
    found = [features.pool(layer, pooled, maps) for layer in layers]
    assert [value.shape[1] for value in found] == [9216, 9216, 8192, 9216, 8192]
    for value, window, stage in zip(found, [(10, 10, 4), (16, 8, 0), (13, 5, 0), (8, 3, 0), (6, 1, 0)], maps, strict=True):
        torch.testing.assert_close(value, nn.AvgPool2d(*window)(stage).flatten(1))
    assert features.five_layers(resnet, 192) == ["stage1@12", "stage2@6", "stage3@4", "stage4@3", "stage5@2"]


@pytest.mark.parametrize(
    ("arch", "options", "stem", "size", "expected"),
    [
        ("resnet50", {}, "cifar", 224, ["stage1@12", "stage2@6", "stage3@4", "stage4@3", "stage5@2"]),
        ("resnet18", {}, "imagenet", 224, ["stage1@12", "stage2@6", "stage3@4", "stage4@3", "stage5@2"]),
        ("resnet18", {}, "imagenet", 32, ["stage1@12", "stage2@6", "stage3@4", "stage4@2", "stage5"]),
        ("convnext_atto", {}, "imagenet", 224, ["stage1@6", "stage2@4", "stage3@3", "stage4@2"]),
        ("vit_tiny_patch16_224", {"depth": 6}, "imagenet", 224, ["stage2", "stage3", "stage5", "stage6", "pooled"]),
    ],
)
def test_layers_of_other_networks(arch, options, stem, size, expected):
    assert features.five_layers(Backbone(arch, options, stem), size) == expected


def test_features_are_the_networks_own_in_the_sets_order(backbone, few):
    out = extract(backbone, few, layers=["pooled", "stage2", "stage5@2", "stage1@k4s4p2"], batch=16)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (VIEW.ops[1].mean, VIEW.ops[1].std))
    x = (torch.from_numpy(few.array).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        pooled, maps = backbone.eval().pooled_and_stages(x)
    close = {"rtol": 1e-3, "atol": 1e-5}
    np.testing.assert_allclose(out["pooled"], pooled.numpy(), **close)
    np.testing.assert_allclose(out["stage2"], maps[1].mean((2, 3)).numpy(), **close)
    np.testing.assert_allclose(out["stage1@k4s4p2"], nn.AvgPool2d(4, 4, 2)(maps[0]).flatten(1).numpy(), **close)
    assert out["stage5@2"].shape == (50, 128 * 4) and out["stage5@2"].dtype == np.float32


def test_extraction_changes_no_weight_and_no_statistic(backbone, few):
    before = backbone.train().sha256()
    extract(backbone, few)
    assert backbone.sha256() == before and backbone.training


def test_labels_play_no_part(backbone, few):
    unlabelled = dataclasses.replace(few, labels=None)
    np.testing.assert_array_equal(extract(backbone, few)["pooled"], extract(backbone, unlabelled)["pooled"])


def test_a_set_without_images(backbone, few):
    with pytest.raises(UsageError, match="digits/train has no images"):
        extract(backbone, few.subset([]))


def test_lower_precision_is_close(backbone, few):
    exact, rough = (extract(backbone, few, precision=p)["pooled"] for p in ("32", "bf16"))
    assert rough.dtype == np.float32 and 0 < np.abs(exact - rough).max() < 0.1 * np.abs(exact).max()


def permuted(backbone: Backbone) -> Backbone:
    """The same function with the inner channels of every residual block in another order."""
    other = copy.deepcopy(backbone)
    generator = torch.Generator().manual_seed(1)
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for block in getattr(other.net, stage):
            order = torch.randperm(block.conv1.out_channels, generator=generator)
            block.conv1.weight.data = block.conv1.weight.data[order]
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(block.bn1, name).data.copy_(getattr(block.bn1, name).data[order])
            block.conv2.weight.data = block.conv2.weight.data[:, order]
    return other


def test_permuting_channels_inside_changes_no_feature(few):
    net = small_resnet()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    layers = ["pooled", *(f"stage{i}" for i in range(1, 6))]
    before, after = (extract(some, few, layers=layers) for some in (net, permuted(net)))
    assert net.sha256() != permuted(net).sha256()
    for layer in layers:
        np.testing.assert_allclose(after[layer], before[layer], rtol=1e-5, atol=1e-5)
    broken = permuted(net)
    broken.net.layer2[0].bn1.bias.data = net.net.layer2[0].bn1.bias.data
    assert np.abs(extract(broken, few)["pooled"] - before["pooled"]).max() > 1e-3


def test_augmented_copies_draw_as_epochs(backbone, few):
    first, second, again = (extract(backbone, few, RANDOM, epoch=i)["pooled"] for i in (0, 1, 1))
    np.testing.assert_array_equal(second, again)
    assert (np.abs(first - second).max(1) > 1e-6).mean() > 0.9
    np.testing.assert_allclose(extract(backbone, few, RANDOM, epoch=1, batch=7)["pooled"], second, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(extract(backbone, few, epoch=3)["pooled"], extract(backbone, few)["pooled"])


def test_broken_weights_are_found_at_extraction(few, tmp_path):
    net = small_resnet()
    net.net.layer3[0].conv1.weight.data[0, 0, 0, 0] = float("nan")
    assert np.isfinite(extract(net, few, layers=["stage2", "stage3"])["stage3"]).all()  # before the break
    with pytest.raises(JobError) as error:
        features.cached(FeatureStore(tmp_path), net, few, VIEW, ["stage2", "stage4"], weights="w", device=CPU)
    assert str(error.value) == "features of stage4 are not finite for 50 of 50 images: the weights are broken"
    assert list(tmp_path.iterdir()) == [] and net.training


def test_some_features_that_are_infinite(backbone, few, monkeypatch):
    usual, seen = features._forward, []

    def forward(*arguments):
        out = usual(*arguments)
        seen.append(len(out["pooled"]))
        if len(seen) == 2:
            out["pooled"][3:5, 7] = np.inf
        return out

    monkeypatch.setattr(features, "_forward", forward)
    with pytest.raises(JobError, match="pooled are not finite for 2 of the first 32 images"):
        extract(backbone, few, batch=16)
    assert seen == [16, 16]


def test_a_batch_too_large_for_memory_is_halved_and_so_are_the_next(backbone, few, monkeypatch):
    expected, usual, tried = extract(backbone, few)["pooled"], features._forward, []

    def forward(net, x, *rest):
        tried.append(len(x))
        if len(x) > 6:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return usual(net, x, *rest)

    monkeypatch.setattr(features, "_forward", forward)
    np.testing.assert_allclose(extract(backbone, few, batch=20)["pooled"], expected, rtol=1e-3, atol=1e-5)
    assert tried == [20, 10, *[5] * 10]
    monkeypatch.setattr(features, "_forward", lambda *_: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError()))
    with pytest.raises(JobError, match="one image of 3x32x32 does not fit into GPU memory"):
        extract(backbone, few)


def test_keys_differ_in_everything_that_changes_a_feature(few):
    base = {"weights": "w", "images": few, "view": VIEW, "layer": "pooled", "precision": "32", "epoch": 0}
    variants = [
        {"weights": "v"}, {"images": few.subset(range(49))}, {"images": dataclasses.replace(few, split="test")},
        {"view": View((CenterCrop(28), Normalize()))}, {"view": View((CenterCrop(32), Normalize(std=(1, 1, 1))))},
        {"layer": "stage1"}, {"precision": "bf16"}, {"epoch": 1},
    ]  # fmt: skip
    assert len({features.key(**{**base, **changed}) for changed in [{}, *variants]}) == len(variants) + 1
    assert features.key(**base) == features.key("w", few, View((CenterCrop(32), Normalize())), "pooled", "32")


class Passes:
    """Counts extractions through the progress they report."""

    def __init__(self) -> None:
        self.totals, self.images = [], 0

    @contextmanager
    def __call__(self, total):
        self.totals.append(total)
        yield self.advance

    def advance(self, n):
        self.images += n


def test_one_pass_gives_all_layers_of_all(backbone, few, tmp_path):
    passes = Passes()
    common = {"weights": "w", "device": CPU, "progress": passes, "batch": 16}

    def cached(layers, **options):
        return features.cached(FeatureStore(tmp_path), backbone, few, VIEW, layers, **common, **options)

    first = cached(["pooled", "stage2"], also=["stage3", "pooled"])
    assert list(first) == ["pooled", "stage2"] and passes.totals == [50] and passes.images == 50
    again = cached(["stage3", "stage2", "pooled", "stage2"], also=["stage1"])
    assert passes.totals == [50] and list(again) == ["stage3", "stage2", "pooled"]
    expected = extract(backbone, few, layers=list(again), batch=16)
    for layer, values in again.items():
        assert isinstance(values, np.memmap) and not values.flags.writeable
        np.testing.assert_array_equal(values, expected[layer])
    cached(["stage1", "pooled"])
    assert passes.totals == [50, 50] and len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("other", ["stage9", "nonsense", "stage5@k50s1p0", "stage4"])
def test_what_others_want_does_not_fail_this_one(few, tmp_path, other):
    net = small_resnet()
    net.net.layer3[0].conv1.weight.data[0, 0, 0, 0] = float("nan")
    cached = functools.partial(features.cached, FeatureStore(tmp_path), net, few, VIEW, weights="w", device=CPU)
    np.testing.assert_array_equal(cached(["stage2"], also=[other])["stage2"], extract(net, few, layers=["stage2"])["stage2"])
    with pytest.raises((UsageError, JobError), match=other):
        cached([other])
    assert len(list(tmp_path.iterdir())) == 1


def test_networks_of_equal_tensors_and_another_stem_do_not_share(few, tmp_path):
    nets = [Backbone("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, stem) for stem in ("imagenet", "nopool")]
    nets[1].load_state_dict(nets[0].state_dict())
    assert nets[0].sha256() == nets[1].sha256()
    found = [
        features.cached(FeatureStore(tmp_path), net, few, VIEW, ["stage2"], weights=net.sha256(), device=CPU) for net in nets
    ]
    assert np.abs(found[0]["stage2"] - found[1]["stage2"]).max() > 1e-4


def test_a_damaged_entry_is_made_again(backbone, few, tmp_path):
    passes = Passes()
    for damage in (0, 1, 0):
        found = features.cached(
            FeatureStore(tmp_path), backbone, few, VIEW, ["pooled"], weights="w", device=CPU, progress=passes
        )
        np.testing.assert_array_equal(found["pooled"], extract(backbone, few)["pooled"])
        del found
        if damage:
            (path,) = tmp_path.glob("*.npy")
            os.truncate(path, 1000)
    assert passes.totals == [50, 50]


def _extract(root, pipe):
    """Ask for features and take one's time over it; tells how many passes that took, and their sum."""
    from suite.data import load

    passes = Passes()

    @contextmanager
    def progress(total):
        time.sleep(0.3)
        with passes(total) as advance:
            yield advance

    images, net = load("digits", "train").subset(np.arange(20)), small_resnet()
    pipe.send("ready")
    pipe.recv()
    found = features.cached(
        FeatureStore(root), net, images, VIEW, ["pooled", "stage3"], weights="w", device=CPU, progress=progress
    )
    pipe.send((len(passes.totals), float(found["pooled"].sum() + found["stage3"].sum())))


def test_two_processes_extract_once(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    here, mine = spawn.Pipe()
    process = spawn.Process(target=_extract, args=(tmp_path, theirs))
    process.start()
    assert ours.recv() == "ready"
    ours.send("go")
    here.send("go")
    _extract(tmp_path, mine)
    assert here.recv() == "ready"
    (passes, total), (other_passes, other_total) = here.recv(), ours.recv()
    process.join()
    assert passes + other_passes == 1 and total == other_total
    assert len(list(tmp_path.iterdir())) == 2
