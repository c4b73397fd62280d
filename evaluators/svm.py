# SPDX-License-Identifier: Apache-2.0
"""Linear SVM on frozen features, one class against the rest: the VOC07 protocol, full and low-shot.

Goyal et al., Scaling and Benchmarking Self-Supervised Visual Representation Learning, ICCV 2019,
https://arxiv.org/abs/1905.01235 (protocol in section 6.1 and appendix).

Differs from the published scripts, unless a preset is named after them: difficult images are ignored in
training too, and nothing is chosen on test data. In all presets but `sklearn` the machines are solved to a
certificate instead of for at most 2000 epochs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from suite.errors import UsageError
from suite.metrics import mean_average_precision
from suite.nn.svm_select import Fitter, fit_costs, make_fitter
from suite.spec import EvalConfig, Evaluator, Metric

if TYPE_CHECKING:
    from suite.backbone import Backbone
    from suite.bench import Bench

GRIDS = (12, 6, 4, 3, 2)
"""Side of the adaptive pooling per stage of a five-stage network, so that each gives about 9000 features."""
MAX_WIDTH = 9216
SMALL = tuple(0.5**power for power in range(4, 20))


@dataclass(frozen=True, kw_only=True)
class SVMConfig(EvalConfig):
    """Settings of the SVM protocol."""

    layers: tuple[str, ...] = ()
    "Feature names such as `stage4@3`; empty: the last five stages pooled to at most 9216 features."
    costs: tuple[float, ...] = (1.0, 10.0, 100.0, *SMALL)
    "Costs C to choose from; of equal ones the first wins."
    folds: int = 3
    "Folds (stratified, unshuffled) of the cross-validation that chooses the cost per class."
    positive_weight: float = 2.0
    "Factor on the cost of positives."
    difficult: Literal["ignore", "negative"] = "ignore"
    "What images marked difficult are in training; at test they are always ignored."
    selection: Literal["train", "test"] = "train"
    "What chooses layer and low-shot cost: folds of the training data, or the test AP as published."
    shots: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 96)
    "Positives per class of the low-shot runs; those that the training set cannot fill are left out."
    draws: int = 5
    "Independent low-shot samples per number of shots."
    single_shot_cost: float = 1.0
    "Cost for one positive per class, where nothing can be held out."
    solver: Literal["newton", "liblinear"] = "newton"
    "liblinear: scikit-learn's LinearSVC as the published scripts call it (slow)."
    tol: float = 1e-8
    "Certified relative tolerance of the Newton solver."


@dataclass(frozen=True)
class Layer:
    """What cross-validation gave on one layer."""

    folds_map: float
    costs: list[float]
    "Chosen cost per class."
    scores: np.ndarray
    "Test scores at the chosen costs, float32 L×C."
    test_map: float
    certificate: float


def run(backbone: Backbone, cfg: SVMConfig, bench: Bench) -> Mapping[str, float]:
    """Fit, choose and test on every layer, then low-shot on the chosen layer."""
    check(cfg)
    train, test = bench.data(cfg, "train"), bench.data(cfg, "test")
    if not (train.multilabel and test.multilabel):
        raise UsageError(f"evaluator 'svm' needs a multi-label data set, {train.name!r} is not one")
    labels = np.asarray(train.labels, dtype=np.int8)  # N×C in {-1, 0, 1}
    truth = np.asarray(test.labels, dtype=np.int8)  # L×C
    check_classes(labels, train.classes, train.name)
    names = list(cfg.layers) or layers_for(backbone, bench.size)
    train_features = bench.features(backbone, train, names, warp=True)
    test_features = bench.features(backbone, test, names, warp=True)
    shots = [k for k in cfg.shots if fits(labels, k)]
    layers: dict[str, Layer] = {}
    with bench.progress(len(names) + len(shots), "fitting SVMs") as advance:
        for name in names:
            fitter = make_fitter(train_features[name], test_features[name], bench.device, cfg.tol, cfg.solver)
            layers[name] = full(fitter, labels, truth, cfg)
            advance(1)
        by_test = cfg.selection == "test"
        best = max(names, key=lambda name: layers[name].test_map if by_test else layers[name].folds_map)
        fitter = make_fitter(train_features[best], test_features[best], bench.device, cfg.tol, cfg.solver)
        metrics, chosen = {"map": layers[best].test_map}, {}
        metrics |= {f"map.{short(name, names)}": layers[name].test_map for name in names}
        certificate = max(layer.certificate for layer in layers.values())
        for k in shots:
            figures, chosen[f"k{k}"], bound = low_shot(fitter, labels, truth, k, cfg)
            metrics[f"lowshot.k{k}"] = float(figures.mean())
            metrics[f"lowshot_std.k{k}"] = float(figures.std())
            certificate = max(certificate, bound)
            advance(1)
    bench.select(layer=best, costs=layers[best].costs, lowshot_costs=chosen, certificate=certificate)
    bench.predictions("map", targets=truth, scores=layers[best].scores)
    return metrics


def check(cfg: SVMConfig) -> None:
    """Raise UsageError for settings that mean nothing."""
    for name, low in (("costs", 0.0), ("shots", 0)):
        values = getattr(cfg, name)
        if any(not low < value < math.inf for value in values) or (name == "costs" and not values):
            raise UsageError(f"config key {name!r} = {list(values)}: must be positive numbers")
    for name, least in (("folds", 2), ("draws", 1)):
        if getattr(cfg, name) < least:
            raise UsageError(f"config key {name!r} = {getattr(cfg, name)}: must be at least {least}")
    for name in ("single_shot_cost", "positive_weight", "tol"):
        if not 0 < getattr(cfg, name) < math.inf:
            raise UsageError(f"config key {name!r} = {getattr(cfg, name)}: must be a positive number")


def check_classes(labels: np.ndarray, classes: Sequence[str], name: str) -> None:
    """Raise UsageError for a class that cannot be trained."""
    for kind, value in (("positive", 1), ("negative", -1)):
        lacking = [c for c, column in zip(classes, labels.T, strict=True) if not (column == value).any()]
        if lacking:
            raise UsageError(f"class {lacking[0]!r} of {name!r} has no {kind} training image")


def layers_for(backbone: Backbone, size: int) -> list[str]:
    """Layers that the protocol evaluates.

    Stage networks: the last five stages or fewer, pooled adaptively to the grids 12, 6, 4, 3, 2 (counted from
    the last stage), clipped to the map's own side and to 9216 features. Vision transformers: four evenly
    spaced blocks averaged over their tokens, and the pooled vector.
    """
    depth = len(backbone.stage_dims)
    if backbone.is_vit:
        blocks = sorted({math.ceil(depth * part / 4) for part in range(1, 5)})
        return [*(f"stage{block}" for block in blocks), "pooled"]
    names = []
    for stage in range(max(0, depth - 5), depth):
        side = min(GRIDS[stage - depth], math.isqrt(MAX_WIDTH // backbone.stage_dims[stage]))
        side = min(side, -(-size // backbone.strides[stage]))
        names.append(f"stage{stage + 1}@{side}" if side > 1 else f"stage{stage + 1}")
    return names


def short(name: str, names: Sequence[str]) -> str:
    """`stage4` for `stage4@3`, unless that is ambiguous."""
    stage = name.partition("@")[0]
    return stage if sum(other.partition("@")[0] == stage for other in names) == 1 else name


def full(fitter: Fitter, labels: np.ndarray, truth: np.ndarray, cfg: SVMConfig) -> Layer:
    """All training data: the cost of every class by cross-validated AP, then the test AP."""
    targets = torch.from_numpy(labels.T.astype(np.float64))  # C×N
    if cfg.difficult == "negative":
        targets[targets == 0] = -1
    held, tested, certificate = fit_costs(fitter, targets, cfg.costs, cfg.folds, cfg.positive_weight)
    value = held.nan_to_num(-1)  # costs×C
    best = value.argmax(0)  # C; the first of equal ones
    scores = tested[best, torch.arange(len(best))].T.float().numpy()  # L×C
    folds_map = float(100 * value.amax(0).mean())
    chosen = [cfg.costs[int(i)] for i in best]
    return Layer(folds_map, chosen, scores, mean_average_precision(truth, scores)[0], certificate)


def fits(labels: np.ndarray, k: int) -> bool:
    """Whether every class has k positives and (C-1)·k negatives."""
    positives, negatives = (labels == 1).sum(0), (labels == -1).sum(0)
    return bool((positives >= k).all() and (negatives >= (labels.shape[1] - 1) * k).all())


def draw(labels: np.ndarray, k: int, cfg: SVMConfig) -> Tensor:
    """Targets of the low-shot problems: per class k positives and (C-1)·k negatives, drawn anew every time.

    Returns:
        draws×C×N in {1, -1, 0}.
    """
    samples, classes = labels.shape
    targets = torch.zeros(cfg.draws, classes, samples, dtype=torch.float64)
    for i in range(cfg.draws):
        rng = np.random.default_rng([cfg.seed, k, i])
        for c in range(classes):
            for value, count in ((1, k), (-1, (classes - 1) * k)):
                targets[i, c, rng.choice(np.flatnonzero(labels[:, c] == value), count, replace=False)] = value
    return targets


def low_shot(
    fitter: Fitter, labels: np.ndarray, truth: np.ndarray, k: int, cfg: SVMConfig
) -> tuple[np.ndarray, list[float], float]:  # fmt: skip
    """Test mAP of every draw of k positives per class.

    One cost serves all classes of a draw. With `selection="train"` it is the best by cross-validated AP
    within that draw's own samples (two folds for k = 2; `single_shot_cost` for k = 1, where nothing can be
    held out), so a k-shot figure uses no more labels than it says. With `selection="test"` it is the cost of
    the largest test mAP averaged over the draws, as published.

    Returns:
        mAP per draw, cost per draw, largest certificate.
    """
    by_test = cfg.selection == "test"
    folds = 0 if by_test or k == 1 else min(k, cfg.folds)
    costs = cfg.costs if by_test or folds else (cfg.single_shot_cost,)
    targets = draw(labels, k, cfg)
    held, tested, certificate = fit_costs(fitter, targets.flatten(0, 1), costs, folds, cfg.positive_weight)
    tested = tested.unflatten(1, targets.shape[:2]).transpose(2, 3)  # costs×draws×L×C
    if by_test:
        maps = np.array([[mean_average_precision(truth, one.numpy())[0] for one in cost] for cost in tested])
        best = np.full(cfg.draws, maps.mean(1).argmax())
        return maps[best, np.arange(cfg.draws)], [costs[i] for i in best], certificate
    best = held.unflatten(1, targets.shape[:2]).mean(2).nan_to_num(-1).argmax(0).numpy()  # draws
    figures = [mean_average_precision(truth, tested[c, i].numpy())[0] for i, c in enumerate(best)]
    return np.array(figures), [costs[i] for i in best], certificate


DEFAULT = SVMConfig()
MMSELFSUP = SVMConfig(difficult="negative", selection="test")
VISSL = replace(MMSELFSUP, costs=(0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0))

EVALUATOR = Evaluator(
    name="svm",
    title="Linear SVM",
    task="multilabel",
    run=run,
    presets={
        "default": DEFAULT,
        "mmselfsup": MMSELFSUP,
        "vissl": VISSL,
        "sklearn": replace(DEFAULT, solver="liblinear"),
        "tiny": replace(DEFAULT, costs=(0.01, 1.0), shots=(1, 4), draws=2),
    },
    metrics=(
        Metric("map", "mAP"),
        Metric("lowshot", "low-shot mAP"),
        Metric("lowshot_std", "low-shot std", higher_is_better=False),
    ),
    describe={
        "default": "19 costs by 3-fold cross-validation, layer and low-shot cost chosen on training data",
        "mmselfsup": "MMSelfSup 0.x as published: 19 costs, layer and low-shot cost chosen by test AP",
        "vissl": "as mmselfsup with the 11 costs of VISSL",
        "sklearn": "as default, solved by scikit-learn's LinearSVC (hours on VOC07)",
        "tiny": "two costs, 1 and 4 shots: for tests",
    },
    selects_on_test=("mmselfsup", "vissl"),
)
