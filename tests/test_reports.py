# SPDX-License-Identifier: Apache-2.0
"""Pages: what their cells say, that they are safe and deterministic, and that published figures survive untouched."""

from __future__ import annotations

import csv
import math
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import _pairwise, _published, index
from reports._cost import duration
from reports._groups import group, natural
from reports._rank import overall, ranks
from reports._scores import score
from reports._zoo import LAYOUT
from suite.errors import UsageError
from suite.record import Weights
from suite.spec import Table
from suite.testing import EMPTY
from tests.report_samples import EVALUATORS, PRESET, RECIPES, build, full_run, record, records, result

GOLDEN = Path(__file__).parent / "golden"


def table(document, title):
    return next(part for part in document.parts if isinstance(part, Table) and part.title.startswith(title))


def cell(found, row, column):
    """The cell of the first row whose first cells hold `row`, in the column that starts with `column`."""
    at = next(i for i, name in enumerate(found.columns) if name.startswith(column))
    return next(r for r in found.rows if row in " ".join(c.text for c in r[:2]))[at]


@cache
def usual():
    return tuple(build())


def page(name, documents=None):
    return next(document for document in documents or usual() if document.name == name)


def test_index_shows_mean_spread_and_number_of_seeds():
    found = table(page("index"), "Benchmarks")
    shown = cell(found, "MoCo v2", "Linear probe")
    assert shown.text == "68.8 ± 0.8 (3)"
    assert shown.value == pytest.approx(68.8)
    assert "per seed: 0: 68.00, 1: 68.80, 2: 69.60" in shown.hover
    assert cell(found, "Supervised", "Linear probe").text == "91.0"


def test_one_seed_shows_its_bootstrap_interval_and_several_that_of_seeds_and_images():
    made = record("mocov2", level=70.0)
    measured = replace(made.results["linear"], intervals={"top1": [68.9, 71.2]}, samples=1000)
    one = replace(made, results={"linear": measured})
    shown = cell(table(page("index", build([one])), "Benchmarks"), "MoCo v2", "Linear probe")
    assert shown.text == "70.0 [68.9, 71.2]"
    assert "95 % interval 68.90 to 71.20, over 1,000 test images" in shown.hover
    seeds = [
        replace(r, results={"linear": replace(r.results["linear"], intervals={"top1": [60.0, 80.0]})}) for r in records()[:3]
    ]
    found = score(group(seeds)[0], "linear", "default", "top1", EVALUATORS, RECIPES)
    half = math.hypot(4.30 * 0.8 / 3**0.5, 10.0)
    assert found.interval == pytest.approx((68.8 - half, 68.8 + half))


def test_ranks_share_what_their_intervals_cannot_tell_apart():
    spans = [(70.0, 72.0), (71.0, 73.0), (60.0, 61.0), None, (71.5, 71.6)]
    assert [r and (r.first, r.last) for r in ranks(spans)] == [(1, 3), (1, 3), (4, 4), None, (1, 3)]
    assert [r and (r.first, r.last) for r in ranks(spans, higher=False)] == [(2, 4), (2, 4), (1, 1), None, (2, 4)]
    assert [(r.first, r.last) for r in ranks([(5.0, 5.0), (5.0, 5.0), (4.0, 4.0)])] == [(1, 2), (1, 2), (3, 3)]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)), min_size=1, max_size=25), st.booleans())
def test_ranks_are_those_of_counting(pairs, higher):
    spans = [(float(low), float(low + width)) for low, width in pairs]
    for mine, rank in zip(spans, ranks(spans, higher), strict=True):
        above = sum(other[0] > mine[1] if higher else other[1] < mine[0] for other in spans)
        below = sum(other[1] < mine[0] if higher else other[0] > mine[1] for other in spans)
        assert (rank.first, rank.last) == (1 + above, len(spans) - below)


def test_nobody_gains_by_leaving_benchmarks_out():
    easy = ranks([(90.0, 90.0), (80.0, 80.0), (95.0, 95.0)])
    hard = ranks([(50.0, 50.0), (40.0, 40.0), None])
    assert [r.text for r in overall([easy], 3)] == ["2", "3", "1"]
    assert [r.text for r in overall([easy, hard], 3)] == ["1", "3", "2"]
    assert [r and r.text for r in overall([hard], 3)] == ["1", "2", None]
    rare = ranks([(5.0, 5.0), None, None])  # run on fewer than half of the rows
    assert overall([easy, rare], 3) == overall([easy], 3)
    assert [r and r.text for r in overall([rare], 3)] == ["1", None, None]


