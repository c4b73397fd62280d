# SPDX-License-Identifier: Apache-2.0
"""Find and load plug-ins by name: a file in the folder, an entry point of another package, or a path.

The file is the registry: `recipes/mocov2.py` holds `RECIPE` and is `--algo mocov2`. Another package joins with an
entry point in the group `suite.recipes` (`suite.evaluators`, `suite.reports`, `suite.datasets`) that names the object.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import zlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from suite.errors import JobError, UsageError, unknown

Kind = Literal["recipes", "evaluators", "reports"]
OBJECT = {"recipes": "RECIPE", "evaluators": "EVALUATOR", "reports": "PAGE"}
SINGULAR = {"recipes": "algorithm", "evaluators": "benchmark", "reports": "page"}


def find(kind: Kind) -> dict[str, str]:
    """Name to `module:object` of every plug-in of a kind, without importing any of them.

    Raises:
        UsageError: two plug-ins have one name; the message names both.
    """
    package = importlib.import_module(kind)
    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        if not module.ispkg and not module.name.startswith("_"):
            found[module.name.replace("_", "-") if kind == "recipes" else module.name] = f"{kind}.{module.name}:{OBJECT[kind]}"
    for point in metadata.entry_points(group=f"suite.{kind}"):
        if point.name in found and found[point.name] != point.value:
            raise UsageError(
                f"{SINGULAR[kind]} {point.name!r} is defined twice: {found[point.name]} and {point.value}; "
                "uninstall or rename one"
            )
        found[point.name] = point.value
    return dict(sorted(found.items()))


def load(kind: Kind, name: str) -> Any:
    """Load a plug-in by name, or from a path ending in `.py`.

    Raises:
        UsageError: unknown name (with the nearest one) or a file without the object.
        JobError: the plug-in's own code fails to import.
    """
    if name.endswith(".py"):
        return _from_path(kind, Path(name))
    return _load(kind, name, find(kind))


def _load(kind: Kind, name: str, found: Mapping[str, str]) -> Any:
    key = name if name in found else name.replace("_", "-") if kind == "recipes" else name
    if key not in found:
        raise unknown(SINGULAR[kind], name, found)
    module_name, _, attribute = found[key].partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise JobError(f"{SINGULAR[kind]} {key!r}: importing {module_name} failed: {_one_line(error)}") from error
    return _checked(kind, getattr(module, attribute, None), found[key], key)


def _from_path(kind: Kind, path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"{SINGULAR[kind]} file {str(path)!r} does not exist")
    name = f"suite_plugin_{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{SINGULAR[kind]} file {str(path)!r} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their annotations up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise JobError(f"{SINGULAR[kind]} file {str(path)!r} failed to import: {_one_line(error)}") from error
    return _checked(kind, getattr(module, OBJECT[kind], None), f"{path}:{OBJECT[kind]}", None)


def _checked(kind: Kind, plugin: Any, where: str, name: str | None) -> Any:
    from suite import spec

    wanted: Any = {"recipes": spec.Recipe, "evaluators": spec.Evaluator, "reports": spec.Page}[kind]
    if not isinstance(plugin, wanted):
        raise UsageError(f"{where} is {type(plugin).__name__}, not a suite.spec.{wanted.__name__}")
    if name is not None and plugin.name != name:
        raise UsageError(f"{where} is found as {name!r} but calls itself {plugin.name!r}")
    return plugin


def load_all(kind: Kind) -> dict[str, Any]:
    """Every plug-in of a kind by name."""
    found = find(kind)
    return {name: _load(kind, name, found) for name in found}


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
