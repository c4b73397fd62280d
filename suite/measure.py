# SPDX-License-Identifier: Apache-2.0
"""The running of evaluators on a finished run: one Result each, whatever happens."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import numpy as np
import torch

from suite import config as configs
from suite import stats
from suite.backbone import Backbone
from suite.bench import Bench, Place
from suite.data import Sources, card
from suite.errors import JobError, SuiteError, UsageError, unknown
from suite.interrupt import Interrupted
from suite.record import Result, environment
from suite.spec import EvalConfig, Evaluator, base_preset
from suite.store import Run, arrays_to_bytes


def resolve(evaluator: Evaluator, preset: str, assignments: Sequence[str] = ()) -> EvalConfig:
    """The config of an evaluator's preset, or of a preset on other data (`default@cityscapes`), with overrides.

    Raises:
        UsageError: unknown preset, key or data set.
    """
    name, _, dataset = preset.partition("@")
    if name not in evaluator.presets:
        raise unknown(f"preset of {evaluator.name}", name, evaluator.presets)
    given = [f"dataset={json.dumps(dataset)}"] if dataset else []
    config = configs.override(evaluator.presets[name], [*given, *assignments])
    if config.dataset:
        card(config.dataset)
    return config


def missing_need(evaluator: Evaluator) -> str:
    """Why an evaluator cannot run in this environment, or an empty string."""
    absent = [name for name in evaluator.needs if importlib.util.find_spec(name) is None]
    return f"needs {', '.join(absent)}: pip install 'ssl-suite[mm]'" if absent else ""


def digest(evaluator: Evaluator, config: EvalConfig, dataset: str, fingerprint: str) -> str:
    """What makes a result another result: protocol, version, settings and data."""
    return configs.digest(config, evaluator.name, evaluator.version, dataset, fingerprint)


@dataclass(frozen=True)
class Order:
    """One evaluator to run on one set of weights, resolved."""

    evaluator: Evaluator
    config: EvalConfig
    result: Result
    "What is known before running: identity, and in `why` what it lacks."

    @property
    def key(self) -> str:
        """Name of the result within its run."""
        return self.result.key


def order(evaluator: Evaluator, preset: str, weights: str, sources: Sources, assignments: Sequence[str] = ()) -> Order:
    """Resolve preset, overrides and data.

    Raises:
        UsageError: unknown preset or key.
    """
    config, sources = resolve(evaluator, preset, assignments), sources.serving(evaluator.task)
    name = base_preset(preset)
    try:
        need = missing_need(evaluator)
        dataset = "" if need else sources.name(evaluator.task, config.dataset)
        # Data is part of the identity: the same preset on other images is another result.
        fingerprint = "" if need else "/".join(sources.fingerprint(dataset, split) for split in ("train", "test"))
        if dataset and config.dataset != evaluator.presets[name].dataset:
            name = f"{name}@{dataset}"  # another result beside the one on the preset's own data
    except UsageError as error:
        need, dataset, fingerprint = str(error), "", ""
    result = Result(
        evaluator=evaluator.name, preset=name, version=evaluator.version, config=configs.to_dict(config),
        digest=digest(evaluator, config, dataset, fingerprint), status="skipped", weights=weights, why=need, created=now(),
    )  # fmt: skip
    return Order(evaluator, config, result)


def current(wanted: Order, run: Run) -> Result | None:
    """The run's own result of this very order, or None when it has to be measured."""
    old, new = run.results()[0].get(wanted.key), wanted.result
    if old is None or (old.digest, old.version, old.weights) != (new.digest, new.version, new.weights):
        return None
    return old if old.status == "ok" or (old.status == "skipped" and new.why) else None


def evaluate(wanted: Order, run: Run, place: Place, *, together: Sequence[Order] = (), debug: bool = False) -> Result:
    """Measure and write a Result; a failure is a Result too, with the reason.

    Args:
        wanted: what to measure.
        run: whose weights, and where the result goes.
        place: data, features, size, reporter.
        together: what else will be measured on these weights, so that features are extracted in one pass.
        debug: let errors through.

    Raises:
        Interrupted: a signal came.
    """
    if wanted.result.why:
        old = run.results()[0].get(wanted.key)
        if old is None or old.status != "ok" or old.weights != wanted.result.weights:  # a number is worth more than a reason
            run.save_result(wanted.result)
        return wanted.result
    # Partial results are of these settings, not of whatever the preset is later called with.
    out = run.path / "work" / f"{wanted.key}-{wanted.result.digest[:8]}"
    shared = [(other.evaluator, other.config) for other in together if not other.result.why]
    bench = Bench(wanted.evaluator, wanted.result.weights, place, out, shared)
    result = _measure(wanted, bench, run, debug)
    run.save_result(result, _arrays(result, bench))
    if result.status == "ok":
        shutil.rmtree(bench.out, ignore_errors=True)
        with contextlib.suppress(OSError):
            bench.out.parent.rmdir()
    return result


def _arrays(result: Result, bench: Bench) -> dict[str, bytes]:
    """File name to bytes of what a finished evaluator keeps beside its result."""
    if result.status != "ok":
        return {}
    files = {result.artifacts[name]: arrays_to_bytes(arrays) for name, arrays in bench.artifacts.items()}
    return files if bench.arrays is None else {result.predictions: arrays_to_bytes(bench.arrays), **files}


def _measure(wanted: Order, bench: Bench, run: Run, debug: bool) -> Result:
    evaluator, config, result = wanted.evaluator, wanted.config, wanted.result
    bench.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    np.random.seed(config.seed)
    began = time.monotonic()
    try:
        backbone = Backbone.load(run.weights)
        metrics = dict(evaluator.run(backbone, config, bench))
        if evaluator.frozen and backbone.cpu().sha256() != bench.weights:
            raise JobError(f"{evaluator.name} changed the backbone it should have frozen (weights or batch-norm statistics)")
        _check_metrics(evaluator, metrics)
    except (Interrupted, KeyboardInterrupt):
        raise
    except Exception as error:
        if debug:
            raise
        text = str(error) if isinstance(error, SuiteError) else f"{type(error).__name__}: {error}"
        return replace(result, status="failed", why=(text.splitlines() or [""])[0], seconds=time.monotonic() - began)
    headline = evaluator.metrics[0].name
    noise, samples = (None, 0) if bench.arrays is None else stats.headline_interval(bench.arrays, float(metrics[headline]))
    return replace(
        result, status="ok", why="", metrics={name: float(value) for name, value in metrics.items()},
        intervals={} if noise is None else {headline: list(noise)}, samples=samples,
        selected=bench.selected, data=bench.fingerprints, seconds=time.monotonic() - began,
        predictions=f"{result.key}.npz" if bench.arrays is not None else "",
        artifacts={name: f"{result.key}.{name}.npz" for name in bench.artifacts},
        env=environment(str(bench.device), bench.threads),
    )  # fmt: skip


def _check_metrics(evaluator: Evaluator, metrics: dict[str, float]) -> None:
    headline = evaluator.metrics[0].name
    if headline not in metrics:
        raise JobError(f"{evaluator.name} reported no {headline!r}, its headline metric")
    known = tuple(metric.name for metric in evaluator.metrics)
    for name, value in metrics.items():
        if name.partition(".")[0] not in known:
            raise JobError(f"{evaluator.name} reported {name!r}, which its metrics do not declare")
        if not np.isfinite(value):
            raise JobError(f"{evaluator.name} reported {name} = {value}")


def now() -> str:
    """The time as a record carries it: UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
