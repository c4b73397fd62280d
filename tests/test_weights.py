# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in every project's layout load to the same function; everything else is refused in one line."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import re
import sys
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from suite import safeload, weights
from suite.archs import infer_arch
from suite.backbone import Backbone
from suite.errors import UsageError
from suite.keymaps import NAMINGS, SOURCES, source_of
from suite.safeload import read_state

State = dict[str, Tensor]
RESNET = ("resnet18", {"channels": (8, 16, 32, 64)})
VIT = ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2})


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """No tensor keeps a default, so that a swapped or forgotten one changes the output."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            scale = noise.abs() + 0.5 if "var" in name or tensor.dim() == 1 and "weight" in name else noise * 0.1
            tensor.copy_(scale)
    return net.eval()


@pytest.fixture(scope="module")
def nets() -> dict[str, nn.Module]:
    return {
        "resnet": randomised(timm.create_model(RESNET[0], num_classes=0, **RESNET[1])),
        "vit": randomised(timm.create_model(VIT[0], num_classes=0, **VIT[1])),
    }


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def features(net: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return net.eval()(images)


def under(prefix: str, state: Mapping[str, Tensor], **more: Tensor) -> State:
    return {
        **{prefix + key: t for key, t in state.items()},
        **{k.replace("__", "."): t for k, t in more.items()},
    }


def other(state: Mapping[str, Tensor]) -> State:
    """A second network of the same shape, as a momentum encoder is."""
    return {k: t + 1 if t.is_floating_point() else t for k, t in state.items()}


def numbered(state: Mapping[str, Tensor]) -> State:
    """`nn.Sequential(*resnet.children())` names."""
    place = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    return {f"{place[k.split('.')[0]]}.{k.split('.', 1)[1]}": t for k, t in state.items()}


def detectron2(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    out = {}
    for key, tensor in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        name = key if key.startswith("layer") else f"stem.{key}"
        for i in (4, 3, 2, 1):
            name = name.replace(f"layer{i}.", f"res{i + 1}.").replace(f".bn{i}.", f".conv{i}.norm.")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        out[name] = tensor.numpy()
    return out


def mm_vit(state: Mapping[str, Tensor]) -> State:
    out = {}
    for key, tensor in state.items():
        name = re.sub(r"^blocks\.(\d+)\.norm(\d)", r"layers.\1.ln\2", key)
        name = name.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1").replace("blocks", "layers")
        name = name.replace("patch_embed.proj.", "patch_embed.projection.")
        out["ln1" + name[4:] if name.startswith("norm.") else name] = tensor
    return out


HEAD = torch.zeros(4, 64)
# family: (network, prefix that must be chosen, what is saved)
FAMILIES: dict[str, tuple[str, str, Callable[[State], Any]]] = {
    "bare": ("resnet", "", lambda s: {**s, "fc.weight": HEAD, "fc.bias": HEAD[:, 0]}),
    "vit_bare": ("vit", "", lambda s: {**s, "head.weight": HEAD}),
    "moco_v2": (
        "resnet",
        "module.encoder_q.",
        lambda s: {
            "epoch": 1,
            "arch": "resnet18",
            "state_dict": {
                **under("module.encoder_k.", other(s)),
                **under("module.encoder_q.", s, module__encoder_q__fc__0__weight=HEAD, module__queue=HEAD),
            },
            "optimizer": {"state": {0: {"momentum_buffer": HEAD}}, "param_groups": [{"lr": 0.1}]},
        },
    ),
    "moco_v3": (
        "resnet",
        "module.base_encoder.",
        lambda s: {
            "state_dict": {
                **under("module.momentum_encoder.", other(s)),
                **under("module.base_encoder.", s),
                "module.predictor.0.weight": HEAD,
            }
        },
    ),
    "simsiam": (
        "resnet",
        "module.encoder.",
        lambda s: {"state_dict": under("module.encoder.", s, module__predictor__0__weight=HEAD)},
    ),
    "swav": ("resnet", "module.", lambda s: under("module.", s, module__prototypes__weight=HEAD)),
    "dino": (
        "vit",
        "teacher.backbone.",
        lambda s: {
            "student": under("module.backbone.", other(s), module__head__mlp__0__weight=HEAD),
            "teacher": under("backbone.", s, head__mlp__0__weight=HEAD),
            "dino_loss": {"center": HEAD},
            "args": argparse.Namespace(arch="vit_tiny", lr=0.1),
        },
    ),
    "mae": (
        "vit",
        "",
        lambda s: {
            "model": {
                **s,
                "mask_token": HEAD,
                "decoder_pos_embed": HEAD,
                "decoder_blocks.0.norm1.weight": HEAD,
            },
            "args": argparse.Namespace(output_dir="x"),
            "scaler": {"scale": 65536.0},
            "epoch": 3,
        },
    ),
    "barlow_twins": (
        "resnet",
        "module.backbone.",
        lambda s: {"epoch": 1, "model": under("module.backbone.", s, module__projector__0__weight=HEAD)},
    ),
    "mmselfsup": (
        "resnet",
        "backbone.",
        lambda s: {"meta": {"epoch": 1}, "state_dict": under("backbone.", s, neck__fc0__weight=HEAD)},
    ),
    "mmselfsup_moco": (
        "resnet",
        "encoder_q.0.",
        lambda s: {
            "state_dict": {
                **under("encoder_k.0.", other(s)),
                **under("encoder_q.0.", s),
                "encoder_q.1.mlp.0.weight": HEAD,
            }
        },
    ),
    "mmselfsup_byol": (
        "resnet",
        "online_net.0.",
        lambda s: {
            "state_dict": {
                **under("target_net.0.", other(s)),
                **under("online_net.0.", s),
                "head.predictor.fc0.weight": HEAD,
            }
        },
    ),
    "mmpretrain_vit": (
        "vit",
        "backbone.",
        lambda s: {"state_dict": under("backbone.", mm_vit(s), neck__mask_token=HEAD)},
    ),
    "lightly": (
        "resnet",
        "backbone.",
        lambda s: {"state_dict": under("backbone.", numbered(s), projection_head__layers__0__weight=HEAD)},
    ),
    "lightly_dino": (
        "resnet",
        "teacher_backbone.",
        lambda s: {
            "state_dict": {
                **under("student_backbone.", numbered(other(s))),
                **under("teacher_backbone.", numbered(s)),
            }
        },
    ),
    "solo_learn": (
        "resnet",
        "backbone.",
        lambda s: {
            "pytorch-lightning_version": "1.6",
            "hyper_parameters": {"backbone": "resnet18"},
            "callbacks": defaultdict(list, {"a": [1]}),
            "state_dict": {
                **under("momentum_backbone.", other(s)),
                **under("backbone.", s),
                "classifier.weight": HEAD,
            },
        },
    ),
    "vissl": (
        "resnet",
        "classy_state_dict.base_model.model.trunk._feature_blocks.",
        lambda s: {
            "classy_state_dict": {
                "base_model": {
                    "model": {
                        "trunk": under("_feature_blocks.", s),
                        "heads": {"0.weight": HEAD, "0.bias": HEAD},
                    }
                },
                "loss": {"queue": HEAD},
            },
            "phase_idx": 3,
        },
    ),
}


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


def test_array_pickles_keep_types_and_order(tmp_path: Path) -> None:
    arrays = {
        "fortran": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
        "half": np.ones((2, 2), np.float16),
        "count": np.array(7, np.int64),
    }
    for protocol in (0, 2, 4, 5):
        extras = {"lr": np.float64(0.1), "names": ["a", ("b", None)], "by": OrderedDict(a=1)}
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"blobs": arrays, **extras}, protocol=protocol))
        state, origin = read_state(tmp_path / "a.pkl")
        assert origin.format == "numpy pickle" and set(state) == set(arrays)
        for name, array in arrays.items():
            assert np.array_equal(state[name].numpy(), array) and state[name].dtype.itemsize == array.dtype.itemsize


def test_old_numpy_module_names_are_read(tmp_path: Path) -> None:
    data = pickle.dumps({"a": np.arange(3.0), "b": np.arange(3.0)}, protocol=2)
    (tmp_path / "a.pkl").write_bytes(data.replace(b"numpy._core.", b"numpy.core."))
    assert read_state(tmp_path / "a.pkl")[0]["b"].tolist() == [0.0, 1.0, 2.0]


class Payload:
    """What a malicious checkpoint looks like: unpickling it calls a function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("how", ["zip", "legacy", "pkl", "pkl0", "pth_plain"])