def test_index_ranks_rows_and_not_controls():
    found = table(page("index"), "Benchmarks")
    assert [row[2].text for row in found.rows] == ["1–2", "1–2", "–", "–"], "three seeds overlap"
    assert "tied with 1 other" in found.rows[0][2].hover
    assert found.rows[2][2].hover == "controls are not ranked"
    apart = table(page("index", build([record("mocov2", level=68.0), record("simclr", level=60.0)])), "Benchmarks")
    assert [row[2].text for row in apart.rows] == ["1", "2"]


def test_index_marks_the_best_and_pins_controls_below():
    found = table(page("index"), "Benchmarks")
    assert cell(found, "MoCo v2", "kNN").kind == "best"
    assert cell(found, "SimCLR", "kNN").kind == ""
    assert [row[0].kind for row in found.rows] == ["", "", "control", "control"]
    assert cell(found, "Supervised", "kNN").kind == "control", "a control is never the best"


def test_hover_gives_the_distance_to_random_weights_and_the_provenance():
    hover = cell(table(page("index"), "Benchmarks"), "MoCo v2", "kNN").hover
    assert "+41.8 against random digits" in hover
    for part in ("knn, preset default, version 1", "digits/test bbbbbbbbbbbb", "torch 2.9.0", "weights: "):
        assert part in hover


def test_empty_cells_say_why():
    found = table(page("index"), "Benchmarks")
    assert (cell(found, "MoCo v2", "Detection").kind, cell(found, "MoCo v2", "Detection").hover) == (
        "missing", "skipped: mmdet is not installed",
    )  # fmt: skip
    assert cell(found, "Random", "Training").hover == "nothing was trained"
    alone = index.build([record("mocov2", results=[])], RECIPES, EVALUATORS, EMPTY)[0]
    assert cell(table(alone, "Benchmarks"), "MoCo v2", "kNN").hover == "not run"


def test_a_number_that_is_none_is_not_shown_and_breaks_no_page():
    made = record("mocov2")
    odd = replace(made.results["knn"], metrics={"top1": math.nan}, intervals={"top1": [1.0]})
    half = replace(made.results["linear"], intervals={"top1": [math.inf, 3.0]})
    found = build([replace(made, results={"knn": odd, "linear": half}), record("simclr")])
    shown = cell(table(page("index", found), "Benchmarks"), "MoCo v2", "kNN")
    assert (shown.text, shown.hover) == ("–", "the stored value is not a finite number")
    assert cell(table(page("index", found), "Benchmarks"), "MoCo v2", "Linear probe").text == "50.0"


def test_old_versions_are_marked_and_cannot_be_best():
    found = records()
    found[0] = replace(found[0], recipe_version=0)
    shown = cell(table(page("index", build(found)), "Benchmarks"), "MoCo v2", "kNN")
    assert (shown.kind, shown.hover.splitlines()[0]) == ("stale", "pre-trained with version 0 of mocov2, now 1")
    newer = EVALUATORS | {"knn": replace(EVALUATORS["knn"], version=2)}
    shown = cell(table(index.build(records(), RECIPES, newer, EMPTY)[0], "Benchmarks"), "SimCLR", "kNN")
    assert (shown.kind, shown.hover.splitlines()[0]) == ("stale", "measured with version 1 of knn, now 2")


def test_results_on_other_data_or_settings_are_not_averaged_in():
    found = records()
    odd = replace(found[0].results["knn"], digest="other", metrics={"top1": 1.0})
    found[0] = replace(found[0], results={**found[0].results, "knn": odd})
    shown = cell(table(page("index", build(found)), "Benchmarks"), "MoCo v2", "kNN")
    assert shown.text == "65.2 ± 0.6 (2)"
    assert "1 more with other settings or data" in shown.hover


def test_data_sets_have_tables_of_their_own():
    document = page("index", build([*records(), full_run()]))
    headings = [part for part in document.parts if isinstance(part, str)]
    assert headings == ["## Pre-trained on digits", "## Pre-trained on imagenet"]
    assert len(table(document, "Benchmarks and cost, imagenet").rows) == 1


def test_algorithm_page_orders_benchmarks_and_columns_as_model_zoos_do():
    document = page("mocov2")
    titles = [part.title for part in document.parts if isinstance(part, Table)]
    assert titles[1:4] == ["Linear SVM, digit-scenes", "Linear probe, digits", "kNN, digits"]
    zoo = titles.index("VOC07 SVM and low-shot SVM")
    assert titles[zoo : zoo + 11] == [place.title for place in LAYOUT]

    def heads(title):
        return [name.split("\n")[0] for name in table(document, title).columns[3:]]

    shots = [f"k = {k}" for k in (1, 2, 4, 8, 16, 32, 64, 96)]
    assert heads("Linear probe, digits") == ["top-1", *(f"Feature{i}" for i in range(1, 6)), "AvgPool"]
    assert heads("kNN, digits") == ["top-1", "k = 10", "k = 20", "k = 100", "k = 200"]
    assert heads("VOC07 SVM") == ["mAP", *shots]
    assert heads("Places205") == [f"Feature{i}" for i in range(1, 6)]
    assert heads("ImageNet semi") == ["1% labels", "1% labels", "10% labels", "10% labels"]
    digits = cell(table(document, "Linear SVM, digit-scenes"), "MoCo v2", "k = 1")
    assert "± 1.20, 1.20, 1.20 over repetitions" in digits.hover


