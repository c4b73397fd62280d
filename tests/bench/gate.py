# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.bench gate`: how often `suite compare` errs, by simulation, and what it says about a run that was damaged.

A simulated pair is two networks whose true scores are known, answering the same images: per-image predictions are drawn, and
the very functions of the gate measure and judge them. A pair fails when any score is called worse, which is exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from suite import paired, stats
from suite.verdict import Row, judge

ALPHA, TOLERANCE = 0.05, 0.5
"""What `suite compare` takes when it is told nothing."""


@dataclass(frozen=True)
class World:
    """A truth to draw pairs from."""

    what: str
    images: int
    accuracy: float = 0.7
    "Of base, true."
    disagreement: float | None = None
    "Share of images on which one side alone is right; None: errors are independent."
    drop: float = 0.0
    "True points that head is below base; on the first score only when there are several."
    scores: int = 1
    "Scores that one gate judges, on images of their own."
    kind: str = "top1"
    seeds: int = 1
    spread: float = 0.0
    "Standard deviation over seeds of the true accuracy, in points."
    goal: float | None = None
    "The rate of failing that was promised: at most alpha without a drop, at least this with one; None: no promise."


NOTHING = "no difference"
WORLDS = (
    *(
        World(f"{NOTHING}, independent errors", n, accuracy, goal=ALPHA)
        for n in (100, 1000, 10_000)
        for accuracy in (0.3, 0.7, 0.95)
    ),
    *(World(f"{NOTHING}", 10_000, disagreement=d, goal=ALPHA) for d in (0.002, 0.02, 0.05, 0.1, 0.2)),
    *(World(f"{NOTHING}, {m} scores", 2000, disagreement=0.1, scores=m, goal=ALPHA) for m in (4, 13)),
    *(World(f"{NOTHING}, mAP", n, kind="map", goal=ALPHA) for n in (100, 250)),
    *(World(f"{NOTHING}, mIoU", n, kind="miou", goal=ALPHA) for n in (50, 400)),
    *(
        World(f"{NOTHING}, {s} + {s} seeds", 2000, disagreement=0.1, seeds=s, spread=spread, goal=ALPHA)
        for s, spread in ((2, 0.5), (3, 0.5), (5, 2.0))
    ),
    *(World("1 point lost", 10_000, disagreement=d, drop=1.0, goal=0.95) for d in (0.01, 0.02, 0.05, 0.08)),
    *(World("1 point lost", 10_000, a, disagreement=0.05, drop=1.0, goal=0.95) for a in (0.3, 0.95)),
    *(World("1 point lost", 10_000, disagreement=d, drop=1.0) for d in (0.1, 0.15, 0.2, None)),
    World("1 of 4 scores lost 1 point", 10_000, disagreement=0.05, drop=1.0, scores=4, goal=0.95),
    World("1 of 13 scores lost 1 point", 10_000, disagreement=0.05, drop=1.0, scores=13, goal=0.95),
    World("1 point lost, 5 + 5 seeds", 10_000, disagreement=0.05, drop=1.0, seeds=5, spread=0.3),
)


@dataclass(frozen=True)
class Rates:
    """What the gate said about many pairs from one world."""

    world: World
    pairs: int
    words: Counter[str]
    "Verdicts of the first score."
    failed: int
    "Pairs with any score called worse."

    @property
    def rate(self) -> float:
        """Share of pairs that fail."""
        return self.failed / self.pairs

    @property
    def error(self) -> float:
        """Standard error of `rate` from the number of pairs, that of one pair at least."""
        rate = min(max(self.rate, 1 / self.pairs), 1 - 1 / self.pairs)
        return math.sqrt(rate * (1 - rate) / self.pairs)

    @property
    def verdict(self) -> str:
        """Whether the promise was kept; two standard errors are the simulation's own."""
        goal = self.world.goal
        if goal is None:
            return ""
        kept = self.rate >= goal - 2 * self.error if self.world.drop else self.rate <= goal + 2 * self.error
        return "met" if kept else "NOT MET"


