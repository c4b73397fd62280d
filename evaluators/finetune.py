# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: the whole network and a new classifier trained on all labels.

The learning rate is chosen on a held-out part of the training data when the preset lists several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from suite.backbone import Backbone
from suite.data.split import held_out
from suite.metrics import accuracy, topk
from suite.spec import EvalConfig, Evaluator, Metric, Optim

if TYPE_CHECKING:
    from suite.bench import Bench


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(EvalConfig):
    """Settings of fine-tuning."""

    lrs: tuple[float, ...] = (0.05, 0.2)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    epochs: int = 4
    batch: int = 128
    weight_decay: float = 1e-4
    layer_decay: float | None = None
    warmup: float = 0.5
    precision: Literal["32", "bf16", "16"] = "bf16"
    label_smoothing: float = 0.0
    crop_min: float = 0.5
    flip: float = 0.0
    search_epochs: int = 1
    "Epochs of each trial that chooses the learning rate."

    def optim(self, lr: float) -> Optim:
        """The optimizer at one learning rate."""
        return Optim(
            name=self.optimizer, lr=lr, weight_decay=self.weight_decay, warmup=self.warmup, layer_decay=self.layer_decay
        )


def run(backbone: Backbone, cfg: FinetuneConfig, bench: Bench) -> Mapping[str, float]:
    """Top-1 and top-5 of the fine-tuned network on the test images."""
    train, test = bench.data(cfg, "train"), bench.data(cfg, "test")
    lr = cfg.lrs[0]
    if len(cfg.lrs) > 1:
        rest, val = (train.subset(part) for part in held_out(train, 0.2, cfg.seed))
        quality = {}
        for trial in cfg.lrs:
            scores = bench.finetune(backbone, rest, val, cfg.optim(trial), cfg, epochs=cfg.search_epochs)
            quality[trial] = accuracy(np.asarray(val.labels), scores.argmax(1))
        lr = max(quality, key=lambda trial: (quality[trial], -trial))
        bench.select(lr=lr, on=f"{len(val)} held-out training images", trials=quality)
    scores = bench.finetune(backbone, train, test, cfg.optim(lr), cfg, epochs=cfg.epochs, what="training")
    labels = np.asarray(test.labels)
    bench.predictions("top1", label=labels, pred=scores.argmax(1))
    return {"top1": accuracy(labels, scores.argmax(1)), "top5": topk(labels, scores, min(5, train.num_classes))}


EVALUATOR = Evaluator(
    name="finetune",
    title="Fine-tuning",
    task="classification",
    run=run,
    presets={
        "default": FinetuneConfig(),
        "imagenet": FinetuneConfig(
            optimizer="adamw", lrs=(1e-3,), epochs=100, batch=1024, weight_decay=0.05, layer_decay=0.65, warmup=5,
            label_smoothing=0.1, crop_min=0.08, flip=0.5,
        ),
    },
    describe={
        "default": "SGD, a few epochs, learning rate chosen on held-out training images",
        "imagenet": "AdamW, layer decay 0.65, 100 epochs",
    },
    metrics=(Metric("top1", "top-1"), Metric("top5", "top-5")),
    frozen=False,
)  # fmt: skip
