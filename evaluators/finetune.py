# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: the whole network and a new classifier trained on all labels.

The learning rate is chosen on a held-out part of the training data when the preset lists several. The presets that are named
after a method follow MMSelfSup 1.x (configs/benchmarks/classification/imagenet), which follows the method's own code.

Differs: CAE's fine-tuning adds relative position biases (`-rpe`) in MMSelfSup 0.x; here the network stays what the weights
are. Mixing pairs a picture with the batch in reverse order, as timm does, instead of a random permutation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evaluators._finetuning import Augment, Network, check_labels, choosing, finetune, trial
from suite.backbone import Backbone
from suite.data.imageset import ImageSet
from suite.errors import UsageError
from suite.metrics import accuracy, topk
from suite.optim import NO_DECAY, NORM_AND_BIAS
from suite.spec import EvalConfig, Evaluator, Metric, Optim, Rule

if TYPE_CHECKING:
    from suite.bench import Bench

EXEMPT = (
    Rule(pattern=NORM_AND_BIAS, weight_decay=0.0),
    *NO_DECAY,
    Rule(pattern=r"relative_position_bias_table$", weight_decay=0.0),
)
"""What transformers leave without weight decay: norms, biases, positions and the class token."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(EvalConfig):
    """Settings of fine-tuning."""

    lrs: tuple[float, ...] = (0.05, 0.2)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    epochs: int = 4
    batch: int = 128
    weight_decay: float = 1e-4
    exempt: bool = False
    "No weight decay on norms, biases, positions and the class token."
    layer_decay: float | None = None
    "Factor of the learning rate from each block to the one before it."
    warmup: float = 0.5
    "Epochs of linear warm-up."
    warmup_ratio: float = 0.0
    "Rate at the first step as a fraction of the regular one."
    min_lr: float = 0.0
    clip: float | None = None
    "Largest gradient norm."
    precision: Literal["32", "bf16", "16"] = "bf16"
    label_smoothing: float = 0.0
    crop_min: float = 0.5
    flip: float = 0.0
    augment: Augment = field(default_factory=Augment)
    network: Network = field(default_factory=Network)
    search_epochs: int = 1
    "Epochs of each trial that chooses the learning rate."

    def optim(self, lr: float) -> Optim:
        """The optimizer at one learning rate."""
        return Optim(
            name=self.optimizer, lr=lr, weight_decay=self.weight_decay, warmup=self.warmup, warmup_ratio=self.warmup_ratio,
            min_lr=self.min_lr, clip=self.clip, layer_decay=self.layer_decay, rules=EXEMPT if self.exempt else (),
        )  # fmt: skip


def run(backbone: Backbone, cfg: FinetuneConfig, bench: Bench) -> Mapping[str, float]:
    """Top-1 and top-5 of the fine-tuned network on the test images."""
    train, test = bench.data(cfg, "train"), bench.data(cfg, "test")
    check_labels(train, test)
    if len(train) < cfg.batch:
        bench.select(batch=f"{len(train)}: all training images, fewer than {cfg.batch}")
    lr = cfg.lrs[0] if len(cfg.lrs) == 1 else choose(backbone, train, cfg, bench)
    scores = tune(backbone, train, test, lr, cfg, bench, cfg.epochs, "training")
    labels = np.asarray(test.labels)
    bench.predictions("top1", label=labels, pred=scores.argmax(1))
    return {"top1": accuracy(labels, scores.argmax(1)), "top5": topk(labels, scores, min(5, train.num_classes))}


def choose(backbone: Backbone, train: ImageSet, cfg: FinetuneConfig, bench: Bench) -> float:
    """Learning rate with the best accuracy on held-out training images after a short training.

    Raises:
        UsageError: no class has an image to spare.
    """
    parts = choosing(train, 0.2, cfg.seed)
    if parts is None:
        raise UsageError(
            f"{train.name}/{train.split}: no class has images to choose the learning rate on; give one with lrs=[…]"
        )
    rest, val, how = parts

    def quality(lr: float, what: str) -> float:
        scores = tune(backbone, rest, val, lr, cfg, bench, cfg.search_epochs, what)
        return accuracy(np.asarray(val.labels), scores.argmax(1))

    found = {}
    for i, lr in enumerate(cfg.lrs, 1):
        found[lr] = trial(bench, f"lr{lr:g}", f"{i} of {len(cfg.lrs)}", partial(quality, lr))
    best = max(cfg.lrs, key=lambda lr: (found[lr], -lr))
    bench.select(lr=best, on=how, trials={f"lr {lr:g}": value for lr, value in found.items()})
    return best


def tune(
    backbone: Backbone,
    train: ImageSet,
    test: ImageSet,
    lr: float,
    cfg: FinetuneConfig,
    bench: Bench,
    epochs: int,
    what: str,
) -> np.ndarray:
    """Class scores after training at one learning rate."""
    return finetune(
        bench, backbone, train, test, cfg.optim(lr), cfg, epochs=epochs, what=what, augment=cfg.augment, network=cfg.network
    )


STRONG = Augment(randaugment=9, erasing=0.25, mixup=0.8, cutmix=1.0, interpolation="bicubic")
MASKED: dict[str, Any] = {
    "optimizer": "adamw", "epochs": 100, "weight_decay": 0.05, "exempt": True, "min_lr": 1e-6, "label_smoothing": 0.1,
    "crop_min": 0.08, "flip": 0.5, "augment": STRONG,
}  # fmt: skip
"""What the fine-tuning of all masked-image models has in common."""
VIT: dict[str, Any] = {**MASKED, "batch": 1024, "layer_decay": 0.65, "warmup": 5, "warmup_ratio": 1e-4}
SWIN: dict[str, Any] = {
    **MASKED, "lrs": (5e-3,), "batch": 2048, "layer_decay": 0.9, "warmup": 20, "warmup_ratio": 2e-4, "clip": 5.0,
}  # fmt: skip
HALF = (0.5, 0.5, 0.5)

EVALUATOR = Evaluator(
    name="finetune",
    title="Fine-tuning",
    task="classification",
    run=run,
    presets={
        "default": FinetuneConfig(),
        "mae_vit_base_100e": FinetuneConfig(
            **VIT, lrs=(2e-3,), network=Network(drop_path=0.1, mean_pooling=True, head_std=2e-5)
        ),
        "cae_vit_base_100e": FinetuneConfig(
            **VIT, lrs=(8e-3,), network=Network(drop_path=0.1, mean_pooling=True, head_std=2e-5, mean=HALF, std=HALF)
        ),
        "simmim_swin_base_192": FinetuneConfig(**SWIN, network=Network(drop_path=0.1, head_std=0.02, side=192, window=6)),
        "simmim_swin_base_224": FinetuneConfig(**SWIN, network=Network(drop_path=0.1, head_std=0.02, side=224, window=7)),
        "resnet50_full": FinetuneConfig(
            lrs=(0.05,), epochs=30, batch=256, weight_decay=0.0, warmup=0, crop_min=0.08, flip=0.5
        ),
    },
    describe={
        "default": "SGD, a few epochs, learning rate chosen on held-out training images",
        "mae_vit_base_100e": "MAE ViT-B, 100 epochs, batch 1024, layer decay 0.65 (MMSelfSup 1.x, facebookresearch/mae)",
        "cae_vit_base_100e": "CAE ViT-B, 100 epochs, batch 1024, layer decay 0.65 (MMSelfSup)",
        "simmim_swin_base_192": "SimMIM Swin-B at 192 px, 100 epochs, batch 2048, layer decay 0.9 (MMSelfSup 1.x)",
        "simmim_swin_base_224": "SimMIM Swin-B at 224 px with windows of 7, otherwise the same",
        "resnet50_full": "SGD, lr 0.05 per 256 images, 30 epochs, no weight decay (lightly, after SimCLR)",
    },
    metrics=(Metric("top1", "top-1"), Metric("top5", "top-5")),
    frozen=False,
)  # fmt: skip