@pytest.mark.parametrize("function", ["os.mkdir", "builtins.eval", "pathlib.Path.touch", "numpy.save"])
def test_a_malicious_pickle_does_not_run(how: str, function: str, tmp_path: Path) -> None:
    target = tmp_path / "owned"
    payload = {
        "os.mkdir": lambda: Payload(__import__("os").mkdir, str(target)),
        "builtins.eval": lambda: Payload(eval, f"__import__('os').mkdir({str(target)!r})"),
        "pathlib.Path.touch": lambda: Payload(Path.touch, target),
        "numpy.save": lambda: Payload(np.save, str(target), np.zeros(1)),
    }[function]()
    content = {"state_dict": {"conv1.weight": torch.zeros(1), "bn1.weight": torch.zeros(1)}, "extra": payload}
    path = tmp_path / ("a.pkl" if how.startswith("pkl") else "a.pth")
    if how in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    else:
        path.write_bytes(pickle.dumps({"extra": payload}, protocol=0 if how == "pkl0" else 4))
    for call in (weights.load_backbone, weights.inspect, read_state):
        with pytest.raises(UsageError) as caught:
            call(path)
        assert "refused" in str(caught.value) and "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]
    pickle.loads(pickle.dumps(payload))  # it is a live one: an ordinary reader runs it
    assert len(list(tmp_path.iterdir())) == 2