def simulate(world: World, pairs: int, seed: int = 0, alpha: float = ALPHA, tolerance: float = TOLERANCE) -> Rates:
    """Draw pairs and judge each as the command line would."""
    rng, words, failed = np.random.default_rng(seed), Counter[str](), 0
    resamples = stats.enough(alpha, world.scores)
    for trial in range(pairs):
        rows = []
        for i in range(world.scores):
            base, head = _sides(world, world.drop if i == 0 else 0.0, rng)
            _, gap = paired.measure("simulated", base, head, alpha=alpha, resamples=resamples, seed=trial)
            rows.append(_row(gap))
        judged = judge(rows, tolerance, alpha)
        words[judged[0].verdict] += 1
        failed += any(row.verdict == "worse" for row in judged)
    return Rates(world, pairs, words, failed)


def _row(gap: paired.Difference) -> Row:
    return Row(
        "score", "simulated", "inconclusive", gap.base, gap.head, gap.difference, gap.low, gap.high, None, gap.lower,
        gap.higher, gap.image_error, gap.seed_error, gap.samples, min(gap.seeds),
    )  # fmt: skip


Predictions = list[dict[str, np.ndarray]]


def _sides(world: World, drop: float, rng: np.random.Generator) -> tuple[Predictions, Predictions]:
    if world.kind == "map":
        return _multilabel(world.images, rng)
    if world.kind == "miou":
        return _segmented(world.images, rng)
    if world.seeds == 1:
        a, b = _answers(world, drop, rng)
        return [a], [b]
    # Seeds of either side: the true accuracy moves, and every seed errs on images of its own beside the common ones.
    where = rng.random(world.images)
    sides: tuple[Predictions, Predictions] = ([], [])
    for side, lost in zip(sides, (0.0, drop), strict=True):
        for moved in rng.normal(0, world.spread, world.seeds):
            level = world.accuracy + (moved - lost) / 100
            own = (world.disagreement or 0.0) / 2
            right = np.where(where < level, rng.random(world.images) >= own / level,
                             rng.random(world.images) < own / (1 - level))  # fmt: skip
            side.append(_predictions(right))
    return sides


