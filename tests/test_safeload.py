# SPDX-License-Identifier: Apache-2.0
"""Reading checkpoints runs no code; truncated files and other files are refused in one line."""

from __future__ import annotations

import argparse
import io
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from suite import safeload, weights
from suite.errors import UsageError
from suite.safeload import read_state
from tests.checkpoint_samples import detectron2, networks, pictures, under


@pytest.fixture(scope="module")
def nets() -> dict[str, nn.Module]:
    return networks()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return pictures()


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


def test_a_pickle_cannot_change_what_the_next_one_gets() -> None:
    """BUILD sets attributes on whatever a pickle was given; that must not outlive the file."""
    marking = b"\x80\x02c_codecs\nencode\nN}X\x04\x00\x00\x00markK\x01s\x86b."
    asking = b"\x80\x02c_codecs\nencode\n."
    first, second = (safeload._DataUnpickler(io.BytesIO(data), "latin1").load() for data in (marking, asking))
    assert first.mark == 1 and not hasattr(second, "mark")
