# SPDX-License-Identifier: Apache-2.0
"""Figures in one look, as SVG that has the same bytes every time and follows the page's theme."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

INK, MUTED, LINE, ACCENT, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
"""Stand for roles of the page's theme; the renderer puts its colours in (`suite.render.COLOURS`)."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "suite",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Panel:
    """One column of dots: a benchmark's headline per row."""

    title: str
    values: Sequence[float | None]
    ends: Sequence[tuple[float, float] | None]
    "95 % intervals, where they are known."
    controls: Mapping[str, float] = field(default_factory=dict)


def dots(rows: Sequence[str], panels: Sequence[Panel], width: float = 11.0) -> str:
    """Small multiples of dots, one panel per benchmark, a row per algorithm, control values as vertical lines."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = [label(row) for row in rows]
    height = 1.05 + 0.34 * len(rows)
    space = min(2.6, 0.35 + 0.085 * max((len(row) for row in rows), default=0))
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's fonts draw the text, not ours
        figure = Figure(figsize=(width, height))
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        figure.subplots_adjust(
            left=space / width, right=1 - 0.15 / width, top=1 - 0.65 / height, bottom=0.32 / height, wspace=0.14
        )
        for axes, panel in zip(grid, panels, strict=True):
            _panel(axes, panel, rows)
        return svg(figure)


def label(text: str, longest: int = 32) -> str:
    """Printable characters only, and not too many."""
    shown = "".join(character for character in text if character.isprintable())
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


DASHES = ("dashed", "dotted", "dashdot", "solid")


def _panel(axes: Any, panel: Panel, rows: Sequence[str]) -> None:
    places = range(len(rows))
    axes.hlines(places, 0, 1, transform=axes.get_yaxis_transform(), color=LINE, linewidth=0.6, zorder=0)
    dotted = [(i, value) for i, value in zip(places, panel.values, strict=True) if value is not None]
    axes.plot([value for _, value in dotted], [i for i, _ in dotted], "o", color=ACCENT, markersize=5.5)
    spans = [(i, ends) for (i, _) in dotted if (ends := panel.ends[i]) is not None]
    lows, highs = [low for _, (low, _) in spans], [high for _, (_, high) in spans]
    axes.hlines([i for i, _ in spans], lows, highs, color=ACCENT, linewidth=1.5, capstyle="round")
    known = [v for v in (*panel.values, *panel.controls.values()) if v is not None]
    known += [end for ends in panel.ends if ends is not None for end in ends]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    margin = 0.18 * (high - low) or max(1.0, 0.1 * abs(high))
    axes.set_xlim(low - margin, high + margin)
    for i, (dash, (name, value)) in enumerate(zip(DASHES, sorted(panel.controls.items()), strict=False)):
        axes.axvline(value, color=MUTED, linewidth=1, linestyle=dash, zorder=1)
        axes.annotate(  # towards the middle, one above the other: names meet neither each other nor those of the next panel
            label(name, 14), (value, 1), xycoords=("data", "axes fraction"), xytext=(0, 2 + 8 * i), textcoords="offset points",
            ha="left" if 2 * value < low + high else "right", fontsize=7, color=MUTED,
        )  # fmt: skip
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), rows)
    title, names = "\n".join(label(line) for line in panel.title.splitlines()), min(len(panel.controls), len(DASHES))
    axes.set_title(title, fontsize=9, loc="left", pad=6 + 8 * names, color=INK)
    axes.tick_params(length=0, labelsize=8)
    axes.tick_params(axis="y", labelsize=9)
    axes.locator_params(axis="x", nbins=5, steps=[1, 2, 5, 10], integer=True)
    inside = [tick for tick in axes.get_xticks() if low - 0.4 * margin <= tick <= high + 0.4 * margin]
    axes.set_xticks(inside or [low, high])  # those at the ends would meet the next panel's
    axes.spines[["top", "right", "left"]].set_visible(False)


def svg(figure: Any) -> str:
    """The figure as SVG text, the same bytes every time."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    # names that would be double where a page holds two figures; what is referred to keeps its hashed name
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()
