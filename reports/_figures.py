# SPDX-License-Identifier: Apache-2.0
"""Figures of one run, in the look of `reports._plots`: curves, confusion matrix, neighbours, projection, time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from reports._plots import ACCENT, INK, LINE, MUTED, STYLE, label, svg
from suite.spec import Plot

POINTS = 300
"""Points of a curve at most: longer logs are averaged over stretches."""
CLASSES = 30
"""Classes of a confusion matrix at most."""
DOTS = 1000
"""Points of a projection at most."""
QUERIES, NEIGHBOURS = 8, 10
HUES = ("#3b76c4", "#d1783c", "#3f9a62", "#c0504e", "#8464b8", "#8f6b4e", "#c264a4", "#7d8a2e", "#2f9aa8", "#808080")
"""Of classes: middle tones that stand on white and on black."""


@contextmanager
def _figure(width: float, height: float) -> Iterator[Any]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's fonts draw the text, not ours
        yield Figure(figsize=(width, height))


CURVES = (("loss", "Loss"), ("lr", "Learning rate"), ("feature_rank", "Feature rank"), ("feature_std", "Feature spread"))


def curves(log: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Loss, learning rate, rank and spread of the features over epochs; None for a log without any of them."""
    series = [(title, *_series(log, name)) for name, title in CURVES]
    known = [one for one in series if len(one[1]) > 1]
    if not known:
        return None
    with _figure(11.0, 2.5) as figure:
        grid = figure.subplots(1, len(known), squeeze=False)[0]
        figure.subplots_adjust(left=0.05, right=0.99, top=0.84, bottom=0.2, wspace=0.28)
        for axes, (title, epochs, values) in zip(grid, known, strict=True):
            axes.plot(epochs, values, color=ACCENT, linewidth=1.4, solid_joinstyle="round")
            axes.set_title(title, fontsize=9, loc="left", color=INK)
            axes.set_xlabel("epoch", fontsize=8)
            _plain(axes)
        drawn = svg(figure)
    said = "; ".join(f"{title} from {values[0]:.3g} to {values[-1]:.3g}" for title, _, values in known)
    return Plot("Training curves", drawn, f"Curves over {known[0][1][-1]:.4g} epochs. {said}.")


def _series(log: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    pairs = [(float(row.get("epoch", row.get("step", i))), row.get(name)) for i, row in enumerate(log)]
    known = [(x, float(y)) for x, y in pairs if isinstance(y, (int, float)) and y == y and abs(y) != float("inf")]
    stretch = -(-len(known) // POINTS)
    pieces = [known[i : i + stretch] for i in range(0, len(known), stretch)] if stretch > 1 else [[pair] for pair in known]
    return [piece[-1][0] for piece in pieces], [sum(y for _, y in piece) / len(piece) for piece in pieces]


def _plain(axes: Any) -> None:
    axes.tick_params(length=0, labelsize=8)
    axes.tick_params(axis="y", labelcolor=MUTED)
    axes.locator_params(nbins=4)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def confusion(labels: Any, guesses: Any, where: str) -> Plot | None:
    """Confusion matrix in percent of each true class; with many classes, those that are mistaken most often."""
    import numpy as np
    from matplotlib.patches import Rectangle

    labels, guesses = np.asarray(labels).astype(int), np.asarray(guesses).astype(int)
    count = int(max(labels.max(initial=0), guesses.max(initial=0))) + 1
    if not labels.size or labels.min() < 0 or count > 5000:
        return None
    table = np.zeros((count, count))
    np.add.at(table, (labels, guesses), 1)
    wrong = table.sum(1) - np.diag(table)
    kept = np.sort(np.argsort(-wrong, kind="stable")[:CLASSES])
    share = 100 * table[np.ix_(kept, kept)] / np.maximum(table[kept].sum(1, keepdims=True), 1)
    n = len(kept)
    side = min(6.4, 1.2 + 0.36 * n)
    with _figure(side + 0.4, side) as figure:
        axes = figure.add_axes((0.6 / (side + 0.4), 0.12, 1 - 0.7 / (side + 0.4), 0.86))
        cells = [(i, j) for i in range(n) for j in range(n) if share[i, j] >= 0.5]
        for i, j in cells:
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 0.96, 0.96, color=ACCENT, linewidth=0, alpha=_tint(share[i, j])))
            if n <= 12 and share[i, j] >= 3:
                ink = INK if share[i, j] < 55 else "#050505"
                axes.text(j, i, f"{share[i, j]:.0f}", ha="center", va="center", fontsize=8, color=ink)
        axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), aspect="equal")
        axes.set_xlabel("predicted class", fontsize=8)
        axes.set_ylabel("true class", fontsize=8)
        axes.set_xticks(range(n), [str(k) for k in kept], fontsize=7 if n <= 20 else 5)
        axes.set_yticks(range(n), [str(k) for k in kept], fontsize=7 if n <= 20 else 5)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        drawn = svg(figure)
    true, taken = divmod(int(np.argmax(share - np.diag(np.diag(share)))), n)
    right = 100 * np.trace(table) / max(table.sum(), 1)
    chosen = f"the {n} classes of {count} mistaken most often" if n < count else f"{n} classes"
    said = f"Confusion matrix of {chosen}, percent of each true class. {right:.1f} % of all are right; "
    said += f"most often, {share[true, taken]:.0f} % of class {kept[true]} are taken for class {kept[taken]}."
    return Plot(f"Confusion matrix, {where}", drawn, said)


