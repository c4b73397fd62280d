# SPDX-License-Identifier: Apache-2.0
"""Linear classification on frozen features: every stage and the pooled vector, several learning rates in one pass.

Each (layer, learning rate) is a head of its own; all of them see the same batches (the multi-head protocol of MMSelfSup
and VISSL, the many-heads grid of DINOv2). The default works on cached features, which pass a batch norm without affine
parameters first: the learning rate of a layer is chosen on a held-out part of the training data, then its head is trained
again on all of it. Presets named after a protocol train on freshly augmented pictures and report the last epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from evaluators._linear_augmented import Figures, augmented
from evaluators._linear_presets import DESCRIBE, PRESETS, SELECTS_ON_TEST, LinearConfig, check, layers_of
from suite import optim
from suite.backbone import Backbone
from suite.data.imageset import ImageSet
from suite.data.split import held_out
from suite.errors import UsageError
from suite.metrics import accuracy, topk
from suite.nn import logistic
from suite.nn.rows import Rows
from suite.spec import Evaluator, Metric, Optim

if TYPE_CHECKING:
    from suite.bench import Bench

Heads = tuple[Tensor, Tensor]
"""Weights d×R×C and biases R×C of one layer's R heads."""
PATIENCE = 3
"The search for C ends after so many in a row that are worse than the best."


def run(backbone: Backbone, cfg: LinearConfig, bench: Bench) -> Mapping[str, float]:
    """Top-1 and top-5 of the pooled layer (or the chosen one), top-1 of every layer."""
    check(cfg)
    train, test = bench.data(cfg, "train"), bench.data(cfg, "test")
    for side in (train, test):
        if side.labels is None or side.multilabel:
            raise UsageError(f"linear needs one label per image; {side.name!r}/{side.split} has none")
    present = np.unique(np.asarray(train.labels))
    if len(present) < 2:
        only = train.classes[present[0]] if len(present) else "none"
        raise UsageError(f"linear needs two classes at least; {train.name!r}/{train.split} has images of {only!r} alone")
    how = {"cached": cached, "lbfgs": fast, "augmented": augmented}[cfg.mode]
    found, per_layer = how(backbone, cfg, bench, train, test)
    labels, guess = np.asarray(test.labels), found.argmax(1)
    bench.predictions("top1", label=labels, pred=guess)
    return {"top1": accuracy(labels, guess), "top5": topk(labels, found, min(5, train.num_classes)), **per_layer}


def cached_layers(backbone: Backbone, cfg: LinearConfig, size: int) -> Sequence[str]:
    """Layers that `run` asks the feature store for."""
    return () if cfg.mode == "augmented" else layers_of(backbone, cfg, size)


def cached(backbone: Backbone, cfg: LinearConfig, bench: Bench, train: ImageSet, test: ImageSet) -> Figures:
    """SGD on cached features of the test view."""
    layers = layers_of(backbone, cfg, bench.size)
    raw, raw_test = bench.features(backbone, train, layers), bench.features(backbone, test, layers)
    rows = {name: Rows.of([raw[name]], bench.device, f"layer {name!r} of {train.name}/{train.split}") for name in layers}
    labels = np.asarray(train.labels)
    rest, val = held_out(train, cfg.held_out, cfg.seed)
    with bench.progress(2 * cfg.epochs, "epochs") as advance:
        trial = train_heads(rows, labels, rest, train.num_classes, cfg, advance)
        best = {name: int((guesses(trial[name], rows[name], val) == labels[val, None]).mean(0).argmax()) for name in layers}
        heads = train_heads(rows, labels, np.arange(len(labels)), train.num_classes, cfg, advance)
    bench.select(lr={name: cfg.lrs[i] for name, i in best.items()}, on=f"{len(val)} held-out training images")
    out = {}
    for name in layers:
        (w, b), i = heads[name], best[name]
        blocks = rows[name].like(raw_test[name]).blocks(columns=train.num_classes)
        predicted = np.concatenate([torch.addmm(b[i], x, w[:, i]).cpu().numpy() for _, x in blocks])
        out[f"top1.{name}"] = accuracy(np.asarray(test.labels), predicted.argmax(1))
    return predicted, out


def train_heads(
    rows: Mapping[str, Rows], labels: np.ndarray, index: np.ndarray, classes: int, cfg: LinearConfig, advance: Any = None
) -> dict[str, Heads]:
    """Train one head per (layer, learning rate) on the same batches with SGD, momentum 0.9 and a cosine to zero.

    Args:
        rows: layer name to standardised features.
        labels: class of every image.
        index: images to train on.
        classes: number of classes.
        cfg: learning rates, epochs, batch.
        advance: called with the number of finished epochs.
    """
    device = next(iter(rows.values())).device
    generator = torch.Generator().manual_seed(cfg.seed)
    lrs = torch.tensor(cfg.lrs, device=device)
    heads = {}
    for name, x in rows.items():
        w = torch.randn(1, x.width, classes, generator=generator).mul(0.01).to(device)
        heads[name] = (w.repeat(len(lrs), 1, 1).transpose(0, 1).contiguous(), torch.zeros(len(lrs), classes, device=device))
    buffers = {name: (torch.zeros_like(w), torch.zeros_like(b)) for name, (w, b) in heads.items()}
    batch = min(cfg.batch, len(index))
    per_epoch = len(index) // batch
    for step in range(cfg.epochs * per_epoch):
        if step % per_epoch == 0:
            order = torch.randperm(len(index), generator=generator).numpy()
            if advance is not None:
                advance(1)
        images = index[order[(step % per_epoch) * batch :][:batch]]
        target = F.one_hot(torch.from_numpy(labels[images]).to(device), classes).float()  # n×C
        scale = optim.rate(Optim(lr=1.0), step, per_epoch, cfg.epochs * per_epoch)
        for name, x in rows.items():
            _descend(heads[name], buffers[name], x.take(images), target, lrs * scale, cfg.weight_decay)
    return heads


