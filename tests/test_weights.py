# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in every project's layout load to the same function, and convert to the layouts of others."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from suite import weights
from suite.backbone import Backbone
from suite.errors import UsageError
from suite.safeload import read_state
from tests.checkpoint_samples import FAMILIES, RESNET, VIT, detectron2, features, mm_vit, networks, pictures, randomised, under


@pytest.fixture(scope="module")
def nets() -> dict[str, nn.Module]:
    return networks()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return pictures()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_loads_to_the_same_function(family: str, nets: Any, images: Tensor, tmp_path: Path) -> None:
    kind, prefix, layout = FAMILIES[family]
    torch.save(layout(dict(nets[kind].state_dict())), tmp_path / "a.pth")
    backbone, coverage = weights.load_backbone(tmp_path / "a.pth")
    assert (backbone.arch, coverage.prefix) == (RESNET[0] if kind == "resnet" else VIT[0], prefix)
    assert coverage.complete and coverage.matched == coverage.total > 20
    torch.testing.assert_close(features(backbone, images), features(nets[kind], images), rtol=0, atol=0)
    lines = coverage.report()
    assert any(f"{coverage.total} of {coverage.total} tensors" in line for line in lines) and all("\n" not in x for x in lines)


@pytest.mark.parametrize("build", [torchvision.models.resnet18, torchvision.models.resnext50_32x4d])
def test_torchvision_resnet_is_the_same_function(build: Any, images: Tensor, tmp_path: Path) -> None:
    reference = randomised(build())
    torch.save(reference.state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    reference.fc = nn.Identity()
    backbone, coverage = weights.load_backbone(tmp_path / "a.pth")
    assert backbone.arch == build.__name__ and set(coverage.unused) == {"fc.weight", "fc.bias"}
    torch.testing.assert_close(features(backbone, images), features(reference, images), rtol=1e-4, atol=1e-4)


def torchvision_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=768
    )


def test_torchvision_vit_is_the_same_function(images: Tensor, tmp_path: Path) -> None:
    reference = randomised(torchvision_vit())
    torch.save(reference.state_dict(), tmp_path / "a.pth")
    reference.heads = nn.Identity()
    backbone, coverage = weights.load_backbone(tmp_path / "a.pth")
    assert "torchvision" in coverage.kind and any("heads" in note for note in coverage.notes)
    torch.testing.assert_close(features(backbone, images), features(reference, images), rtol=1e-4, atol=1e-5)


def test_moco_v3_small_has_twelve_heads(images: Tensor, tmp_path: Path) -> None:
    net = randomised(timm.create_model("vit_small_patch16_224", num_classes=0, img_size=32, depth=2, num_heads=12))
    torch.save({"state_dict": under("module.base_encoder.", net.state_dict())}, tmp_path / "a.pth")
    backbone, _ = weights.load_backbone(tmp_path / "a.pth")
    assert torch.equal(features(backbone, images), features(net, images))


def test_cifar_stem_is_seen_in_the_shapes(images: Tensor, tmp_path: Path) -> None:
    net = Backbone(RESNET[0], RESNET[1], stem="cifar")
    randomised(net.net)
    save_file(under("backbone.", net.net.state_dict()), tmp_path / "a.safetensors")
    backbone, coverage = weights.load_backbone(tmp_path / "a.safetensors")
    assert backbone.stem == "cifar" and any("max-pooling" in note for note in coverage.notes)
    assert torch.equal(features(backbone, images), features(net, images))


def test_detectron2_pickle(nets: Any, images: Tensor, tmp_path: Path) -> None:
    content = {
        "model": detectron2(nets["resnet"].state_dict()),
        "__author__": "someone",
        "matching_heuristics": True,
    }
    for protocol in (2, 4, 5):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        backbone, coverage = weights.load_backbone(tmp_path / "a.pkl")
        assert "detectron2" in coverage.kind and any("RGB" in note for note in coverage.notes)
        assert torch.equal(features(backbone, images), features(nets["resnet"], images))
    assert read_state(tmp_path / "a.pkl")[1].author == "someone"