def _tint(percent: float) -> float:
    return round(min(1.0, 0.06 + 0.94 * percent / 100), 3)


def scatter(points: Any, labels: Any, title: str) -> Plot:
    """Projected features N×2, a hue per class; at most `DOTS` of them, evenly chosen."""
    import numpy as np

    points, labels = np.asarray(points, dtype=float), np.asarray(labels).astype(int)
    step = max(1, -(-len(points) // DOTS))
    shown, classes = points[::step], labels[::step]
    with _figure(6.8, 5.6) as figure:
        axes = figure.add_axes((0.01, 0.01, 0.86, 0.98))
        names = np.unique(classes)
        for i, name in enumerate(names):
            mine = shown[classes == name].round(2)
            axes.plot(mine[:, 0], mine[:, 1], "o", markersize=3, markeredgewidth=0, color=HUES[i % len(HUES)], alpha=0.8,
                      label=str(name) if name >= 0 else "unknown")  # fmt: skip
        if 1 < len(names) <= len(HUES):
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8, labelcolor=INK, title="class",
                        title_fontsize=8, markerscale=1.6, handletextpad=0.2)  # fmt: skip
        axes.set_axis_off()
        drawn = svg(figure)
    kinds = f"{len(names)} classes, a hue each" if len(names) <= len(HUES) else f"{len(names)} classes, hues repeat"
    return Plot(title, drawn, f"{len(shown):,} of {len(points):,} test images as points in the plane; {kinds}.")


def gallery(arrays: Mapping[str, Any], where: str) -> Plot | None:
    """Query pictures, each with its nearest neighbours; a line under a neighbour says whether its class is the query's."""
    import numpy as np

    thumbs = np.asarray(arrays["thumbs"])
    queries = np.asarray(arrays["queries"]).astype(int)[:QUERIES]
    near, right = (np.asarray(arrays[name])[:QUERIES, :NEIGHBOURS] for name in ("neighbours", "right"))
    shown = np.concatenate([queries, near.ravel()])
    if thumbs.ndim != 4 or not len(queries) or shown.max() >= len(thumbs) or shown.min() < 0:
        return None
    height, width = thumbs.shape[1:3]
    gap = max(2, height // 8)
    rows, columns = len(queries), near.shape[1] + 1
    mosaic = np.zeros((rows * (height + 2 * gap), columns * (width + gap) + gap, 4), np.uint8)  # see-through between them
    with _figure(0.82 * columns + 0.2, 0.92 * rows) as figure:
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        for i in range(rows):
            for j, index in enumerate((queries[i], *near[i])):
                left, top = j * (width + gap) + (gap if j else 0), i * (height + 2 * gap)
                mosaic[top : top + height, left : left + width, :3] = thumbs[index]
                mosaic[top : top + height, left : left + width, 3] = 255
                if j:
                    good = bool(right[i, j - 1])
                    axes.plot((left, left + width), (top + height + gap / 2,) * 2, color=ACCENT if good else MUTED,
                              linewidth=2, linestyle="solid" if good else (0, (1, 1)))  # fmt: skip
        axes.imshow(mosaic, extent=(0, mosaic.shape[1], mosaic.shape[0], 0), interpolation="none", aspect="equal")
        axes.set_axis_off()
        drawn = svg(figure)
    said = f"{int(right.sum())} of {right.size} neighbours shown are of the query's class (solid line), the others dotted."
    return Plot(f"Nearest neighbours, {where}", drawn, f"A row per query: the query first, then its neighbours. {said}")


def bars(phases: Sequence[tuple[str, float]], said: Callable[[float], str]) -> Plot:
    """Seconds of every phase as bars."""
    names = [label(name) for name, _ in phases]
    seconds = [value for _, value in phases]
    with _figure(7.5, 0.5 + 0.3 * len(phases)) as figure:
        axes = figure.add_axes((0.28, 0.06, 0.6, 0.9))
        axes.barh(range(len(phases)), seconds, height=0.6, color=ACCENT)
        for i, value in enumerate(seconds):
            axes.annotate(said(value), (value, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
                          color=MUTED)  # fmt: skip
        axes.set_yticks(range(len(phases)), names, fontsize=8)
        axes.set_ylim(len(phases) - 0.5, -0.5)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        drawn = svg(figure)
    return Plot("Where the time went", drawn, "; ".join(f"{name} {said(value)}" for name, value in phases) + ".")
