# SPDX-License-Identifier: Apache-2.0
"""What an evaluator may use, and the running of evaluators: one Result each, whatever happens."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from suite import config as configs
from suite import engine, features
from suite.backbone import Backbone
from suite.data import cache_dir, card, load
from suite.data.imageset import ImageSet
from suite.data.loader import Loader
from suite.data.pack import packed, packed_fingerprint
from suite.errors import JobError, SuiteError, UsageError, unknown
from suite.features import FeatureStore
from suite.method import TrainSet
from suite.metrics import PREDICTIONS
from suite.nn.classifier import Classifier
from suite.progress import Reporter, Task
from suite.record import Result, environment
from suite.spec import EvalConfig, Evaluator, Optim
from suite.store import Run, arrays_to_bytes
from suite.train import Interrupted, Plan
from suite.train import fit as train_loop
from suite.views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CenterCrop,
    HorizontalFlip,
    Normalize,
    RandomResizedCrop,
    Resize,
    View,
    Warp,
)

EMBEDDED = {
    "classification": "digits",
    "multilabel": "digit-scenes",
    "detection": "digit-scenes",
    "segmentation": "digit-scenes",
}


@dataclass(frozen=True)
class Sources:
    """Where data sets are.

    Attributes:
        dataset: what the weights were (or would be) pre-trained on.
        roots: data set name to folder.
        on_broken: `refuse` or `skip` broken images.
        cache: folder of generated and packed data, None: the default.
        pack: shorter side of the packed copies that sets too large for memory are read from; 0: from their own files.
    """

    dataset: str
    roots: dict[str, Path] = field(default_factory=dict)
    on_broken: str = "refuse"
    cache: Path | None = None
    pack: int = 0

    def __post_init__(self) -> None:
        """Refuse an unknown way to treat broken images."""
        if self.on_broken not in ("refuse", "skip"):
            raise unknown("--on-broken value", self.on_broken, ("refuse", "skip"))

    def name(self, task: str, wanted: str = "") -> str:
        """The data set that serves a task: the one asked for, the run's own, one with a root, or the embedded one.

        Raises:
            UsageError: nothing at hand serves the task.
        """
        if wanted:
            return wanted
        for name in (self.dataset, *self.roots):
            if task in card(name).tasks:
                return name
        if card(self.dataset).embedded:
            return EMBEDDED[task]
        raise UsageError(f"no data set for {task}: give --data-root NAME=DIR (see `suite data ls`)")

    def load(self, name: str, split: str, reporter: Reporter | None = None) -> ImageSet:
        """Load what the data set's protocols call `train` or `test` (trainval of VOC, val of ImageNet), packed if so chosen."""
        images = self._own(name, split)
        if not self.pack or images.array is not None:
            return images
        return packed(images, cache_dir(self.cache) / "packed", self.pack, reporter or Reporter())

    def fingerprint(self, name: str, split: str) -> str:
        """Fingerprint of what `load` gives, without packing anything."""
        images = self._own(name, split)
        return packed_fingerprint(images, self.pack) if self.pack and images.array is None else images.fingerprint

    def serving(self, task: str) -> Sources:
        """The same for a task: boxes and masks are in the pixels of the original files, which are then read as they are."""
        return replace(self, pack=0) if task in ("detection", "segmentation") else self

    def _own(self, name: str, split: str) -> ImageSet:
        known = card(name)
        own = {"train": known.train, "test": known.test or "test"}.get(split, split)
        return load(
            name, own, self.roots.get(name), cache=self.cache, on_broken="skip" if self.on_broken == "skip" else "refuse"
        )


