# SPDX-License-Identifier: Apache-2.0
"""Semi-supervised classification: the whole network fine-tuned on 1 % and 10 % of the labels.

The grid of learning rates and head multipliers is OpenSelfSup's and MMSelfSup's; they read the best setting off the
validation set, here it is chosen on a held-out part of the labelled subset. What could not hold anything out (one group per
class) uses the middle of the grid, and the record says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np

from suite.backbone import Backbone
from suite.data.imageset import ImageSet
from suite.data.split import held_out, labelled_subset
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
    milestones: tuple[float, ...] = (7, 10)
    gamma: float = 0.2
    precision: Literal["32", "bf16", "16"] = "bf16"
    label_smoothing: float = 0.0
    crop_min: float = 0.5
    flip: float = 0.0
    held_out: float = 0.25
    "Share of the labelled subset that chooses the setting."

    def optim(self, lr: float, head: float) -> Optim:
        """The optimizer of one grid point."""
        rule = Rule(pattern=r"^head\.", lr_mult=head)
        return Optim(
            lr=lr, weight_decay=self.weight_decay, schedule="step", milestones=self.milestones, gamma=self.gamma, rules=(rule,)
        )


def run(backbone: Backbone, cfg: SemiConfig, bench: Bench) -> Mapping[str, float]:
    """Top-1 and top-5 per labelled fraction; the headline is the largest fraction's top-1."""
    train, test = bench.data(cfg, "train"), bench.data(cfg, "test")
    labels, out = np.asarray(test.labels), {}
    for fraction in sorted(cfg.fractions):
        name = f"{100 * fraction:g}pct"
        few = train.subset(labelled_subset(train, fraction, cfg.seed), f"{train.split}-{name}")
        lr, head, how = choose(backbone, few, cfg, bench)
        bench.select(**{name: {"lr": lr, "head": head, "images": len(few), "on": how}})
        scores = bench.finetune(backbone, few, test, cfg.optim(lr, head), cfg, epochs=cfg.epochs, what=name)
        out[f"top1.{name}"] = accuracy(labels, scores.argmax(1))
        out[f"top5.{name}"] = topk(labels, scores, min(5, train.num_classes))
    bench.predictions("top1", label=labels, pred=scores.argmax(1))
    return {"top1": out[f"top1.{name}"], "top5": out[f"top5.{name}"], **out}


def choose(backbone: Backbone, few: ImageSet, cfg: SemiConfig, bench: Bench) -> tuple[float, float, str]:
    """Learning rate and head multiplier with the best accuracy on held-out labelled images."""
    grid = list(product(cfg.lrs, cfg.head_multipliers))
    if len(grid) == 1:
        return *grid[0], "fixed"
    try:
        rest, val = (few.subset(part) for part in held_out(few, cfg.held_out, cfg.seed))
    except UsageError:
        return *grid[len(grid) // 2], "middle of the grid: too few labelled images to hold any out"
    quality = {}
    for lr, head in grid:
        scores = bench.finetune(backbone, rest, val, cfg.optim(lr, head), cfg, epochs=cfg.epochs)
        quality[lr, head] = accuracy(np.asarray(val.labels), scores.argmax(1))
    lr, head = max(quality, key=lambda point: (quality[point], -point[0]))
    return lr, head, f"{len(val)} held-out labelled images"


EVALUATOR = Evaluator(
    name="semi_supervised",
    title="Semi-supervised",
    task="classification",
    run=run,
    presets={
        "default": SemiConfig(),
        "grid9": SemiConfig(
            lrs=(1e-3, 1e-2, 1e-1), head_multipliers=(1.0, 10.0, 100.0), epochs=20, milestones=(12, 16), batch=256, flip=0.5,
            crop_min=0.08,
        ),
    },
    describe={
        "default": "1 % and 10 % of the labels, 2 x 2 grid chosen on held-out labelled images",
        "grid9": "lr 1e-3/1e-2/1e-1 x head 1/10/100, 20 epochs, steps 12 and 16 (OpenSelfSup, MMSelfSup)",
    },
    metrics=(Metric("top1", "top-1"), Metric("top5", "top-5")),
    frozen=False,
)  # fmt: skip