def test_a_refusal_names_what_was_asked_for(tmp_path: Path) -> None:
    torch.save({"a": Payload(eval, "1")}, tmp_path / "a.pth")
    with pytest.raises(UsageError, match="asks for '(builtins.)?eval'"):
        read_state(tmp_path / "a.pth")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Payload(__import__("os").system, "true")))
    with pytest.raises(UsageError, match="asks for '(posix|nt).system'"):
        read_state(tmp_path / "a.pkl")


@pytest.fixture
def absent_module() -> Iterator[type]:
    """A class pickled by a package that the reader does not have."""
    names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    kept = {name: sys.modules.pop(name, None) for name in names}
    sys.modules.update({name: types.ModuleType(name) for name in names})
    made = type("HistoryBuffer", (), {"__module__": names[-1]})
    sys.modules[names[-1]].HistoryBuffer = made  # type: ignore[attr-defined]
    yield made
    for name, module in kept.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def test_known_harmless_classes_are_not_needed(absent_module: type, nets: Any, tmp_path: Path) -> None:
    buffer = absent_module()
    buffer.values, buffer.scale = [1, 2], np.float64(3.0)  # type: ignore[attr-defined]
    content = {
        "meta": {"time": np.float32(1)},
        "message_hub": {"log_scalars": {"train/loss": buffer}},
        "state_dict": under("backbone.", nets["resnet"].state_dict()),
        "args": argparse.Namespace(path=Path("x")),
    }
    torch.save(content, tmp_path / "a.pth")
    for name in list(sys.modules):
        if name.startswith("mmengine"):
            del sys.modules[name]
    before = set(torch.serialization.get_safe_globals())
    state, _ = read_state(tmp_path / "a.pth")
    assert all(name.startswith("backbone.") for name in state)
    assert "mmengine.logging.history_buffer" not in sys.modules
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl"])
@pytest.mark.parametrize("part", [0, 3, 100, 0.5, 0.99])
def test_truncated_files_are_one_line(suffix: str, part: float, nets: Any, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    state = dict(nets["resnet"].state_dict())
    if suffix == ".pth":
        torch.save(state, path)
    elif suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": detectron2(state)}))
    else:
        save_file(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data)) if part < 1 else int(part)])
    with pytest.raises(UsageError, match=r"truncated or corrupt|is empty|no weights file") as caught:
        weights.load_backbone(path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"hello world, these are no weights", "no weights file"), (None, "does not exist")],
)
def test_no_weights_at_all(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        weights.load_backbone(tmp_path / "a.pth")
    torch.save({"epoch": 3}, tmp_path / "b.pth")
    with pytest.raises(UsageError, match="no named tensors"):
        weights.load_backbone(tmp_path / "b.pth")


def test_a_missing_key_is_refused_and_named(nets: Any, tmp_path: Path) -> None:
    state = under("module.encoder_q.", nets["resnet"].state_dict())
    del state["module.encoder_q.layer3.0.conv2.weight"]
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    with pytest.raises(UsageError) as caught:
        weights.load_backbone(tmp_path / "a.pth")
    message = str(caught.value)
    assert "1 missing (first: layer3.0.conv2.weight)" in message and "\n" not in message
    assert "closest prefix: 'module.encoder_q.'" in message


def test_a_wrong_prefix_names_the_closest(nets: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": under("module.encoder_q.", nets["resnet"].state_dict())}, tmp_path / "a.pth")
    with pytest.raises(
        UsageError,
        match=r"closest prefix: .module.encoder_q.. \((\d+) of \1 tensors\); pass --",
    ):
        weights.load_backbone(tmp_path / "a.pth", prefix="backbone.")


def test_the_prefix_chooses(nets: Any, images: Tensor, tmp_path: Path) -> None:
    state = dict(nets["resnet"].state_dict())
    both = {"state_dict": {**under("module.encoder_q.", state), **under("module.encoder_k.", other(state))}}
    torch.save(both, tmp_path / "a.pth")
    first, coverage = weights.load_backbone(tmp_path / "a.pth")
    assert any("'module.encoder_k.'" in note for note in coverage.notes)
    second, _ = weights.load_backbone(tmp_path / "a.pth", prefix="encoder_k")
    assert first.sha256() != second.sha256()
    assert torch.equal(second.net.state_dict()["conv1.weight"], state["conv1.weight"] + 1)


def test_unlisted_prefixes_load_when_there_is_one_and_are_asked_for_when_two(nets: Any, tmp_path: Path) -> None:
    state = dict(nets["resnet"].state_dict())
    torch.save(under("my_net.", state), tmp_path / "a.pth")
    assert weights.load_backbone(tmp_path / "a.pth")[1].prefix == "my_net."
    torch.save({**under("my_net.", state), **under("your_net.", other(state))}, tmp_path / "b.pth")
    with pytest.raises(UsageError, match=r"several backbones: 'my_net\.', 'your_net\.'; choose one with --prefix"):
        weights.load_backbone(tmp_path / "b.pth")
    assert weights.load_backbone(tmp_path / "b.pth", prefix="your_net.")[1].complete


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet34", r"missing \(first: layer1\.2\.conv1\.weight\).*look like resnet18"),
        ("resnet50", "look like resnet18"),
        ("resnet10t", "look like resnet18"),
        ("vit_tiny_patch16_224", "holds no tensors named like|look like resnet18"),
        ("resnet19", "did you mean"),
    ],
)
def test_another_architecture_is_refused(arch: str, message: str, tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "a.pth")
    with pytest.raises(UsageError, match=message) as caught:
        weights.load_backbone(tmp_path / "a.pth", arch=arch)
    assert "\n" not in str(caught.value)


