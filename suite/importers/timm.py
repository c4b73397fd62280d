# SPDX-License-Identifier: Apache-2.0
"""timm's `results-*.csv`: one row per `arch.tag`."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suite import figures
from suite.errors import UsageError
from suite.figures import Context, Imported, Row

MOST = 20_000
"""Rows of a table at most."""
COLUMNS = ("model", "top1", "top5", "param_count", "img_size")


def read(data: bytes, path: Path, context: Context) -> Imported:
    """Top-1 and top-5 of every model of a results file.

    Raises:
        UsageError: no results file, or a value that is not what it should be; names the line.
    """
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8"), newline=""), strict=True)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise UsageError(f"{path} line 1: no column {missing[0]!r}; a timm results file has {', '.join(COLUMNS)}")
        found = Imported("timm")
        stem = re.sub(r"^results-", "", path.stem)
        for row in reader:
            if len(found.rows) >= 2 * MOST:
                raise UsageError(f"{path} line {reader.line_num}: more than {MOST:,} rows")
            found.rows.extend(_row(row, f"{path} line {reader.line_num}", stem, path, context))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from None
    except csv.Error as error:
        raise UsageError(f"{path} line {reader.line_num}: {error}") from None
    return found


def _row(row: Mapping[str, Any], where: str, stem: str, path: Path, context: Context) -> list[Row]:
    model = figures.name(row["model"], f"{where}: model")
    size, parameters = (figures.number(str(row[key] or "").replace(",", ""), f"{where}: {key}", 0) for key in COLUMNS[:2:-1])
    algorithm = figures.algorithm_within(model, context.recipes) or "supervised"
    rows = []
    for key in ("top1", "top5"):
        value = figures.number(row[key], f"{where}: {key}", 0, 100)
        error = row.get(f"{key}_err")
        if error and abs(100 - float(value) - float(figures.number(error, f"{where}: {key}_err", 0, 100))) > 0.002:
            raise UsageError(f"{where}: {key} {value} and {key}_err {error} do not add up to 100")
        rows.append(
            Row(algorithm, model, figures.dataset(stem), f"finetune/{key}", value, "timm results", figures.place(path),
                f"{figures.UNPROVEN}: classifier as released, {parameters} M parameters", f"{size} px")
        )  # fmt: skip
    return rows
