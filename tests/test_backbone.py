# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from suite.backbone import Backbone, read_metadata
from suite.errors import UsageError
from suite.presets import SMALL_RESNET

FAMILIES = [
    ("resnet18", {}, 64, (64, 64, 128, 256, 512), (2, 4, 8, 16, 32)),
    ("resnest14d", {}, 64, (64, 256, 512, 1024, 2048), (2, 4, 8, 16, 32)),
    ("regnety_002", {}, 64, (32, 24, 56, 152, 368), (2, 4, 8, 16, 32)),
    ("efficientnet_b0", {}, 64, (16, 24, 40, 112, 320), (2, 4, 8, 16, 32)),
    ("convnext_atto", {}, 64, (40, 80, 160, 320), (4, 8, 16, 32)),
    ("vit_tiny_patch16_224", {"img_size": 32, "depth": 3}, 32, (192,) * 3, (16,) * 3),
    ("swin_tiny_patch4_window7_224", {"img_size": 64, "depths": [1, 1, 1, 1]}, 64, (96, 192, 384, 768), (4, 8, 16, 32)),
]


@pytest.mark.parametrize(("arch", "options", "side", "dims", "strides"), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_families(arch, options, side, dims, strides, tmp_path):
    torch.manual_seed(0)
    backbone = Backbone(arch, options).eval()
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        pooled, maps = backbone(x), backbone.stages(x)
        again, same = backbone.pooled_and_stages(x)
    assert pooled.shape == (2, backbone.dim)
    assert tuple(m.shape[1] for m in maps) == backbone.stage_dims == dims
    assert tuple(backbone.strides) == strides and [round(side / m.shape[-1]) for m in maps] == list(strides)
    torch.testing.assert_close(pooled, again)
    for one, other in zip(maps, same, strict=True):
        assert torch.equal(one, other)
    sha = backbone.save(tmp_path / "b.safetensors", {"size": str(side)})
    loaded = Backbone.load(tmp_path / "b.safetensors").eval()
    assert loaded.sha256() == backbone.sha256() == sha
    with torch.no_grad():
        assert torch.equal(loaded(x), pooled)


def test_first_stage_is_the_stem_after_relu_and_before_pooling():
    backbone = Backbone("resnet18").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = torch.relu(backbone.net.bn1(backbone.net.conv1(x)))
        (first,) = backbone.stages(x, [0])
    torch.testing.assert_close(first, expected)


def test_stems_for_small_pictures():
    assert Backbone("resnet18", stem="cifar").strides == (1, 1, 2, 4, 8)
    assert Backbone("resnet18", stem="cifar").net.conv1.kernel_size == (3, 3)
    assert Backbone(SMALL_RESNET["arch"], SMALL_RESNET["arch_options"], "nopool").strides == (2, 2, 4, 8, 16)
    with pytest.raises(UsageError, match="no ResNet stem"):
        Backbone("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, "cifar")


def test_hash_depends_on_tensors_alone(tmp_path):
    backbone = Backbone("resnet18")
    assert backbone.save(tmp_path / "a.safetensors", {"size": "1"}) == backbone.save(tmp_path / "b.safetensors", {"size": "2"})
    before = backbone.sha256()
    with torch.no_grad():
        backbone.net.conv1.weight[0, 0, 0, 0] += 1
    assert backbone.sha256() != before


@pytest.mark.parametrize("damage", ["missing", "shape", "metadata", "foreign", "options"])
def test_damaged_files_are_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "b.safetensors"
    backbone = Backbone("resnet18")
    backbone.save(path)
    state, meta = load_file(path), read_metadata(path)
    if damage == "missing":
        del state["layer1.0.conv1.weight"]
    if damage == "shape":
        state["layer1.0.conv1.weight"] = torch.zeros(1)
    if damage == "metadata":
        del meta["arch"]
    if damage == "foreign":
        meta["format"] = "pt"
    if damage == "options":
        meta["options"] = json.dumps({"no_such": 1})
    save_file(state, path, meta)
    with pytest.raises(UsageError) as caught:
        Backbone.load(path)
    assert "\n" not in str(caught.value)


def test_unknown_architecture_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'resnet50'"):
        Backbone("resnet5o")
