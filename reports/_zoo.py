# SPDX-License-Identifier: Apache-2.0
"""The layout that readers of model zoos know: which table follows which, on what data, with what columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reports._published import Figure
from suite.spec import Recipe

SHOTS = (1, 2, 4, 8, 16, 32, 64, 96)
STAGES = tuple(f"top1.stage{i}" for i in range(1, 6))


@dataclass(frozen=True)
class Slot:
    """One table of the layout."""

    title: str
    evaluator: str
    datasets: tuple[str, ...]
    "Names under which records and sources know the data; the first one is what to ask for."
    metrics: tuple[str, ...]

    def holds(self, evaluator: str, dataset: str) -> bool:
        """Whether a result of this evaluator on this data belongs here."""
        return evaluator == self.evaluator and dataset in self.datasets


LAYOUT = (
    Slot("VOC07 SVM and low-shot SVM", "svm", ("voc07",), ("map", *(f"lowshot.k{k}" for k in SHOTS))),
    Slot("ImageNet linear evaluation", "linear", ("imagenet",), (*STAGES, "top1.pooled")),
    Slot("Places205 linear evaluation", "linear", ("places205",), STAGES),
    Slot("iNaturalist 2018 linear evaluation", "linear", ("inat2018", "inaturalist2018"), STAGES),
    Slot("ImageNet nearest neighbours (kNN)", "knn", ("imagenet",), tuple(f"top1.k{k}" for k in (10, 20, 100, 200))),
    Slot("ImageNet semi-supervised", "semi_supervised", ("imagenet",), ("top1.1pct", "top5.1pct", "top1.10pct", "top5.10pct")),
    Slot("Pascal VOC07+12 detection", "detection", ("voc07+12", "voc0712"), ("ap50", "map", "ap75")),
    Slot(
        "COCO detection and instance segmentation", "detection", ("coco",),
        ("map", "ap50", "ap75", "mask_map", "mask_ap50", "mask_ap75"),
    ),
    Slot("Pascal VOC12 segmentation", "segmentation", ("voc12aug", "voc12"), ("miou",)),
    Slot("Cityscapes segmentation", "segmentation", ("cityscapes",), ("miou",)),
    Slot("ImageNet fine-tuning", "finetune", ("imagenet",), ("top1",)),
)  # fmt: skip
"""Every algorithm's page has these tables in this order, empty ones too."""


def slot(evaluator: str, dataset: str) -> Slot | None:
    """The place of an (evaluator, data set) in the layout; None when model zoos know none."""
    return next((one for one in LAYOUT if one.holds(evaluator, dataset)), None)


def data_of(figure: Figure, recipes: Mapping[str, Recipe]) -> str:
    """What a figure was measured on; when its source does not say, its preset's data or what its benchmark always has."""
    if figure.dataset:
        return figure.dataset
    usual = next((place.datasets[0] for place in LAYOUT if place.evaluator == figure.evaluator), "")
    recipe = recipes.get(figure.algorithm)
    preset = recipe.presets.get(figure.preset) if recipe else None
    return preset.dataset if preset and usual == "imagenet" else usual
