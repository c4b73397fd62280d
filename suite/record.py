# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: JSON records that carry their provenance, and the migrations between their schemas."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, FiniteFloat, TypeAdapter, ValidationError

from suite.errors import UsageError

SCHEMA = 2
STRICT = ConfigDict(extra="forbid", strict=True)
"""A record holds what its fields say and nothing else: files come from other people."""

T = TypeVar("T")


@dataclass(frozen=True)
class Env:
    """Where a number was measured."""

    __pydantic_config__ = STRICT
    python: str = ""
    platform: str = ""
    device: str = ""
    threads: int = 0
    packages: Mapping[str, str] = field(default_factory=dict)
    git: str = ""
    suite: str = ""


@dataclass(frozen=True)
class Weights:
    """The backbone that was evaluated."""

    __pydantic_config__ = STRICT
    sha256: str
    "Hash of the tensors (names, shapes, bytes), independent of the file around them."
    arch: str
    parameters: int
    source: str = ""
    "Where the weights come from: a run id, or the file name that the user gave."


@dataclass(frozen=True)
class Result:
    """One evaluator's answer about one set of weights."""

    __pydantic_config__ = STRICT
    evaluator: str
    preset: str
    version: int
    config: Mapping[str, Any]
    digest: str
    status: Literal["ok", "failed", "skipped"]
    weights: str
    "sha256 of the weights that were evaluated."
    why: str = ""
    metrics: Mapping[str, FiniteFloat] = field(default_factory=dict)
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    "Metric to the two ends of its 95 % bootstrap interval over test samples, where per-sample predictions exist."
    samples: int = 0
    "Test samples behind `intervals`."
    selected: Mapping[str, Any] = field(default_factory=dict)
    "Hyper-parameters that were chosen, and on what."
    data: Mapping[str, str] = field(default_factory=dict)
    "Split name to fingerprint."
    predictions: str = ""
    "File name of the per-sample predictions beside the record, or empty."
    artifacts: Mapping[str, str] = field(default_factory=dict)
    "Name to file name of further arrays beside the record, which pages draw."
    seconds: float = 0.0
    env: Env = field(default_factory=Env)
    created: str = ""

    @property
    def key(self) -> str:
        """`evaluator` or `evaluator.preset` (`evaluator.preset@dataset`): file name of the result inside a run."""
        return self.evaluator if self.preset == "default" else f"{self.evaluator}.{self.preset}"


@dataclass(frozen=True)
class RunRecord:
    """One pre-training (or one weights file) and everything measured on it."""

    __pydantic_config__ = STRICT
    id: str
    recipe: str
    recipe_version: int
    preset: str
    config: Mapping[str, Any]
    digest: str
    seed: int
    weights: Weights
    env: Env = field(default_factory=Env)
    data: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    images_per_second: float = 0.0
    peak_memory_mb: float = 0.0
    steps: int = 0
    loss: float | None = None
    feature_std: float | None = None
    "Spread of the embeddings at the end of training, 1 when healthy, 0 when collapsed."
    feature_rank: float | None = None
    "Their effective rank at the end of training."
    notes: tuple[str, ...] = ()
    "Warnings that belong to the numbers: collapse, changed objective, altered length."
    created: str = ""
    schema: int = SCHEMA
    results: Mapping[str, Result] = field(default_factory=dict)
    "Result.key to Result; kept in files of their own inside a run folder."


def environment(device: str = "", threads: int = 0) -> Env:
    """The environment of this process, with the versions of what can change a number."""
    packages = {}
    for name in ("torch", "torchvision", "timm", "numpy", "scikit-learn", "faiss-cpu", "lightning-fabric", "mmdet",
                 "mmsegmentation"):  # fmt: skip
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return Env(
        python=platform.python_version(),
        platform=f"{sys.platform}-{platform.machine()}",
        device=device,
        threads=threads,
        packages=packages,
        git=_git_revision(),
        suite=suite_version(),
    )


