# SPDX-License-Identifier: Apache-2.0
"""Where the data sets of a command are, and which of them serves which task."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from suite.data.cache import cache_dir, require_folder
from suite.data.catalogue import card, load
from suite.data.imageset import ImageSet
from suite.data.pack import packed, packed_fingerprint
from suite.errors import UsageError, unknown
from suite.progress import Reporter

EMBEDDED = {
    "classification": "digits",
    "multilabel": "digit-scenes",
    "detection": "digit-scenes",
    "segmentation": "digit-scenes",
}


@dataclass(frozen=True)
class Sources:
    """Where data sets are.

    Attributes:
        dataset: what the weights were (or would be) pre-trained on.
        roots: data set name to folder.
        on_broken: `refuse` or `skip` broken images.
        cache: folder of generated and packed data, None: the default.
        pack: shorter side of the packed copies that sets too large for memory are read from; 0: from their own files.
    """

    dataset: str
    roots: dict[str, Path] = field(default_factory=dict)
    on_broken: str = "refuse"
    cache: Path | None = None
    pack: int = 0
    _fingerprints: dict[tuple[str, str, int], str] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse an unknown way to treat broken images."""
        if self.on_broken not in ("refuse", "skip"):
            raise unknown("--on-broken value", self.on_broken, ("refuse", "skip"))

    def name(self, task: str, wanted: str = "") -> str:
        """The data set that serves a task: the one asked for, the run's own, one with a root, or the embedded one.

        Raises:
            UsageError: nothing at hand serves the task.
        """
        if wanted:
            return wanted
        for name in (self.dataset, *self.roots):
            if task in card(name).tasks:
                return name
        if card(self.dataset).embedded:
            return EMBEDDED[task]
        raise UsageError(f"no data set for {task}: give --data-root NAME=DIR (see `suite data ls`)")

    def require(self, name: str) -> None:
        """UsageError where a data set needs a folder and none is there."""
        known = card(name)
        if not known.embedded:
            require_folder(self.roots.get(name), name, known.layout, known.obtain)

    def load(self, name: str, split: str, reporter: Reporter | None = None) -> ImageSet:
        """Load what the data set's protocols call `train` or `test` (trainval of VOC, val of ImageNet), packed if so chosen."""
        images = self._own(name, split)
        if not self.pack or images.array is not None:
            return images
        return packed(images, cache_dir(self.cache) / "packed", self.pack, reporter or Reporter())

    def fingerprint(self, name: str, split: str) -> str:
        """Fingerprint of what `load` gives, without packing anything; the files are looked at once in a command."""
        key = (name, split, self.pack)
        if key not in self._fingerprints:
            images = self._own(name, split)
            packs = self.pack and images.array is None
            self._fingerprints[key] = packed_fingerprint(images, self.pack) if packs else images.fingerprint
        return self._fingerprints[key]

    def serving(self, task: str) -> Sources:
        """The same for a task: boxes and masks are in the pixels of the original files, which are then read as they are."""
        return replace(self, pack=0) if task in ("detection", "segmentation") else self

    def _own(self, name: str, split: str) -> ImageSet:
        known = card(name)
        own = {"train": known.train, "test": known.test or "test"}.get(split, split)
        return load(
            name, own, self.roots.get(name), cache=self.cache, on_broken="skip" if self.on_broken == "skip" else "refuse"
        )
