# SPDX-License-Identifier: Apache-2.0
"""Small invented records, recipes and evaluators for the tests of pages."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from reports import algorithm, benchmark, compare, index, run
from suite.config import digest, to_dict
from suite.record import Env, Result, RunRecord, Weights
from suite.spec import Config, EvalConfig, Evaluator, Metric, Paper, Published, Recipe
from suite.testing import EMPTY

PRESET = "resnet50_8xb32-coslr-200e_in1k"
ENV = Env(python="3.12", platform="linux-x86_64", device="cpu", threads=2, packages={"torch": "2.9.0"}, suite="0.1.0")


def recipe(name, title, control=False, method=object, **more):
    paper = Paper(f"The {title} paper", "A. Author, B. Author", "CVPR 2020", f"https://example.org/{name}", "It learns.")
    presets = {"digits": Config(arch="resnet18", dataset="digits", size=32, epochs=30, batch=128), PRESET: Config()}
    return Recipe(
        name=name, title=title, paper=paper, method=method, views=lambda config: (), presets=presets, control=control,
        **more,
    )  # fmt: skip


RECIPES = {
    one.name: one
    for one in (
        recipe("mocov2", "MoCo v2", reference={PRESET: (Published("linear/top1", 67.5, "authors", "5 trials"),)}),
        recipe("simclr", "SimCLR"),
        recipe("random", "Random init", control=True, method=None),
        recipe("supervised", "Supervised", control=True),
    )
}


def evaluator(name, title, task, metrics, **more):
    presets = {"default": EvalConfig(), "mmselfsup": EvalConfig()}
    return Evaluator(name=name, title=title, task=task, run=lambda *a: {}, presets=presets, metrics=metrics, **more)


EVALUATORS = {
    one.name: one
    for one in (
        evaluator("knn", "kNN", "classification", (Metric("top1", "top-1"),)),
        evaluator("linear", "Linear probe", "classification", (Metric("top1", "top-1"),)),
        evaluator(
            "svm", "Linear SVM", "multilabel",
            (Metric("map", "mAP"), Metric("lowshot", "low-shot mAP"), Metric("lowshot_std", "std")),
            selects_on_test=("mmselfsup",), describe={"default": "costs by cross-validation"},
        ),
        evaluator("detection", "Detection", "detection", (Metric("ap50", "AP50"), Metric("map", "AP"))),
    )
}  # fmt: skip


def result(name, weights, metrics, preset="default", data="digits", **more):
    values = {
        "evaluator": name, "preset": preset, "version": 1, "config": {"dataset": ""}, "digest": f"{name}{preset}",
        "status": "ok", "weights": weights, "metrics": metrics, "env": ENV,
        "data": {f"{data}/train": "a" * 64, f"{data}/test": "b" * 64} if metrics else {},
    }  # fmt: skip
    return Result(**(values | more))


def record(name, seed=0, level=50.0, preset="digits", results=None, **more):
    config = RECIPES[name].presets[preset] if name in RECIPES else Config(dataset="digits")
    sha = hashlib.sha256(f"{name} {preset} {seed}".encode(errors="replace")).hexdigest()
    if results is None:
        level += seed * 0.8
        results = [
            result("knn", sha, {"top1": level - 4, **{f"top1.k{k}": level - 4 - k / 50 for k in (10, 20, 100, 200)}}),
            result("linear", sha, {"top1": level, "top1.pooled": level,
                                   **{f"top1.stage{i}": level - 12 + 2 * i for i in range(1, 6)}}),
            result("svm", sha, {"map": level + 1, "lowshot.k1": level / 2, "lowshot.k16": level - 9,
                                "lowshot_std.k1": 1.2, "lowshot_std.k16": 0.4}, data="digit-scenes"),
            result("detection", sha, {}, status="skipped", why="mmdet is not installed"),
        ]  # fmt: skip
    trained = name != "random"
    made = RunRecord(
        id=f"{name}-{preset}-{seed}", recipe=name, recipe_version=1, preset=preset, digest=digest(config), seed=seed,
        config=to_dict(replace(config, seed=seed)), weights=Weights(sha, config.arch, 11_180_000), env=ENV,
        data={f"{config.dataset}/train": "c" * 64}, seconds=95.0 * trained, images_per_second=812.0 * trained,
        peak_memory_mb=640.0, steps=330 * trained, results={one.key: one for one in results},
    )  # fmt: skip
    return replace(made, **more)


def records():
    """Two algorithms of three seeds, two controls."""
    found = [record("mocov2", seed, 68.0) for seed in range(3)] + [record("simclr", seed, 66.0) for seed in range(3)]
    return [*found, record("random", level=27.0), record("supervised", level=91.0)]


def full_run(**metrics):
    """A run of the published preset, with its figures on the published data sets."""
    made = record("mocov2", preset=PRESET, results=[])
    sha = made.weights.sha256
    found = [
        result("linear", sha, {"top1": 67.0, "top1.pooled": 67.0, **metrics}, data="imagenet"),
        result("svm", sha, {"map": 84.3, "lowshot.k1": 43.0}, preset="mmselfsup", data="voc07"),
    ]
    return replace(made, results={one.key: one for one in found})


def build(found=None, evaluators=EVALUATORS):
    found = records() if found is None else found
    pages = (index, algorithm, benchmark, compare, run)
    return [document for one in pages for document in one.build(found, RECIPES, evaluators, EMPTY)]


def many_records(count):
    """So many records of thirty algorithms, three seeds each."""
    names = [*RECIPES, *(f"algo{i:02d}" for i in range(26))]
    base = {(name, seed): record(name, seed, 40.0 + 1.7 * i) for i, name in enumerate(names) for seed in range(3)}
    made = []
    for i in range(count):
        name, seed, variant = names[i % 30], i // 30 % 3, i // 90
        settings = hashlib.sha256(f"{name} {variant}".encode()).hexdigest()
        sha = hashlib.sha256(f"{i}".encode()).hexdigest()
        one = base[name, seed]
        shift = (variant * 37 % 101) / 10
        results = {
            key: replace(r, weights=sha, metrics={metric: value + shift for metric, value in r.metrics.items()})
            for key, r in one.results.items()
        }  # fmt: skip
        made.append(replace(one, id=f"{name}-digits-{settings[:8]}-s{seed}", digest=settings, results=results,
                            weights=replace(one.weights, sha256=sha)))  # fmt: skip
    return made


HOSTILE = "\ud800$\\x{<script>alert(1)</script>\"'|`*_[x](javascript:alert(1))\n# \u202eevil & \U0001f600" + "x" * 500


def hostile_records():
    odd = result(HOSTILE, "x", {HOSTILE: 1.0}, data=HOSTILE, selected={HOSTILE: HOSTILE}, why=HOSTILE)
    bad = result("knn", "x", {}, status="failed", why=HOSTILE, preset=HOSTILE)
    made = record(HOSTILE, notes=(HOSTILE,), preset=HOSTILE, results=[odd, bad], id=HOSTILE)
    traps = [
        "../../outside",
        "/etc/outside",
        "..",
        "index",
        "compare",
        "INDEX",
        "CON",
        "bench-knn",
        "\u202e../x",
        "",
        "a" * 500,
    ]
    found = [record(name, results=[], id=f"../{name}") for name in traps]
    return [made, *found, replace(record("x", results=[]), env=Env(device=HOSTILE, packages={HOSTILE: HOSTILE}))]
