# SPDX-License-Identifier: Apache-2.0
"""Linear SVM on frozen features, one class against the rest: the VOC07 protocol, full and low-shot.

Goyal et al., Scaling and Benchmarking Self-Supervised Visual Representation Learning, ICCV 2019,
https://arxiv.org/abs/1905.01235 (protocol in section 6.1 and appendix).

Differs from the published scripts, unless a preset is named after them: difficult images are ignored in
training too, and nothing is chosen on test data. In all presets but `sklearn` the machines are solved to a
certificate instead of for at most 2000 epochs.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from suite.errors import UsageError
from suite.features import five_layers
from suite.metrics import mean_average_precision
from suite.nn.svm_fitter import Fitter, make_fitter
from suite.nn.svm_select import cross_validate, fit_costs, quick_ap, refit
from suite.nn.svm_shots import fits, summary
from suite.spec import EvalConfig, Evaluator, Metric

if TYPE_CHECKING:
    from suite.backbone import Backbone
    from suite.bench import Bench

SMALL = tuple(0.5**power for power in range(4, 20))


@dataclass(frozen=True, kw_only=True)
class SVMConfig(EvalConfig):
    """Settings of the SVM protocol."""

    layers: tuple[str, ...] = ()
    "Feature names such as `stage4@3`; empty: `suite.features.five_layers`."
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
    scores: str
    "Test scores at the chosen costs: float32 L×C in base64."
    test_map: float
    certificate: float


@dataclass(frozen=True)
class LowShot:
    """Test mAP, cost chosen and largest certificate of the draws of one number of shots."""

    maps: list[float]
    costs: list[float]
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
    if not (truth == 1).any():
        raise UsageError(f"no image of {test.name!r}/{test.split} shows any of its classes: nothing to test on")
    names = list(cfg.layers) or five_layers(backbone, bench.size)
    x = bench.features(backbone, train, names, warp=True)
    z = bench.features(backbone, test, names, warp=True)

    @lru_cache(maxsize=1)
    def prepare(name: str) -> Fitter:
        return make_fitter(x[name], z[name], bench.device, cfg.tol, cfg.solver, name)

    layers = all_layers(prepare, names, labels, truth, cfg, bench)
    by_test = cfg.selection == "test"
    best = max(names, key=lambda name: layers[name].test_map if by_test else layers[name].folds_map)
    shots = {k: found for k, found in all_shots(prepare, best, labels, truth, cfg, bench)}
    bench.select(
        layer=best,
        costs=layers[best].costs,
        lowshot_costs={f"k{k}": found.costs for k, found in shots.items()},
        shots_left_out=[k for k in cfg.shots if k not in shots],
        classes_without_test_positives=[c for c, column in zip(test.classes, truth.T, strict=True) if not (column == 1).any()],
        certificate=max([layer.certificate for layer in layers.values()] + [shot.certificate for shot in shots.values()]),
    )
    scores = np.frombuffer(base64.b64decode(layers[best].scores), dtype="<f4").reshape(truth.shape)
    bench.predictions("map", targets=truth, scores=scores)
    metrics = {"map": layers[best].test_map}
    metrics |= {f"map.{short(name, names)}": layers[name].test_map for name in names}
    for k, found in shots.items():
        metrics |= summary(k, found.maps)
    return metrics


def all_layers(
    prepare: Callable[[str], Fitter], names: Sequence[str], labels: np.ndarray, truth: np.ndarray, cfg: SVMConfig, bench: Bench
) -> dict[str, Layer]:
    """`full` on every layer; those finished before an interruption are read back."""
    layers = {}
    for name in names:
        with bench.progress(len(set(cfg.costs)), f"layer {name}, costs") as advance:

            def compute(name: str = name, advance: Callable[[int], None] = advance) -> dict[str, Any]:
                return asdict(full(prepare(name), labels, truth, cfg, advance))

            layers[name] = Layer(**bench.once(f"layer-{name.replace('@', '-')}", compute))
    return layers


def all_shots(
    prepare: Callable[[str], Fitter], layer: str, labels: np.ndarray, truth: np.ndarray, cfg: SVMConfig, bench: Bench
) -> Iterator[tuple[int, LowShot]]:
    """`low_shot` for every number of shots that the training set can fill; finished ones are read back."""
    for k in cfg.shots:
        if not fits(labels, k):
            continue
        with bench.progress(1 if lone(k, cfg) else len(set(cfg.costs)), f"{k} shots, costs") as advance:

            def compute(k: int = k, advance: Callable[[int], None] = advance) -> dict[str, Any]:
                return asdict(low_shot(prepare(layer), labels, truth, k, cfg, advance))

            yield k, LowShot(**bench.once(f"shots-{layer.replace('@', '-')}-{k}", compute))


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


def short(name: str, names: Sequence[str]) -> str:
    """`stage4` for `stage4@3`, unless that is ambiguous."""
    stage = name.partition("@")[0]
    return stage if sum(other.partition("@")[0] == stage for other in names) == 1 else name


def full(
    fitter: Fitter,
    labels: np.ndarray,
    truth: np.ndarray,
    cfg: SVMConfig,
    advance: Callable[[int], None] = lambda count: None,
) -> Layer:
    """All training data: the cost of every class by cross-validated AP, then the test AP."""
    targets = torch.from_numpy(labels.T.astype(np.float64))  # C×N
    if cfg.difficult == "negative":
        targets[targets == 0] = -1
    held, about, bound = cross_validate(fitter, targets, cfg.costs, cfg.folds, cfg.positive_weight, advance)
    value = held.nan_to_num(-1)  # costs×C
    best = value.argmax(0).tolist()  # C; the first of equal ones
    costs = [cfg.costs[i] for i in best]
    chosen = torch.stack([about[i][c] for c, i in enumerate(best)])
    machines, certificate = refit(fitter, targets, costs, chosen, cfg.positive_weight)
    scores = fitter.score(machines).T.numpy().astype("<f4")  # L×C
    return Layer(
        folds_map=float(100 * value.amax(0).mean()),
        costs=costs,
        scores=base64.b64encode(scores.tobytes()).decode(),
        test_map=mean_average_precision(truth, scores)[0],
        certificate=max(bound, certificate),
    )


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


def lone(k: int, cfg: SVMConfig) -> bool:
    """Whether there is nothing to choose the cost by: one positive, and no test data."""
    return k == 1 and cfg.selection == "train"


def low_shot(
    fitter: Fitter,
    labels: np.ndarray,
    truth: np.ndarray,
    k: int,
    cfg: SVMConfig,
    advance: Callable[[int], None] = lambda count: None,
) -> LowShot:
    """Test mAP of every draw of k positives per class.

    One cost serves all classes of a draw. With `selection="train"` it is the best by cross-validated AP
    within that draw's own samples (two folds for k = 2; `single_shot_cost` for k = 1, where nothing can be
    held out), so a k-shot figure uses no more labels than it says. With `selection="test"` it is the cost of
    the largest test mAP averaged over the draws, as published.
    """
    by_test = cfg.selection == "test"
    costs = (cfg.single_shot_cost,) if lone(k, cfg) else cfg.costs
    targets = draw(labels, k, cfg).flatten(0, 1)  # draws·C×N
    if by_test or k == 1:
        machines, certificate = fit_costs(fitter, targets, costs, cfg.positive_weight, advance)
        if not by_test:
            return LowShot(maps_of(fitter.score(machines[0]), truth), [costs[0]] * cfg.draws, certificate)
        columns = [truth[:, i % truth.shape[1]] for i in range(len(targets))]
        found = [quick_ap(c, one.numpy()) for c, one in zip(columns, fitter.skim(torch.stack(machines)), strict=True)]
        maps = 100 * np.nanmean(np.reshape(found, (cfg.draws, -1, len(costs))), axis=1)  # draws×costs
        pick = int(np.nanmean(maps, axis=0).argmax())
        return LowShot(maps[:, pick].tolist(), [costs[pick]] * cfg.draws, certificate)
    held, about, bound = cross_validate(fitter, targets, costs, min(k, cfg.folds), cfg.positive_weight, advance)
    best = held.unflatten(1, (cfg.draws, -1)).mean(2).nan_to_num(-1).argmax(0).tolist()  # draws
    starts = torch.cat([about[c].unflatten(0, (cfg.draws, -1))[i] for i, c in enumerate(best)])
    chosen = [costs[c] for c in best]
    each = [cost for cost in chosen for _ in range(truth.shape[1])]
    single, certificate = refit(fitter, targets, each, starts, cfg.positive_weight)
    return LowShot(maps_of(fitter.score(single), truth), chosen, max(bound, certificate))


def maps_of(scores: Tensor, truth: np.ndarray) -> list[float]:
    """MAP of every draw from scores (draws·C)×L."""
    return [mean_average_precision(truth, one.T.numpy())[0] for one in scores.unflatten(0, (-1, truth.shape[1]))]


DEFAULT = SVMConfig()
MMSELFSUP = SVMConfig(difficult="negative", selection="test")
VISSL = replace(MMSELFSUP, costs=(0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0))

EVALUATOR = Evaluator(
    name="svm",
    title="Linear SVM",
    task="multilabel",
    run=run,
    layers=lambda backbone, cfg, size: list(cfg.layers) or five_layers(backbone, size),
    warp=True,
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
        Metric("lowshot_low", "low-shot mAP, lower end of 95 %"),
        Metric("lowshot_high", "low-shot mAP, upper end of 95 %"),
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
