# SPDX-License-Identifier: Apache-2.0
"""A verdict as people and programs read it: markdown, JSON, JUnit XML, GitHub annotations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree as xml

from suite.markup import markdown_text, visible
from suite.verdict import Row, Verdict


def json_text(verdict: Verdict) -> str:
    """Stable JSON; what is not a number is null."""
    raw = {**asdict(verdict), "regressed": verdict.regressed}
    return json.dumps(_finite(raw), indent=2, ensure_ascii=False, default=list) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(verdict: Verdict) -> str:
    """A comment for a pull request."""
    lines = [
        f"### {title(verdict)}: {_plain(verdict.head)} against {_plain(verdict.base)}",
        "",
        f"| | base | head | difference | {100 * (1 - 2 * verdict.alpha):g} % interval | p | verdict |",
        "| --- | ---: | ---: | ---: | :---: | ---: | --- |",
    ]
    for row in verdict.rows:
        word = f"**{row.verdict}**" if row.verdict == "worse" else row.verdict
        note = f" ({_plain(explained(row))})" if explained(row) else ""
        cells = [_plain(row.what), _number(row.base), _number(row.head), _signed(row.difference), _interval(row), _p(row)]
        lines.append("| " + " | ".join([*cells, word + note]) + " |")
    lines += ["", *(f"- {_plain(note)}" for note in verdict.notes), *([""] if verdict.notes else []), rule(verdict)]
    return "\n".join(lines) + "\n"


def title(verdict: Verdict) -> str:
    """The verdict in two words."""
    if verdict.regressed:
        return "Regression"
    compared = any(row.level == "score" and row.difference is not None for row in verdict.rows)
    return "No regression" if compared else "No score compared"


def rule(verdict: Verdict) -> str:
    """What the words of a verdict mean, with its own numbers."""
    return (
        f"Worse: the drop is real (one-sided test, all scores together err at most {100 * verdict.alpha:g} % of the time) and "
        f"not shown to be within {verdict.tolerance:g} points. Better: a gain in the same way. Same: shown to be no drop of "
        f"more than {verdict.tolerance:g} points."
    )


def explained(row: Row) -> str:
    """A row's note with what would settle it."""
    more = f"about {_rounded(row.needed):,} images would tell" if row.needed else ""
    more = f"about {_rounded(row.needed_seeds):,} seeds a side would tell" if row.needed_seeds else more
    return "; ".join(part for part in (row.note, more) if part)


def _rounded(count: int) -> int:
    """Up to two digits that mean something."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return -(-count // unit) * unit


def line(row: Row) -> str:
    """A row as one line of plain text."""
    scores = "" if row.base is None or row.head is None else f" {_number(row.base)} -> {_number(row.head)}"
    change = f" ({_signed(row.difference)}, interval {_interval(row) or 'unknown'})" if row.difference is not None else ""
    note = f"; {explained(row)}" if explained(row) else ""
    return visible(f"{row.what}: {row.verdict}{scores}{change}{note}")


def github(verdict: Verdict) -> str:
    """Workflow commands that GitHub shows as annotations of a run: errors, warnings, notices."""
    kinds = {"worse": "error", "inconclusive": "warning"}
    lines = []
    for row in verdict.rows:
        if row.level == "score":
            where = _escaped(f"{row.what} {row.verdict}", ":,")
            lines.append(f"::{kinds.get(row.verdict, 'notice')} title={where}::{_escaped(line(row))}")
    lines += [f"::notice title=not compared::{_escaped(visible(note))}" for note in verdict.notes]
    kind = "error" if verdict.regressed else "notice"
    return "\n".join([*lines, f"::{kind} title={title(verdict)}::{_escaped(visible(rule(verdict)))}"]) + "\n"


def _escaped(text: str, more: str = "") -> str:
    """Text for a workflow command, whose lines and fields end at these characters."""
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def junit(verdict: Verdict) -> str:
    """One test case per row: worse fails, inconclusive is skipped with the reason."""
    scores = [row for row in verdict.rows if row.level == "score"]
    counts = {"failures": sum(row.verdict == "worse" for row in scores), "errors": 0,
              "skipped": sum(row.verdict == "inconclusive" for row in scores)}  # fmt: skip
    suite = xml.Element("testsuite", {"name": _xml(f"suite compare {verdict.base} {verdict.head}"),
                                      "tests": str(len(verdict.rows)), **{k: str(v) for k, v in counts.items()}})  # fmt: skip
    for row in verdict.rows:
        case = xml.SubElement(suite, "testcase", {"classname": f"compare.{row.level}", "name": _xml(row.what), "time": "0"})
        if row.level == "score" and row.verdict == "worse":
            xml.SubElement(case, "failure", {"type": "regression", "message": _xml(line(row))}).text = rule(verdict)
        elif row.level == "score" and row.verdict == "inconclusive":
            xml.SubElement(case, "skipped", {"message": _xml(line(row))})
        xml.SubElement(case, "system-out").text = _xml(line(row))
    xml.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(suite, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    """Text without characters that XML cannot hold."""
    return visible(text).translate({0xFFFE: None, 0xFFFF: None})


FORMS: Mapping[str, Callable[[Verdict], str]] = {
    "markdown": markdown, "json": json_text, "junit": junit, "github": github,
}  # fmt: skip
"""What `--format` takes."""


def _plain(text: str) -> str:
    return markdown_text(visible(text))


def _interval(row: Row) -> str:
    return "" if row.low is None or row.high is None else f"{_signed(row.low)} … {_signed(row.high)}"


def _p(row: Row) -> str:
    if row.p is None:
        return ""
    return "< 0.001" if row.p < 0.001 else f"{row.p:.3f}" if row.p < 0.1 else f"{row.p:.2f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _signed(value: float | None) -> str:
    """A difference with its sign, a true minus and no negative zero."""
    if value is None:
        return ""
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")
