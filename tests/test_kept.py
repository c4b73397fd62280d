# SPDX-License-Identifier: Apache-2.0
"""Kept figures: drawn once per content, never another one's, and no cache is needed."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from reports._figures import confusion
from suite import kept as kept_module
from suite.kept import kept
from suite.spec import Plot

LABELS, GUESSES = np.array([0, 1, 2, 1]), np.array([0, 2, 2, 1])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SUITE_CACHE", str(tmp_path))
    return tmp_path / "figures"


@pytest.fixture
def drawing():
    calls = []

    def draw(*inputs):
        calls.append(inputs)
        return Plot("title", f"<svg>{len(calls)}</svg>", "alt")

    draw.calls = calls
    return draw


def test_what_is_read_back_is_what_was_drawn(folder):
    fresh = confusion(LABELS, GUESSES, "kNN")
    assert kept(confusion, LABELS, GUESSES, "kNN") == fresh == kept(confusion, LABELS, GUESSES, "kNN")
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    "other",
    [
        (LABELS, GUESSES, "linear"),
        (LABELS, GUESSES[::-1], "kNN"),
        (LABELS.astype(np.int32), GUESSES, "kNN"),
        (LABELS.reshape(2, 2), GUESSES, "kNN"),
        ({"a": LABELS, "b": GUESSES}, "kNN"),
        ({"b": LABELS, "a": GUESSES}, "kNN"),
    ],
)
def test_every_input_counts(folder, drawing, other):
    first = kept(drawing, LABELS, GUESSES, "kNN")
    assert kept(drawing, *other) != first and kept(drawing, LABELS, GUESSES, "kNN") == first
    assert len(drawing.calls) == 2


def test_another_program_draws_anew(folder, drawing, monkeypatch):
    kept(drawing, 1)
    monkeypatch.setattr(kept_module, "_program", lambda name: "another")
    kept(drawing, 1)
    assert len(drawing.calls) == 2


@pytest.mark.parametrize("content", ["", '["title", "<svg', "[1]", '{"title": 1}', "7"])
def test_a_broken_file_is_drawn_over(folder, drawing, content):
    kept(drawing, 1)
    (file,) = folder.iterdir()
    file.write_text(content)
    assert kept(drawing, 1).svg == "<svg>2</svg>" and json.loads(file.read_text())[1] == "<svg>2</svg>"


def test_nothing_to_draw_is_kept_too(folder):
    calls = []
    for _ in range(2):
        assert kept(lambda value: calls.append(value), 3) is None
    assert calls == [3]


def test_no_cache_is_needed(tmp_path, monkeypatch, drawing):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SUITE_CACHE", str(tmp_path / "file"))
    assert kept(drawing, 1).svg == "<svg>1</svg>" and kept(drawing, 1).svg == "<svg>2</svg>"


def test_the_longest_unseen_go_first(folder, drawing, monkeypatch):
    monkeypatch.setattr(kept_module, "MOST", 3)
    for i in range(3):
        kept(drawing, i)
    for age, file in enumerate(sorted(folder.iterdir(), key=lambda path: json.loads(path.read_text())[1])):
        os.utime(file, (1000 + age, 1000 + age))
    kept(drawing, 0)
    kept(drawing, 3)
    assert len(list(folder.iterdir())) == 3
    kept(drawing, 0)
    assert len(drawing.calls) == 4