@pytest.mark.parametrize(("kind", "to"), [("resnet", t) for t in weights.TARGETS] + [("vit", t) for t in weights.TARGETS])
def test_convert_and_back(kind: str, to: str, nets: Any, images: Tensor, tmp_path: Path) -> None:
    torch.save(dict(nets[kind].state_dict()), tmp_path / "a.pth")
    out = tmp_path / ("b.pkl" if to == "detectron2" else "b.pth")
    if (kind, to) == ("vit", "detectron2"):
        with pytest.raises(UsageError, match="has no form in detectron2; possible for it: torchvision, timm, mmpretrain"):
            weights.convert(tmp_path / "a.pth", to, out)
        return
    weights.convert(tmp_path / "a.pth", to, out)
    backbone, _ = weights.load_backbone(out)
    assert torch.equal(features(backbone, images), features(nets[kind], images))


def test_converted_files_are_what_the_targets_expect(nets: Any, images: Tensor, tmp_path: Path) -> None:
    torch.save(randomised(torchvision.models.resnet18()).state_dict(), tmp_path / "a.pth")
    weights.convert(tmp_path / "a.pth", "torchvision", tmp_path / "tv.pth")
    result = torchvision.models.resnet18().load_state_dict(torch.load(tmp_path / "tv.pth"), strict=False)
    assert (set(result.missing_keys), result.unexpected_keys) == ({"fc.weight", "fc.bias"}, [])
    weights.convert(tmp_path / "a.pth", "detectron2", tmp_path / "d2.pkl")
    content = pickle.loads((tmp_path / "d2.pkl").read_bytes())
    assert content["matching_heuristics"] is True and content["__author__"]
    assert {"stem.conv1.weight", "stem.conv1.norm.running_var", "res3.0.shortcut.norm.bias"} <= set(content["model"])
    assert all(isinstance(a, np.ndarray) for a in content["model"].values())
    torch.save(dict(nets["vit"].state_dict()), tmp_path / "v.pth")
    weights.convert(tmp_path / "v.pth", "torchvision", tmp_path / "tv.pth")
    result = torchvision_vit().load_state_dict(torch.load(tmp_path / "tv.pth"), strict=False)
    assert all(k.startswith("heads.") for k in result.missing_keys) and not result.unexpected_keys
    weights.convert(tmp_path / "v.pth", "mmpretrain", tmp_path / "mm.pth")
    written = torch.load(tmp_path / "mm.pth")["state_dict"]
    assert set(written) == {f"backbone.{k}" for k in mm_vit(nets["vit"].state_dict())}
    with pytest.raises(UsageError, match="did you mean 'torchvision'"):
        weights.convert(tmp_path / "v.pth", "torchvison", tmp_path / "x.pth")


def test_extract_inspect_publish(nets: Any, images: Tensor, tmp_path: Path) -> None:
    torch.save({"state_dict": under("module.encoder_q.", nets["resnet"].state_dict())}, tmp_path / "a.pth")
    seen = weights.inspect(tmp_path / "a.pth")
    assert seen.coverage is not None and seen.coverage.arch == "resnet18" and seen.backbones[0][0] == "module.encoder_q."
    assert any("module.encoder_q." in line for line in seen.report())
    coverage = weights.extract(tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert coverage.complete
    own, coverage = weights.load_backbone(tmp_path / "b.safetensors")
    assert coverage.kind == "ssl-suite" and torch.equal(features(own, images), features(nets["resnet"], images))
    with pytest.raises(UsageError, match="holds a resnet18, not a resnet50"):
        weights.load_backbone(tmp_path / "b.safetensors", arch="resnet50")
    published = weights.publish(tmp_path / "b.safetensors", tmp_path / "zoo", {"licence": "CC-BY-4.0"})
    assert published.name == f"resnet18-{own.sha256()[:8]}.safetensors" and published.parent == tmp_path / "zoo"
    again = weights.inspect(published)
    assert again.sha256 == own.sha256() == again.metadata["sha256"] and again.metadata["licence"] == "CC-BY-4.0"
    assert json.loads(again.metadata["options"]) == {"channels": [8, 16, 32, 64]}
    assert again.metadata["layout"].startswith("MoCo")
