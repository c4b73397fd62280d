# SPDX-License-Identifier: Apache-2.0
"""Semi-supervised classification: the whole network fine-tuned on 1 % and 10 % of the labels.

The grid of learning rates and head multipliers is OpenSelfSup's and MMSelfSup's; they read the best setting off the
validation set (preset `mmselfsup`), here it is chosen on a held-out part of the labelled subset. Where nothing can be held
out (one image or group in every class) the middle of the grid is used, and the record says so.

The labelled images are those of the published lists where the data root holds them (SimCLR's `1percent.txt` and
`10percent.txt`, MMSelfSup's `meta/train_1percent.txt` and `meta/train_10percent.txt`), else a seeded stratified subset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evaluators._finetuning import check_labels, choosing, finetune, trial
from suite.backbone import Backbone
from suite.data.imageset import ImageSet
from suite.data.split import published_subset
from suite.errors import UsageError
from suite.metrics import accuracy, topk
from suite.spec import EvalConfig, Evaluator, Metric, Optim, Rule

if TYPE_CHECKING:
    from suite.bench import Bench


@dataclass(frozen=True, kw_only=True)
class SemiConfig(EvalConfig):
    """Settings of the semi-supervised evaluation."""

    fractions: tuple[float, ...] = (0.01, 0.1)
    lrs: tuple[float, ...] = (0.01, 0.1)
    head_multipliers: tuple[float, ...] = (1.0, 10.0)
    epochs: int = 12
    batch: int = 64
    weight_decay: float = 5e-4
    weight_decays: tuple[float, ...] = ()
    "One per fraction, smallest fraction first, instead of `weight_decay`; empty: the same for all."
    milestones: tuple[float, ...] = (7, 10)
    gamma: float = 0.2
    precision: Literal["32", "bf16", "16"] = "bf16"
    label_smoothing: float = 0.0
    crop_min: float = 0.5
    flip: float = 0.0
    choose_on: Literal["labels", "test"] = "labels"
    "`test`: the best setting is read off the test images, as published; such a figure is too high."
    held_out: float = 0.25
    "Share of the labelled subset that chooses the setting."

    def optim(self, lr: float, head: float, decay: float) -> Optim:
        """The optimizer of one grid point."""
        rule = Rule(pattern=r"^head\.", lr_mult=head)
        return Optim(lr=lr, weight_decay=decay, schedule="step", milestones=self.milestones, gamma=self.gamma, rules=(rule,))

    def decay(self, fraction: float) -> float:
        """Weight decay of a fraction.

        Raises:
            UsageError: not as many values as fractions.
        """
        if self.weight_decays and len(self.weight_decays) != len(self.fractions):
            raise UsageError(f"weight_decays has {len(self.weight_decays)} values for {len(self.fractions)} fractions")
        return self.weight_decays[sorted(self.fractions).index(fraction)] if self.weight_decays else self.weight_decay


@dataclass(frozen=True)
class Part:
    """One labelled fraction and how it is trained on."""

    name: str
    "`1pct`"
    few: ImageSet
    test: ImageSet
    decay: float


def run(backbone: Backbone, cfg: SemiConfig, bench: Bench) -> Mapping[str, float]:
    """Top-1 and top-5 per labelled fraction; the headline is the largest fraction's top-1."""
    train, test = bench.data(cfg, "train"), bench.data(cfg, "test")
    check_labels(train, test)
    labels, out, pred, name = np.asarray(test.labels), {}, np.empty(0), ""
    for fraction in sorted(cfg.fractions):
        name = f"{100 * fraction:g}pct"
        subset = published_subset(train, fraction, cfg.seed, f"{train.split}-{name}")
        part = Part(name, subset.images, test, cfg.decay(fraction))
        said = {"images": len(part.few), "list": subset.source}
        if len(part.few) < cfg.batch:
            said["batch"] = f"{len(part.few)}: all labelled images, fewer than {cfg.batch}"
        if cfg.choose_on == "test":
            chosen, top1, top5, pred = best_on_test(backbone, part, cfg, bench)
        else:
            chosen = choose(backbone, part, cfg, bench)
            point = chosen["lr"], chosen["head"]
            scores = tune(backbone, part, part.few, test, point, cfg, bench, name)
            pred = scores.argmax(1)
            top1, top5 = accuracy(labels, pred), topk(labels, scores, min(5, train.num_classes))
        bench.select(**{name: {**chosen, **said}})
        out[f"top1.{name}"], out[f"top5.{name}"] = top1, top5
    bench.predictions("top1", label=labels, pred=pred)
    return {"top1": out[f"top1.{name}"], "top5": out[f"top5.{name}"], **out}


