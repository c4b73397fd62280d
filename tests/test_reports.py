# SPDX-License-Identifier: Apache-2.0
"""Pages: what their cells say, that they are safe and deterministic, and that published figures survive untouched."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reports import _published, algorithm, index
from reports._cost import duration
from reports._groups import natural
from suite.errors import UsageError
from suite.render import check, render, safe_name
from suite.spec import Cell, Document, Plot, Table
from suite.testing import EMPTY
from tests.report_samples import EVALUATORS, PRESET, RECIPES, record, records, result

GOLDEN = Path(__file__).parent / "golden"


def build(found=None):
    found = records() if found is None else found
    return [*index.build(found, RECIPES, EVALUATORS, EMPTY), *algorithm.build(found, RECIPES, EVALUATORS, EMPTY)]


def table(document, title):
    return next(part for part in document.parts if isinstance(part, Table) and part.title.startswith(title))


def cell(found, row, column):
    """The cell of the first row whose first cells hold `row`, in the column that starts with `column`."""
    at = next(i for i, name in enumerate(found.columns) if name.startswith(column))
    return next(r for r in found.rows if row in " ".join(c.text for c in r[:2]))[at]


def page(name, documents=None):
    return next(document for document in documents or build() if document.name == name)


def full_run(**metrics):
    """A run of the published preset, with its figures on the published data sets."""
    made = record("mocov2", preset=PRESET, results=[])
    sha = made.weights.sha256
    found = [
        result("linear", sha, {"top1": 67.0, "top1.pooled": 67.0, **metrics}, data="imagenet"),
        result("svm", sha, {"map": 84.3, "lowshot.k1": 43.0}, preset="mmselfsup", data="voc07"),
    ]
    return replace(made, results={one.key: one for one in found})


def test_index_shows_mean_spread_and_number_of_seeds():
    found = table(page("index"), "Benchmarks")
    shown = cell(found, "MoCo v2", "Linear probe")
    assert shown.text == "68.8 ± 0.8 (3)"
    assert shown.value == pytest.approx(68.8)
    assert "per seed: 0: 68.00, 1: 68.80, 2: 69.60" in shown.hover
    assert cell(found, "Supervised", "Linear probe").text == "91.0"


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
    assert titles[1:4] == ["Linear SVM", "Linear probe", "kNN"]
    heads = [name.split("\n")[0] for name in table(document, "Linear probe").columns[3:]]
    assert heads == ["top-1", *(f"Feature{i}" for i in range(1, 6)), "AvgPool"]
    heads = [name.split("\n")[0] for name in table(document, "kNN").columns[3:]]
    assert heads == ["top-1", "k = 10", "k = 20", "k = 100", "k = 200"]
    heads = [name.split("\n")[0] for name in table(document, "Linear SVM").columns[3:]]
    assert heads == ["mAP", *(f"k = {k}" for k in (1, 2, 4, 8, 16, 32, 64, 96))]
    assert "± 1.20, 1.20, 1.20 over repetitions" in cell(table(document, "Linear SVM"), "MoCo v2", "k = 1").hover


def test_published_rows_carry_their_source_and_the_difference_only_where_it_was_the_same_run():
    found = table(page("mocov2", build([*records(), full_run()])), "Linear probe")
    theirs = cell(found, f"MMSelfSup 0.x {PRESET}", "AvgPool")
    assert (theirs.text, theirs.kind) == ("67.58", "published")
    assert "configs/selfsup/mocov2/README.md" in theirs.hover
    gaps = [row for row in found.rows if row[0].text.startswith("ours")]
    assert {row[1].text for row in gaps} == {PRESET}, "digits is not what was published"
    gap = next(row for row in gaps if row[0].hover == "MMSelfSup 0.x")
    assert gap[found.columns.index("AvgPool\ntop-1, %")].text == "−0.58"
    assert not any(row[0].text.startswith("ours") for row in table(page("mocov2"), "Linear probe").rows)
    low = table(page("mocov2", build([*records(), full_run()])), "Linear SVM")
    assert "selects on test data" in low.note
    assert any(row[0].text == "ours [mmselfsup] − published" for row in low.rows)


def test_unknown_recipes_and_evaluators_still_show():
    made = record("vanished", results=[result("odd", "x", {"score": 3.0})])
    document = page("vanished", build([made]))
    assert cell(table(document, "Odd"), "vanished", "score").value == 3.0
    assert cell(table(page("index", build([made])), "Benchmarks"), "vanished", "Odd").text == "3.0"


def test_notes_of_runs_are_shown():
    made = record("mocov2", notes=("the features\ncollapsed",))
    for name in ("index", "mocov2"):
        document = page(name, build([made]))
        assert any(isinstance(p, str) and "the features collapsed" in p for p in document.parts)


def test_published_csv_holds_every_row_of_its_source_shape():
    figures = _published.read()
    assert len(figures) > 700
    assert {f.source for f in figures} == {"MMSelfSup 0.x", "MMSelfSup 1.x", "OpenSelfSup"}
    keys = [(f.algorithm, f.preset, f.dataset, f.evaluator, f.metric, f.source, f.text) for f in figures]
    assert len(set(keys)) == len(keys)
    assert all(0 <= f.value <= 100 for f in figures)
    by = {(f.algorithm, f.preset, f.dataset, f"{f.evaluator}/{f.metric}", f.source): f.text for f in figures}
    expected = {
        ("mocov2", PRESET, "voc07", "svm/map", "MMSelfSup 0.x"): "84.04",
        ("mocov2", PRESET, "coco", "detection/mask_ap75", "MMSelfSup 0.x"): "38.8",
        ("random", "resnet50_in1k", "voc07", "svm/lowshot.k96", "OpenSelfSup"): "23.77",
        ("simclr", PRESET, "imagenet", "semi_supervised/top5.10pct", "OpenSelfSup"): "82.60",
    }
    assert {key: by.get(key) for key in expected} == expected


def test_published_files_are_checked(tmp_path):
    def write(*rows):
        with (tmp_path / "x.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)

    write(["algorithm", "value"])
    with pytest.raises(UsageError, match="columns must be"):
        _published.read(tmp_path)
    write(_published.COLUMNS, ["a", "b", "", "top1", "3", "s", "", ""])
    with pytest.raises(UsageError, match="line 2: metric 'top1'"):
        _published.read(tmp_path)
    write(_published.COLUMNS, ["a", "b", "", "knn/top1", "high", "s", "", ""])
    with pytest.raises(UsageError, match="'high' is not a number"):
        _published.read(tmp_path)


# Rendering


class Reader(HTMLParser):
    """Collects tags and checks that they nest."""

    VOID = {"meta", "link", "input", "br", "path", "use", "rect", "line"}

    def __init__(self):
        super().__init__()
        self.stack, self.tags, self.ids, self.links = [], [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        if "id" in values:
            self.ids.append(values["id"])
        if "href" in values:
            self.links.append(values["href"])
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.stack.pop() == tag, tag


def read_html(path):
    reader = Reader()
    reader.feed(path.read_text())
    assert reader.stack == []
    return reader


@pytest.mark.parametrize("name", ["index.md", "mocov2.md", "mocov2.html"])
def test_golden_pages(tmp_path, name):
    """Regenerate with GOLDEN=1 after a wanted change, and read the difference."""
    render(build([*records(), full_run()]), tmp_path)
    made = (tmp_path / name).read_text()
    if os.environ.get("GOLDEN"):
        (GOLDEN / name).write_text(made)
    assert made == (GOLDEN / name).read_text()


def test_same_records_same_bytes_in_any_order_and_process(tmp_path):
    render(build(), tmp_path / "a")
    render(build(records()[::-1]), tmp_path / "b")
    code = "from tests.test_reports import *; render(build(), Path(sys.argv[1]))"
    env = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(GOLDEN.parents[1])}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], check=True, env=env)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert "index-1.svg" in names
    for other in ("b", "c"):
        assert sorted(path.name for path in (tmp_path / other).iterdir()) == names
        for name in names:
            assert (tmp_path / other / name).read_bytes() == (tmp_path / "a" / name).read_bytes(), name


def test_check_finds_edits_missing_and_orphaned_pages_and_leaves_strangers_alone(tmp_path):
    documents = build()
    paths = render(documents, tmp_path)
    assert check(documents, tmp_path) == []
    (tmp_path / "notes.md").write_text("mine")
    edited = tmp_path / "mocov2.md"
    edited.write_text(edited.read_text().replace("69.80", "69.90", 1))
    (tmp_path / "simclr.html").unlink()
    assert check(documents, tmp_path) == [edited, tmp_path / "simclr.html"]
    fewer = [document for document in documents if document.name != "supervised"]
    assert tmp_path / "supervised.md" in check(fewer, tmp_path)
    render(fewer, tmp_path)
    assert check(fewer, tmp_path) == []
    assert (tmp_path / "notes.md").read_text() == "mine"
    assert set(paths) >= {tmp_path / "index.html", tmp_path / "index.md"}


def test_html_is_well_formed_accessible_and_needs_no_network(tmp_path):
    render(build([*records(), full_run()]), tmp_path)
    for path in tmp_path.glob("*.html"):
        page = read_html(path)
        assert len(set(page.ids)) == len(page.ids), "ids are unique"
        tags = [tag for tag, _ in page.tags]
        assert tags.count("h1") == 1
        assert tags.count("table") == tags.count("caption")
        for tag, values in page.tags:
            assert not {"src", "onclick", "onload"} & set(values), tag
            if tag == "th":
                assert values["scope"] in ("row", "col")
                assert values["scope"] == "row" or values["aria-sort"] == "none"
        for link in page.links:
            inside = link.startswith(("#", "data:", "https://")) or (tmp_path / link).is_file()
            assert inside, link
            assert not link.startswith("#") or link[1:] in page.ids
        text = path.read_text()
        assert not re.search(r"url\((?!#)|@import|<link[^>]+stylesheet", text)


HOSTILE = "\ud800$\\x{<script>alert(1)</script>\"'|`*_[x](javascript:alert(1))\n# \u202eevil & \U0001f600" + "x" * 500


def test_hostile_names_are_harmless(tmp_path):
    odd = result(HOSTILE, "x", {HOSTILE: 1.0}, data=HOSTILE)
    made = [record(HOSTILE, notes=(HOSTILE,), preset=HOSTILE, results=[odd]), record("../../outside", results=[])]
    out = tmp_path / "deep" / "out"
    paths = render(build([*records(), *made]), out)
    assert all(path.parent == out for path in paths)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    for path in out.glob("*.html"):
        page = read_html(path)
        assert sum(tag == "script" for tag, _ in page.tags) == 1
        assert not any(link.startswith("javascript") for link in page.links)
    for path in out.glob("*.md"):
        text = path.read_text()
        assert "<script>" not in text and not re.search(r"(?<!\\)\]\(javascript", text)
        assert "\u202e" not in text


def test_markdown_tables_keep_their_columns(tmp_path):
    hostile = Table("t", ["a", "b"], [[Cell("x|y\\|z\n<b>"), Cell("1", 1.0)]])
    render([Document("d", "D", "", [hostile])], tmp_path)
    rows = [line for line in (tmp_path / "d.md").read_text().splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows] == [3, 3, 3]
    assert "&lt;b&gt;" in rows[2]


def test_documents_that_cannot_be_rendered_are_refused(tmp_path):
    with pytest.raises(UsageError, match="two pages are called 'A'"):
        render([Document("a", "", "", []), Document("A", "", "", [])], tmp_path)
    with pytest.raises(UsageError, match="1 cells for 2 columns"):
        render([Document("a", "", "", [Table("t", ["x", "y"], [[Cell("1")]])])], tmp_path)
    with pytest.raises(UsageError, match="unknown page format 'pdf'"):
        render([], tmp_path, ["pdf"])


def test_plain_text_markup(tmp_path):
    address = "See https://example.org/a?b=1&c=2."
    parts = ["## Head `x`", "    suite run <a>", "- one\n- two `b`", address, Plot("P", "<svg></svg>", "alt")]
    render([Document("d", "D", "S", parts)], tmp_path)
    html, text = (tmp_path / "d.html").read_text(), (tmp_path / "d.md").read_text()
    assert "<code>suite run &lt;a&gt;</code>" in html and "    suite run <a>" in text
    assert "<li>two <code>b</code></li>" in html and "- two `b`" in text
    assert '<a href="https://example.org/a?b=1&amp;c=2">' in html
    assert "![alt](d-1.svg)" in text and (tmp_path / "d-1.svg").is_file()


def test_names_of_files():
    assert safe_name("mocov2") == "mocov2"
    assert safe_name("../x") != safe_name("./x")
    assert re.fullmatch(r"[a-z0-9-]{1,80}", safe_name("\u202e../" + "y" * 500))


def test_small_things():
    assert sorted(["k96", "k1", "k16", "k2"], key=natural) == ["k1", "k2", "k16", "k96"]
    assert sorted(["pooled", "stage5", "stage1"], key=natural) == ["stage1", "stage5", "pooled"]
    assert [duration(s) for s in (3.2, 59.7, 95, 7322)] == ["3.2 s", "60 s", "1 min 35 s", "2 h 02 min"]


def test_pages_do_not_import_torch():
    names = "reports.index, reports.algorithm, suite.render, suite.compare"
    code = f"import sys, {names}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=GOLDEN.parents[1])


def test_no_records_at_all(tmp_path):
    render([*index.build([], {}, {}, EMPTY), *algorithm.build([], RECIPES, EVALUATORS, EMPTY)], tmp_path)
    assert "There are no records yet" in (tmp_path / "index.md").read_text()
    assert "84.04" in (tmp_path / "mocov2.md").read_text()
