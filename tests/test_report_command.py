# SPDX-License-Identifier: Apache-2.0
"""`suite report` as a person and a CI meet it: same bytes twice, every kind of drift named, exports, nothing done in vain."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from suite import export, fresh
from suite.cli import main
from suite.record import to_json
from suite.results import Results, publish
from suite.spec import Cell, Document, Table
from tests.result_samples import proven, saved

README = "# Mine\n\n<!-- suite:table index columns=Algorithm,kNN -->\n<!-- suite:end -->\n"
OLD, HOST = 1_700_000_000, "machine-of-mine-4711"


@pytest.fixture
def suite(tmp_path, monkeypatch, capfd):
    """A folder with two runs, one of them published, and a README: call a command line, get (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUITE_CACHE", str(tmp_path / "cache"))
    saved(Path("runs"), proven("mocov2"))
    publish(proven("simclr"), Results(Path("reports/results")))
    Path("README.md").write_text(README)
    settle()

    def call(*arguments):
        code = main([str(one) for one in arguments])
        return code, capfd.readouterr().err

    return call


def settle():
    """As if everything had been written long ago."""
    for path in (path for root in ("runs", "reports") for path in Path(root).rglob("*")):
        os.utime(path, (OLD, OLD))


def tree(*roots):
    return {path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for root in roots for path in sorted(Path(root).rglob("*")) if path.is_file()}  # fmt: skip


def test_twice_gives_identical_bytes_and_touches_no_file(suite, tmp_path, monkeypatch):
    for module, name in ((socket, "gethostname"), (platform, "node")):
        monkeypatch.setattr(module, name, lambda: HOST)
    assert suite("report", "--format", "json,csv,latex")[0] == 0
    first, readme = tree("model-zoo"), Path("README.md").read_bytes()
    assert suite("report", "--format", "json,csv,latex")[0] == 0
    assert tree("model-zoo") == first and Path("README.md").read_bytes() == readme
    assert suite("report", "--pages", "elsewhere", "--format", "json,csv,latex")[0] == 0
    assert {path.name: digest for path, (digest, _) in tree("elsewhere").items()} == {
        path.name: digest for path, (digest, _) in first.items()
    }
    assert suite("report", "--check")[0] == 0
    everything = b"".join(path.read_bytes() for path in first)
    for private in (HOST, str(tmp_path), time.strftime("%Y-%m-%dT"), time.strftime("%Y-%m-%d %H")):
        assert private.encode() not in everything


def test_run_folders_and_published_results_stand_together(suite):
    assert suite("report")[0] == 0
    page = Path("model-zoo/index.md").read_text()
    assert "MoCo v2" in page and "SimCLR" in page
    readme = Path("README.md").read_text()
    assert "| Algorithm |" in readme and "60.0" in readme and readme.endswith("<!-- suite:end -->\n")
    assert suite("report", "--results", "nowhere")[0] == 2


@pytest.mark.parametrize("file", ["model-zoo/index.md", "model-zoo/mocov2.html", "README.md", "model-zoo/leaderboard.csv"])
def test_check_catches_a_one_digit_edit(suite, file):
    assert suite("report", "--format", "csv")[0] == 0
    path = Path(file)
    text = path.read_text()
    assert "60.0" in text
    path.write_text(text.replace("60.0", "60.1", 1))
    code, err = suite("report", "--check")
    assert code == 1 and file in err
    assert path.read_text() != text, "a check writes nothing"
    assert suite("report")[0] == 0 and path.read_text() == text


def test_check_names_a_stale_version(suite):
    old = proven("mocov2")
    old = replace(old, results={**old.results, "knn": replace(old.results["knn"], version=0)})
    saved(Path("runs"), old)
    assert suite("report")[0] == 0
    code, err = suite("report", "--check")
    assert code == 1 and f"{old.id}: knn measured with version 0 of knn, the current one is" in err
    saved(Path("runs"), replace(old, notes=("stale: knn version 0, 1 was current when it was published",)))
    assert suite("report")[0] == 0
    assert suite("report", "--check")[0] == 0, "marked"


def test_check_names_a_missing_record_and_a_missing_result(suite):
    assert suite("report")[0] == 0
    made = proven("mocov2")
    (Path("runs") / made.id / "results" / "knn.json").unlink()
    code, err = suite("report", "--check")
    assert code == 1 and f"the pages show knn of {made.id}, whose record is gone" in err
    shutil.rmtree(Path("runs") / made.id)
    code, err = suite("report", "--check")
    assert code == 1 and f"the pages show {made.id}, whose record (run.json) is gone" in err


def test_a_broken_record_is_named_left_out_and_fails_the_check(suite):
    Results(Path("reports/results")).path("x").write_text("{")
    (Path("runs") / "bad" / "results").mkdir(parents=True)
    (Path("runs") / "bad" / "run.json").write_text(to_json(proven()).replace('"seed": 0', '"seed": "none"'))
    code, err = suite("report")
    assert code == 0 and "reports/results/x.json: corrupted JSON" in err and "bad/run.json: not a run record (" in err
    page = Path("model-zoo/index.md").read_text()
    assert "MoCo v2" in page and "SimCLR" in page
    code, err = suite("report", "--check")
    assert code == 1 and "x.json" in err


def test_unchanged_inputs_are_recognised_and_every_change_is_seen(suite, monkeypatch):
    monkeypatch.setattr(fresh, "RACY", 0)

    def idle():
        code, err = suite("report")
        assert code == 0, err
        return "nothing changed" in err

    assert not idle() and idle()
    made = proven("mocov2")
    record = Path("runs") / made.id / "results" / "knn.json"
    text, when = record.read_text(), record.stat().st_mtime_ns
    record.write_text(text.replace("60.0", "61.0"))
    os.utime(record, ns=(when, when))  # same size, same time: still another file
    assert not idle() and "61.0" in Path("model-zoo/index.md").read_text() and idle()
    for file in ("README.md", "model-zoo/index.md"):
        before = Path(file).read_text()
        Path(file).write_text(before.replace("61.0", "99.9"))
        assert not idle() and Path(file).read_text() == before and idle()
    (Path("model-zoo") / "mocov2.html").unlink()
    assert not idle() and (Path("model-zoo") / "mocov2.html").is_file() and idle()
    shutil.rmtree(Path("runs") / made.id)
    assert not idle()


def test_fresh_inputs_are_not_trusted(suite):
    saved(Path("runs"), proven("mocov2", seed=1))
    assert suite("report")[0] == 0
    assert "nothing changed" not in suite("report")[1], "a record written just now may be written again unseen"


def test_stamps_only_when_asked(suite):
    assert suite("report", "--stamp")[0] == 0
    assert f"Made {time.strftime('%Y', time.gmtime())}-" in Path("model-zoo/index.md").read_text()
    assert suite("report", "--stamp", "--check")[0] == 2
    assert suite("report")[0] == 0
    assert "Made 20" not in Path("model-zoo/index.md").read_text()


def test_exports_stay_current_once_made(suite):
    assert suite("report", "--format", "yaml")[0] == 2
    assert suite("report", "--format", "json,latex,csv")[0] == 0
    found = json.loads(Path("model-zoo/leaderboard.json").read_text())
    row = next(row for row in found["tables"][0]["rows"] if row["Algorithm"]["text"] == "MoCo v2")
    assert next(cell["value"] for head, cell in row.items() if head.startswith("kNN")) == 60.0
    with open("model-zoo/leaderboard.csv", newline="") as file:
        cells = [one for one in csv.DictReader(file) if one["name"] == "MoCo v2" and one["column"].startswith("kNN")]
    assert [one["value"] for one in cells] == ["60.0"]
    latex = Path("model-zoo/leaderboard.tex").read_text()
    assert latex.count(r"\toprule") == latex.count(r"\end{table}") == len(found["tables"])
    made = proven("mocov2")
    saved(Path("runs"), replace(made, results={"knn": replace(made.results["knn"], metrics={"top1": 12.5})}))
    assert suite("report")[0] == 0
    assert "12.5" in Path("model-zoo/leaderboard.tex").read_text(), "an export made once is not left behind"


def test_hostile_text_is_harmless_in_every_export():
    name = "=cmd|' /C calc'!A0 \\input{x} 50% & $_# <b> \u202egnp\n{~^}"
    tables = [Table(name, ["Algorithm", "P", name], [[Cell(name), Cell("p"), Cell("−1.5", -1.5, kind="best")]])]
    latex = export.as_latex(tables)
    body = latex.partition(r"\midrule")[2]
    assert r"\textbackslash{}input\{x\} 50\% \& \$\_\# \textless{}b\textgreater{}" in body and "\u202e" not in latex
    assert body.splitlines()[1].endswith(r"& p & \textbf{$-$1.5} \\")
    line = list(csv.DictReader(export.as_csv(tables).splitlines()))[0]
    assert line["name"].startswith("'=cmd") and line["value"] == "-1.5" and "\u202e" not in "".join(line.values())
    assert json.loads(export.as_json(tables))["tables"][0]["rows"][0]["P"] == {"text": "p"}


def test_exports_of_an_empty_zoo():
    document = Document("index", "Zoo", "", ["There are no records yet."])
    found = export.exports(document, ["csv", "json", "tex"])
    assert json.loads(found["leaderboard.json"])["tables"] == [] and found["leaderboard.csv"].count(b"\n") == 1
