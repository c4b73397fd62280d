# SPDX-License-Identifier: Apache-2.0
"""`weights convert --to detectron2`: the names that its ResNet has, every tensor once, and numpy arrays only."""

from __future__ import annotations

import pickletools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from suite import weights
from suite.errors import UsageError


def detectron2_names(bottleneck: bool, blocks: tuple[int, ...]) -> list[str]:
    """The parameters and buffers of detectron2's `build_resnet_backbone`, written down from its modules."""
    convs = ("conv1", "conv2", "conv3") if bottleneck else ("conv1", "conv2")
    names = ["stem.conv1"]
    for stage, count in enumerate(blocks, 2):
        for block in range(count):
            names += [f"res{stage}.{block}.{conv}" for conv in convs]
            if block == 0 and (bottleneck or stage > 2):
                names.append(f"res{stage}.{block}.shortcut")
    norm = ("weight", "bias", "running_mean", "running_var")
    return [f"{name}.{part}" for name in names for part in ("weight", *(f"norm.{n}" for n in norm))]


@pytest.mark.parametrize(
    ("arch", "bottleneck", "blocks"), [("resnet18", False, (2, 2, 2, 2)), ("resnet50", True, (3, 4, 6, 3))]
)
def test_every_tensor_is_written_once_under_detectron2s_name(
    arch: str, bottleneck: bool, blocks: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = getattr(torchvision.models, arch)()
    for tensor in net.state_dict().values():  # no two tensors alike
        if tensor.is_floating_point():
            tensor.copy_(torch.randn_like(tensor))
    torch.save(net.state_dict(), tmp_path / "a.pth")
    weights.convert(tmp_path / "a.pth", "detectron2", tmp_path / "b.pkl")
    content = np.load(tmp_path / "b.pkl", allow_pickle=True)
    assert (content["__author__"], content["matching_heuristics"]) == ("ssl-suite", True)
    written = content["model"]
    assert sorted(written) == sorted(detectron2_names(bottleneck, blocks))
    ours = {
        k: t.numpy() for k, t in net.state_dict().items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")
    }
    found = {name: [key for key, array in written.items() if np.array_equal(array, tensor)] for name, tensor in ours.items()}
    assert all(len(keys) == 1 for keys in found.values()) and len({keys[0] for keys in found.values()}) == len(written)
    back, coverage = weights.load_backbone(tmp_path / "b.pkl")
    assert coverage.complete and back.arch == arch
    assert all(np.array_equal(back.net.state_dict()[name].numpy(), tensor) for name, tensor in ours.items())


def test_the_pickle_names_nothing_but_numpy(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "a.pth")
    weights.convert(tmp_path / "a.pth", "detectron2", tmp_path / "b.pkl")
    data = (tmp_path / "b.pkl").read_bytes()
    texts = [str(argument) for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)]
    modules = {text for text in texts if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", text) and not re.match(r"(stem|res\d)", text)}
    assert modules and all(module.split(".")[0] in ("numpy", "_codecs") for module in modules if "." in module), modules


def test_a_network_that_detectron2_does_not_have_is_refused(tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("resnet18d", num_classes=0).state_dict(), tmp_path / "a.pth")
    with pytest.raises(UsageError, match="has no form in detectron2; possible for it"):
        weights.convert(tmp_path / "a.pth", "detectron2", tmp_path / "b.pkl")
    assert not (tmp_path / "b.pkl").exists()
