# SPDX-License-Identifier: Apache-2.0
"""The speed comparison measures what it says; nothing here depends on how fast anything is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from recipes.mocov2 import RECIPE
from suite import plugins
from suite.backbone import Backbone
from suite.errors import UsageError
from suite.testing import started, trainer
from tests.bench import __main__ as command
from tests.bench import pipelines, steps, training
from tests.bench.paired import Effort, Row, Side, measure, row, table

TINY = replace(RECIPE.presets["tiny"], batch=16)


class Work:
    """Sides that cost a known time on a clock of their own."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, []

    def side(self, name: str, images: int, seconds: float, stretch: float = 1.0) -> Side:
        def run(units: int) -> int:
            self.calls.append((name, units))
            self.now += units * seconds
            return units * images

        return Side(name, run, stretch)

    def clock(self) -> float:
        return self.now


def test_speeds_are_images_over_seconds():
    work = Work()
    speeds = measure([work.side("a", 64, 0.25), work.side("b", 32, 0.5)], Effort(repetitions=5, seconds=1.0), work.clock)
    assert speeds == {"a": [256.0] * 5, "b": [64.0] * 5}


def test_repetitions_alternate_and_take_the_wanted_time():
    work = Work()
    effort = Effort(repetitions=3, seconds=1.0, most=100)
    measure([work.side("a", 1, 0.25), work.side("b", 1, 0.5, stretch=3.0), work.side("c", 1, 1e-6)], effort, work.clock)
    turns = work.calls[-9:]
    assert [name for name, _ in turns] == [*"abc", *"cba", *"abc"]
    assert set(turns) == {("a", 4), ("b", 6), ("c", 100)}


def test_table_says_ratio_spread_and_verdict():
    speeds = {"ours": [90.0, 200.0, 96.0], "theirs": [100.0, 100.0, 100.0]}
    text = table([
        row("fast enough", speeds, "ours", "theirs", 0.95),
        row("too slow", speeds, "ours", "theirs", 0.97),
        row("no promise", speeds, "ours", "theirs", None),
        Row("absent", 1.0, why="lightly is not installed"),
    ])  # fmt: skip
    header, rule, *lines = text.splitlines()
    assert header.split()[:3] == ["ours", "/", "theirs"] and set(rule) == {"-"}
    assert lines[0].split() == ["fast", "enough", "96", "100", "images/s", "0.96", "(0.90", "to", "2.00)", ">=", "0.95", "met"]
    assert lines[1].endswith("not met")
    assert lines[2].endswith("0.96 (0.90 to 2.00)")
    assert lines[3].endswith("not measured: lightly is not installed")


def test_command_prints_machine_and_table(monkeypatch, capsys):
    seen = []

    def rows(images, effort):
        seen.append((len(images), effort))
        return [Row("something", 1.0, [2.0], [1.0])]

    monkeypatch.setattr(command, "GROUPS", {"train": rows, "views": rows})
    assert command.main(["--quick", "--only", "views"]) == 0
    assert seen == [(512, Effort(repetitions=1, seconds=0.0, most=1))]
    out = capsys.readouterr().out
    assert f"{torch.get_num_threads()} threads" in out and "something" in out and out.rstrip().endswith("met")


def test_tables_of_all_recipes_are_asked_for_by_name(monkeypatch, capsys):
    seen = []

    def text(names, effort):
        seen.append((names, effort.repetitions))
        return "a table of steps"

    monkeypatch.setattr(command, "TABLES", {"steps": text, "tiny": text})
    assert command.main(["--quick", "--only", "steps", "--recipes", "simclr", "byol"]) == 0
    assert seen == [(["simclr", "byol"], 1)] and capsys.readouterr().out.rstrip().endswith("\n\na table of steps")