def test_left_over_blocks_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model(VIT[0], num_classes=0, img_size=32, depth=3).state_dict(), tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"12 left over \(first: blocks\.2\.norm1\.weight\)"):
        weights.load_backbone(tmp_path / "a.pth", arch=VIT[0], options=VIT[1])


def test_parts_that_change_the_function_are_not_dropped(tmp_path: Path) -> None:
    net = timm.create_model(VIT[0], num_classes=0, reg_tokens=2, no_embed_class=True, **VIT[1])
    torch.save(net.state_dict(), tmp_path / "a.pth")
    with pytest.raises(UsageError, match="cannot infer"):
        weights.load_backbone(tmp_path / "a.pth")
    with pytest.raises(UsageError, match="reg_token"):
        weights.load_backbone(tmp_path / "a.pth", arch=VIT[0], options={**VIT[1], "no_embed_class": True})


def test_hostile_names_and_shapes_build_nothing_large(nets: Any, tmp_path: Path) -> None:
    state = dict(nets["vit"].state_dict())
    torch.save({**state, "blocks.99999999.norm1.weight": HEAD}, tmp_path / "a.pth")
    with pytest.raises(UsageError, match="cannot infer"):
        weights.load_backbone(tmp_path / "a.pth")
    meta = {k: t.to("meta") for k, t in state.items()}
    torch.save(meta, tmp_path / "b.pth")
    with pytest.raises(UsageError, match="no named tensors"):
        weights.load_backbone(tmp_path / "b.pth")