def test_controls_beside_an_algorithm_have_its_network():
    small = Weights("s" * 64, "vit_tiny", 5_000)
    other = replace(record("random", 7, 11.0), id="random-other", digest="o" * 64, weights=small, created="2026-02-02")
    found = table(page("mocov2", build([*records(), other])), "kNN, digits")
    assert [row[3].text for row in found.rows if row[0].text == "Random init"] == ["23.00"]
    alone = [one for one in records() if one.recipe != "random"]
    found = table(page("mocov2", build([*alone, other])), "kNN, digits")
    assert [row[0].text for row in found.rows if row[0].kind == "control"] == ["Random init", "Supervised"], "better than none"
    index_rows = table(page("index", build([*records(), other])), "Benchmarks").rows
    assert {row[1].text for row in index_rows if row[0].text == "Random init"} == {"digits, resnet18", "digits, vit_tiny"}


def test_empty_tables_of_the_layout_say_why():
    inat = table(page("mocov2"), "iNaturalist 2018")
    assert [cell.kind for cell in inat.rows[0][1:]] == ["missing"] * 7
    assert {cell.hover for cell in inat.rows[0][1:]} == {"no run of this algorithm was evaluated on inat2018"}


def test_published_rows_carry_their_source_and_the_difference_only_where_it_was_the_same_run():
    found = table(page("mocov2", build([*records(), full_run()])), "ImageNet linear")
    theirs = cell(found, f"MMSelfSup 0.x {PRESET}", "AvgPool")
    assert (theirs.text, theirs.kind) == ("67.58", "published")
    assert "configs/selfsup/mocov2/README.md" in theirs.hover
    gaps = [row for row in found.rows if row[0].text.startswith("ours −")]
    assert {row[1].text for row in gaps} == {PRESET}, "digits is not what was published"
    gap = next(row for row in gaps if row[0].hover == "MMSelfSup 0.x")
    assert gap[found.columns.index("AvgPool\ntop-1, %")].text == "−0.58"
    assert not any(row[0].text.startswith("ours −") for row in table(page("mocov2"), "ImageNet linear").rows)
    low = table(page("mocov2", build([*records(), full_run()])), "VOC07 SVM")
    assert "selects on test data" in low.note
    assert any((row[0].text, row[2].text) == ("ours − published", "mmselfsup") for row in low.rows)


def test_sources_that_print_the_same_digits_share_a_row():
    rows = [row for row in table(page("mocov2"), "VOC07 SVM").rows if row[0].kind == "published"]
    assert [row[0].text for row in rows] == ["MMSelfSup 0.x, 1.x", "OpenSelfSup"]
    assert "1.x repeats the table of 0.x" in rows[0][3].hover


def test_benchmark_page_puts_presets_of_the_same_weights_side_by_side():
    made = record("mocov2")
    sha = made.weights.sha256
    both = {"knn": result("knn", sha, {"top1": 60.0}), "knn.mmselfsup": result("knn", sha, {"top1": 57.5}, preset="mmselfsup")}
    found = table(page("bench-knn", build([replace(made, results=both), record("simclr")])), "Presets side by side")
    assert len(found.rows) == 1, "simclr ran one preset only"
    assert [c.text for c in found.rows[0][2:]] == ["60.00", "57.50", "−2.50"]
    assert found.columns[-1] == "mmselfsup\n− default"


def test_benchmark_page_has_every_algorithm_and_its_published_figures():
    document = page("bench-svm", build([*records(), full_run()]))
    board = table(document, "Protocol default, digit-scenes")
    assert [row[0].text for row in board.rows] == ["MoCo v2", "SimCLR", "Supervised", "Random init"]
    printed = table(document, "Published, voc07")
    assert {"MoCo v2", "Random init", "ODC", "DeepCluster"} <= {row[0].text for row in printed.rows}
    words = table(document, "Protocols in words")
    assert words.rows[0][1].text == "costs by cross-validation"
    assert words.rows[1][0].text == "mmselfsup †"


