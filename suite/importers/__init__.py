# SPDX-License-Identifier: Apache-2.0
"""Readers of other people's result files: MMSelfSup `metafile.yml`, timm results CSV, MTEB-style JSON, and our own records.

The files are untrusted: sizes and depths have limits, YAML holds plain text and no references, nothing in a file is run. What
has no weights hash becomes a published figure with its source; only a record of ours, with full provenance, becomes a result.
"""

from __future__ import annotations

from pathlib import Path

from suite import figures
from suite.errors import unknown
from suite.figures import Context, Imported
from suite.importers import metafile, mteb, timm
from suite.record import parse, run_from_json

__all__ = ["Context", "Imported", "read"]


def read(path: Path, context: Context) -> Imported:
    """Read a result file of any known kind.

    Raises:
        UsageError: missing, too large, of no known kind or wrong; one line with file and key or line.
    """
    data = figures.read_bytes(path)
    kind = path.suffix.lower()
    if kind in (".yml", ".yaml"):
        return metafile.read(data, path, context)
    if kind == ".csv":
        return timm.read(data, path, context)
    if kind != ".json":
        raise unknown("kind of file", path.name, (".yml", ".csv", ".json"))
    raw = parse(data, str(path))
    if "schema" in raw:
        return Imported("record", record=run_from_json(data, str(path)))
    return mteb.read(raw, path, context)
