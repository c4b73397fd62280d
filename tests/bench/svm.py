# SPDX-License-Identifier: Apache-2.0
"""The VOC07 SVM protocols against scikit-learn's LinearSVC as the published scripts call it, in CPU-seconds of one core.

LinearSVC would take hours, so its side is extrapolated: fits of a rare and of a common class at seven of the 19 costs are
measured, the costs between two measured ones are taken to lie on a line (cost and time by their logarithms), and the two
classes are averaged. A fold is counted as its share of the samples, 2/3 of a full fit; the scripts fit all samples at every
cost, ours at the chosen one. Low-shot fits are measured at 4 of the 8 numbers of shots and interpolated in the same way. The
features are synthetic: rectified random projections of Gaussians whose spectrum falls with a power of the rank, twenty
classes of 3 to 40 % positives that are noisy linear functions of them.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.svm import LinearSVC

from evaluators.svm import MMSELFSUP, SVMConfig, draw, fits, full, low_shot
from suite.data import ImageSet
from suite.nn.svm_fitter import make_fitter
from tests.bench.paired import Effort, Row

SIZES = (5011, 4952, 8192)
"""Training and test images and features of a layer of the published protocol."""
COSTS = (2.0**-19, 2.0**-12, 2.0**-7, 2.0**-4, 1.0, 10.0, 100.0)
SHOTS = (1, 4, 16, 96)
DECAYS = (1.0,)
"""Exponents of the spectra."""


def rows(images: ImageSet, effort: Effort) -> list[Row]:
    """Both protocols; the pictures are not used. An effort of no seconds is a trial: a tenth of the size."""
    small = effort.seconds == 0
    samples, tests, width = (side // 10 for side in SIZES) if small else SIZES
    found: list[Row] = []
    for decay in DECAYS:
        x, z, labels, truth = scenes(samples, tests, width, decay=decay)
        cfg = replace(MMSELFSUP, shots=tuple(k for k in MMSELFSUP.shots if fits(labels, k)))
        began = time.process_time()
        fitter = make_fitter(x, z, torch.device("cpu"))
        prepared = time.process_time() - began
        unit = x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5).astype(np.float64)
        began = time.process_time()
        full(fitter, labels, truth, cfg)
        ours = prepared + time.process_time() - began
        what = f"SVM {samples}x{width}, spectrum r^-{decay:g}"
        found.append(row(f"{what}, full: 20 classes x 19 costs x (3 folds + 1)", ours, full_liblinear(unit, labels)))
        began = time.process_time()
        for k in cfg.shots:
            low_shot(fitter, labels, truth, k, cfg)
        ours = prepared + time.process_time() - began
        theirs = low_liblinear(unit, labels, cfg)
        found.append(row(f"{what}, low-shot: 20 x 5 draws x {len(cfg.shots)} x 19", ours, theirs))
    return found


def row(what: str, ours: float, theirs: float) -> Row:
    """Speeds as layers per million CPU-seconds."""
    text = f"{what}; {ours:.0f} against {theirs:.0f} CPU-s of LinearSVC (extrapolated)"
    return Row(text, 100.0, [1e6 / ours], [1e6 / theirs], unit="layers per 1e6 CPU-s")


def scenes(
    samples: int, tests: int, width: int, classes: int = 20, decay: float = 1.0, noise: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features N×d and L×d, float32, and labels N×C and L×C in {1, -1}."""
    rng = np.random.default_rng(seed)
    rank = 1024
    spread = np.arange(1, rank + 1, dtype=np.float32) ** (-decay / 2)
    hidden = rng.standard_normal((samples + tests, rank)).astype(np.float32) * spread
    direction = rng.standard_normal((rank, classes)).astype(np.float32) * spread[:, None]
    direction /= np.linalg.norm(direction * spread[:, None], axis=0)
    score = hidden @ direction + noise * rng.standard_normal((samples + tests, classes)).astype(np.float32)
    rates = np.geomspace(0.03, 0.40, classes)
    cut = np.array([np.quantile(column, 1 - rate) for column, rate in zip(score.T, rates, strict=True)])
    labels = np.where(score >= cut, 1, -1).astype(np.int8)
    mixing = rng.standard_normal((rank, width)).astype(np.float32) / np.linalg.norm(spread)
    x = np.maximum(hidden @ mixing, 0)
    return x[:samples], x[samples:], labels[:samples], labels[samples:]


def seconds(x: np.ndarray, y: np.ndarray, cost: float) -> float:
    """CPU time of one fit as published."""
    machine = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, tol=1e-4, dual=True, max_iter=2000, random_state=0)
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 2000 epochs are too few at large costs
        machine.fit(x, y)
    return time.process_time() - began


def between(at: Sequence[float], known: Sequence[float], values: Sequence[float]) -> np.ndarray:
    """Positive values at other places, on straight lines of the logarithms."""
    return np.exp(np.interp(np.log(at), np.log(known), np.log(np.maximum(values, 1e-6))))


def full_liblinear(x: np.ndarray, labels: np.ndarray) -> float:
    """CPU-seconds of all classes, costs, folds and refits, from the rarest and the most common class."""
    classes = labels.shape[1]
    per_cost = [statistics.mean([seconds(x, labels[:, c], cost) for c in (0, classes - 1)]) for cost in COSTS]
    return float(classes * (1 + 3 * 2 / 3) * between(sorted(MMSELFSUP.costs), COSTS, per_cost).sum())


def low_liblinear(x: np.ndarray, labels: np.ndarray, cfg: SVMConfig) -> float:
    """CPU-seconds of all draws, classes, shots and costs, from one draw of two classes."""
    classes = labels.shape[1]
    measured = [k for k in SHOTS if k in cfg.shots]
    per_shot = []
    for k in measured:
        targets = draw(labels, k, replace(cfg, draws=1))[0].numpy()
        used = [(x[t != 0], t[t != 0]) for t in (targets[0], targets[-1])]
        per_cost = [statistics.mean([seconds(*one, cost) for one in used]) for cost in COSTS]
        per_shot.append(float(between(sorted(cfg.costs), COSTS, per_cost).sum()))
    return float(cfg.draws * classes * between(cfg.shots, measured, per_shot).sum())