class Bench:
    """What an evaluator may use. One is made for each (weights, evaluator)."""

    def __init__(
        self,
        evaluator: Evaluator,
        weights: str,
        sources: Sources,
        store: FeatureStore,
        out: Path,
        size: int,
        reporter: Reporter,
        workers: int = 0,
    ) -> None:
        self.evaluator, self.weights, self.sources, self.store, self.out = evaluator, weights, sources, store, out
        self.size, self.reporter, self.workers = size, reporter, workers
        self.device, self.threads, self.precision = engine.default_device(), engine.threads(), "32"
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        self.selected: dict[str, Any] = {}
        self.fingerprints: dict[str, str] = {}
        self.arrays: dict[str, np.ndarray] | None = None

    def data(self, cfg: EvalConfig, split: str) -> ImageSet:
        """`train` or `test` of the evaluator's data set; the fingerprint goes into the record."""
        name = self.sources.name(self.evaluator.task, cfg.dataset)
        images = self.sources.load(name, split, self.reporter)
        self.fingerprints[f"{name}/{images.split}"] = images.fingerprint
        return images

    def view(self, images: ImageSet, warp: bool = False) -> View:
        """How test images are prepared: as they are when they have the right side already, else resize 256/224 and centre crop.

        Args:
            images: the set; one size in memory may need no resizing.
            warp: resize to a square without keeping the aspect (the VOC07 SVM protocol).
        """
        if warp:
            return View((Warp(self.size), Normalize(self.mean, self.std)))
        if images.array is not None and images.array.shape[1:3] == (self.size, self.size):
            return View((CenterCrop(self.size), Normalize(self.mean, self.std)))
        return View((Resize(round(self.size * 256 / 224)), CenterCrop(self.size), Normalize(self.mean, self.std)))

    def features(
        self, backbone: Backbone, images: ImageSet, layers: Sequence[str], warp: bool = False
    ) -> dict[str, np.ndarray]:
        """Float32 N×d features per layer (`pooled`, `stage3`, `stage3@4`), extracted once for all evaluators."""
        view = self.view(images, warp)
        keys = {layer: features.key(self.weights, images, view, layer, self.precision) for layer in layers}
        found = {layer: matrix for layer in layers if (matrix := self.store.get(keys[layer])) is not None}
        missing = [layer for layer in layers if layer not in found]
        if missing:
            with self.progress(len(images), f"features {images.name}/{images.split}") as advance:
                fresh = features.extract(
                    backbone, images, view, missing, device=self.device, workers=self.workers, advance=advance
                )
            for layer, matrix in fresh.items():
                found[layer] = self.store.put(keys[layer], matrix)
        return {layer: found[layer] for layer in layers}

    def finetune(
        self,
        backbone: Backbone,
        train: ImageSet,
        test: ImageSet,
        settings: Optim,
        cfg: Any,
        *,
        epochs: int,
        what: str = "",
    ) -> np.ndarray:
        """Train a copy of the whole network with a new linear classifier; class scores N×C of the test images.

        Args:
            backbone: starting weights; not changed.
            train: labelled images, one class each.
            test: images to score.
            settings: optimizer; a parameter of the classifier is called `head.…`.
            cfg: an evaluator's config with `batch`, `precision`, `crop_min`, `flip`, `label_smoothing` and `seed`.
            epochs: length.
            what: name under which the training resumes after an interruption; empty for short trials.
        """
        crop = RandomResizedCrop(self.size, scale=(cfg.crop_min, 1.0))
        views = (View((crop, HorizontalFlip(cfg.flip), Normalize(self.mean, self.std))),)
        torch.manual_seed(cfg.seed)
        method = Classifier(cfg, copy.deepcopy(backbone), TrainSet(train))
        plan = Plan(settings, min(cfg.batch, len(train)), epochs, seed=cfg.seed, workers=self.workers)
        fabric = engine.make_fabric(cfg.precision)
        folder = self.out / what if what else None
        title = f"{self.evaluator.name}: {what or 'trial'}"
        train_loop(method, train, views, plan, fabric, folder=folder, reporter=self.reporter, what=title)
        return self._scores(method, test, fabric)

    @torch.no_grad()
    def _scores(self, method: Classifier, test: ImageSet, fabric: Fabric) -> np.ndarray:
        method.eval()
        loader = Loader(
            test, (self.view(test),), 256, device=self.device, workers=self.workers, shuffle=False,
            channels_last=not method.backbone.is_vit,
        )  # fmt: skip
        with fabric.autocast():
            return np.concatenate([method.scores(batch.views[0]).float().cpu().numpy() for batch in loader.epoch(0)])

    def select(self, **chosen: Any) -> None:
        """Record hyper-parameters that were chosen, and on what."""
        self.selected.update(chosen)

    def predictions(self, kind: str, **arrays: Any) -> None:
        """Keep the headline metric's per-sample predictions for paired comparison.

        Raises:
            ValueError: arrays that this kind does not have, or lacks.
        """
        if set(arrays) != set(PREDICTIONS[kind]):
            raise ValueError(f"predictions of kind {kind!r} are {sorted(PREDICTIONS[kind])}, got {sorted(arrays)}")
        self.arrays = {"kind": np.array(kind), **{name: np.asarray(value) for name, value in arrays.items()}}

    @contextlib.contextmanager
    def progress(self, total: int, what: str) -> Iterator[Task]:
        """A bar: `with bench.progress(n, "fitting") as advance: advance(1)`."""
        with self.reporter.task(f"{self.evaluator.name}: {what}", total) as task:
            yield task