def test_a_pickle_cannot_change_what_the_next_one_gets() -> None:
    """BUILD sets attributes on whatever a pickle was given; that must not outlive the file."""
    marking = b"\x80\x02c_codecs\nencode\nN}X\x04\x00\x00\x00markK\x01s\x86b."
    asking = b"\x80\x02c_codecs\nencode\n."
    first, second = (safeload._DataUnpickler(io.BytesIO(data), "latin1").load() for data in (marking, asking))
    assert first.mark == 1 and not hasattr(second, "mark")


def test_an_unknown_network_is_asked_for_and_then_loads(images: Tensor, tmp_path: Path) -> None:
    net = randomised(timm.create_model("test_efficientnet", num_classes=0))
    torch.save(under("backbone.", net.state_dict()), tmp_path / "a.pth")
    with pytest.raises(UsageError, match="cannot infer the architecture of .*pass --arch NAME"):
        weights.load_backbone(tmp_path / "a.pth")
    assert weights.inspect(tmp_path / "a.pth").coverage is None
    backbone, coverage = weights.load_backbone(tmp_path / "a.pth", arch="test_efficientnet")
    assert coverage.prefix == "backbone." and torch.equal(features(backbone, images), features(net, images))


ARCHS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d")),
    *((name, {}) for name in ("resnet50d", "resnest50d", "resnet18d", "convnext_tiny", "convnextv2_atto")),
    ("resnet50", {"channels": [32, 64, 128, 256]}),
    *((f"vit_{name}_224", {}) for name in ("small_patch16", "base_patch16", "base_patch32", "large_patch16")),
    ("vit_tiny_patch16_224", {"patch_size": 4, "img_size": 32, "qkv_bias": False}),
    ("vit_base_patch16_224", {"global_pool": "avg", "fc_norm": True}),
    ("vit_small_patch16_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    ("swin_tiny_patch4_window7_224", {}),
    ("swin_base_patch4_window12_384", {}),
    ("swin_base_patch4_window7_224", {"window_size": 6, "img_size": 192}),
]


