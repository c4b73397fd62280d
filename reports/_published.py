# SPDX-License-Identifier: Apache-2.0
"""Published figures, as data beside our own records: `published/*.csv` and the references of recipes."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from reports._scores import Score
from suite.errors import UsageError
from suite.spec import Recipe

FOLDER = Path(__file__).parent / "published"
COLUMNS = ("algorithm", "preset", "protocol", "dataset", "metric", "value", "source", "file", "note")


@dataclass(frozen=True)
class Figure:
    """One published number in our names."""

    algorithm: str
    preset: str
    dataset: str
    "What it was evaluated on; empty: not said."
    evaluator: str
    metric: str
    "Layer or k stand in its suffix: `top1.stage4`, `lowshot.k16`."
    text: str
    "The number as it was printed."
    source: str
    file: str = ""
    note: str = ""
    "Why it is to be doubted."
    protocol: str = ""
    "How it was measured, where the source says: config, best layer, trial, epoch."

    @property
    def value(self) -> float:
        """The number."""
        return float(self.text)

    @property
    def where(self) -> str:
        """Source, file and doubt in one line."""
        place = " ".join(part for part in (self.source, self.file) if part)
        return f"{place}: {self.note}" if self.note else place


def read(folder: Path = FOLDER) -> tuple[Figure, ...]:
    """Every figure of the CSV files in a folder, in file order.

    Raises:
        UsageError: a file without the right columns, a metric that is not `evaluator/metric`, or no number.
    """
    figures: list[Figure] = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if tuple(rows.fieldnames or ()) != COLUMNS:
                raise UsageError(f"{path.name}: columns must be {','.join(COLUMNS)}")
            for line, row in enumerate(rows, 2):
                figures.append(_figure(row, f"{path.name} line {line}"))
    return tuple(figures)


def _figure(row: dict[str, str], where: str) -> Figure:
    evaluator, slash, metric = row["metric"].partition("/")
    try:
        float(row["value"])
    except (TypeError, ValueError):
        raise UsageError(f"{where}: value {row['value']!r} is not a number") from None
    if not slash or not metric:
        raise UsageError(f"{where}: metric {row['metric']!r} is not evaluator/metric")
    return Figure(
        row["algorithm"], row["preset"], row["dataset"], evaluator, metric, row["value"], row["source"], row["file"],
        row["note"] or "", row["protocol"],
    )  # fmt: skip


@cache
def _packaged() -> Mapping[str, Sequence[Figure]]:
    found: dict[str, list[Figure]] = {}
    for figure in read():
        found.setdefault(figure.algorithm, []).append(figure)
    return found


def algorithms() -> list[str]:
    """Every algorithm that something is published about, ours or not."""
    return sorted(_packaged())


NAMES = (
    "BYOL", "DenseCL", "SimCLR", "SimSiam", "SwAV", "All4One", "BEiT", "BEiTv2", "CAE", "ClusterFit", "CMAE", "DCL",
    "DCLW", "DeepCluster", "DeepClusterV2", "DINO", "DINOv2", "EVA", "EVA-02", "FastSiam", "iBOT", "InterCLR", "LeJEPA",
    "MAE", "MaskFeat", "MFF", "MILAN", "MixMIM", "MSN", "NNCLR", "NPID", "NPID++", "ODC", "PIRL", "PixMIM", "PMSN",
    "ReSSL", "SimMIM", "SMoG", "SparK", "SupCon", "TiCo", "VIbCReg", "VICReg", "VICRegL", "VISReg", "W-MSE",
)  # fmt: skip
"""How the authors of algorithms without a recipe here write their names."""


def known_as(name: str) -> str:
    """The usual spelling of an algorithm's name."""
    spelled = {"barlowtwins": "Barlow Twins", "relative-loc": "Relative location", "rotation-pred": "Rotation prediction"}
    if name in spelled or name.startswith("mocov"):
        return spelled.get(name, f"MoCo {name[4:]}")
    plain = {known.lower().replace("-", "").replace("++", "pp"): known for known in NAMES}
    return plain.get(name, name.capitalize())


def figures(name: str, recipe: Recipe | None) -> list[Figure]:
    """What is published about a recipe: the CSV files first, then what its own references add to them."""
    found = list(_packaged().get(name, ()))
    known = {(f.preset, f.evaluator, f.metric, f.value) for f in found}
    for preset, references in (recipe.reference if recipe else {}).items():
        for reference in references:
            evaluator, _, metric = reference.metric.partition("/")
            metric = metric or evaluator
            if (preset, evaluator, metric, reference.value) not in known and not _stands_as_pooled(
                found, preset, evaluator, reference.value
            ):
                text = f"{reference.value:g}"
                found.append(Figure(name, preset, "", evaluator, metric, text, reference.source, "", reference.note))
    return found


def _stands_as_pooled(found: list[Figure], preset: str, evaluator: str, value: float) -> bool:
    # tables print the last layer's probe once, as a column; a reference may call the same number the headline
    return any((f.preset, f.evaluator, f.value) == (preset, evaluator, value) and f.metric.endswith(".pooled") for f in found)


def published_score(found: Sequence[Figure]) -> Score:
    """The score of figures that one source printed for one metric, in the shape that our own scores have."""
    if not found:
        return Score((), (), why="not published")
    doubt = "*" if any(figure.note for figure in found) else ""
    texts = list(dict.fromkeys(figure.text for figure in found))
    where = [f"{figure.text}: {figure.where}" for figure in found]
    return Score((found[0].value,), (), printed=" / ".join(texts) + doubt, where=tuple(dict.fromkeys(where)))
