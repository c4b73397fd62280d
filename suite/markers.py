# SPDX-License-Identifier: Apache-2.0
"""Tables inside README and docs, between `<!-- suite:table NAME [key=value …] -->` and `<!-- suite:end -->`.

NAME is a generated document (`index`, an algorithm). `table=` picks the tables whose title holds the text, `columns=` a list of
columns by the start of their titles, `rows=` the first so many rows, `link=` the address of the published pages, for links.
A marker starts its line; inside a fenced code block it is only text.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from suite.errors import UsageError, unknown
from suite.render import render, safe_name
from suite.spec import Cell, Document, Table

START = re.compile(r"<!-- suite:table\s+(.*?)\s*-->\s*$")
END = re.compile(r"<!-- suite:end -->\s*$")
FENCE = re.compile(r" {0,3}(```+|~~~+)")
OPTIONS = ("table", "columns", "rows", "link")


@dataclass(frozen=True)
class Region:
    """The lines between two markers, without them."""

    first: int
    last: int
    "One past the last line."
    name: str
    options: Mapping[str, str]
    where: str
    "File and line, for errors."


def files(paths: Sequence[Path]) -> list[Path]:
    """The markdown files among and under these paths that hold a marker; paths that do not exist are left out."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.rglob("*.md")) if path.is_dir() else [path] if path.is_file() else []
        found += [file for file in inside if file.is_file() and b"<!-- suite:table" in file.read_bytes()]
    return list(dict.fromkeys(found))


def rewritten(path: Path, documents: Sequence[Document]) -> bytes:
    """A file's bytes with the tables between its markers made anew.

    Raises:
        UsageError: no UTF-8, a marker without its end, an unknown document, table, column or option; names file and line.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from None
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = text.split(newline)
    for region in reversed(list(_regions(lines, str(path)))):
        lines[region.first : region.last] = ["", *tables(region, documents), ""]
    return newline.join(lines).encode()


def _regions(lines: Sequence[str], where: str) -> Iterator[Region]:
    opened: Region | None = None
    fence = ""
    for i, line in enumerate(lines):
        ticks = FENCE.match(line)
        if opened is None and ticks:
            mark = ticks.group(1)
            fence = mark if not fence else "" if mark.startswith(fence) else fence
        start, end = START.match(line), END.match(line)
        if fence or not (start or end):
            continue
        if start and opened is not None:
            raise UsageError(f"{where} line {i + 1}: a table starts before the one of {opened.where} ended")
        if start:
            opened = _opened(start.group(1), i, f"{where} line {i + 1}")
        elif opened is None:
            raise UsageError(f"{where} line {i + 1}: <!-- suite:end --> without a start")
        else:
            yield replace(opened, last=i)
            opened = None
    if opened is not None:
        raise UsageError(f"{opened.where}: the table has no <!-- suite:end -->")


def _opened(text: str, line: int, where: str) -> Region:
    try:
        name, *rest = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    options = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if key not in OPTIONS or not equals:
            raise UsageError(f"{where}: {unknown('table option', key, OPTIONS)}")
        options[key] = value
    return Region(line + 1, line + 1, name, options, where)


def tables(region: Region, documents: Sequence[Document]) -> list[str]:
    """Lines of markdown: the chosen tables of the chosen document, as its page has them."""
    names = {document.name: document for document in documents}
    if region.name not in names:
        raise UsageError(f"{region.where}: {unknown('page', region.name, names)}")
    found = [part for part in names[region.name].parts if isinstance(part, Table)]
    wanted = region.options.get("table", "").casefold()
    chosen = [table for table in found if wanted in table.title.casefold()]
    if found and not chosen:
        raise UsageError(f"{region.where}: {unknown('table', region.options['table'], [table.title for table in found])}")
    lines: list[str] = [] if chosen else ["Nothing was measured yet."]
    for table in chosen:
        title, body = _markdown(_linked(_cut(table, region), region.options.get("link", "")))
        lines += [*([""] if lines else []), *([f"**{title}**", ""] if len(chosen) > 1 else []), *body]
    return lines


def _cut(table: Table, region: Region) -> Table:
    """The table with the columns and rows that were asked for."""
    at = list(range(len(table.columns)))
    if "columns" in region.options:
        titles = [" ".join(column.split()) for column in table.columns]
        at = []
        for name in (part.strip() for part in region.options["columns"].split(",")):
            exact = [i for i, column in enumerate(table.columns) if column.split("\n")[0].casefold() == name.casefold()]
            hits = exact or [i for i, title in enumerate(titles) if title.casefold().startswith(name.casefold())]
            if not name or not hits:
                raise UsageError(f"{region.where}: {unknown('column', name, titles)}")
            at += [i for i in hits if i not in at]
    rows = region.options.get("rows", "")
    if rows and not (rows.isascii() and rows.isdigit() and int(rows)):
        raise UsageError(f"{region.where}: rows={rows!r} is not a positive whole number")
    kept = table.rows[: int(rows)] if rows else table.rows
    return replace(table, columns=[table.columns[i] for i in at], rows=[[row[i] for i in at] for row in kept])


def _linked(table: Table, address: str) -> Table:
    """The table with links to the pages at an address; without one, links between pages would lead nowhere."""

    def moved(cell: Cell) -> Cell:
        inner = cell.link and not re.match(r"https?://", cell.link)
        link = f"{address.rstrip('/')}/{safe_name(cell.link)}.html" if inner and address else "" if inner else cell.link
        return cell if link == cell.link else replace(cell, link=link)

    return replace(table, rows=[[moved(cell) for cell in row] for row in table.rows])


def _markdown(table: Table) -> tuple[str, list[str]]:
    """Title and lines of a table, cut out of the page that the usual templates make of it."""
    with tempfile.TemporaryDirectory() as folder:
        render([Document("table", "Table", "", [table])], Path(folder), ("md",))
        text = (Path(folder) / "table.md").read_text(encoding="utf-8")
    _, _, rest = text.partition("\n### ")
    title, _, body = rest.partition("\n")
    return title, body.strip("\n").split("\n")