def test_pairs_are_compared_on_stored_predictions_and_not_for_too_many_rows(monkeypatch):
    archive = SimpleNamespace(predictions=lambda record, result: {"label": [1], "pred": [1]})
    seen = []
    monkeypatch.setattr(
        _pairwise, "_compare", lambda found: seen.append(sorted(found)) or [("a", "b", 1.25, 0.0004, 0.02, True)]
    )
    groups = group(records())
    made = _pairwise.pairwise_table(groups, EVALUATORS["knn"], "default", "digits", RECIPES, archive)
    assert seen == [["MoCo v2", "Random init", "SimCLR", "Supervised"]]
    assert [c.text for c in made.rows[0]] == ["a", "b", "+1.25", "< 0.001", "0.020", "differ"]
    many = [replace(groups[0], digest=str(i)) for i in range(_pairwise.MOST + 1)]
    archive.predictions = None  # would be called
    said = _pairwise.pairwise_table(many, EVALUATORS["knn"], "default", "digits", RECIPES, archive)
    assert said == "Pairs are tested for up to 40 rows; there are 41 here."


def test_unknown_recipes_and_evaluators_still_show():
    made = record("vanished", results=[result("odd", "x", {"score": 3.0})])
    document = page("vanished", build([made]))
    assert cell(table(document, "Odd, digits"), "vanished", "score").value == 3.0
    assert cell(table(page("index", build([made])), "Benchmarks"), "vanished", "Odd").text == "3.0"


def test_notes_of_runs_are_shown():
    made = record("mocov2", notes=("the features\ncollapsed",))
    for name in ("index", "mocov2"):
        document = page(name, build([made]))
        assert any(isinstance(p, str) and "the features collapsed" in p for p in document.parts)


def test_published_csv_holds_every_row_of_its_source_shape():
    figures = _published.read()
    count = Counter(f.source for f in figures)
    expected = {"MMSelfSup 0.x": 430, "MMSelfSup 1.x": 431, "MMPreTrain": 81, "OpenSelfSup": 345, "VISSL": 29, "DINOv2": 20,
                "Lightly": 169, "solo-learn": 103, "stable-pretraining": 40}  # fmt: skip
    assert {name: count[name] for name in expected} == expected
    assert sum(count.values()) == 1716
    keys = [(f.algorithm, f.preset, f.protocol, f.dataset, f.evaluator, f.metric, f.source, f.text) for f in figures]
    assert len(set(keys)) == len(keys)
    assert all(0 <= f.value <= 100 for f in figures if not f.metric.endswith("_px"))
    by = {(f.algorithm, f.preset, f.dataset, f"{f.evaluator}/{f.metric}", f.source): f.text for f in figures}
    expected = {
        ("mocov2", PRESET, "voc07", "svm/map", "MMSelfSup 0.x"): "84.04",
        ("mocov2", PRESET, "coco", "detection/mask_ap75", "MMSelfSup 0.x"): "38.8",
        ("random", "resnet50_in1k", "voc07", "svm/lowshot.k96", "OpenSelfSup"): "23.77",
        ("simclr", PRESET, "imagenet", "semi_supervised/top5.10pct", "OpenSelfSup"): "82.60",
        ("barlowtwins", "resnet50_bs256-100e_in1k", "imagenet", "finetune/top5", "Lightly"): "90.9",
        ("nnclr", "resnet18_400e_in100", "imagenet100", "linear/top1", "solo-learn"): "80.16",
        ("dinov2", "vit-large-p14_lvd142m", "imagenet", "linear/top1", "DINOv2"): "86.3",
        ("pirl", "resnet50-800e_in1k", "imagenet", "linear/top1", "VISSL"): "64.29",
        ("simclr", "resnet50_bs512-1000e_cifar10", "cifar10", "linear/top1", "dkobak/simclr-cifar10"): "93.7",
    }
    assert {key: by.get(key) for key in expected} == expected


def test_published_files_are_checked(tmp_path):
    def write(*rows):
        with (tmp_path / "x.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)

    write(["algorithm", "value"])
    with pytest.raises(UsageError, match="columns must be"):
        _published.read(tmp_path)
    write(_published.COLUMNS, ["a", "b", "", "", "top1", "3", "s", "", ""])
    with pytest.raises(UsageError, match="line 2: metric 'top1'"):
        _published.read(tmp_path)
    write(_published.COLUMNS, ["a", "b", "", "", "knn/top1", "high", "s", "", ""])
    with pytest.raises(UsageError, match="'high' is not a number"):
        _published.read(tmp_path)


def test_small_things():
    assert sorted(["k96", "k1", "k16", "k2"], key=natural) == ["k1", "k2", "k16", "k96"]
    assert sorted(["pooled", "stage5", "stage1"], key=natural) == ["stage1", "stage5", "pooled"]
    assert [duration(s) for s in (3.2, 59.7, 95, 7322)] == ["3.2 s", "60 s", "1 min 35 s", "2 h 02 min"]
