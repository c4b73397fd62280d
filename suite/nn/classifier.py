# SPDX-License-Identifier: Apache-2.0
"""A backbone with a linear classifier on top, trained with cross entropy: supervised training and fine-tuning."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from suite.backbone import Backbone
from suite.errors import UsageError
from suite.method import Batch, Method, TrainSet


class Classifier(Method):
    """Cross entropy of a linear layer on the pooled features.

    Raises:
        UsageError: the training set has no single class per image.
    """

    def __init__(self, config: Any, backbone: Backbone, data: TrainSet) -> None:
        super().__init__(config, backbone, data)
        labels = data.images.labels
        if labels is None or labels.ndim != 1:
            raise UsageError(f"data set {data.images.name!r} has no single label per image, which a classifier needs")
        self.head = nn.Linear(backbone.dim, data.num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.smoothing: float = getattr(config, "label_smoothing", 0.0)

    def scores(self, x: Tensor) -> Tensor:
        """Class scores N×C of pictures N×3×H×W."""
        return self.head(self.backbone(x))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean cross entropy and the batch's accuracy in percent."""
        (x,) = batch.views
        assert batch.label is not None
        logits = self.scores(x).float()  # N×C
        loss = F.cross_entropy(logits, batch.label, label_smoothing=self.smoothing)
        return {"loss": loss, "top1": 100 * (logits.detach().argmax(1) == batch.label).float().mean()}