def resolve(evaluator: Evaluator, preset: str, assignments: Sequence[str] = ()) -> EvalConfig:
    """The config of an evaluator's preset with overrides.

    Raises:
        UsageError: unknown preset or key.
    """
    if preset not in evaluator.presets:
        raise unknown(f"preset of {evaluator.name}", preset, evaluator.presets)
    return configs.override(evaluator.presets[preset], assignments)


def missing_need(evaluator: Evaluator) -> str:
    """Why an evaluator cannot run in this environment, or an empty string."""
    absent = [name for name in evaluator.needs if importlib.util.find_spec(name) is None]
    return f"needs {', '.join(absent)}: pip install 'ssl-suite[mm]'" if absent else ""


def digest(evaluator: Evaluator, config: EvalConfig, dataset: str, fingerprint: str) -> str:
    """What makes a result another result: protocol, version, settings and data."""
    return configs.digest(config, evaluator.name, evaluator.version, dataset, fingerprint)


def evaluate(
    evaluator: Evaluator,
    preset: str,
    run: Run,
    weights: str,
    sources: Sources,
    store: FeatureStore,
    *,
    size: int,
    reporter: Reporter,
    assignments: Sequence[str] = (),
    again: bool = False,
    debug: bool = False,
    workers: int = 0,
) -> tuple[Result, bool]:
    """One evaluator on one run's weights: from its record when that is current, else measured now.

    Returns:
        The result, and whether it was computed (False: read back). A failure is a Result too, with the reason.

    Raises:
        Interrupted: a signal came.
    """
    config, sources = resolve(evaluator, preset, assignments), sources.serving(evaluator.task)
    result = Result(
        evaluator=evaluator.name, preset=preset, version=evaluator.version, config=configs.to_dict(config), digest="",
        status="skipped", weights=weights, created=now(),
    )  # fmt: skip
    try:
        need = missing_need(evaluator)
        dataset = "" if need else sources.name(evaluator.task, config.dataset)
        # Sample data is part of the identity: the same preset on another data set is another result.
        fingerprint = "" if need else sources.fingerprint(dataset, "test")
    except UsageError as error:
        need, dataset, fingerprint = str(error), "", ""
    result = replace(result, digest=digest(evaluator, config, dataset, fingerprint), why=need)
    old = run.results()[0].get(result.key)
    if old is not None and not again and _current(old, result):
        return old, False
    if need:
        run.save_result(result)
        return result, True
    bench = Bench(evaluator, weights, sources, store, run.path / "work" / result.key, size, reporter, workers=workers)
    result = _measure(evaluator, config, bench, run, result, debug)
    run.save_result(result, None if bench.arrays is None or not result.predictions else arrays_to_bytes(bench.arrays))
    if result.status == "ok":
        shutil.rmtree(bench.out, ignore_errors=True)
        with contextlib.suppress(OSError):
            bench.out.parent.rmdir()
    return result, True


def _current(old: Result, new: Result) -> bool:
    same = (old.digest, old.version, old.weights) == (new.digest, new.version, new.weights)
    return same and (old.status == "ok" or (old.status == "skipped" and bool(new.why)))


def _measure(evaluator: Evaluator, config: EvalConfig, bench: Bench, run: Run, result: Result, debug: bool) -> Result:
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
    return replace(
        result, status="ok", why="", metrics={name: float(value) for name, value in metrics.items()},
        selected=bench.selected, data=bench.fingerprints, seconds=time.monotonic() - began,
        predictions=f"{result.key}.npz" if bench.arrays is not None else "",
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