def suite_version() -> str:
    """Version of the installed distribution, or `source`."""
    try:
        return metadata.version("ssl-suite")
    except metadata.PackageNotFoundError:
        return "source"


def _git_revision() -> str:
    """Revision of the checkout this file stands in, with `+` when it is dirty; empty outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return ""
    try:
        run = ["git", "-C", str(here)]
        head = subprocess.run([*run, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=5)
        dirty = subprocess.run([*run, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def to_json(record: RunRecord | Result) -> str:
    """Stable, indented JSON: same record, same bytes."""
    return json.dumps(asdict(record), indent=2, sort_keys=True, ensure_ascii=False, default=list) + "\n"


def run_from_json(text: str | bytes, where: str = "record") -> RunRecord:
    """Read a RunRecord of any known schema.

    Raises:
        UsageError: not JSON, not a record (the field is named), or a schema newer than this version knows.
    """
    try:
        record = _reader(RunRecord).validate_json(text)
        if record.schema == SCHEMA:
            return record
    except ValidationError:
        pass  # the long way says what is wrong, or brings an older schema up to date
    return _built(RunRecord, migrate(parse(text, where), where), where, "a run record")


def result_from_json(text: str | bytes, where: str = "result") -> Result:
    """Read a Result.

    Raises:
        UsageError: not JSON or not a result (the field is named).
    """
    try:
        return _reader(Result).validate_json(text)
    except ValidationError:
        return _built(Result, parse(text, where), where, "a result")


def sound_from_json(text: str | bytes, where: str = "record") -> tuple[RunRecord, list[str]]:
    """A RunRecord with those of its embedded results that can be read, and one line for each that cannot.

    Raises:
        UsageError: the record itself cannot be read.
    """
    try:
        return run_from_json(text, where), []
    except UsageError:
        raw = migrate(parse(text, where), where)
    embedded = raw.pop("results", {})
    if not isinstance(embedded, dict):
        raise UsageError(f"{where}: not a run record (results: not an object)")
    record, results, problems = _built(RunRecord, raw, where, "a run record"), {}, []
    for key, value in embedded.items():
        try:
            results[key] = _built(Result, value, f"{where}: results.{key}", "a result")
        except UsageError as error:
            problems.append(str(error))
    return with_results(record, results), problems


@cache
def _reader(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _built(kind: type[T], raw: Any, where: str, what: str) -> T:
    """A record from plain values.

    Raises:
        UsageError: a field that is missing, unknown or of another type.
    """
    try:
        return _reader(kind).validate_json(json.dumps(raw))  # type: ignore[arg-type]  # JSON lists become tuples, Python lists may not
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field_name = ".".join(str(part) for part in first["loc"])
        message = first["msg"][0].lower() + first["msg"][1:]
        raise UsageError(f"{where}: not {what} ({field_name + ': ' if field_name else ''}{message})") from None


def parse(text: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object of a file that somebody else may have written.

    Raises:
        UsageError: no JSON (with the line), or no object.
    """
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: corrupted JSON at line {error.lineno}") from None
    except (RecursionError, ValueError):  # ValueError: a whole number of thousands of digits
        raise UsageError(f"{where}: not a record (nested too deeply, or a number too long)") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{where}: not a record (a JSON {type(raw).__name__})")
    return raw


def migrate(raw: dict[str, Any], where: str = "record") -> dict[str, Any]:
    """Bring a raw record to the current schema; every older schema has its step here."""
    schema = raw.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or not 1 <= schema <= SCHEMA:
        raise UsageError(f"{where}: schema {schema!r} is not known (this version reads 1 to {SCHEMA})")
    return {**raw, "schema": SCHEMA}  # 1 to 2: results gained `intervals` and `samples`, whose defaults say "not measured"


def with_results(record: RunRecord, results: Mapping[str, Result]) -> RunRecord:
    """The record with these results instead of its own."""
    return RunRecord(**{**vars(record), "results": dict(sorted(results.items()))})  # half the time of dataclasses.replace
