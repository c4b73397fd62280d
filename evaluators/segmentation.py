# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation: fine-tune a fully convolutional network on the weights and report mean intersection over union.

    suite eval RUN --bench segmentation                       embedded digit scenes, seconds on a CPU
    suite eval RUN --bench segmentation:voc12aug_fcn_20k      VOC 2012 with the SBD annotations, as in MMSelfSup
    suite eval RUN --bench segmentation:cityscapes_fcn_40k    Cityscapes
    suite eval RUN --bench segmentation:cityscapes_fcn_40k segmentation.fraction=0.05    a twentieth of that schedule

`miou` is the mean over classes, background included, from one confusion matrix over all test pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import PositiveFloat

from suite.spec import EvalConfig, Evaluator, Metric

if TYPE_CHECKING:
    from suite.backbone import Backbone
    from suite.bench import Bench

BACKGROUND = "background"


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(EvalConfig):
    """How to fine-tune and test the segmenter; the defaults are for the embedded scenes and networks of their size."""

    lists: tuple[tuple[str, str], ...] = ()
    "VOC layout: training lists in ImageSets/Segmentation and the folders of their label maps; empty: the split's own."
    split: Literal["test", "val"] = "test"
    "What to test on; `val` is for choosing settings, and is taken out of the training pictures."
    workers: int = 0
    fraction: PositiveFloat = 1.0
    "Part of `iterations` to train for; the record says so."
    iterations: int = 80
    batch: int = 8
    accumulate: int = 1
    "Parts that a batch is computed in, to save memory; BatchNorm sees one part at a time."
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float | None = 5.0
    "Largest norm of the gradient; None: any."
    power: float = 0.9
    "Exponent of the polynomial decay of the rate."
    min_lr: float = 1e-4
    scale: tuple[int, int] = (96, 96)
    "Longest and shortest side that pictures are fitted into."
    resize: tuple[float, float] = (0.75, 1.5)
    "Range of random factors on that size in training."
    crop: int = 64
    "Side of the training crop in pixels, and of the test window if `slide` is set."
    slide: int = 0
    "Step of the sliding test window in pixels; 0: whole pictures."
    flip: float = 0.0
    "Probability of mirroring a training picture."
    distort: bool = False
    "Random brightness, contrast, saturation and hue in training."
    stride: int = 8
    "Input pixels per output pixel: later stages are dilated."
    channels: int = 64
    convs: int = 1
    "3×3 convolutions in the head."
    concat: bool = False
    "Join the head's input to its last features."
    auxiliary: float = 0.0
    "Weight of a second head's loss on the stage before the last; 0: none."
    background_weight: float = 0.1
    "Weight of class 0 in the loss: small objects on much background are not learnt in few iterations without one."
    dropout: float = 0.1
    align_corners: bool = False
    frozen_stages: int = 2
    "ResNet-like networks: 1 freezes the stem, 2 the first residual stage too, and so on."
    test_batch: int = 16


VOC12AUG = SegmentationConfig(
    dataset="voc12", lists=(("train", "SegmentationClass"), ("aug", "SegmentationClassAug")), iterations=20_000, batch=16,
    lr=0.01, scale=(2048, 512), resize=(0.5, 2.0), crop=512, distort=True, channels=512, convs=2, concat=True, auxiliary=0.4,
    clip=None, flip=0.5, background_weight=1.0, frozen_stages=0, test_batch=1, workers=8,
)  # fmt: skip
CITYSCAPES = SegmentationConfig(
    dataset="cityscapes", iterations=40_000, batch=8, lr=0.01, scale=(2049, 1025), resize=(0.5, 2.0), crop=769, slide=513,
    distort=True, channels=512, convs=2, concat=True, auxiliary=0.4, align_corners=True, clip=None, flip=0.5,
    background_weight=1.0, frozen_stages=0, test_batch=1, workers=8,
)  # fmt: skip


