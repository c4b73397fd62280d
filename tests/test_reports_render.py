# SPDX-License-Identifier: Apache-2.0
"""Rendering: pages are well formed, safe whatever a record is called, and the same bytes every time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reports import algorithm, index
from suite.cells import SHOWN
from suite.errors import UsageError
from suite.render import DARK, LIGHT, check, render, safe_name
from suite.spec import Cell, Document, Plot, Table
from suite.testing import EMPTY
from tests.report_samples import EVALUATORS, HOSTILE, RECIPES, build, full_run, hostile_records, records

GOLDEN = Path(__file__).parent / "golden"


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


@pytest.mark.parametrize("name", ["index.md", "mocov2.md", "mocov2.html", "bench-knn.md", "run-simclr-digits-2.md"])
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
    code = "from tests.test_reports_render import *; render(build(), Path(sys.argv[1]))"
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
    for path in sorted(tmp_path.glob("*.html")):
        page = read_html(path)
        assert len(set(page.ids)) == len(page.ids), "ids are unique"
        tags = [tag for tag, _ in page.tags]
        assert tags.count("h1") == 1
        assert tags.count("table") == tags.count("caption")
        sections = [values["class"] for tag, values in page.tags if tag == "section"]
        for tag, values in page.tags:
            assert not {"src", "onclick", "onload"} & set(values), tag
            if tag == "th":
                assert values["scope"] in ("row", "col")
                assert values["scope"] == "row" or "versus" in sections or values["aria-sort"] == "none"
        for link in page.links:
            file, _, fragment = link.partition("#")
            assert link.startswith(("#", "data:", "https://")) or (tmp_path / file).is_file(), link
            assert file or fragment in page.ids
        text = path.read_text()
        assert not re.search(r"url\((?!#)|@import|<link[^>]+stylesheet", text)


def test_hostile_names_are_harmless(tmp_path):
    out = tmp_path / "deep" / "out"
    paths = render(build([*records(), *hostile_records()]), out)
    assert all(path.parent == out for path in paths)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"] and [p.name for p in out.parent.iterdir()] == ["out"]
    assert len({path.name.lower() for path in paths}) == len(paths)
    clean = tmp_path / "clean"
    render(build(), clean)
    allowed = {name: {tag for tag, _ in read_html(clean / name).tags} for name in ("index.html", "mocov2.html", "compare.html")}
    harmless = set().union(*allowed.values()) | {"image"}
    for path in out.glob("*.html"):
        page = read_html(path)
        assert {tag for tag, _ in page.tags} <= harmless, path.name
        scripts = [values for tag, values in page.tags if tag == "script"]
        assert [values for values in scripts if values.get("type") != "application/json"] == [{}], "one script, ours"
        assert not any(link.startswith("javascript") or ".." in link for link in page.links)
        assert not any(name.startswith("on") for _, values in page.tags for name in values)
        assert "\u202e" not in path.read_text()
    for path in out.glob("*.md"):
        text = path.read_text()
        assert "<script>" not in text and not re.search(r"(?<!\\)\]\(javascript", text)
        assert "\u202e" not in text
    kept = {"mocov2.html", "simclr.html", "index.html", "bench-knn.html"}
    assert kept <= {path.name for path in paths}, "nothing else is lost"


def test_rows_that_the_browser_builds_cannot_end_their_script(tmp_path):
    rows = [[Cell(f"{HOSTILE} {i}", None, HOSTILE, link="javascript:alert(1)"), Cell("</script><!--", 1.0)] for i in range(300)]
    render([Document("d", "D", "", [Table("t", ["a", "b"], rows)])], tmp_path)
    page = (tmp_path / "d.html").read_text()
    data = re.search(r'<script type="application/json" class="rows">(.*?)</script>', page, re.DOTALL)[1]
    assert "<" not in data
    found = json.loads(data)
    assert len(found["bodies"][0]) == 300 - SHOWN and found["bodies"][0][0][1] == ["</script><!--", 1.0]
    assert found["bodies"][0][0][0][3] == "", "no address that is neither a page nor the web"
    assert read_html(tmp_path / "d.html").tags.count(("tr", {})) == 1 + SHOWN


def test_standing_figures_and_the_page_have_the_same_colours():
    style = (Path(__file__).parent.parent / "reports" / "templates" / "page.css").read_text()
    light, dark = style.split("@media (prefers-color-scheme: dark)")[:2]
    for colours, part in ((LIGHT, light), (DARK, dark)):
        assert {role: re.search(rf"--{role}: (#\w+)", part)[1] for role in colours} == colours


def test_markdown_tables_keep_their_columns(tmp_path):
    hostile = Table("t", ["a", "b"], [[Cell("x|y\\|z\n<b>"), Cell("1", 1.0)]])
    render([Document("d", "D", "", [hostile])], tmp_path)
    rows = [line for line in (tmp_path / "d.md").read_text().splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows] == [3, 3, 3]
    assert "&lt;b&gt;" in rows[2]


def test_documents_that_cannot_be_rendered_are_refused(tmp_path):
    with pytest.raises(UsageError, match="two pages are called 'a'"):
        render([Document("a", "", "", []), Document("a", "", "", [])], tmp_path)
    paths = render([Document("a", "", "", []), Document("A", "", "", [])], tmp_path, ["md"])
    assert len({path.name.lower() for path in paths}) == 2, "some disks know no case"
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


def test_pages_do_not_import_torch():
    names = "reports.index, reports.algorithm, reports.benchmark, reports.run, reports.compare, suite.render"
    code = f"import sys, {names}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=GOLDEN.parents[1])


def test_no_records_at_all(tmp_path):
    render([*index.build([], {}, {}, EMPTY), *algorithm.build([], RECIPES, EVALUATORS, EMPTY)], tmp_path)
    assert "There are no records yet" in (tmp_path / "index.md").read_text()
    assert "84.04" in (tmp_path / "mocov2.md").read_text()
