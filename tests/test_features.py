# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from suite import features
from suite.backbone import Backbone
from suite.errors import UsageError
from suite.features import FeatureStore
from suite.presets import SMALL_RESNET
from suite.views import CenterCrop, Normalize, View

VIEW = View((CenterCrop(32), Normalize()))


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Backbone(SMALL_RESNET["arch"], SMALL_RESNET["arch_options"], SMALL_RESNET["stem"])


def test_features_are_the_networks_own_in_the_sets_order(backbone, digits):
    images = digits.subset(np.arange(50))
    out = features.extract(backbone, images, VIEW, ["pooled", "stage2", "stage5@2"], device=torch.device("cpu"), batch=16)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (VIEW.ops[1].mean, VIEW.ops[1].std))
    x = (torch.from_numpy(images.array).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        pooled, maps = backbone.eval().pooled_and_stages(x)
    np.testing.assert_allclose(out["pooled"], pooled.numpy(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(out["stage2"], maps[1].mean((2, 3)).numpy(), rtol=1e-3, atol=1e-5)
    assert out["stage5@2"].shape == (50, 128 * 4)


def test_extraction_changes_no_weight_and_no_statistic(backbone, digits):
    before = backbone.train().sha256()
    features.extract(backbone, digits.subset(np.arange(20)), VIEW, ["pooled"], device=torch.device("cpu"))
    assert backbone.sha256() == before and backbone.training


@pytest.mark.parametrize("layer", ["stage0", "stage6", "stage", "pool", "stage2@", "stage1@0x"])
def test_bad_layer_names(layer):
    with pytest.raises(UsageError):
        features.parse_layer(layer, 5)


def test_keys_differ_in_everything_that_changes_a_feature(digits):
    small = digits.subset(np.arange(10))
    base = ("w", digits, VIEW, "pooled", "32")
    other_view = View((CenterCrop(28), Normalize()))
    variants = [("v", *base[1:]), ("w", small, *base[2:]), ("w", digits, other_view, *base[3:]),
                ("w", digits, VIEW, "stage1", "32"), (*base[:4], "bf16")]  # fmt: skip
    assert len({features.key(*v) for v in [base, *variants]}) == 6


def test_damaged_entries_are_found_and_removed(tmp_path):
    store, matrix = FeatureStore(tmp_path), np.random.default_rng(0).random((100, 8), np.float32)
    store.put("a", matrix)
    np.testing.assert_array_equal(store.get("a"), matrix)
    path = tmp_path / "a.npy"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert store.get("a") is None and not path.exists()
    store.put("a", matrix)
    path.write_bytes(data[:200] + bytes(len(data) - 200))
    assert store.get("a") is None
    assert store.get("never") is None


def test_least_recently_used_entries_go_first(tmp_path):
    matrix = np.zeros((100, 25), np.float32)
    store = FeatureStore(tmp_path, limit=25_000)
    for i, name in enumerate("ab"):
        store.put(name, matrix)
        os.utime(tmp_path / f"{name}.npy", (i, i))
    assert store.get("a") is not None
    store.put("c", matrix)
    assert store.get("b") is None and store.get("a") is not None and store.get("c") is not None


def _put(root, value):
    FeatureStore(root).put("same", np.full((2000, 50), value, np.float32))
    found = FeatureStore(root).get("same")
    return found is None or (found == found[0, 0]).all()


def test_two_processes_may_write_the_same_entry(tmp_path):
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        assert all(pool.map(_put, [tmp_path] * 8, range(8)))
