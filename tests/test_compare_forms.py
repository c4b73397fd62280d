# SPDX-License-Identifier: Apache-2.0
"""A verdict in every form, its exit codes, and the action and workflow that call for them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer.main
import yaml

from suite import cli
from suite.verdict import Row, Verdict
from suite.verdict_forms import FORMS, github, json_text, junit, markdown
from tests.prediction_samples import make_run, planted

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = 'a|b`<script>alert(1)</script>"&\u202e::error::%0A\n\x00\x1b[31m*x*\ufffe😀'


@pytest.fixture
def suite(tmp_path, monkeypatch, capfd):
    """Run a command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = cli.main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def pair(tmp_path):
    a, b = planted(drop=40)
    return make_run(tmp_path, a), make_run(tmp_path, b, run_id="b")


def hostile():
    rows = [
        Row("bytes", "weights", "differs", note=HOSTILE),
        Row("score", HOSTILE, "worse", 60.0, 50.0, -10.0, -12.0, -8.0, 0.0001, samples=100),
        Row("score", "knn/top1", "inconclusive", 60.0, 59.9, -0.1, -2.0, 1.8, 0.5, samples=100, needed=4321, note=HOSTILE),
        Row("score", "svm/map", "better", 60.0, 70.0, 10.0, 8.0, 12.0, 0.0001),
        Row("score", "rank/rankme", "inconclusive", float("nan"), 1.0, float("nan")),
    ]
    return Verdict(HOSTILE, "head", rows, 0.5, 0.05, (HOSTILE,))


def test_markdown_is_a_table_that_hostile_names_cannot_leave():
    text = markdown(hostile())
    lines = text.splitlines()
    assert lines[0].startswith("### Regression: head against a")
    table = [line for line in lines if line.startswith("| ")]
    assert len(table) == 2 + 5
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {8}
    assert "<script>" not in text and "\u202e" not in text and "\x1b" not in text
    assert "about 4,400 images would tell" in text and "−10.00" in text and "< 0.001" in text and "90 % interval" in text
    assert text.splitlines()[-1].startswith("Worse: the drop is real")


def test_junit_fails_what_is_worse_and_skips_what_cannot_be_told():
    root = ElementTree.fromstring(junit(hostile()))
    cases = root.findall("testcase")
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("5", "1", "2")
    assert [[child.tag for child in case if child.tag != "system-out"] for case in cases] == [
        [], ["failure"], ["skipped"], [], ["skipped"],
    ]  # fmt: skip
    assert "<script>" in cases[1].get("name") and "\x1b" not in cases[1].get("name")
    assert "4,400 images" in cases[2].find("skipped").get("message")


def test_annotations_are_one_command_a_line():
    lines = github(hostile()).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["::error", "::warning", "::notice", "::warning", "::notice", "::error"]
    assert all(re.fullmatch(r"::(error|warning|notice) title=[^,:]*::[^\x00-\x1f]*", line) for line in lines)
    assert "%250A" in lines[0]  # the percent sign of a name is a percent sign