def _descend(head: Heads, buffer: Heads, x: Tensor, target: Tensor, lrs: Tensor, decay: float) -> None:
    """One SGD step of softmax regression for R heads at once; the gradient is written out: X'(softmax - target)/n."""
    error = (scores(head, x).softmax(2) - target[:, None]) / len(x)  # n×R×C
    gradients = (x.T @ error.flatten(1)).view_as(head[0]).add_(head[0], alpha=decay), error.sum(0)
    for value, momentum, gradient in zip(head, buffer, gradients, strict=True):
        momentum.mul_(0.9).add_(gradient)
        value.sub_(momentum * lrs[:, None])


def scores(head: Heads, x: Tensor) -> Tensor:
    """Class scores n×R×C of every head, one matrix product for all."""
    w, b = head
    return torch.addmm(b.flatten(), x, w.flatten(1)).view(len(x), *b.shape)


def guesses(head: Heads, rows: Rows, index: np.ndarray) -> np.ndarray:
    """Predicted class n×R of every head."""
    return torch.cat([scores(head, x).argmax(2) for _, x in rows.blocks(index, head[1].numel())]).cpu().numpy()


def fast(backbone: Backbone, cfg: LinearConfig, bench: Bench, train: ImageSet, test: ImageSet) -> Figures:
    """L-BFGS logistic regression on cached features of the test view and of augmented views."""
    layers = layers_of(backbone, cfg, bench.size)
    centre, tested = bench.features(backbone, train, layers), bench.features(backbone, test, layers)
    view = bench.train_view(cfg.crop_min, cfg.flip)
    views = bench.augmented(backbone, train, layers, view, cfg.copies) if cfg.copies else []
    parts = held_out(train, cfg.held_out, cfg.seed)
    found: dict[str, dict[str, float]] = {}

    def solve(name: str, advance: Callable[[int], object]) -> np.ndarray:
        what = f"layer {name!r} of {train.name}/{train.split}"
        rows = Rows.of([centre[name], *(copy[name] for copy in views)], bench.device, what)
        solution = regress(rows, train, parts, cfg, advance)
        predicted = logistic.scores(solution, rows.like(tested[name]))
        top1 = accuracy(np.asarray(test.labels), predicted.argmax(1))
        found[name] = {"C": solution.cost, "gradient": solution.gradient, "passes": solution.passes, "top1": top1}
        return predicted

    with bench.progress(len(layers) * (len(cfg.costs) + 1), "fitting") as advance:
        for name in layers[:-1]:
            # Of the headline layer the scores are needed too, so that one is fitted again after an interruption.
            found[name] = bench.once(f"fast-{name.replace('@', '-')}", lambda name=name: (solve(name, advance), found[name])[1])  # type: ignore[misc]
        predicted = solve(layers[-1], advance)
    chosen = {key: {name: value[key] for name, value in found.items()} for key in ("C", "gradient", "passes")}
    bench.select(**chosen, on=f"{len(parts[1])} held-out training images")
    return predicted, {f"top1.{name}": value["top1"] for name, value in found.items()}


def regress(
    rows: Rows, train: ImageSet, parts: tuple[np.ndarray, np.ndarray], cfg: LinearConfig, advance: Callable[[int], object]
) -> logistic.Solution:
    """C with the best accuracy on the test view of held-out images, and the fit to all images with it."""
    labels, (rest, val) = np.asarray(train.labels), parts
    problem, centre = logistic.Objective(rows, labels, train.num_classes, rest), rows.first()
    best, quality, worse, tried = None, -1.0, 0, 0
    for trial in logistic.path(problem, cfg.costs, tol=100 * cfg.tol):
        value = accuracy(labels[val], logistic.scores(trial, centre, val).argmax(1))
        advance(1)
        tried, worse = tried + 1, worse + 1 if value < quality else 0
        if value > quality:
            best, quality = trial, value
        if worse == PATIENCE:
            break
    assert best is not None
    solution = logistic.fit(logistic.Objective(rows, labels, train.num_classes), best.cost, best, tol=cfg.tol)
    advance(1 + len(cfg.costs) - tried)
    return solution


EVALUATOR = Evaluator(
    name="linear",
    title="Linear",
    task="classification",
    run=run,
    presets=PRESETS,
    describe=DESCRIBE,
    selects_on_test=SELECTS_ON_TEST,
    layers=cached_layers,
    metrics=(Metric("top1", "top-1"), Metric("top5", "top-5")),
)
