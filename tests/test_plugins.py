# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from importlib import metadata

import pytest

from suite import plugins
from suite.errors import JobError, UsageError
from suite.testing import check_evaluator

RECIPE = """
from suite.spec import Config, Paper, Recipe
PAPER = Paper("t", "a", "v", "u", "s")
RECIPE = Recipe(name="{name}", title="T", paper=PAPER, method=None, views=lambda c: (), presets={{"digits": Config()}})
"""


def test_files_are_found_without_importing_them():
    assert {"mocov2", "simclr", "random", "supervised"} <= set(plugins.find("recipes"))
    expected = {"knn", "linear", "svm", "semi_supervised", "finetune", "detection", "segmentation"}
    assert expected <= set(plugins.find("evaluators"))


@pytest.mark.parametrize("name", plugins.find("evaluators"))
def test_evaluator_conformance(name):
    check_evaluator(plugins.load("evaluators", name))


def test_unknown_name_gives_the_nearest():
    with pytest.raises(UsageError, match="unknown algorithm 'mocov3x'; did you mean 'mocov3'"):
        plugins.load("recipes", "mocov3x")


def test_a_path_is_a_plugin(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(RECIPE.format(name="mine"))
    assert plugins.load("recipes", str(path)).name == "mine"
    path.write_text("RECIPE = 3")
    with pytest.raises(UsageError, match="not a suite.spec.Recipe"):
        plugins.load("recipes", str(path))
    path.write_text("1/0")
    with pytest.raises(JobError, match="ZeroDivisionError"):
        plugins.load("recipes", str(path))
    with pytest.raises(UsageError, match="does not exist"):
        plugins.load("recipes", str(tmp_path / "none.py"))


def _points(*points):
    return lambda group: [metadata.EntryPoint(name, value, group) for name, value in points if group == "suite.recipes"]


def test_entry_point_joins_and_a_clash_names_both(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(RECIPE.format(name="theirs"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins.metadata, "entry_points", _points(("theirs", "theirs:RECIPE")))
    assert plugins.load("recipes", "theirs").title == "T"
    monkeypatch.setattr(plugins.metadata, "entry_points", _points(("mocov2", "theirs:RECIPE")))
    with pytest.raises(UsageError) as caught:
        plugins.find("recipes")
    assert "recipes.mocov2:RECIPE" in str(caught.value) and "theirs:RECIPE" in str(caught.value)
