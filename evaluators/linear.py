# SPDX-License-Identifier: Apache-2.0
"""Linear classification on frozen features: every stage and the pooled vector, several learning rates in one pass.

Each (layer, learning rate) is a head of its own; all of them see the same batches (the multi-head protocol of MMSelfSup
and VISSL, the many-heads grid of DINOv2). Features pass a batch norm without affine parameters first. The learning rate of
a layer is chosen on a held-out part of the training data, then its head is trained again on all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from suite import optim
from suite.backbone import Backbone
from suite.data.split import held_out
from suite.errors import UsageError
from suite.metrics import accuracy, topk
from suite.spec import EvalConfig, Evaluator, Metric, Optim

if TYPE_CHECKING:
    from suite.bench import Bench


@dataclass(frozen=True, kw_only=True)
class LinearConfig(EvalConfig):
    """Settings of the linear evaluation on cached features."""

    lrs: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    epochs: int = 30
    batch: int = 256
    weight_decay: float = 0.0
    held_out: float = 0.2
    "Share of the training images that chooses the learning rate."
    stages: bool = True
    "Heads on every stage too, not only on the pooled vector."


def train_heads(
    features: Mapping[str, Tensor],
    labels: Tensor,
    classes: int,
    cfg: LinearConfig,
    advance: object = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Train one head per (layer, learning rate) on the same batches with SGD, momentum 0.9 and a cosine to zero.

    Args:
        features: layer name to N×d.
        labels: N.
        classes: number of classes.
        cfg: learning rates, epochs, batch.
        advance: called with the number of finished epochs.

    Returns:
        Layer name to weights R×d×C and biases R×C for the R learning rates.
    """
    device = labels.device
    generator = torch.Generator().manual_seed(cfg.seed)
    lrs = torch.tensor(cfg.lrs, device=device)
    heads = {}
    for name, x in features.items():
        w = torch.randn(1, x.shape[1], classes, generator=generator).mul(0.01).to(device)
        heads[name] = (w.repeat(len(lrs), 1, 1), torch.zeros(len(lrs), classes, device=device))
    buffers = {name: (torch.zeros_like(w), torch.zeros_like(b)) for name, (w, b) in heads.items()}
    batch = min(cfg.batch, len(labels))
    per_epoch = len(labels) // batch
    schedule = Optim(lr=1.0)
    for step in range(cfg.epochs * per_epoch):
        if step % per_epoch == 0:
            order = torch.randperm(len(labels), generator=generator).to(device)
            if callable(advance):
                advance(1)
        index = order[(step % per_epoch) * batch :][:batch]
        target = F.one_hot(labels[index], classes).float()  # n×C
        scale = optim.rate(schedule, step, per_epoch, cfg.epochs * per_epoch)
        for name, x in features.items():
            _descend(heads[name], buffers[name], x[index], target, lrs * scale, cfg.weight_decay)
    return heads


def _descend(
    head: tuple[Tensor, Tensor], buffer: tuple[Tensor, Tensor], x: Tensor, target: Tensor, lrs: Tensor, decay: float
) -> None:
    """One SGD step of softmax regression for R heads at once; the gradient is written out: X'(softmax - target)/n."""
    w, b = head  # R×d×C, R×C
    scores = torch.baddbmm(b[:, None], x.expand(len(lrs), -1, -1), w)  # R×n×C
    error = (scores.softmax(2) - target) / len(x)
    gradients = torch.matmul(x.T, error).add_(w, alpha=decay), error.sum(1)
    for value, momentum, gradient in zip(head, buffer, gradients, strict=True):
        momentum.mul_(0.9).add_(gradient)
        value.sub_(momentum * lrs.view(-1, *[1] * (value.ndim - 1)))


def scores(head: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    """R×N×C class scores of one layer's heads."""
    w, b = head
    return torch.baddbmm(b[:, None], x.expand(len(w), -1, -1), w)


def standardise(train: np.ndarray, *others: np.ndarray) -> list[Tensor]:
    """Batch norm without affine parameters, with the training set's statistics."""
    mean, std = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    return [torch.from_numpy(((x - mean) / np.sqrt(std**2 + 1e-5)).astype(np.float32)) for x in (train, *others)]


def layers_of(backbone: Backbone, stages: bool) -> Sequence[str]:
    """Names of the probed layers, pooled last; of a transformer's many blocks, four evenly spaced ones."""
    count = len(backbone.stage_dims)
    chosen = range(1, count + 1) if count <= 5 else [round(count * part / 4) for part in (1, 2, 3, 4)]
    return [*(f"stage{i}" for i in chosen if stages), "pooled"]


def run(backbone: Backbone, cfg: LinearConfig, bench: Bench) -> Mapping[str, float]:
    """Top-1 and top-5 of the pooled layer, top-1 of every stage."""
    train, test = bench.data(cfg, "train"), bench.data(cfg, "test")
    if train.labels is None or test.labels is None or train.multilabel:
        raise UsageError(f"linear needs one label per image; {train.name!r} has none")
    layers = layers_of(backbone, cfg.stages)
    raw, raw_test = bench.features(backbone, train, layers), bench.features(backbone, test, layers)
    pairs = {name: standardise(raw[name], raw_test[name]) for name in layers}
    features = {name: pair[0].to(bench.device) for name, pair in pairs.items()}
    labels = torch.from_numpy(train.labels).to(bench.device)
    rest, val = (torch.from_numpy(part).to(bench.device) for part in held_out(train, cfg.held_out, cfg.seed))
    with bench.progress(2 * cfg.epochs, "epochs") as advance:
        parts = {name: x[rest] for name, x in features.items()}
        trial = train_heads(parts, labels[rest], train.num_classes, cfg, advance)
        best = {name: int((scores(trial[name], features[name][val]).argmax(2) == labels[val]).float().mean(1).argmax())
                for name in layers}  # fmt: skip
        heads = train_heads(features, labels, train.num_classes, cfg, advance)
    bench.select(lr={name: cfg.lrs[i] for name, i in best.items()}, on=f"{len(val)} held-out training images")
    out = {}
    for name in layers:
        predicted = scores(heads[name], pairs[name][1].to(bench.device))[best[name]].cpu().numpy()
        out[f"top1.{name}"] = accuracy(test.labels, predicted.argmax(1))
    bench.predictions("top1", label=test.labels, pred=predicted.argmax(1))
    return {"top1": out["top1.pooled"], "top5": topk(test.labels, predicted, min(5, train.num_classes)), **out}


EVALUATOR = Evaluator(
    name="linear",
    title="Linear",
    task="classification",
    run=run,
    presets={"default": LinearConfig(), "pooled": LinearConfig(stages=False)},
    describe={
        "default": "heads on every stage and the pooled vector, learning rate chosen on held-out training images",
        "pooled": "the pooled vector only",
    },
    metrics=(Metric("top1", "top-1"), Metric("top5", "top-5")),
)
