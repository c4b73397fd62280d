# SPDX-License-Identifier: Apache-2.0
"""A backbone with a linear classifier on top, trained with cross entropy: supervised training and fine-tuning."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from suite.backbone import Backbone
from suite.errors import UsageError
from suite.method import Batch, Method, TrainSet
from suite.nn.mixing import Mixing, soft_targets


class Classifier(Method):
    """Cross entropy of a linear layer on the pooled features.

    Args:
        config: a `label_smoothing` in it is used.
        backbone: trained along.
        data: its classes are the outputs.
        mixing: mixup and CutMix of the training batches, or None.
        head_std: standard deviation of the layer's first weights.

    Raises:
        UsageError: the training set has no single class per image.
    """

    def __init__(
        self,
        config: Any,
        backbone: Backbone,
        data: TrainSet,
        *,
        mixing: Mixing | None = None,
        head_std: float = 0.01,
    ) -> None:
        super().__init__(config, backbone, data)
        labels = data.images.labels
        if labels is None or labels.ndim != 1:
            raise UsageError(f"data set {data.images.name!r} has no single label per image, which a classifier needs")
        self.head = nn.Linear(backbone.dim, data.num_classes)
        nn.init.normal_(self.head.weight, std=head_std)
        nn.init.zeros_(self.head.bias)
        self.smoothing: float = getattr(config, "label_smoothing", 0.0)
        self.mixing = mixing if mixing is not None and mixing.on else None

    def scores(self, x: Tensor) -> Tensor:
        """Class scores N×C of pictures N×3×H×W."""
        return self.head(self.backbone(x))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean cross entropy and the batch's accuracy in percent, on mixed batches with respect to the larger share."""
        (x,), label = batch.views, batch.label
        assert label is not None
        if self.mixing is None or not self.training:
            logits = self.scores(x).float()  # N×C
            loss = F.cross_entropy(logits, label, label_smoothing=self.smoothing)
        else:
            mix = self.mixing.draw(x.shape[2], x.shape[3])
            target = mix.targets(soft_targets(label, self.head.out_features, self.smoothing))  # N×C
            logits = self.scores(mix.images(x)).float()
            loss, label = F.cross_entropy(logits, target), target.argmax(1)
        return {"loss": loss, "top1": 100 * (logits.detach().argmax(1) == label).float().mean()}
