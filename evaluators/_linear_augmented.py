# SPDX-License-Identifier: Apache-2.0
"""The published way of linear evaluation: heads on a frozen backbone that sees freshly augmented pictures at every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evaluators._linear_presets import LinearConfig, layers_of
from suite.backbone import Backbone
from suite.data.imageset import ImageSet
from suite.data.split import held_out
from suite.method import TrainSet
from suite.metrics import accuracy
from suite.nn.probes import Probes, ProbeSettings, rate_rules
from suite.spec import Optim, Rule
from suite.views import CenterCrop, ColorJitter, HorizontalFlip, Lighting, Normalize, Op, RandomCrop, Resize, View, Warp

if TYPE_CHECKING:
    from suite.bench import Bench

Figures = tuple[np.ndarray, dict[str, float]]
"""Class scores N×C of the headline's head, and top-1 by layer."""
Choice = tuple[dict[str, int], str]
"""Number of the chosen head of every layer, and the layer of the headline."""


def augmented(backbone: Backbone, cfg: LinearConfig, bench: Bench, train: ImageSet, test: ImageSet) -> Figures:
    """SGD or LARS through the training loop on freshly augmented pictures; the last epoch counts."""
    layers = layers_of(backbone, cfg, bench.size)
    grid = {layer: cfg.lrs for layer in layers}
    fixed = len(cfg.lrs) == 1 and not cfg.best_layer
    heads: dict[str, int] = dict.fromkeys(layers, 0)
    headline, on = "pooled", "fixed by the protocol"
    if not fixed and cfg.select == "held-out":
        rest, val = (train.subset(part) for part in held_out(train, cfg.held_out, cfg.seed))
        heads, headline = bench.once(
            "choice", lambda: choose(probes_on(rest, backbone, grid, cfg, bench, "trial"), val, cfg, bench)
        )
        grid, on = {layer: (cfg.lrs[i],) for layer, i in heads.items()}, f"{len(val)} held-out training images"
    probes = probes_on(train, backbone, grid, cfg, bench, "training")
    if not fixed and cfg.select == "test":
        heads, headline = choose(probes, test, cfg, bench)
        on = "test images"
    picked = {layer: heads[layer] if len(rates) > 1 else 0 for layer, rates in grid.items()}
    found = bench.scores(lambda x: probes.answers(x, picked, headline), test, precision=cfg.precision)
    batch = min(cfg.batch, len(train))
    cut = {} if batch == cfg.batch else {"batch": f"{batch} instead of {cfg.batch}: all there is; the rates are scaled with it"}
    bench.select(lr={layer: cfg.lrs[i] * batch / cfg.lr_batch for layer, i in heads.items()}, headline=headline, on=on, **cut)
    labels = np.asarray(test.labels)
    per_layer = {f"top1.{layer}": accuracy(labels, found[:, i].astype(np.int64)) for i, layer in enumerate(layers)}
    return found[:, len(layers) :], per_layer


def probes_on(
    images: ImageSet, backbone: Backbone, grid: Mapping[str, Sequence[float]], cfg: LinearConfig, bench: Bench, what: str
) -> Probes:
    """Heads of every layer and learning rate, trained on these images."""
    batch = min(cfg.batch, len(images))
    rates = {layer: [lr * batch / cfg.lr_batch for lr in values] for layer, values in grid.items()}
    top = max(max(values) for values in rates.values())
    settings = Optim(
        name=cfg.optimizer, lr=top, nesterov=cfg.nesterov, weight_decay=cfg.weight_decay, schedule=cfg.schedule,
        milestones=cfg.milestones, every=cfg.every, warmup=cfg.warmup, warmup_ratio=cfg.warmup_ratio,
        rules=(*rate_rules(rates, top), Rule(pattern=r"^norms\.", weight_decay=0.0)),
    )  # fmt: skip
    counts = {layer: len(values) for layer, values in grid.items()}
    plan = ProbeSettings(heads=counts, size=bench.size, norm=cfg.norm, eps=cfg.eps, seed=cfg.seed)
    probes = Probes(plan, backbone.to(bench.device), TrainSet(images, cfg.seed))
    view = train_view(cfg, bench)
    bench.fit(
        probes, images, (view,), settings, batch=batch, epochs=cfg.epochs, precision=cfg.precision, seed=cfg.seed, what=what
    )  # fmt: skip
    probes.eval()
    return probes


def train_view(cfg: LinearConfig, bench: Bench) -> View:
    """What the heads are trained on."""
    extra: list[Op] = []
    if cfg.jitter:
        extra.append(ColorJitter(cfg.jitter, cfg.jitter, cfg.jitter))
    if cfg.lighting:
        extra.append(Lighting(cfg.lighting))
    if cfg.crop == "resized":
        return bench.train_view(cfg.crop_min, cfg.flip, *extra)
    side = round(bench.size * 256 / 224)
    crops = (Resize(side), CenterCrop(side), RandomCrop(bench.size)) if cfg.crop == "random" else (Warp(bench.size),)
    return View((*crops, HorizontalFlip(cfg.flip), *extra, Normalize(bench.mean, bench.std)))


def choose(probes: Probes, images: ImageSet, cfg: LinearConfig, bench: Bench) -> Choice:
    """The most accurate head of every layer on these images, the first of equal ones, and the layer of the headline."""
    right = bench.scores(probes.guesses, images, precision=cfg.precision) == np.asarray(images.labels)[:, None]  # N×heads
    quality = dict(zip(probes.layers, np.split(100 * right.mean(0), len(probes.layers)), strict=True))
    best = max(probes.layers, key=lambda layer: quality[layer].max()) if cfg.best_layer else "pooled"
    return {layer: int(values.argmax()) for layer, values in quality.items()}, best
