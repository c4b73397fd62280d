# SPDX-License-Identifier: Apache-2.0
"""Small invented predictions of every kind, and run folders that hold them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from suite import metrics
from suite.store import Run, arrays_to_bytes
from tests.report_samples import record, result

N = 2000


def answers(right, seed=0, classes=10):
    """Labels, and predictions that are right where `right` says."""
    label = np.random.default_rng(seed).integers(0, classes, len(right))
    return {"label": label, "pred": np.where(right, label, (label + 1) % classes)}


def planted(drop=0, flips=0):
    """Base and head predictions: `drop` images lost, and `flips` more exchanged evenly."""
    base = np.random.default_rng(1).random(N) < 0.7
    head = base.copy()
    good, bad = np.flatnonzero(base), np.flatnonzero(~base)
    head[good[: drop + flips]] = False
    head[bad[:flips]] = True
    return answers(base), answers(head)


def segmentation(quality, seed=0, n=60, classes=4):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(5, 60, (n, classes))
    hit = (pixels * quality).astype(int)
    confusion = np.zeros((n, classes, classes), np.int32)
    for c in range(classes):
        confusion[:, c, c] = hit[:, c]
        confusion[:, c, (c + 1) % classes] = pixels[:, c] - hit[:, c]
    return {"confusion": confusion}


def multilabel(noise, seed=0, n=300, classes=5):
    rng = np.random.default_rng(seed)
    targets = rng.choice([-1, 1], (n, classes)).astype(np.int8)
    return {"targets": targets, "scores": (targets + rng.normal(size=(n, classes)) * noise).astype(np.float32)}


def detector(recall, seed=0, n=80):
    rng = np.random.default_rng(seed)
    n_gt = rng.integers(1, 4, (n, 2))
    image = np.repeat(np.arange(n), 6)
    cls = np.tile([0, 0, 0, 1, 1, 1], n)
    slot = np.tile([0, 1, 2, 0, 1, 2], n)
    draw = rng.random(len(image))
    tp = (slot < n_gt[image, cls]) & (draw < recall)
    score = np.where(tp, 0.5, 0.2) + 0.3 * rng.random(len(image))
    return {"image": image, "cls": cls, "score": score, "tp": tp, "ignored": np.zeros_like(tp), "n_gt": n_gt}


METRIC = {"top1": "top1", "map": "map", "miou": "miou", "detection": "ap50", "mean": "map"}


def one_result(arrays, name="linear", sha="a", **more):
    """A result whose headline is that of the predictions (None: 50, and no predictions)."""
    kind = "top1" if arrays is None else metrics.kind_of(arrays)
    value = 50.0 if arrays is None else metrics.headline(kind, arrays)
    made = result(name, sha, {METRIC[kind]: value} | more.pop("metrics", {}), **more)
    return replace(made, predictions=f"{made.key}.npz" if arrays is not None else "")


def make_run(root, arrays, name="linear", run_id="a", seed=0, **more):
    """A run folder with one result and its predictions (None: none stored)."""
    made = replace(record("mocov2", results=[]), id=run_id, seed=seed)
    run = Run(root / run_id)
    run.save(replace(made, weights=replace(made.weights, sha256=run_id * 8)))
    one = one_result(arrays, name, run_id * 8, **more)
    run.save_result(one, None if arrays is None else {one.predictions: arrays_to_bytes(arrays)})
    return run.path


def scores(verdict):
    return [row for row in verdict.rows if row.level == "score"]
