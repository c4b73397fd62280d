# SPDX-License-Identifier: Apache-2.0
"""Figures that others published, as rows of `reports/published/*.csv`: names made ours, text checked, files merged."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from suite.errors import UsageError
from suite.record import RunRecord
from suite.render import slug
from suite.store import write_bytes

MOST = 8 << 20
"""Bytes of a file at most."""
UNPROVEN = "imported, no weights hash"
"""Starts the note of every imported figure."""
NAME = re.compile(r"[A-Za-z0-9][\w.+@: -]{0,199}", re.ASCII)
NUMBER = re.compile(r"[+-]?\d{1,9}(\.\d{1,12})?([eE][+-]?\d{1,2})?", re.ASCII)
OTHERS = (
    "mae", "beit", "beitv2", "dino", "dinov2", "dinov3", "mocov3", "mixmim", "maskfeat", "simmim", "cae", "milan", "eva",
    "pixmim", "deepcluster", "odc", "npid", "interclr", "fcmae", "mim", "clip", "siglip", "ijepa", "swsl", "ssl", "ssld",
    "swag", "aimv2",
)  # fmt: skip
"""Pre-training methods without a recipe here, as they stand in the names of models."""
DATASETS = {"imagenet1k": "imagenet", "imagenet": "imagenet", "ilsvrc2012": "imagenet", "places205": "places205",
            "inaturalist2018": "inaturalist2018", "coco": "coco", "coco2017": "coco", "voc2007": "voc07",
            "pascalvoc2007": "voc07", "voc2012": "voc12", "cityscapes": "cityscapes", "cifar10": "cifar10",
            "cifar100": "cifar100"}  # fmt: skip
"""Other people's names of data sets, in letters and digits alone, to ours."""


@dataclass(frozen=True)
class Row:
    """One published figure; the names are those of the columns of `reports/published/*.csv`."""

    algorithm: str
    preset: str
    dataset: str
    metric: str
    "`evaluator/metric` in our names."
    value: str
    "The number as it was printed."
    source: str
    file: str
    note: str
    protocol: str = ""
    "How it was measured, where the source says."


@dataclass(frozen=True)
class Context:
    """What a reader of other people's files may ask about this installation."""

    recipes: Sequence[str]
    declared: Callable[[str], Sequence[str]]
    "Names of the metrics of an evaluator of ours; empty for anything else."
    model: str = ""
    "Name of the model, where the file has none."


@dataclass(frozen=True)
class Imported:
    """What a file held: figures, or one record of ours."""

    kind: str
    rows: list[Row] = field(default_factory=list)
    record: RunRecord | None = None
    left_out: list[str] = field(default_factory=list)
    "One line for each figure that has no place among our benchmarks."


def read_bytes(path: Path) -> bytes:
    """Bytes of a file that somebody else wrote.

    Raises:
        UsageError: missing, or too large.
    """
    if not path.is_file():
        raise UsageError(f"file {str(path)!r} does not exist")
    with path.open("rb") as file:
        data = file.read(MOST + 1)
    if len(data) > MOST:
        raise UsageError(f"{path}: larger than {MOST >> 20} MiB")
    return data


def place(path: Path) -> str:
    """The file as a source, without this machine's folders."""
    return line(path.name if path.is_absolute() or ".." in path.parts else path.as_posix())


def sequence(value: Any, where: str) -> list[Any]:
    """A list; an empty value is an empty one.

    Raises:
        UsageError: it is something else.
    """
    if value in (None, "", "null"):
        return []
    if not isinstance(value, list):
        raise UsageError(f"{where} is not a list")
    return value


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """A mapping.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(value, dict):
        raise UsageError(f"{where} is not a mapping")
    return value


def plain(text: str) -> str:
    """A name in lower-case letters and digits alone, by which spellings are compared."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def name(value: object, where: str) -> str:
    """A checked name: printable ASCII on one line, 200 letters at most.

    Raises:
        UsageError: it is none; `where` names file and key or line.
    """
    text = value.strip() if isinstance(value, str) else ""
    if not NAME.fullmatch(text):
        raise UsageError(f"{where}: {str(value)[:60]!r} is not a name")
    return text


def number(value: object, where: str, low: float = -math.inf, high: float = math.inf) -> str:
    """A finite number as it was printed.

    Raises:
        UsageError: it is none, or outside the range.
    """
    text = value.strip() if isinstance(value, str) else repr(value) if type(value) in (int, float) else ""
    if not NUMBER.fullmatch(text):
        raise UsageError(f"{where}: {str(value)[:60]!r} is not a number")
    if not low <= float(text) <= high:
        raise UsageError(f"{where}: {text} is not between {low:g} and {high:g}")
    return text


def line(value: object, most: int = 300) -> str:
    """Free text on one line without what hides or reorders letters."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(value or ""))
    return " ".join(text.split())[:most]


def dataset(text: str) -> str:
    """A data set by our name, or its own in lower case."""
    return DATASETS.get(plain(text), slug(text))


def algorithm(text: str, recipes: Iterable[str]) -> str:
    """The algorithm that a name means: a recipe here, or the name itself in lower case."""
    return {plain(recipe): recipe for recipe in recipes}.get(plain(text), plain(text))


def algorithm_within(model: str, recipes: Iterable[str]) -> str:
    """The pre-training method that stands in a model's name; empty when none does."""
    known = {plain(one): one for one in (*OTHERS, *recipes)}
    tokens = [plain(token) for token in re.split(r"[^A-Za-z0-9]+", model)]
    joined = [a + b for a, b in zip(tokens, tokens[1:], strict=False)]  # `moco-v3`, `barlow_twins`
    matches = [known[token] for token in (*joined, *tokens) if token in known]
    return matches[0] if matches else ""


def csv_name(text: str) -> str:
    """File name of imported figures."""
    return f"imported-{slug(text)[:60]}.csv"


def write(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> tuple[int, int]:
    """Merge rows into a CSV file of published figures, sorted: same figures, same bytes.

    Args:
        path: the file, existing or not.
        rows: new figures; they replace those of the same identity.
        columns: of the file, all of them names of a Row's fields.

    Returns:
        How many rows are new or changed, and how many there are now.

    Raises:
        UsageError: an existing file of other columns, two rows that contradict each other, a full disk.
    """
    old = _existing(path, columns)
    merged = dict(old)
    fresh: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        values = {column: asdict(row)[column] for column in columns}
        if fresh.setdefault(_identity(values), values) != values:
            raise UsageError(f"{row.file}: two figures for {row.metric} of {row.preset} ({row.value} is the second)")
    merged.update(fresh)
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(merged[key] for key in sorted(merged))
    data = out.getvalue().encode()
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)
    return sum(old.get(key) != values for key, values in fresh.items()), len(merged)


def _identity(values: dict[str, str]) -> tuple[str, ...]:
    return tuple(values[column] for column in values if column not in ("value", "note"))


def _existing(path: Path, columns: Sequence[str]) -> dict[tuple[str, ...], dict[str, str]]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != tuple(columns):
            raise UsageError(f"{path}: columns must be {','.join(columns)}")
        return {_identity(row): row for row in rows}