def test_json_is_strict_and_complete():
    raw = json.loads(json_text(hostile()), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert raw["regressed"] is True and raw["rows"][4]["difference"] is None and len(raw["notes"]) == 1


@pytest.mark.parametrize("form", FORMS)
def test_forms_and_exit_codes_on_the_command_line(suite, pair, form, tmp_path):
    files = {name: tmp_path / "out" / f"verdict.{name}" for name in ("markdown", "json", "junit")}
    options = [part for name, file in files.items() for part in (f"--{name}", file)]
    code, out, _ = suite("compare", *pair, "--format", form, *options)
    assert code == 1
    if form in files:
        assert out == files[form].read_text()
    assert "top1" in out and ElementTree.fromstring(files["junit"].read_text()).get("failures") == "1"
    assert suite("compare", pair[0], pair[0], "--format", form)[0] == 0
    assert suite("compare", pair[1], pair[0], "--format", form)[0] == 0
    assert suite("compare", pair[0], "nowhere", "--format", form)[0] == 2
    assert suite("compare", *pair, "--bench", "lineal", "--format", form)[0] == 2


def test_tolerance_and_alpha_reach_the_verdict(suite, pair):
    assert suite("compare", *pair, "--tolerance", "4")[0] == 0
    assert "98 % interval" in suite("compare", *pair, "--alpha", "0.01")[1]
    assert suite("compare", *pair, "--alpha", "0.7")[0] == 2
    assert suite("compare", *pair, "--tolerance", "-1")[0] == 2


def options_of(command):
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def called(text):
    """Words of every `suite …` command in a shell script, continued lines joined and shell syntax left out."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for line in joined.splitlines():
        found = re.search(r"(?:^|[\s;&(|])suite (?=[a-z])(.*)", line)
        if found and not line.strip().startswith("#"):
            yield shlex.split(found[1].split(">")[0].split("||")[0].split("&&")[0])


def scripts(raw):
    """Shell scripts of a workflow or action."""
    steps = raw.get("runs", {}).get("steps", []) + [s for job in raw.get("jobs", {}).values() for s in job.get("steps", [])]
    return steps, [step["run"] for step in steps if "run" in step]


def loaded(path):
    raw = yaml.safe_load((ROOT / path).read_text())
    return {("on" if key is True else key): value for key, value in raw.items()}


def test_the_action_calls_what_the_command_line_has():
    action = loaded("action.yml")
    steps, texts = scripts(action)
    assert action["runs"]["using"] == "composite" and all("shell" in step for step in steps if "run" in step)
    group = typer.main.get_command(cli.app)
    commands = [words for text in texts for words in called(text)]
    assert [words[0] for words in commands] == ["compare"]
    for words in commands:
        known = options_of(group.commands[words[0]])
        used = {word.split("=")[0] for word in words if word.startswith("--") and word != "--"}
        assert used <= known and {"--junit", "--json", "--markdown", "--format"} <= used
    for step in steps:  # what a pull request can choose reaches the shell as a variable, never as text of a script
        assert "${{" not in step.get("run", "")
    inputs = set(re.findall(r"inputs\.([a-z-]+)", (ROOT / "action.yml").read_text()))
    assert inputs == set(action["inputs"])
    assert set(action["outputs"]) == {"verdict", "markdown", "json", "junit"}


@pytest.mark.parametrize("path", [".github/workflows/gate.yml", "docs/gate.md"])
def test_examples_give_the_action_what_it_takes(path):
    action, text = loaded("action.yml"), (ROOT / path).read_text()
    if path.endswith(".md"):
        blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    else:
        blocks = [loaded(path)]
    steps = [step for block in blocks for step in (block if isinstance(block, list) else scripts(block)[0])]
    uses = [step for step in steps if re.fullmatch(r"\./|OWNER/ssl-suite@\w+", step.get("uses", ""))]
    assert uses
    for step in uses:
        assert set(step.get("with", {})) <= set(action["inputs"])
        assert {"base", "head"} <= set(step["with"])


def test_five_lines_are_enough():
    first = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/gate.md").read_text(), re.DOTALL)[0]
    assert len(first.strip().splitlines()) <= 5 and "uses: OWNER/ssl-suite@" in first


def step_environment(step, inputs, tmp_path):
    """What the runner gives the shell of a step: its `env` with the inputs filled in."""
    values = {"github.action_path": str(ROOT), **{f"inputs.{name}": value for name, value in inputs.items()}}
    env = {}
    for name, text in step.get("env", {}).items():
        env[name] = re.sub(
            r"\$\{\{ (.*?) \}\}", lambda m: next(filter(None, (values[k] for k in m[1].split(" || "))), ""), text
        )
    files = {name: str(tmp_path / name.lower()) for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
    return {**env, **files, "RUNNER_TEMP": str(tmp_path / "temp dir")}


@pytest.mark.parametrize("swapped", [False, True])
def test_the_steps_of_the_action_run(pair, tmp_path, swapped):
    action = loaded("action.yml")
    base, head = pair[::-1] if swapped else pair
    inputs = {name: given.get("default", "") for name, given in action["inputs"].items()} | {
        "base": str(base),
        "head": str(head),
    }
    binary = tmp_path / "bin" / "suite"
    binary.parent.mkdir()
    binary.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -m suite.cli "$@"\n')
    binary.chmod(0o755)
    for step in action["runs"]["steps"]:
        env = {**os.environ, "PATH": f"{binary.parent}:{os.environ['PATH']}", **step_environment(step, inputs, tmp_path)}
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == (0 if swapped else 1), done.stderr
    outputs = dict(line.split("=", 1) for line in (tmp_path / "github_output").read_text().splitlines())
    assert outputs["verdict"] == ("none" if swapped else "regression")
    assert all(Path(outputs[name]).is_file() for name in ("markdown", "json", "junit"))
    assert (tmp_path / "github_step_summary").read_text() == Path(outputs["markdown"]).read_text()
    assert ("::error title=linear/top1 worse::" in done.stdout) != swapped
