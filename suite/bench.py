# SPDX-License-Identifier: Apache-2.0
"""What an evaluator may use: data, features extracted once for all, training, predictions, progress."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from suite import engine, features
from suite.backbone import Backbone
from suite.data import Sources
from suite.data.imageset import ImageSet
from suite.data.loader import Loader
from suite.errors import JobError, UsageError
from suite.features import FeatureStore
from suite.method import Method
from suite.metrics import PREDICTIONS
from suite.progress import Reporter, Task
from suite.spec import EvalConfig, Evaluator, Optim
from suite.store import write_bytes
from suite.train import Plan
from suite.train import fit as train_loop
from suite.views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CenterCrop,
    HorizontalFlip,
    Normalize,
    Op,
    RandomResizedCrop,
    Resize,
    View,
    Warp,
)

T = TypeVar("T")


def peculiar(images: ImageSet) -> str:
    """What a reader must know about the labels of a set: classes that no image shows, or only one that any does."""
    if images.labels is None or not images.classes:
        return ""
    labels = np.asarray(images.labels)
    counts = (labels == 1).sum(0) if images.multilabel else np.bincount(labels, minlength=images.num_classes)
    absent = [name for name, count in zip(images.classes, counts, strict=False) if not count]
    if images.num_classes - len(absent) == 1:
        return f"only class {next(n for n in images.classes if n not in absent)!r} is shown"
    shown = ", ".join(map(repr, absent[:3])) + (", …" if len(absent) > 3 else "")
    return f"no image of {len(absent)} of {images.num_classes} classes: {shown}" if absent else ""


Together = Sequence[tuple[Evaluator, EvalConfig]]
"""Evaluators of one command: the layers that they want of a data set are extracted in one pass."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and with what evaluators run: the same for all of one command.

    Attributes:
        sources: where data sets are.
        store: cached features.
        size: side of the test pictures in pixels.
        reporter: shows progress.
        workers: decoding processes.
    """

    sources: Sources
    store: FeatureStore
    size: int
    reporter: Reporter
    workers: int = 0


class Bench:
    """What an evaluator may use. One is made for each (weights, evaluator).

    Args:
        evaluator: who uses it.
        weights: sha256 of the backbone.
        place: data, features, size, reporter.
        out: folder for checkpoints and partial results; what is in it survives an interruption.
        together: all evaluators that will run on these weights, for `features`.
    """

    def __init__(self, evaluator: Evaluator, weights: str, place: Place, out: Path, together: Together = ()) -> None:
        self.evaluator, self.weights, self.place, self.out, self.together = evaluator, weights, place, out, together
        self.sources, self.store, self.size = place.sources.serving(evaluator.task), place.store, place.size
        self.reporter, self.workers = place.reporter, place.workers
        self.device, self.threads, self.precision = engine.default_device(), engine.threads(), "32"
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        self.selected: dict[str, Any] = {}
        self.fingerprints: dict[str, str] = {}
        self.arrays: dict[str, np.ndarray] | None = None
        self.artifacts: dict[str, dict[str, np.ndarray]] = {}

    def data(self, cfg: EvalConfig, split: str) -> ImageSet:
        """`train` or `test` of the evaluator's data set; the fingerprint goes into the record."""
        name = self.sources.name(self.evaluator.task, cfg.dataset)
        images = self.sources.load(name, split, self.reporter)
        self.fingerprints[f"{name}/{images.split}"] = images.fingerprint
        if said := peculiar(images):
            self.select(data={**self.selected.get("data", {}), split: said})
        return images

    def view(self, images: ImageSet, warp: bool = False) -> View:
        """How test images are prepared: as they are when they have the right side already, else resize 256/224 and centre crop.

        Args:
            images: the set; one size in memory may need no resizing.
            warp: then resize to a square without keeping the aspect (the VOC07 SVM protocol: shorter side 256, then 224×224).
        """
        if warp:
            return View((Resize(round(self.size * 256 / 224)), Warp(self.size), Normalize(self.mean, self.std)))
        if images.array is not None and images.array.shape[1:3] == (self.size, self.size):
            return View((CenterCrop(self.size), Normalize(self.mean, self.std)))
        return View((Resize(round(self.size * 256 / 224)), CenterCrop(self.size), Normalize(self.mean, self.std)))

    def train_view(self, crop_min: float = 0.08, flip: float = 0.5, *extra: Op) -> View:
        """How training images are prepared: random resized crop, mirroring, `extra`, normalisation.

        Args:
            crop_min: least share of the area that a crop keeps.
            flip: probability of mirroring.
            extra: further operations on pictures in [0, 1].
        """
        crop = RandomResizedCrop(self.size, scale=(crop_min, 1.0))
        return View((crop, HorizontalFlip(flip), *extra, Normalize(self.mean, self.std)))

    def features(
        self, backbone: Backbone, images: ImageSet, layers: Sequence[str], warp: bool = False
    ) -> dict[str, np.ndarray]:
        """Features of the test view, one row per image: extracted once for all evaluators of a command.

        Args:
            backbone: the network.
            images: a split as `data` gives it.
            layers: names such as `pooled`, `stage3`, `stage3@4`; see `suite.features`.
            warp: as for `view`.

        Returns:
            Layer to N×d float32, read-only and memory-mapped: it may be larger than memory.
        """
        return self._collect(backbone, images, layers, self.view(images, warp), also=self._planned(backbone, images, warp))

    def augmented(
        self, backbone: Backbone, images: ImageSet, layers: Sequence[str], view: View, copies: int
    ) -> list[dict[str, np.ndarray]]:
        """As `features`, of `copies` randomly augmented versions of every image; version i draws as epoch i."""
        return [self._collect(backbone, images, layers, view, copy=i) for i in range(copies)]

    def _collect(
        self, backbone: Backbone, images: ImageSet, layers: Sequence[str], view: View, copy: int = 0, also: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        return features.cached(
            self.store, backbone, images, view, layers, weights=self.weights, also=also, epoch=copy,
            precision=self.precision, device=self.device, workers=self.workers,
            progress=lambda total: self.progress(total, f"features {images.name}/{images.split}"),
        )  # fmt: skip

    def _planned(self, backbone: Backbone, images: ImageSet, warp: bool) -> list[str]:
        """Layers of this data set that other evaluators of the command will ask for."""
        found: list[str] = []
        for evaluator, config in self.together:
            if evaluator.layers is None or evaluator.warp != warp:
                continue
            with contextlib.suppress(UsageError):  # no data for that one: its own run says so
                if self.place.sources.name(evaluator.task, config.dataset) == images.name:
                    found += evaluator.layers(backbone, config, self.size)
        return found

    def fit(
        self,
        method: Method,
        images: ImageSet,
        views: Sequence[View],
        settings: Optim,
        *,
        batch: int,
        epochs: int,
        precision: str = "32",
        seed: int = 0,
        what: str = "",
    ) -> None:
        """Train a method in place through the training loop.

        Args:
            method: the model and its loss.
            images: what to train on.
            views: one View per picture that the method wants of an image.
            settings: optimizer and schedule.
            batch: images per step.
            epochs: length.
            precision: `32`, `bf16` or `16`.
            seed: of order and augmentation.
            what: name under which the training resumes after an interruption; empty for short trials.

        Raises:
            JobError: not even a small part of a batch fits into the GPU's memory.
        """
        folder = self.out / what if what else None
        title = f"{self.evaluator.name}: {what or 'trial'}"
        before = {name: tensor.detach().cpu().clone() for name, tensor in method.state_dict().items()}
        parts = 1
        while True:
            plan = Plan(settings, batch, epochs, seed=seed, workers=self.workers, accumulate=parts)
            try:
                fabric = engine.make_fabric(precision)
                train_loop(method, images, views, plan, fabric, folder=folder, reporter=self.reporter, what=title)
                return
            except torch.cuda.OutOfMemoryError as error:
                if batch % (2 * parts):
                    raise JobError(f"a batch of {batch // parts} images does not fit into GPU memory") from error
            parts *= 2  # here, where the error and what its traceback holds have gone
            torch.cuda.empty_cache()
            method.load_state_dict(before)
            self.select(accumulated=f"{parts} parts of {batch // parts} images: a whole batch did not fit into GPU memory")

    @torch.no_grad()
    def scores(
        self,
        forward: Callable[[Tensor], Tensor],
        images: ImageSet,
        *,
        precision: str = "32",
        batch: int = 256,
        view: View | None = None,
    ) -> np.ndarray:
        """What `forward` makes of every image, in order; batches that do not fit into GPU memory are halved.

        Args:
            forward: pictures n×3×S×S to n×…; a model behind it must be in evaluation mode.
            images: what to score.
            precision: of the forward pass.
            batch: images at a time.
            view: how they are prepared; None: the test view.

        Returns:
            Float32, N×….
        """
        loader = Loader(
            images, (view or self.view(images),), batch, device=self.device, workers=self.workers, shuffle=False,
            channels_last=True,
        )  # fmt: skip
        found = []
        with engine.make_fabric(precision).autocast():
            for one in loader.epoch(0):
                values, batch = features.fitting(lambda x: forward(x).float().cpu().numpy(), one.views[0], batch)
                found += values
        return np.concatenate(found)

    def once(self, key: str, compute: Callable[[], T]) -> T:
        """An intermediate result, kept when the evaluator is interrupted or fails later and read back by its next run.

        Args:
            key: name within this evaluator; letters, digits, `-`, `_`, `.`.
            compute: gives something that JSON can hold.
        """
        path = self.out / "kept" / f"{key}.json"
        with contextlib.suppress(OSError, ValueError):  # absent, or cut short by a crash: computed (again)
            return json.loads(path.read_text())
        value = compute()
        write_bytes(path, json.dumps(value).encode())
        return value

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

    def artifact(self, name: str, **arrays: Any) -> None:
        """Keep arrays that a page draws (a projection, a gallery) in a file beside the result."""
        self.artifacts[name] = {key: np.asarray(value) for key, value in arrays.items()}

    @contextlib.contextmanager
    def progress(self, total: int, what: str) -> Iterator[Task]:
        """A bar: `with bench.progress(n, "fitting") as advance: advance(1)`."""
        with self.reporter.task(f"{self.evaluator.name}: {what}", total) as task:
            yield task
