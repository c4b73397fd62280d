# SPDX-License-Identifier: Apache-2.0
"""What an algorithm is: a module whose forward reads like the paper, and four moments between steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from suite import optim
from suite.backbone import Backbone
from suite.spec import Config, Optim

if TYPE_CHECKING:
    from suite.data.imageset import ImageSet


@dataclass
class Batch:
    """One step's input on the training device. Not frozen, because Fabric's mixed precision rebuilds it."""

    views: list[Tensor]
    "One N×3×S×S float tensor per view; S may differ between views."
    label: Tensor | None
    "N class indices, or None for unlabelled data."
    index: Tensor
    "N positions in the training set."


@dataclass(frozen=True)
class Progress:
    """Where the training is. `step` counts optimizer steps from the start of the run."""

    epoch: int
    step: int
    steps_per_epoch: int
    total_steps: int

    @property
    def fraction(self) -> float:
        """Share of the run that is done, 0 to 1."""
        return min(1.0, self.step / max(1, self.total_steps))


@dataclass(frozen=True)
class TrainSet:
    """What a method may know of the data it trains on."""

    images: ImageSet
    seed: int = 0

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 without labels."""
        return len(self.images.classes)


class Method(nn.Module):
    """Base of all algorithms.

    Subclasses build what they need in `__init__` and return `{"loss": …, other scalars to log}` from `forward`, and
    as `"features"` the N×d embeddings of one view, in which the loop looks for collapse.
    Only `backbone` survives training. Whatever must be there after a resume is a parameter or a buffer.
    """

    def __init__(self, config: Config, backbone: Backbone, data: TrainSet) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of one batch, averaged over it."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def param_groups(self, settings: Optim) -> list[dict[str, Any]]:
        """Optimizer groups; override where a paper treats parts differently beyond `Optim.rules`."""
        return optim.param_groups(self, settings)

    def on_epoch_start(self, progress: Progress, data: TrainSet) -> Tensor | None:
        """Before an epoch. May return the epoch's order of indices (clustering methods)."""
        return None

    def on_step_start(self, progress: Progress) -> None:
        """Before a step's first forward: momentum schedules, EMA updates."""

    def after_backward(self, progress: Progress) -> None:
        """Between backward and the optimizer step: gradients may be edited."""

    def after_step(self, progress: Progress) -> None:
        """After the optimizer step."""
