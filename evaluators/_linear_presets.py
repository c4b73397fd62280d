# SPDX-License-Identifier: Apache-2.0
"""Settings and presets of the linear evaluation, with the constants of each published protocol."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from suite import features
from suite.backbone import Backbone
from suite.errors import UsageError
from suite.nn.probes import PLAIN
from suite.spec import EvalConfig


@dataclass(frozen=True, kw_only=True)
class LinearConfig(EvalConfig):
    """Settings of the linear evaluation."""

    mode: Literal["cached", "lbfgs", "augmented"] = "cached"
    """cached: SGD on features of the test view; lbfgs: logistic regression on those and on `copies` augmented views; augmented:
    SGD on freshly augmented pictures, through the backbone every time, as published."""
    layers: Literal["pooled", "stages", "five", "vissl", "last"] = "stages"
    """stages: averaged stages and the pooled vector; five: the spatially pooled layers of Goyal et al. 2019, and the pooled
    vector; vissl: those, the pooled vector twice (with and without norm); last: class tokens of the last 1 and 4 blocks, with
    and without the mean patch."""
    lrs: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    "One head per layer and learning rate."
    epochs: int = 30
    batch: int = 256
    lr_batch: int = 256
    "Batch for which `augmented` has the rates; they are scaled in proportion to the real one."
    weight_decay: float = 0.0
    optimizer: Literal["sgd", "lars"] = "sgd"
    nesterov: bool = False
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: tuple[float, ...] = ()
    every: Literal["step", "epoch"] = "step"
    "How often the cosine moves."
    warmup: float = 0.0
    "Epochs."
    warmup_ratio: float = 0.0
    norm: Literal["none", "batch", "affine"] = "batch"
    "In front of the heads of `augmented`: none, batch norm without or with affine parameters; the other modes standardise."
    eps: float = 1e-5
    crop: Literal["resized", "random", "whole"] = "resized"
    """resized: random resized crop; random: random crop of the centre square of 256/224 the side; whole: the picture warped to
    the side."""
    crop_min: float = 0.08
    flip: float = 0.5
    jitter: float = 0.0
    "Strength of brightness, contrast and saturation jitter."
    lighting: float = 0.0
    "Standard deviation of AlexNet's colour noise."
    precision: Literal["32", "bf16", "16"] = "32"
    select: Literal["held-out", "test"] = "held-out"
    "What chooses the learning rate or C, where there are several."
    best_layer: bool = False
    "True: the headline is the layer that `select` likes best, else the pooled vector."
    held_out: float = 0.2
    "Share of the training images that chooses."
    copies: int = 4
    "Augmented views of `lbfgs`."
    costs: tuple[float, ...] = tuple(10.0 ** (power / 2) for power in range(-10, 5))
    "Values of C of `lbfgs`, as in scikit-learn; tried from the smallest until three in a row are worse than the best."
    tol: float = 1e-6
    "Largest entry of the gradient of the mean objective at which `lbfgs` stops; a hundred times that while it searches for C."


DEFAULT = LinearConfig()
FULL = LinearConfig(mode="augmented", layers="pooled", norm="none")
MOCO = replace(FULL, lrs=(30.0,), epochs=100, schedule="step", milestones=(60, 80))
MHEAD = replace(
    FULL, layers="five", norm="batch", lrs=(0.01,), nesterov=True, weight_decay=1e-4, schedule="step", milestones=(30, 60, 90),
    epochs=90, jitter=0.4, lighting=0.1,
)  # fmt: skip
PLACES205 = replace(MHEAD, dataset="places205", milestones=(7, 14, 21), epochs=28, crop="random", jitter=0.0, lighting=0.0)
INAT2018 = replace(MHEAD, dataset="inat2018", milestones=(24, 48, 72), epochs=84, jitter=0.0, lighting=0.0)
LARS = replace(FULL, optimizer="lars", lrs=(1.6,), batch=4096, lr_batch=4096, epochs=90, every="epoch")
SWAV = replace(FULL, lrs=(0.3,), weight_decay=1e-6, epochs=100, every="epoch")
MOCOV3 = replace(FULL, lrs=(12.0,), batch=1024, lr_batch=1024, epochs=90, every="epoch")
MAE = replace(
    FULL, optimizer="lars", lrs=(6.4,), batch=16384, lr_batch=16384, epochs=90, warmup=10, warmup_ratio=1e-4, norm="batch",
    eps=1e-6,
)  # fmt: skip
DINOV2 = replace(
    FULL, layers="last", lrs=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1), batch=1024,
    epochs=10, best_layer=True, select="test",
)  # fmt: skip
VISSL = replace(
    FULL, layers="vissl", norm="affine", lrs=(0.01,), nesterov=True, weight_decay=5e-4, schedule="step", milestones=(8, 16, 24),
    epochs=28,
)  # fmt: skip

PRESETS = {
    "default": DEFAULT,
    "pooled": replace(DEFAULT, layers="pooled"),
    "fast": replace(DEFAULT, mode="lbfgs"),
    "mhead": MHEAD,
    "mhead_places205": PLACES205,
    "mhead_inat2018": INAT2018,
    "moco": MOCO,
    "lars": LARS,
    "swav": SWAV,
    "mocov3": MOCOV3,
    "mocov3_r50": replace(MOCOV3, lrs=(0.4,)),
    "mae": MAE,
    "dinov2": DINOV2,
    "dinov2_heldout": replace(DINOV2, select="held-out", held_out=0.1),
    "vissl": VISSL,
    "cifar": replace(VISSL, layers="pooled", crop="whole"),
}

DESCRIBE = {
    "default": "cached features, heads on every stage and the pooled vector, learning rate chosen on held-out training images",
    "pooled": "as default, the pooled vector only",
    "fast": "L-BFGS logistic regression on cached features of 1 + 4 views, C chosen on held-out training images",
    "mhead": "MMSelfSup multi-head: five pooled stages and the average, lr 0.01, 90 epochs, crops and colour jitter",
    "mhead_places205": "MMSelfSup multi-head on Places205: 28 epochs, random crops",
    "mhead_inat2018": "MMSelfSup multi-head on iNaturalist 2018: 84 epochs",
    "moco": "MoCo, MMSelfSup: SGD lr 30, 100 epochs, steps at 60 and 80",
    "lars": "SimSiam, SimCLR, BYOL in MMSelfSup: LARS lr 1.6, batch 4096, 90 epochs",
    "swav": "SwAV, Barlow Twins in MMSelfSup: SGD lr 0.3, weight decay 1e-6, cosine, 100 epochs",
    "mocov3": "MoCo v3 with a ViT: SGD lr 12, batch 1024, 90 epochs",
    "mocov3_r50": "MoCo v3 with a ResNet-50: SGD lr 0.4, batch 1024, 90 epochs",
    "mae": "MAE: batch norm in front of the head, LARS lr 6.4, batch 16384, 10 + 80 epochs",
    "dinov2": "DINOv2: 13 learning rates x 4 inputs in one pass, the best on test data is reported, as published",
    "dinov2_heldout": "as dinov2, the best on held-out training images is trained again on all and reported",
    "vissl": "VISSL: conv1 to res5 and res5avg, batch norm with each head, lr 0.01, 28 epochs",
    "cifar": "VISSL on CIFAR: pooled vector, whole pictures with flips, lr 0.01, 28 epochs",
}

SELECTS_ON_TEST = ("dinov2",)


def check(cfg: LinearConfig) -> None:
    """Raise UsageError for settings that mean nothing."""
    for name in ("lrs", "costs"):
        values = getattr(cfg, name)
        if not values or any(not 0 < value < float("inf") for value in values):
            raise UsageError(f"config key {name!r} = {list(values)}: must be positive numbers")
    for name, least in (("epochs", 1), ("batch", 1), ("lr_batch", 1), ("copies", 0)):
        if getattr(cfg, name) < least:
            raise UsageError(f"config key {name!r} = {getattr(cfg, name)}: must be at least {least}")
    if not 0 < cfg.held_out < 1:
        raise UsageError(f"config key 'held_out' = {cfg.held_out}: must be between 0 and 1")
    if cfg.norm == "affine" and len(cfg.lrs) > 1:
        raise UsageError(f"config key 'norm' = 'affine' is trained with one head, 'lrs' = {list(cfg.lrs)} are several")
    if cfg.mode == "augmented" and cfg.warmup >= cfg.epochs:
        raise UsageError(f"config key 'warmup' = {cfg.warmup:g}: must be shorter than 'epochs' = {cfg.epochs}")
    if cfg.mode != "augmented" and cfg.layers in ("vissl", "last"):
        raise UsageError(f"config key 'layers' = {cfg.layers!r} needs mode 'augmented', not {cfg.mode!r}")
    if cfg.mode != "augmented" and cfg.select == "test":
        raise UsageError(f"config key 'select' = 'test' needs mode 'augmented', not {cfg.mode!r}")


def layers_of(backbone: Backbone, cfg: LinearConfig, size: int) -> list[str]:
    """Names of the probed layers; of a transformer's many blocks, four evenly spaced ones."""
    if cfg.layers == "last":
        names = ["last1", "last4", "last1+avg", "last4+avg"]
        return names if backbone.is_vit else names[:2]
    if cfg.layers == "stages":
        count = len(backbone.stage_dims)
        chosen = range(1, count + 1) if count <= 5 else [round(count * part / 4) for part in (1, 2, 3, 4)]
        return [*(f"stage{i}" for i in chosen), "pooled"]
    five = [] if cfg.layers == "pooled" else features.five_layers(backbone, size)
    plain = [f"pooled{PLAIN}"] if cfg.layers == "vissl" else []
    return list(dict.fromkeys([*five, *plain, "pooled"]))
