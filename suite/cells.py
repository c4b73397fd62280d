# SPDX-License-Identifier: Apache-2.0
"""Table cells as HTML, as compact JSON for the rows that a browser builds itself, and as markdown.

Pages of ten thousand runs have half a million cells, so these are plain functions and not templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from suite.blocks import Block, reason
from suite.markup import markdown_text, visible
from suite.spec import Cell, Versus

SHOWN = 50
"""Rows of a table that stand in the page as HTML; the browser builds the others when they are asked for."""
LONG = 40
"""Characters from which on a cell counts as prose and gets more room."""
Href = Callable[[str], str]
SPREAD = re.compile(r"^(.*?)( ± .*| \[.*)$", re.DOTALL)


def rows_html(rows: Sequence[Sequence[Cell]], numeric: Sequence[bool], href: Href) -> str:
    """Table rows as HTML; everything a record says is escaped."""
    return "\n".join(_row_html(row, numeric, href) for row in rows)


def _row_html(row: Sequence[Cell], numeric: Sequence[bool], href: Href) -> str:
    cells = [_cell_html(cell, i == 0, numeric[i], href) for i, cell in enumerate(row)]
    return f"<tr>{''.join(cells)}</tr>"


def _cell_html(cell: Cell, first: bool, number: bool, href: Href) -> str:
    text = escape(visible(cell.text))
    shown = _spread(text) if number else text
    long = not number and len(cell.text) > LONG
    names = " ".join(name for name in ("num" if number else "", cell.kind, "long" if long else "") if name)
    opening = ('<th scope="row"' if first else "<td") + (f' class="{names}"' if names else "")
    opening += f' data-v="{cell.value}">' if cell.value is not None else ">"
    hover = escape(visible(cell.hover)) if cell.hover else ""
    link = href(cell.link) if cell.link else ""
    if link:
        shown = f'<a href="{escape(link)}">{shown}</a>'
        if hover:
            shown += f'<button type="button" class="tip info" title="{hover}" aria-label="Provenance of {text}">i</button>'
    elif hover:
        shown = f'<button type="button" class="tip" title="{hover}">{shown}</button>'
    return f"{opening}{shown}{'</th>' if first else '</td>'}"


def _spread(text: str) -> str:
    """Text with its `± …` or `[…]` part set apart."""
    match = SPREAD.match(text)
    return f'{match[1]}<span class="pm">{match[2]}</span>' if match and match[1] else text


def rows_json(bodies: Sequence[tuple[str, Sequence[Sequence[Cell]]]], href: Href) -> str:
    """The rows that are not in the page: per body, rows of `[text, value, kind, link, lines]`, short ends cut off.

    Lines of provenance repeat in most rows, so they are numbered and stand once.
    """
    lines: dict[str, int] = {}
    packed = [[[_pack(cell, lines, href) for cell in row] for row in rows] for _, rows in bodies]
    return script_json({"lines": [visible(line) for line in lines], "bodies": packed})


def _pack(cell: Cell, lines: dict[str, int], href: Href) -> Any:
    text = visible(cell.text)
    link = href(cell.link) if cell.link else ""
    if cell.hover:
        said = [lines.setdefault(line, len(lines)) for line in cell.hover.split("\n")]
        return [text, cell.value, cell.kind, link, said]
    if link or cell.kind:
        return [text, cell.value, cell.kind, link]
    return text if cell.value is None else [text, cell.value]


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor start a comment there."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.encode("utf-8", "replace").decode()
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def versus_json(part: Versus, href: Href) -> str:
    """A comparison's data for the browser."""
    names = [visible(name) for name in part.names]
    rows = [[visible(heading), visible(label)] for heading, label in part.rows]
    values = [[visible(v) if isinstance(v, str) else v for v in one] for one in part.values]
    return script_json({"names": names, "links": [href(link) for link in part.links], "rows": rows, "values": values})


def rows_markdown(block: Block, href: Href) -> str:
    """Table rows as markdown."""
    assert block.table is not None
    footnotes = block.footnotes
    known: dict[tuple[str, str, str], str] = {}
    lines = []
    for row in block.table.rows:
        cells = []
        for cell in row:
            key = (cell.text, cell.kind, cell.link)
            text = known.get(key)
            if text is None:
                text = known[key] = _cell_markdown(cell, href)
            why = reason(cell)
            cells.append(f"{text}<sup>{footnotes[why]}</sup>" if why else text)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell_markdown(cell: Cell, href: Href) -> str:
    text = markdown_text(visible(cell.text))
    if cell.kind == "best":
        text = f"**{text}**"
    elif cell.kind in ("published", "control"):
        text = f"*{text}*" if text else ""
    link = href(cell.link) if cell.link else ""
    return f"[{text}]({link})" if link else text


def versus_markdown(part: Versus) -> str:
    """The first two things of a comparison as a markdown table."""
    first, second = part.values[0], part.values[1]
    names = [markdown_text(visible(name)) for name in part.names[:2]]
    lines = [f"| | {names[0]} | {names[1]} | Difference |", "| --- | ---: | ---: | ---: |"]
    for (heading, label), a, b in zip(part.rows, first, second, strict=True):
        if a is None and b is None:
            continue
        shown = ("–" if v is None else markdown_text(visible(str(v))) for v in (a, b))
        lines.append(f"| {markdown_text(visible(f'{heading}: {label}'))} | {' | '.join(shown)} | {_gap(a, b)} |")
    return "\n".join(lines)


def site_json(pages: Sequence[Mapping[str, str]]) -> str:
    """Title, file, group and words of every page, for the search."""
    return script_json([[visible(one[key]) for key in ("title", "file", "group", "words")] for one in pages])


def _gap(a: object, b: object) -> str:
    """What the second of two values is above the first, or that they differ."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return f"{b - a:+.4g}"
    return "" if a == b else "differs"
