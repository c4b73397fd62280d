# SPDX-License-Identifier: Apache-2.0
"""A package that is not ours, installed for real: found by its entry points, run, shown on the pages, conformant."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from suite.store import Store

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "third_party"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that pip installed the example into; nothing is downloaded."""
    for tool in ("pip", "setuptools"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"{tool} is not installed")
    folder = tmp_path_factory.mktemp("third")
    source = shutil.copytree(EXAMPLE, folder / "source")  # building writes beside the source
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", str(folder / "site"), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def suite(site, tmp_path):
    """Run Python in an empty folder with the package installed."""

    def call(*arguments, code=0):
        path = os.pathsep.join([str(ROOT), str(site)])
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return call


def test_it_is_listed(suite):
    assert "\ntheirs " in "\n" + suite("-m", "suite.cli", "ls", "recipes")
    listed = suite("-m", "suite.cli", "ls", "evaluators")
    assert "\ncentroid " in "\n" + listed and "cosine to the mean feature of each class" in listed
    assert "did you mean 'theirs'" in suite("-m", "suite.cli", "run", "--algo", "their", code=2)


def test_it_runs_and_gets_a_row_and_a_column(suite, tmp_path):
    run = ("-m", "suite.cli", "run", "--preset", "tiny", "--bench", "centroid,knn", "--no-controls")
    suite(*run, "--algo", "theirs,simclr", "precision=32")
    records = {record.recipe: record for record in Store(tmp_path / "runs").records()[0]}
    assert set(records) == {"theirs", "simclr"}
    for record in records.values():
        assert {key: result.status for key, result in record.results.items()} == {"centroid": "ok", "knn": "ok"}
        kept = Store(tmp_path / "runs").run(record.id).predictions(record.results["centroid"])
        assert record.results["centroid"].metrics["top1"] == pytest.approx(100 * (kept["pred"] == kept["label"]).mean())
    lines = (tmp_path / "model-zoo" / "index.md").read_text().splitlines()
    head = next(line for line in lines if line.startswith("|") and "centroid" in line.lower())
    column = next(i for i, cell in enumerate(head.split("|")) if "centroid" in cell.lower())
    row = next(line for line in lines if line.startswith("|") and "Alignment and uniformity" in line)
    assert f"{records['theirs'].results['centroid'].metrics['top1']:.1f}" in row.split("|")[column]
    assert "Alignment and uniformity" in (tmp_path / "model-zoo" / "theirs.md").read_text()


def test_it_passes_the_conformance_checks(suite):
    suite("-c", "from suite import testing as t, plugins as p; t.check_recipe(p.load('recipes', 'theirs')); "
                "t.check_evaluator(p.load('evaluators', 'centroid'))")  # fmt: skip


def test_the_loss_is_the_papers():
    """Equations 2 and 3 written out pair by pair."""
    import math

    import torch

    from suite import plugins

    method = plugins.load("recipes", str(EXAMPLE / "theirs_recipe.py")).method  # a path serves too
    x = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    pairs = [(i, j) for i in range(5) for j in range(i)]
    mean = sum(math.exp(-2 * float(((x[i] - x[j]) ** 2).sum())) for i, j in pairs) / len(pairs)
    some = method.__new__(method)
    torch.nn.Module.__init__(some)
    some.t = 2.0
    assert float(some._uniformity(x)) == pytest.approx(math.log(mean), rel=1e-5)
