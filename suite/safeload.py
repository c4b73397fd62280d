# SPDX-License-Identifier: Apache-2.0
"""Read tensors from a weights file that somebody else wrote, without running anything from it.

A pickle is a program. Here it may only build containers, numbers, strings and tensors. A few classes that
official checkpoints carry beside their tensors (parsed arguments, logged values, configs) are replaced by an
inert object that keeps nothing and imports nothing; any other name that the file asks for makes it refused.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from suite.errors import UsageError

TORCH_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
# Subtrees that hold tensors which are never weights.
NOT_WEIGHTS = re.compile(r"(optim\w*|\w*scheduler\w*|scaler|amp|loops|callbacks|message_hub|meta|rng\w*|\w*hyper_parameters)$")

# Classes beside the tensors of official checkpoints, by module; each becomes an object that keeps nothing.
INERT: Mapping[str, tuple[str, ...]] = {
    "argparse": ("Namespace",),
    "types": ("SimpleNamespace",),
    "datetime": ("datetime", "timedelta"),
    "uuid": ("UUID",),
    "typing": ("Any",),
    "builtins": ("int", "float", "str", "bool", "bytes", "list", "dict", "tuple", "object", "slice"),
    "pathlib": ("Path", "PosixPath", "PurePosixPath", "WindowsPath"),
    "pathlib._local": ("PosixPath",),
    "easydict": ("EasyDict",),
    "yacs.config": ("CfgNode",),
    "fvcore.common.config": ("CfgNode",),
    "addict.addict": ("Dict",),
    "mmengine.logging.history_buffer": ("HistoryBuffer",),
    "mmengine.config.config": ("ConfigDict",),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.base": ("Metadata", "ContainerMetadata", "SCMode"),
    "omegaconf.nodes": ("AnyNode", "BooleanNode", "FloatNode", "IntegerNode", "StringNode"),
    "pytorch_lightning.utilities.parsing": ("AttributeDict",),
    "lightning_fabric.utilities.data": ("AttributeDict",),
    "lightning.fabric.utilities.data": ("AttributeDict",),
    "pytorch_lightning.callbacks.model_checkpoint": ("ModelCheckpoint",),
    "pytorch_lightning.callbacks.early_stopping": ("EarlyStopping",),
    "lightning.pytorch.callbacks.model_checkpoint": ("ModelCheckpoint",),
    "lightning.pytorch.callbacks.early_stopping": ("EarlyStopping",),
}


@dataclass(frozen=True)
class Origin:
    """Where a state came from.

    Attributes:
        path: the file.
        format: `safetensors`, `torch` or `numpy pickle`.
        containers: dotted path and number of tensors of each dict of tensors in the file.
        metadata: the metadata of a safetensors file.
        author: `__author__` of a detectron2 pickle.
    """

    path: Path
    format: str
    containers: tuple[tuple[str, int], ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    author: str = ""


def read_state(path: Path) -> tuple[dict[str, Tensor], Origin]:
    """All named tensors of a weights file, on the CPU.

    Nested containers (`state_dict`, `teacher`, `classy_state_dict.base_model.model.trunk` …) unfold. One
    container gives its own names; several give names that start with their container's dotted path.

    Args:
        path: safetensors; a torch file (.pt, .pth, .pth.tar, .ckpt, .torch), zip or older; a pickle of numpy
            arrays (.pkl).

    Raises:
        UsageError: missing, empty, truncated, no weights inside, or a pickle that asks for more than data.
    """
    path = Path(path)
    kind = _format(path)
    if kind == "safetensors":
        state, metadata = _read_safetensors(path)
        return state, Origin(path, kind, (("", len(state)),), metadata)
    tree = _read_torch(path) if kind == "torch" else _read_pickle(path)
    found = sorted(_containers(tree), key=lambda item: -len(item[1]))
    if not found:
        raise UsageError(f"{str(path)!r} holds no named tensors")
    author = str(tree.get("__author__", "")) if isinstance(tree, dict) else ""
    origin = Origin(path, kind, tuple((name, len(tensors)) for name, tensors in found), {}, author)
    main = [item for item in found if len(item[1]) > 1] or found[:1]
    if len(main) == 1:
        return main[0][1], origin
    return {f"{name}.{key}" if name else key: t for name, tensors in main for key, t in tensors.items()}, origin


def _format(path: Path) -> str:
    """Tell the format by the first bytes; names of weights files say little."""
    if not path.is_file():
        raise UsageError(f"weights file {str(path)!r} does not exist" + (" (it is a folder)" if path.is_dir() else ""))
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UsageError(f"cannot read weights file {str(path)!r}: {error.strerror}") from None
    if not head:
        raise UsageError(f"weights file {str(path)!r} is empty")
    if head[:2] == b"PK" or TORCH_LEGACY_MAGIC in head[:16]:
        return "torch"
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x80" or path.suffix in (".pkl", ".pickle"):
        return "numpy pickle"
    raise UsageError(f"{str(path)!r} is no weights file: neither safetensors nor a torch file nor a pickle of arrays")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # safetensors raises its own untyped errors
        raise _corrupt(path, error) from None


def _read_torch(path: Path) -> Any:
    stand_ins = _stand_ins()
    try:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals([(v, k) for k, v in stand_ins.items()]),
        ):
            warnings.simplefilter("ignore")  # on old storages and protocols, which are read all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"(?:GLOBAL|function|for) ([\w.]+\.?[\w.]*) (?:was not|whose|which)", str(error))
        if asked:
            raise _refused(path, asked.group(1)) from None
        raise _corrupt(path, error) from None
    except Exception as error:  # broken archives surface as almost any type
        raise _corrupt(path, error) from None


def _read_pickle(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            return _DataUnpickler(file, encoding="latin1").load()
    except _Asked as error:
        raise _refused(path, str(error)) from None
    except Exception as error:  # broken pickles surface as almost any type
        raise _corrupt(path, error) from None


def _refused(path: Path, name: str) -> UsageError:
    return UsageError(
        f"{str(path)!r} is refused: its pickle asks for {name!r}, which is more than data; nothing was run. "
        "Where you trust it, save its state dict alone with safetensors or torch.save"
    )


def _corrupt(path: Path, error: Exception) -> UsageError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UsageError(f"{str(path)!r} is truncated or corrupt ({lines[0].strip()[:160]})")


class _Array:
    """What stands for a numpy array while a pickle is read."""

    value: np.ndarray[Any, Any] | None = None


class _Asked(Exception):
    """The name of a global that a pickle asked for and does not get."""


class _DataUnpickler(pickle.Unpickler):
    """Rebuilds dicts, lists, strings, numbers and arrays; finds nothing else."""

    def __init__(self, file: Any, encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self.stand_ins = _stand_ins() | {"collections.OrderedDict": OrderedDict}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if full not in self.stand_ins:
            raise _Asked(full)
        return self.stand_ins[full]

    def persistent_load(self, pid: Any) -> Any:
        raise _Asked("a persistent object")


def _stand_ins() -> dict[str, Any]:
    """What a pickle gets in place of the classes and functions it names.

    Made anew for each file: a pickle may set attributes on what it is given; the next file must not see them.
    """

    class Inert:
        def __init__(self, *args: Any) -> None: ...
        def __setstate__(self, state: Any) -> None: ...
        def __setitem__(self, key: Any, value: Any) -> None: ...
        def append(self, item: Any) -> None: ...
        def extend(self, items: Any) -> None: ...

    class Dtype:
        def __init__(self, code: Any, *args: Any) -> None:
            self.code, self.order = str(code), "="

        def __setstate__(self, state: Any) -> None:
            self.order = str(state[1])

        def resolve(self) -> np.dtype[Any]:
            if not re.fullmatch(r"[fiub]\d{1,2}", self.code):
                raise ValueError(f"array type {self.code!r} is not numeric")
            return np.dtype(self.order.replace("|", "=") + self.code)

    class Array(_Array):
        def __init__(self, *args: Any) -> None: ...

        def __setstate__(self, state: Any) -> None:
            _, shape, dtype, fortran, data = state
            if isinstance(dtype, Dtype) and isinstance(data, (bytes, bytearray, str)):
                self.value = array(data, dtype, shape, "F" if fortran else "C")

    def array(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray[Any, Any]:
        raw = data.encode("latin1") if isinstance(data, str) else data  # Python 2 pickled bytes as str
        values = np.frombuffer(raw, dtype.resolve()).reshape(tuple(shape), order=order)  # type: ignore[call-overload]
        return values.astype(dtype.resolve().newbyteorder("="))

    def from_buffer(data: Any, dtype: Any, shape: Any, order: str = "C", *axes: Any) -> Array:
        result = Array()
        result.value = array(data, dtype, shape, "F" if order == "F" else "C")
        return result

    def latin1(text: Any, encoding: Any = "latin1") -> bytes:
        return str(text).encode("latin1")

    def emptied(*args: Any) -> OrderedDict[Any, Any]:
        return OrderedDict()

    table: dict[str, Any] = {f"{module}.{name}": Inert for module, names in INERT.items() for name in names}
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray._reconstruct"] = Array
        table[f"{core}.multiarray.scalar"] = Inert
        table[f"{core}.numeric._frombuffer"] = from_buffer
    return table | {
        "numpy.ndarray": Array,
        "numpy.dtype": Dtype,
        "_codecs.encode": latin1,
        "collections.defaultdict": emptied,
        "collections.Counter": emptied,
    }


def _containers(tree: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dict that holds tensors under string keys, with its dotted path, outer ones first."""
    todo, seen = [("", tree)], set()
    while todo:
        path, node = todo.pop(0)
        if not isinstance(node, dict) or id(node) in seen:
            continue
        seen.add(id(node))  # a pickle may hold cycles
        tensors = {k: t for k, v in node.items() if isinstance(k, str) and (t := _tensor(v)) is not None}
        if tensors:
            yield path, tensors
        for key, value in node.items():
            if isinstance(key, str) and not NOT_WEIGHTS.match(key):
                todo.append((f"{path}.{key}" if path else key, value))


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        dense = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        return value.detach() if dense else None
    if isinstance(value, _Array) and isinstance(value.value, np.ndarray):
        return torch.from_numpy(value.value)
    return None
