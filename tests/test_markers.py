# SPDX-License-Identifier: Apache-2.0
"""Tables inside README and docs: what is replaced, what is left alone, and what a wrong marker says."""

from __future__ import annotations

from pathlib import Path

import pytest

from suite.errors import UsageError
from suite.markers import files, rewritten
from suite.spec import Cell, Document, Table

BOARD = Table(
    "Benchmarks and cost, digits",
    ["Algorithm", "kNN\ntop-1, %", "Linear probe\ntop-1, %"],
    [[Cell("MoCo | v2", link="mocov2"), Cell("61.0", 61.0, kind="best"), Cell("–", None, "not run", kind="missing")],
     [Cell("SimCLR", link="https://example.org/x"), Cell("58.0", 58.0), Cell("66.0", 66.0)]],
    "A note.",
)  # fmt: skip
OTHER = Table("Benchmarks and cost, imagenet", ["Algorithm", "kNN"], [[Cell("BYOL"), Cell("71", 71.0)]])
DOCUMENTS = [Document("index", "Model zoo", "All.", ["## Words", BOARD, OTHER]), Document("empty", "Empty", "", [])]
MARKED = "# Mine\n\n<!-- suite:table index {} -->\nold\n<!-- suite:end -->\n\ntail\n"


def fill(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return rewritten(path, DOCUMENTS).decode()


def test_only_what_stands_between_the_markers_changes(tmp_path):
    text = fill(tmp_path, MARKED.format("table=digits"))
    assert text == (
        "# Mine\n\n<!-- suite:table index table=digits -->\n\n"
        "| Algorithm | kNN top-1, % | Linear probe top-1, % |\n| --- | ---: | ---: |\n"
        "| MoCo \\| v2 | **61.0** | –<sup>1</sup> |\n| [SimCLR](https://example.org/x) | 58.0 | 66.0 |\n"
        "\nA note.\n\n1. not run\n\n<!-- suite:end -->\n\ntail\n"
    )
    assert fill(tmp_path, text) == text, "filling in again changes nothing"


def test_options_choose_tables_columns_rows_and_links(tmp_path):
    text = fill(tmp_path, MARKED.format('table=digits columns="linear,Algo" rows=1 link=https://zoo.example/a/'))
    assert "| Linear probe top-1, % | Algorithm |" in text and "SimCLR" not in text
    assert "[MoCo \\| v2](https://zoo.example/a/mocov2.html)" in text
    both = fill(tmp_path, MARKED.format(""))
    assert both.index("**Benchmarks and cost, digits**") < both.index("**Benchmarks and cost, imagenet**")


def test_other_newlines_fences_and_the_rest_of_the_text_survive(tmp_path):
    windows = MARKED.format("table=imagenet").replace("\n", "\r\n")
    assert fill(tmp_path, windows).count("\n") == fill(tmp_path, windows).count("\r\n")
    fenced = "```\n<!-- suite:table nothing -->\n```\n~~~~\n~~~\n<!-- suite:end -->\n~~~~\n  <!-- suite:table indented -->\n"
    assert fill(tmp_path, fenced) == fenced
    assert "Nothing was measured yet." in fill(tmp_path, MARKED.replace("index", "empty").format(""))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MARKED.format("").replace("index", "indx"), "line 3: unknown page 'indx'; did you mean 'index'"),
        (MARKED.format("column=kNN"), "line 3: unknown table option 'column'; did you mean 'columns'"),
        (MARKED.format("columns=kN,lineer"), "line 3: unknown column 'lineer'"),
        (MARKED.format("table=cifar"), "line 3: unknown table 'cifar'"),
        (MARKED.format("rows=0"), "line 3: rows='0' is not"),
        (MARKED.format('table="x'), "line 3: No closing quotation"),
        ("<!-- suite:table index -->\n", "line 1: the table has no <!-- suite:end -->"),
        ("<!-- suite:end -->\n", "line 1: <!-- suite:end --> without a start"),
        ("<!-- suite:table index -->\n" * 2, "line 2: a table starts before the one of"),
        (b"<!-- suite:table index -->\xff", "not UTF-8 at byte 26"),
    ],
)
def test_wrong_markers_name_file_and_line(tmp_path, text, message):
    with pytest.raises(UsageError) as caught:
        fill(tmp_path, text)
    assert message in str(caught.value) and "README.md" in str(caught.value) and "\n" not in str(caught.value)


def test_files_with_markers_are_found_once(tmp_path):
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "docs" / "deep" / "a.md").write_text(MARKED)
    (tmp_path / "docs" / "plain.md").write_text("nothing")
    found = files([tmp_path / "docs", tmp_path / "docs" / "deep" / "a.md", Path(tmp_path / "absent.md")])
    assert found == [tmp_path / "docs" / "deep" / "a.md"]
