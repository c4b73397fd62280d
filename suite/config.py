# SPDX-License-Identifier: Apache-2.0
"""Configs are data: overridden by dotted `key=value`, validated before anything is built, digested, stored."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from suite.errors import UsageError, unknown
from suite.spec import OUTSIDE_DIGEST

T = TypeVar("T")


def override(config: T, assignments: Sequence[str]) -> T:
    """A copy of a frozen config dataclass with dotted assignments applied and everything validated.

    Args:
        config: a (nested) dataclass instance.
        assignments: `a.b=value`; the value is JSON, or a plain word.

    Raises:
        UsageError: no `=`, an unknown key (with the nearest one), a wrong type or a value out of range.
    """
    raw = to_dict(config)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise UsageError(f"override {assignment!r} is not key=value")
        _assign(raw, type(config), key, key.split("."), text)
    return from_dict(type(config), raw)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def _assign(raw: dict[str, Any], kind: Any, full: str, path: list[str], text: str) -> None:
    name, rest = path[0], path[1:]
    if dataclasses.is_dataclass(kind):
        fields = {f.name for f in dataclasses.fields(kind)}
        if name not in fields:
            raise unknown("config key", full, fields if len(full.split(".")) == 1 else _dotted(full, path, fields))
        kind = get_type_hints(kind)[name]
    if not rest:
        value = _value(text)
        # `precision=32` means the word "32": where a string stands, only a quoted value is read as JSON.
        raw[name] = text if isinstance(raw.get(name), str) and not isinstance(value, str) else value
    elif isinstance(raw.get(name), dict):
        _assign(raw[name], kind, full, rest, text)
    else:
        raise UsageError(f"config key {full!r}: {name!r} holds a plain value and has no parts")


def _dotted(full: str, path: list[str], fields: set[str]) -> set[str]:
    head = full[: len(full) - len(".".join(path))]
    return {head + name for name in fields}


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON-able dict of a config (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=list))


def from_dict(kind: type[T], raw: Mapping[str, Any]) -> T:
    """Build and validate a config dataclass.

    Raises:
        UsageError: naming the first field that is wrong, its value and what was expected.
    """
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]  # T is always a dataclass here
    for name in raw:
        if name not in known:
            raise unknown("config key", name, known)
    try:
        return TypeAdapter(kind).validate_python(dict(raw))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"][0].lower() + first["msg"][1:]
        raise UsageError(f"config key {where!r} = {first['input']!r}: {message}") from None


def digest(config: Any, *extra: object) -> str:
    """sha256 (hex) over what defines the measurement: the config without seed and workers, plus `extra`."""
    return digest_of(to_dict(from_dict(type(config), to_dict(config))), *extra)  # 5 and 5.0 are one setting


def digest_of(raw: Mapping[str, Any], *extra: object) -> str:
    """`digest` of a config as a record stores it, whatever fields the config has gained since."""
    kept = {key: value for key, value in raw.items() if key not in OUTSIDE_DIGEST}
    text = json.dumps([kept, *extra], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