def test_what_a_method_does_around_its_step_counts_against_it(digits):
    """On a clock of its own: forward costs 2, the optimizer 1, what hides after the step 4."""
    some, now = trainer(RECIPE, TINY, digits), [0.0]

    def costs(owner, name, seconds):
        usual = getattr(owner, name)

        def slow(*arguments, **more):
            now[0] += seconds
            return usual(*arguments, **more)

        setattr(owner, name, slow)

    costs(some.method, "forward", 2.0)
    costs(some.optimizer, "step", 1.0)
    costs(some.method, "after_step", 4.0)
    found = steps.measure(some, next(started(some)), 3, clock=lambda: now[0])
    assert found == {"whole": [7.0] * 3, "forward": [2.0] * 3, "backward": [0.0] * 3, "optimizer": [1.0] * 3}
    assert some.step == 4  # a round warms up
    row = steps.Step("mocov2", "32", 16, **found, peak_mb=512.3)
    assert row.parts == 3 and row.ratio == pytest.approx(7 / 3)
    cells = row.cells()
    assert cells[:3] == ("mocov2 (32, batch 16)", "7000.0", "2000.0") and cells[5:] == (
        "2.33",
        "<= 1.15",
        "not met",
        "2",
        "512",
    )


def test_every_recipe_that_trains_is_measured(monkeypatch):
    trained = [name for name, recipe in plugins.load_all("recipes").items() if recipe.method is not None]
    assert steps.trained([]) == trained and steps.trained(["random", "simclr"]) == ["simclr"]
    with pytest.raises(UsageError, match="simclr"):
        steps.trained(["simcrl"])
    monkeypatch.setattr(steps, "each", lambda what, names: [(name, 9.96 + 0.1 * i) for i, name in enumerate(names)])
    _, _, first, second = steps.tiny_table(["simclr", "byol"], Effort()).splitlines()
    assert first.split() == ["simclr", "10.0", "<", "10", "met"] and second.endswith("not met")


@pytest.mark.slow
def test_each_recipe_has_a_process_of_its_own():
    header, _, row = steps.step_table(["simclr"], Effort(repetitions=1)).splitlines()
    assert header.split()[:2] == ["recipe", "step"] and row.startswith("simclr (")
    assert int(row.split()[-1]) > 100  # MB


def test_the_loop_and_the_bare_step_both_train(digits):
    before = torch.are_deterministic_algorithms_enabled()
    assert training.loop(TINY, digits)(2) == 32
    assert training.bare(TINY, digits)(2) == 32
    assert torch.are_deterministic_algorithms_enabled() == before


def test_lightly_missing_is_said(digits, monkeypatch):
    def missing(config, images):
        raise ImportError("No module named 'lightly'")

    monkeypatch.setattr(training, "lightly", missing)
    rows = training.compare("tiny", TINY, digits, Effort(repetitions=1, seconds=0.0, most=1))
    assert [len(r.ours) for r in rows] == [1, 0]
    assert "lightly" in rows[1].verdict and rows[1].verdict.startswith("not measured")


def test_lightly_trains_the_same_network(digits):
    pytest.importorskip("lightly")
    assert training.lightly(TINY, digits.subset(range(32)))(1) == 16


def test_features_and_views_run(digits):
    few = digits.subset(range(8))
    backbone = Backbone(TINY.arch, TINY.arch_options, TINY.stem)
    assert pipelines.extraction(backbone, few)(1) == pipelines.forward(backbone, few)(1) == 8
    threads, pictures = torch.get_num_threads(), pipelines.enlarged(few, 4, 48)
    assert pictures.shape == (4, 48, 48, 3)
    assert pipelines.batched(TINY, pictures, 1)(2) == 8
    assert pipelines.per_image(TINY, pictures)(2) == 8
    assert pipelines.in_workers(TINY, pictures, 1)(2) == 8
    assert torch.get_num_threads() == threads


def test_both_sides_make_the_same_kind_of_view(digits):
    """Same shape, and the same mean and spread over many draws: neither side does less."""
    from PIL import Image

    from suite.draws import Draws

    config = replace(TINY, size=32, jitter=(0.4, 0.4, 0.4, 0.1))
    pixels = torch.from_numpy(digits.array[:256]).permute(0, 3, 1, 2)
    ours = RECIPE.views(config)[0](pixels, Draws(0, 0, torch.arange(256)))
    torch.manual_seed(0)
    transform = pipelines.single_view(config)
    theirs = torch.stack([transform(Image.fromarray(picture)) for picture in digits.array[:256]])
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours.mean((0, 2, 3)), theirs.mean((0, 2, 3)), atol=0.1, rtol=0)
    torch.testing.assert_close(ours.std((0, 2, 3)), theirs.std((0, 2, 3)), atol=0.1, rtol=0)