def run(backbone: Backbone, cfg: SegmentationConfig, bench: Bench) -> dict[str, float]:
    """Fine-tune on the training split, label the pixels of the test split.

    Raises:
        UsageError: no label maps, or a network that cannot be dilated.
        JobError: mmseg does not import, or the loss diverged.
    """
    import torch

    from evaluators.mm import labels, ops, runner, samples, schedule, segmenter, splits
    from suite.metrics import mean_iou

    ops.load("mmseg.models", "mmseg.datasets.transforms")
    if cfg.fraction != 1:
        bench.select(schedule=schedule.describe(cfg, PRESETS))
    cfg = schedule.scaled(cfg)
    train, test = splits.load(bench, cfg, cfg.split)
    classes = label_names(train.name, train.classes)
    targets = labels.items(test)
    items = splits.without(labels.items(train, cfg.lists), targets if cfg.split == "val" else [])
    data = samples.Samples(items, transforms(cfg, training=True))
    with runner.preserved_rng():
        torch.manual_seed(cfg.seed)
        model = segmenter.fcn(backbone, len(classes), cfg, bench.mean, bench.std)
    rate = schedule.poly_rate(cfg.iterations, cfg.power, cfg.min_lr / cfg.lr)
    runner.finetune(model, data, cfg, bench, rate)

    data = samples.Samples(targets, transforms(cfg, training=False))
    counts = [
        confusion(sample.gt_sem_seg.data[0], sample.pred_sem_seg.data[0], len(classes))
        for batch in runner.predict(model, data, cfg.test_batch, cfg.workers, bench)
        for sample in batch
    ]
    per_image = np.stack(counts)  # N×C×C
    bench.predictions("miou", confusion=per_image)
    total = per_image.sum(axis=0)
    return {"miou": mean_iou(total), "aacc": float(100 * np.trace(total) / max(total.sum(), 1))}


def label_names(dataset: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes of the label maps: VOC-layout maps count the background as class 0, ahead of the object classes."""
    return classes if dataset.startswith("cityscapes") else (BACKGROUND, *(c for c in classes if c != BACKGROUND))


def transforms(cfg: SegmentationConfig, training: bool) -> list[Callable[[Any], Any]]:
    """The mmseg transforms from an item of `labels.items` to packed inputs."""
    from mmcv.transforms import LoadImageFromFile, RandomFlip, RandomResize, Resize
    from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, PhotoMetricDistortion, RandomCrop

    load = [LoadImageFromFile(), LoadAnnotations()]
    if not training:  # the label map keeps its own size
        return [load[0], Resize(scale=cfg.scale, keep_ratio=True), load[1], PackSegInputs()]
    resize = RandomResize(scale=cfg.scale, ratio_range=cfg.resize, keep_ratio=True)
    steps = [*load, resize, RandomCrop((cfg.crop, cfg.crop), cat_max_ratio=0.75), RandomFlip(prob=float(cfg.flip))]
    return [*steps, *([PhotoMetricDistortion()] if cfg.distort else []), PackSegInputs()]


def confusion(label: Any, pred: Any, classes: int) -> np.ndarray:
    """Pixel counts C×C [true, predicted] of two H×W tensors; labels outside 0..C-1 count for nothing."""
    label, pred = label.cpu().numpy().ravel(), pred.cpu().numpy().ravel()
    known = (label >= 0) & (label < classes)
    counts = np.bincount(classes * label[known] + pred[known], minlength=classes**2)
    return counts.reshape(classes, classes)


PRESETS: Mapping[str, SegmentationConfig] = {
    "default": SegmentationConfig(),
    "voc12aug_fcn_20k": VOC12AUG,
    "cityscapes_fcn_40k": CITYSCAPES,
}

EVALUATOR = Evaluator(
    name="segmentation",
    title="Segmentation",
    task="segmentation",
    run=run,
    presets=PRESETS,
    metrics=(
        Metric("miou", "mIoU"),
        Metric("aacc", "pixel accuracy"),
    ),
    describe={
        "default": "FCN on the embedded digit scenes, 80 iterations",
        "voc12aug_fcn_20k": "FCN, output stride 8, on VOC12 with SBD, crops of 512; 20k iterations of 16 pictures",
        "cityscapes_fcn_40k": "FCN, output stride 8, on Cityscapes, crops of 769; 40k iterations of 8 pictures",
    },
    frozen=False,
    needs=("mmseg", "mmcv", "cv2", "ftfy", "regex"),
)