def _answers(world: World, drop: float, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    p, q = world.accuracy, world.accuracy - drop / 100
    lost, gained = p * (1 - q), (1 - p) * q
    if world.disagreement is not None:
        lost, gained = (world.disagreement + p - q) / 2, (world.disagreement - p + q) / 2
    u = rng.random(world.images)
    head = (u < p - lost) | ((u >= p) & (u < p + gained))
    return _predictions(u < p), _predictions(head)


def _predictions(right: np.ndarray) -> dict[str, np.ndarray]:
    return {"label": np.zeros(len(right), np.int64), "pred": np.where(right, 0, 1)}


def _multilabel(images: int, rng: np.random.Generator, classes: int = 4) -> tuple[Predictions, Predictions]:
    """Two sets of scores of one quality, whose errors are partly shared."""
    targets = np.where(rng.random((images, classes)) < 0.2, 1, -1).astype(np.int8)
    shared = rng.normal(size=targets.shape)
    a, b = ([{"targets": targets, "scores": targets + shared + 0.7 * rng.normal(size=targets.shape)}] for _ in range(2))
    return a, b


def _segmented(images: int, rng: np.random.Generator, classes: int = 4) -> tuple[Predictions, Predictions]:
    """Two segmentations of one quality: pictures differ in how hard they are, and classes in their size."""
    pixels, hard = rng.integers(0, 60, (images, classes)), rng.normal(0, 0.5, (images, 1))
    sides = []
    for _ in range(2):
        hit = rng.binomial(pixels, 1 / (1 + np.exp(-1 - hard - 0.5 * rng.normal(size=pixels.shape))))
        confusion = np.zeros((images, classes, classes), np.int64)
        for c in range(classes):
            confusion[:, c, c] = hit[:, c]
            confusion[:, c, (c + 1) % classes] += pixels[:, c] - hit[:, c]
        sides.append([{"confusion": confusion}])
    return sides[0], sides[1]


HEADER = ("true state", "images", "accuracy", "disagree", "fails", "goal", "", "worse", "inconclusive", "same", "better")


def table(found: Sequence[Rates]) -> str:
    """Plain text with aligned columns; rates in percent with the simulation's standard error."""
    lines = [HEADER]
    for one in found:
        world = one.world
        p, q = world.accuracy, world.accuracy - world.drop / 100
        disagree = p * (1 - q) + (1 - p) * q if world.disagreement is None else world.disagreement
        shape = (f"{100 * p:.0f} %", f"{100 * disagree:.1f} %") if world.kind == "top1" else ("", "")
        goal = "" if world.goal is None else f"{'>=' if world.drop else '<='} {100 * world.goal:.0f} %"
        shares = (f"{100 * one.words[word] / one.pairs:.1f}" for word in ("worse", "inconclusive", "same", "better"))
        fails = f"{100 * one.rate:.1f} ± {100 * one.error:.1f} %"
        lines.append((world.what, f"{world.images:,}", *shape, fails, goal, one.verdict, *shares))
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    return "\n".join(
        "  ".join(c.ljust(w) if i in (0, 6) else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    )


CHANGES = ("BN statistics reset", "one layer re-initialised", "weights rounded to bf16")


def damaged(source: Path, out: Path, change: str) -> Path:
    """A copy of a backbone with one of `CHANGES`, as a weights file."""
    import torch

    from suite.backbone import Backbone, read_metadata

    backbone = Backbone.load(source)
    state = backbone.net.state_dict()
    if change == CHANGES[0]:
        for name, tensor in state.items():
            if name.endswith(("running_mean", "running_var")):
                tensor.fill_(0.0 if name.endswith("mean") else 1.0)
    elif change == CHANGES[1]:
        convolutions = [name for name, tensor in state.items() if tensor.ndim == 4]
        torch.manual_seed(0)
        torch.nn.init.kaiming_normal_(state[convolutions[len(convolutions) // 2]], mode="fan_out")
    else:
        for tensor in state.values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.bfloat16())
    backbone.net.load_state_dict(state)
    path = out / f"{change.replace(' ', '-')}.safetensors"
    backbone.save(path, {key: value for key, value in read_metadata(source).items() if key == "size"})
    return path


def real(run: Path, bench: str = "knn,linear") -> str:
    """The verdicts of the command line on a run's backbone against itself with each of `CHANGES`, and its exit codes."""
    from suite.cli import main as suite
    from suite.store import WEIGHTS

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        base = shutil.copy(run / WEIGHTS, Path(folder) / "run.safetensors")
        for change in (*CHANGES, "nothing changed"):
            head = Path(base) if change not in CHANGES else damaged(Path(base), Path(folder), change)
            out, found = io.StringIO(), Path(folder) / "verdict.json"
            arguments = ["compare", str(base), str(head), "--bench", bench, "--runs", f"{folder}/runs", "--json", str(found)]
            with contextlib.redirect_stdout(out):
                code = suite(arguments)
            raw = json.loads(found.read_text())
            lines.append(f"{change}: exit {code}\n{out.getvalue()}" if raw["rows"] else f"{change}: nothing to compare")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate and print; exit 1 when a promise is not kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench gate", description=__doc__)
    parser.add_argument("--pairs", type=int, default=1000, help="simulated pairs per line")
    parser.add_argument("--only", default="", help="only true states that contain these words")
    parser.add_argument("--run", type=Path, help="a run's folder: compare it with damaged copies of itself instead")
    given = parser.parse_args(arguments)
    if given.run is not None:
        print(real(given.run))
        return 0
    began, found = time.perf_counter(), []
    for i, world in enumerate(WORLDS):
        if given.only not in world.what:
            continue
        print(f"{world.what}, {world.images:,} images ...", file=sys.stderr, flush=True)
        found.append(simulate(world, given.pairs, seed=i))
    print(f"{given.pairs:,} simulated pairs a line, alpha {ALPHA:g}, tolerance {TOLERANCE:g}; "
          f"measured in {time.perf_counter() - began:.0f} s\n\n{table(found)}")  # fmt: skip
    return int(any(one.verdict == "NOT MET" for one in found))


if __name__ == "__main__":
    sys.exit(main())
