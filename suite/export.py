# SPDX-License-Identifier: Apache-2.0
"""The leaderboard for papers and notebooks: `leaderboard.json`, `.csv`, `.tex`, from the tables of the first page."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from suite.errors import unknown
from suite.markup import visible
from suite.render import FORMATS as PAGES
from suite.render import MARK
from suite.spec import Cell, Document, Table

STEM = "leaderboard"


def names(formats: Sequence[str], pages: Path) -> list[str]:
    """File endings to write: those asked for, and those written before, so that none is left behind stale.

    Raises:
        UsageError: an unknown format.
    """
    for name in formats:
        if name not in FORMATS and name not in PAGES:
            raise unknown("format", name, [*PAGES, *FORMATS])
    asked = {ENDINGS[name] for name in formats if name in FORMATS}
    return sorted(asked | {ending for ending in ENDINGS.values() if (pages / f"{STEM}.{ending}").is_file()})


def exports(index: Document, endings: Sequence[str]) -> dict[str, bytes]:
    """File name to bytes of the leaderboard in every wanted form."""
    tables = [part for part in index.parts if isinstance(part, Table)]
    forms = {ENDINGS[name]: form for name, form in FORMATS.items()}
    return {f"{STEM}.{ending}": forms[ending](tables).encode() for ending in endings}


def as_json(tables: Sequence[Table]) -> str:
    """Every table with its columns and, per row, a cell by column: text, value, kind, and the first line of its provenance."""
    found = [
        {"title": table.title, "columns": heads(table),
         "rows": [{head: _cell(cell) for head, cell in zip(heads(table), row, strict=True)} for row in table.rows]}
        for table in tables
    ]  # fmt: skip
    return json.dumps({"generated": MARK, "tables": found}, indent=1, ensure_ascii=True) + "\n"


def _cell(cell: Cell) -> dict[str, object]:
    full = {"text": visible(cell.text), "value": cell.value, "kind": cell.kind, "why": visible(first_line(cell))}
    return {key: value for key, value in full.items() if key == "text" or value not in ("", None)}


def as_csv(tables: Sequence[Table]) -> str:
    """Long form: one line per cell, so that tables of different columns fit into one file."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "row", "name", "preset", "column", "text", "value", "kind", "why"])
    for table in tables:
        for number, row in enumerate(table.rows, 1):
            name, preset = (tame(row[i].text) if i < len(row) else "" for i in (0, 1))
            for head, cell in zip(heads(table)[2:], row[2:], strict=True):
                value = "" if cell.value is None else repr(cell.value)
                text = [tame(table.title), number, name, preset, tame(head), tame(cell.text), value, cell.kind]
                writer.writerow([*text, tame(first_line(cell))])
    return out.getvalue()


def tame(text: str) -> str:
    """Text on one line that no spreadsheet takes for a formula."""
    text = " ".join(visible(text).split())
    return f"'{text}" if text[:1] in tuple("=+-@") and not re.fullmatch(r"[+-]?[\d.,]+", text) else text


def as_latex(tables: Sequence[Table]) -> str:
    """A booktabs table each; lines that are controls or published in italics, the best of a column in bold."""
    lines = [f"% {MARK}; needs \\usepackage{{booktabs}} and UTF-8"]
    for table in tables:
        numeric = [any(row[i].value is not None for row in table.rows) for i in range(len(table.columns))]
        lines += ["", r"\begin{table}", r"\centering", rf"\caption{{{latex(table.title)}}}",
                  rf"\begin{{tabular}}{{{''.join('r' if number else 'l' for number in numeric)}}}", r"\toprule",
                  _latex_row(latex(head) for head in heads(table)), r"\midrule",
                  *(_latex_row(map(_latex_cell, row)) for row in table.rows),
                  r"\bottomrule", r"\end{tabular}", r"\end{table}"]  # fmt: skip
    return "\n".join(lines) + "\n"


def _latex_row(cells: Iterator[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(cell: Cell) -> str:
    text = latex(cell.text)
    command = {"best": "textbf", "control": "textit", "published": "textit"}.get(cell.kind, "")
    return rf"\{command}{{{text}}}" if command and text else text


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "^": r"\textasciicircum{}",
    "_": r"\_", "~": r"\textasciitilde{}", "%": r"\%", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "[": "{[}", "]": "{]}", "±": r"$\pm$", "−": "$-$", "–": "--", "≥": r"$\geq$", "≤": r"$\leq$",
    "×": r"$\times$", "·": r"$\cdot$", "…": r"\dots{}", "\u00a0": "~",
}  # fmt: skip


def latex(text: str) -> str:
    """Text that LaTeX prints as it stands, on one line."""
    return "".join(LATEX.get(letter, letter) for letter in " ".join(visible(text).split(" ")).replace("\n", " "))


def heads(table: Table) -> list[str]:
    """Column titles on one line each; a repeated one gets a number."""
    found: list[str] = []
    for column in table.columns:
        title = " ".join(visible(column).split())
        found.append(title if title not in found else f"{title} ({sum(head.startswith(title) for head in found) + 1})")
    return found


def first_line(cell: Cell) -> str:
    """The first line of what a cell says on pointing."""
    return cell.hover.partition("\n")[0]


FORMATS: Mapping[str, Callable[[Sequence[Table]], str]] = {"json": as_json, "csv": as_csv, "latex": as_latex}
ENDINGS = {"json": "json", "csv": "csv", "latex": "tex"}
