# SPDX-License-Identifier: Apache-2.0
"""Training and test pictures of a fine-tuning, kept apart, with a word on what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suite.bench import Bench
    from suite.data.imageset import ImageSet
    from suite.spec import EvalConfig


def load(bench: Bench, cfg: EvalConfig, split: str) -> tuple[ImageSet, ImageSet]:
    """The training pictures and those of `split`; the record says how many of them could not be read."""
    train, test = bench.data(cfg, "train"), bench.data(cfg, split)
    for part in (train, test):
        if part.skipped:
            total = len(part) + len(part.skipped)
            path, why = part.skipped[0]
            text = f"{len(part.skipped)} of {total} pictures left out, first {path.name} ({why})"
            bench.select(**{f"skipped.{part.split}": text})
    return train, test


def without(items: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items whose picture is not among the others'."""
    taken = {item["img_path"] for item in others}
    return [item for item in items if item["img_path"] not in taken]
