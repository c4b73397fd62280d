# SPDX-License-Identifier: Apache-2.0
"""Invented runs whose provenance holds: digests follow from config, version and data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from suite import config as configs
from suite.store import Store, arrays_to_bytes
from suite.validate import Known
from tests.report_samples import EVALUATORS, RECIPES, record, result

KNOWN = Known(RECIPES, EVALUATORS)
WHEN = "2026-01-02T03:04:05Z"


def proven_result(name, sha, metrics, version=1, preset="default", **more):
    config = EVALUATORS[name].presets[preset]
    data = {"digits/train": "a" * 16, "digits/test": "b" * 16}
    digest = configs.digest(config, name, version, "digits", f"{'a' * 16}/{'b' * 16}")
    made = result(name, sha, metrics, preset, version=version, config=configs.to_dict(config), digest=digest, created=WHEN)
    return replace(made, data=data, **more)


def proven(name="mocov2", seed=0, results=None, version=1, **more):
    made = record(name, seed, results=[])
    config = replace(RECIPES[name].presets["digits"], seed=seed)
    digest = configs.digest(config, name, version, "a" * 16)
    sha = made.weights.sha256
    found = [proven_result("knn", sha, {"top1": 60.0}), proven_result("linear", sha, {"top1": 64.5})]
    made = replace(made, id=f"{name}-digits-{digest[:8]}-s{seed}", digest=digest, data={"digits/train": "a" * 16},
                   recipe_version=version, created=WHEN)  # fmt: skip
    chosen = found if results is None else results(sha) if callable(results) else results
    return replace(made, results={one.key: one for one in chosen}, **more)


def saved(root, made, arrays=()):
    """The run's folder, with `arrays` (file name to number of random bytes that an array in it has)."""
    run = Store(root).run(made.id)
    run.save(made)
    for one in made.results.values():
        run.save_result(one)
    for name, size in dict(arrays).items():
        noise = np.random.default_rng(0).integers(0, 255, size, np.uint8)
        (run.path / "results" / name).write_bytes(arrays_to_bytes({"pred": noise}))
    return run
