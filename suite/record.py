# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: JSON records that carry their provenance, and the migrations between their schemas."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from suite.errors import UsageError

SCHEMA = 2


@dataclass(frozen=True)
class Env:
    """Where a number was measured."""

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

    sha256: str
    "Hash of the tensors (names, shapes, bytes), independent of the file around them."
    arch: str
    parameters: int
    source: str = ""
    "Where the weights come from: a run id, or the file name that the user gave."


@dataclass(frozen=True)
class Result:
    """One evaluator's answer about one set of weights."""

    evaluator: str
    preset: str
    version: int
    config: Mapping[str, Any]
    digest: str
    status: Literal["ok", "failed", "skipped"]
    weights: str
    "sha256 of the weights that were evaluated."
    why: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
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
        """`evaluator` or `evaluator.preset`: file name of the result inside a run."""
        return self.evaluator if self.preset == "default" else f"{self.evaluator}.{self.preset}"


@dataclass(frozen=True)
class RunRecord:
    """One pre-training (or one weights file) and everything measured on it."""

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


def run_from_json(text: str, where: str = "record") -> RunRecord:
    """Read a RunRecord of any known schema.

    Raises:
        UsageError: not JSON, not a record, or a schema newer than this version knows.
    """
    raw = _parse(text, where)
    raw = migrate(raw, where)
    try:
        results = {key: _result(value) for key, value in raw.pop("results", {}).items()}
        raw["weights"] = Weights(**raw["weights"])
        raw["env"] = Env(**raw["env"])
        raw["notes"] = tuple(raw.get("notes", ()))
        return RunRecord(**raw, results=results)
    except (TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{where}: not a run record ({error})") from None


def result_from_json(text: str, where: str = "result") -> Result:
    """Read a Result.

    Raises:
        UsageError: not JSON or not a result.
    """
    try:
        return _result(_parse(text, where))
    except (TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{where}: not a result ({error})") from None


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: corrupted JSON at line {error.lineno}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{where}: not a record (a JSON {type(raw).__name__})")
    return raw


def _result(raw: Mapping[str, Any]) -> Result:
    return Result(**{**raw, "env": Env(**raw["env"])})


def migrate(raw: dict[str, Any], where: str = "record") -> dict[str, Any]:
    """Bring a raw record to the current schema; every older schema has its step here."""
    schema = raw.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA or schema < 1:
        raise UsageError(f"{where}: schema {schema!r} is not known (this version reads 1 to {SCHEMA})")
    return {**raw, "schema": SCHEMA}  # 1 to 2: results gained `intervals` and `samples`, whose defaults say "not measured"


def with_results(record: RunRecord, results: Mapping[str, Result]) -> RunRecord:
    """The record with these results instead of its own."""
    return replace(record, results=dict(sorted(results.items())))
