# SPDX-License-Identifier: Apache-2.0
"""What the project knows about a data set before seeing any of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Task = Literal["classification", "multilabel", "detection", "segmentation"]


@dataclass(frozen=True)
class Card:
    """One data set of the catalogue, in words and names."""

    name: str
    """Name on the command line."""
    title: str
    """Name in a table."""
    task: Task
    """Headline task."""
    classes: tuple[str, ...] | None
    """Class names in label order; None: read from the files."""
    splits: Mapping[str, str | int]
    """Split name to number of images where the set fixes it, else to words."""
    layout: str
    """Folders and files expected under the data root."""
    licence: str
    """Terms of the images, in words."""
    obtain: str
    """How a user gets the set."""
    embedded: bool = False
    """True: generated on first use, nothing to download and no data root."""
    tasks: tuple[Task, ...] = ()
    """All tasks the set can serve; empty means the headline task only."""
    train: str = "train"
    """Split that its protocols train on (`trainval` for VOC)."""
    kind: bool = False
    """True: a way to lay out any pictures; `<name>-<label>` is one more set of the kind."""
    test: str | None = "test"
    """Split that its protocols report on (`val` for ImageNet and COCO); None: no labelled one."""

    def __post_init__(self) -> None:
        """Let `tasks` always hold the headline task."""
        if self.task not in self.tasks:
            object.__setattr__(self, "tasks", (self.task, *self.tasks))

    def split(self, name: str) -> str:
        """The set's own name for a split: `train`, `val` and `test` stand for its official pair.

        A name the set really has means itself: `train` of VOC is half of `trainval`.
        """
        if name in self.splits:
            return name
        return {"train": self.train, "test": self.test, "val": self.test}.get(name) or name