def choose(backbone: Backbone, part: Part, cfg: SemiConfig, bench: Bench) -> dict[str, Any]:
    """Learning rate and head multiplier with the best accuracy on held-out labelled images, and the grid's results."""
    grid = list(product(cfg.lrs, cfg.head_multipliers))
    if len(grid) == 1:
        return {"lr": grid[0][0], "head": grid[0][1], "on": "fixed"}
    parts = choosing(part.few, cfg.held_out, cfg.seed)
    if parts is None:
        lr, head = grid[len(grid) // 2]
        return {"lr": lr, "head": head, "on": "middle of the grid: too few labelled images to hold any out"}
    rest, val, how = parts

    def quality(point: tuple[float, float], what: str) -> float:
        scores = tune(backbone, part, rest, val, point, cfg, bench, what)
        return accuracy(np.asarray(val.labels), scores.argmax(1))

    found = {}
    for i, point in enumerate(grid, 1):
        key = point_name(part, point)
        found[point] = trial(bench, key, f"{i} of {len(grid)}", partial(quality, point))
    lr, head = max(grid, key=lambda point: (found[point], -point[0]))
    return {"lr": lr, "head": head, "on": how, "trials": named(found)}


def best_on_test(
    backbone: Backbone, part: Part, cfg: SemiConfig, bench: Bench
) -> tuple[dict[str, Any], float, float, np.ndarray]:
    """The published protocol: every setting trained on all labelled images, the best test accuracy reported.

    Returns:
        The setting with the grid's results, its top-1, top-5 and predicted classes.
    """
    grid, labels = list(product(cfg.lrs, cfg.head_multipliers)), np.asarray(part.test.labels)

    def measure(point: tuple[float, float], what: str) -> dict[str, Any]:
        scores = tune(backbone, part, part.few, part.test, point, cfg, bench, what)
        pred = scores.argmax(1)
        top5 = topk(labels, scores, min(5, scores.shape[1]))
        return {"top1": accuracy(labels, pred), "top5": top5, "pred": pred.tolist()}

    found = {}
    for i, point in enumerate(grid, 1):
        key = point_name(part, point)
        found[point] = trial(bench, key, f"{i} of {len(grid)}", partial(measure, point))
    lr, head = max(grid, key=lambda point: (found[point]["top1"], -point[0]))
    best = found[lr, head]
    trials = named({point: result["top1"] for point, result in found.items()})
    chosen = {"lr": lr, "head": head, "on": "the test images, as published", "trials": trials}
    return chosen, best["top1"], best["top5"], np.array(best["pred"])


def tune(
    backbone: Backbone,
    part: Part,
    images: ImageSet,
    test: ImageSet,
    point: tuple[float, float],
    cfg: SemiConfig,
    bench: Bench,
    what: str,
) -> np.ndarray:
    """Class scores after training at one grid point."""
    settings = cfg.optim(*point, part.decay)
    return finetune(bench, backbone, images, test, settings, cfg, epochs=cfg.epochs, what=what)


def point_name(part: Part, point: tuple[float, float]) -> str:
    """Name of a trial, also of its file."""
    return f"{part.name}-lr{point[0]:g}-head{point[1]:g}"


def named(found: Mapping[tuple[float, float], float]) -> dict[str, float]:
    """Results by a name of the setting, for the record."""
    return {f"lr {lr:g} head {head:g}": value for (lr, head), value in found.items()}


PUBLISHED: dict[str, Any] = {
    "lrs": (1e-3, 1e-2, 1e-1), "head_multipliers": (1.0, 10.0, 100.0), "epochs": 20, "milestones": (12, 16), "batch": 256,
    "weight_decays": (5e-4, 1e-4), "flip": 0.5, "crop_min": 0.08,
}  # fmt: skip
"""MMSelfSup 0.x, configs/benchmarks/classification/imagenet/imagenet_{1,10}percent; its four processes synchronise batch
norm, which one process with the whole batch need not."""

EVALUATOR = Evaluator(
    name="semi_supervised",
    title="Semi-supervised",
    task="classification",
    run=run,
    presets={
        "default": SemiConfig(),
        "grid9": SemiConfig(**PUBLISHED),
        "mmselfsup": SemiConfig(**PUBLISHED, choose_on="test"),
    },
    describe={
        "default": "1 % and 10 % of the labels, 2 x 2 grid chosen on held-out labelled images",
        "grid9": "lr 1e-3/1e-2/1e-1 x head 1/10/100, 20 epochs, steps 12 and 16, chosen on held-out labelled images",
        "mmselfsup": "the same grid, best setting read off the test images (OpenSelfSup, MMSelfSup)",
    },
    metrics=(Metric("top1", "top-1"), Metric("top5", "top-5")),
    selects_on_test=("mmselfsup",),
    frozen=False,
)  # fmt: skip