@pytest.mark.parametrize(("arch", "options"), ARCHS)
def test_shapes_tell_the_architecture(arch: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        state = timm.create_model(arch, num_classes=0, **options).state_dict()
    assert infer_arch(state) == (arch, options, "imagenet")
    assert infer_arch({}) is None


@pytest.mark.parametrize("arch", ["seresnet50", "vit_small_patch14_reg4_dinov2", "regnety_002", "resnet50_gn"])
def test_lookalikes_are_not_guessed_or_do_not_fit(arch: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(arch, num_classes=0).state_dict()
        guess = infer_arch(state)
        assert guess is None or set(timm.create_model(guess[0], num_classes=0).state_dict()) != set(state)


def reference_names(naming: str) -> dict[str, str]:
    """A few names written out by hand: theirs to timm's."""
    return {
        "Swin (official)": {
            "layers.0.downsample.norm.weight": "layers.1.downsample.norm.weight",
            "norm.bias": "norm.bias",
        },
        "Swin (MMPretrain)": {
            "stages.0.downsample.reduction.weight": "layers.1.downsample.reduction.weight",
            "stages.2.blocks.5.attn.w_msa.qkv.bias": "layers.2.blocks.5.attn.qkv.bias",
            "stages.3.blocks.1.ffn.layers.0.0.bias": "layers.3.blocks.1.mlp.fc1.bias",
            "stages.3.blocks.1.ffn.layers.1.bias": "layers.3.blocks.1.mlp.fc2.bias",
            "stages.3.blocks.1.norm2.bias": "layers.3.blocks.1.norm2.bias",
            "patch_embed.projection.weight": "patch_embed.proj.weight",
            "norm3.weight": "norm.weight",
        },
        "ConvNeXt (official)": {
            "downsample_layers.0.1.weight": "stem.1.weight",
            "downsample_layers.2.0.weight": "stages.2.downsample.0.weight",
            "stages.1.2.dwconv.weight": "stages.1.blocks.2.conv_dw.weight",
            "stages.1.2.pwconv2.bias": "stages.1.blocks.2.mlp.fc2.bias",
            "stages.1.2.gamma": "stages.1.blocks.2.gamma",
            "norm.weight": "head.norm.weight",
        },
        "ResNet (torchvision, timm)": {
            "stem.3.weight": "conv1.3.weight",
            "stem.7.running_var": "bn1.running_var",
        },
    }[naming]


@pytest.mark.parametrize(
    "naming",
    [
        "Swin (official)",
        "Swin (MMPretrain)",
        "ConvNeXt (official)",
        "ResNet (torchvision, timm)",
    ],
)
def test_names_of_rarer_layouts(naming: str) -> None:
    for theirs, timms in reference_names(naming).items():
        assert NAMINGS[naming].to_timm(theirs) == timms and NAMINGS[naming].from_timm(timms) == theirs


def test_mm_patch_merging_is_the_same_function() -> None:
    """MM: unfold, norm, linear. The same map through timm's module after translation."""
    timms = randomised(timm.create_model("swin_tiny_patch4_window7_224", num_classes=0).layers[1].downsample)
    naming = NAMINGS["Swin (MMPretrain)"]
    theirs = {k: naming.inverse(f"layers.1.downsample.{k}", t) for k, t in timms.state_dict().items()}  # type: ignore[misc]
    x = torch.randn(2, 8, 8, 96)
    patches = nn.functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)  # N×16×4C
    patches = nn.functional.layer_norm(patches, (384,), theirs["norm.weight"], theirs["norm.bias"])
    expected = patches @ theirs["reduction.weight"].T
    torch.testing.assert_close(timms(x).flatten(1, 2), expected, rtol=1e-4, atol=1e-4)
    for key, tensor in timms.state_dict().items():
        assert torch.equal(naming.value(f"layers.1.downsample.{key}", theirs[key]), tensor)  # type: ignore[misc]


def test_sources_are_unambiguous() -> None:
    assert len({s.prefix for s in SOURCES}) == len(SOURCES)
    assert source_of("student.module.backbone.")[0] > source_of("teacher.backbone.")[0]
    assert source_of("state_dict.module.encoder_q.")[1].prefix == "module.encoder_q."  # type: ignore[union-attr]
    assert source_of("module.encoder_k.")[0] > source_of("module.encoder_q.")[0]
    assert source_of("nothing.like.it.")[1] is None


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
