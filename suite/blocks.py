# SPDX-License-Identifier: Apache-2.0
"""A document's parts in the shape that the templates want."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from suite.errors import UsageError
from suite.spec import Cell, Document, Plot, Table, Versus


def slug(text: str) -> str:
    """Lower-case ASCII words joined by hyphens, for anchors."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "section"


@dataclass(frozen=True)
class Block:
    """One piece of a page in the shape the templates want."""

    kind: str
    "heading, code, list, paragraph, table, plot or versus."
    anchor: str = ""
    text: str = ""
    items: Sequence[str] = ()
    table: Table | None = None
    plot: Plot | None = None
    versus: Versus | None = None
    number: int = 0

    @cached_property
    def numeric(self) -> list[bool]:
        """Which columns of the table hold numbers, or would if they were not empty."""
        assert self.table is not None
        found = []
        for i in range(len(self.table.columns)):
            cells = [row[i] for row in self.table.rows]
            found.append(any(c.value is not None for c in cells) or _all_missing(cells))
        return found

    @property
    def small(self) -> bool:
        """Whether a plot is narrow enough to stand at less than the page's width."""
        found = re.search(r'viewBox="\S+ \S+ ([\d.]+)', self.plot.svg if self.plot else "")
        return found is not None and float(found[1]) < 600

    @cached_property
    def bodies(self) -> list[tuple[str, list[Sequence[Cell]]]]:
        """Consecutive rows of one kind, which is the kind of their first cell."""
        assert self.table is not None
        return [(kind, list(rows)) for kind, rows in groupby(self.table.rows, key=lambda row: row[0].kind)]

    @cached_property
    def footnotes(self) -> dict[str, int]:
        """Why cells are empty or stale, each reason once and numbered, in order of appearance."""
        assert self.table is not None
        found: dict[str, int] = {}
        for row in self.table.rows:
            for cell in row:
                why = reason(cell)
                if why and why not in found:
                    found[why] = len(found) + 1
        return found


def _all_missing(cells: Sequence[Cell]) -> bool:
    return bool(cells) and all(cell.kind == "missing" for cell in cells)


def reason(cell: Cell) -> str:
    """Why a cell is empty or stale: the first line of what it says on pointing."""
    return cell.hover.partition("\n")[0] if cell.kind in ("missing", "stale") else ""


def blocks(document: Document) -> Iterator[Block]:
    """The pieces of a document in order.

    Raises:
        UsageError: a table with a row of the wrong length.
    """
    anchors: dict[str, int] = {}
    plots = 0

    def anchor(title: str) -> str:
        base = slug(title)
        anchors[base] = anchors.get(base, 0) + 1
        return base if anchors[base] == 1 else f"{base}-{anchors[base]}"

    for part in document.parts:
        if isinstance(part, Table):
            for row in part.rows:
                if len(row) != len(part.columns):
                    raise UsageError(f"table {part.title!r}: a row has {len(row)} cells for {len(part.columns)} columns")
            yield Block("table", anchor(part.title), part.title, table=part)
        elif isinstance(part, Plot):
            plots += 1
            yield Block("plot", anchor(part.title), part.title, plot=part, number=plots)
        elif isinstance(part, Versus):
            yield Block("versus", anchor(part.title), part.title, versus=part)
        elif part.startswith("## "):
            yield Block("heading", anchor(part[3:]), part[3:])
        else:
            yield _text(part)


def _text(part: str) -> Block:
    lines = part.splitlines() or [""]
    if all(line.startswith("    ") for line in lines):
        return Block("code", text="\n".join(line[4:] for line in lines))
    if all(line.startswith("- ") for line in lines):
        return Block("list", items=[line[2:] for line in lines])
    return Block("paragraph", text=part)
