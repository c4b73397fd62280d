# SPDX-License-Identifier: Apache-2.0
"""Object detection: fine-tune Faster or Mask R-CNN on the weights and report average precision.

    suite eval RUN --bench detection                    embedded digit scenes, seconds on a CPU
    suite eval RUN --bench detection:voc0712_c4_24k     VOC07+12 trainval to VOC07 test, as in MoCo and MMSelfSup
    suite eval RUN --bench detection:coco_fpn_1x        COCO boxes and masks, 12 epochs
    suite eval RUN --bench detection:coco_fpn_1x detection.fraction=0.05     a twentieth of that schedule

On data in VOC layout `ap50` counts a detection from an overlap of 0.5 on and integrates precision over all recalls (VOC
2010 and later); `ap50.11point` averages it at eleven recalls, which is how figures on VOC 2007 are published. Matching
follows the VOC development kit. On COCO json `ap50` and the masks' figures are pycocotools', precision at 101 recalls.
`map` is the mean over overlaps 0.5, 0.55, ..., 0.95 in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveFloat

from suite.spec import EvalConfig, Evaluator, Metric

if TYPE_CHECKING:
    from evaluators.mm.boxes import Found
    from suite.backbone import Backbone
    from suite.bench import Bench

LEAST_SIDE = 32
"""Pictures with a shorter side are not trained on."""


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(EvalConfig):
    """How to fine-tune and test the detector; the defaults are for the embedded scenes and networks of their size."""

    architecture: Literal["c4", "fpn"] = "fpn"
    "c4: stages up to the third under the region proposals, the last one on each region. fpn: a feature pyramid."
    masks: bool = False
    "Mask R-CNN: predict the objects' masks too; needs annotations in COCO json."
    split: Literal["test", "val"] = "test"
    "What to test on; `val` is for choosing settings, and is taken out of the training pictures."
    workers: int = 0
    fraction: PositiveFloat = 1.0
    "Part of `iterations`, `milestones` and `warmup` to train for; the record says so."
    iterations: int = 80
    batch: int = 4
    accumulate: int = 1
    "Parts that a batch is computed in, to save memory; BatchNorm sees one part at a time."
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip: float | None = 5.0
    "Largest norm of the gradient; None: any."
    milestones: tuple[int, ...] = (62, 75)
    "Iterations at which the rate is divided by ten."
    warmup: int = 20
    "Iterations of linear warm-up."
    warmup_ratio: float = 0.001
    sides: tuple[int, ...] = (96,)
    "Short sides in pixels, one drawn per training picture."
    test_side: int = 96
    max_side: int = 160
    "Longest side in pixels."
    flip: float = 0.0
    "Probability of mirroring a training picture."
    frozen_stages: int = 2
    "ResNet-like networks: 1 freezes the stem, 2 the first residual stage too, and so on."
    extra_norm: bool = True
    "c4: one more BatchNorm after the last stage."
    roi_side: int = 4
    "Side of a region's features before they are pooled or flattened; masks are 4 times (c4: 2 times) as wide."
    norm: bool = False
    "fpn: BatchNorm in the pyramid and the heads."
    channels: int = 64
    "fpn: width of the pyramid."
    box_convs: int = 0
    "fpn: convolutions ahead of one fully connected layer in the box head; 0: two fully connected layers."
    fc_channels: int = 128
    "fpn: width of the box head's fully connected layers."
    mask_convs: int = 4
    "Convolutions in the mask head."
    mask_channels: int = 64
    anchor_scales: tuple[float, ...] = (4.0, 7.0)
    "Sides of the anchors in units of their level's stride."
    rpn_samples: int = 64
    rcnn_samples: int = 32
    rpn_pre_nms: int = 200
    "Proposals per level and picture before suppression."
    rpn_proposals: int = 64
    test_pre_nms: int = 200
    test_proposals: int = 48
    max_detections: int = 30
    test_batch: int = 16


VOC0712_C4 = DetectionConfig(
    dataset="voc07+12", architecture="c4", iterations=24_000, batch=16, lr=0.02, clip=None, milestones=(18_000, 22_000),
    warmup=100, warmup_ratio=0.001, sides=tuple(range(480, 801, 32)), test_side=800, max_side=1333, flip=0.5, frozen_stages=0,
    roi_side=7, anchor_scales=(2.0, 4.0, 8.0, 16.0, 32.0), rpn_samples=256, rcnn_samples=512, rpn_pre_nms=12_000,
    rpn_proposals=2000, test_pre_nms=6000, test_proposals=1000, max_detections=100, test_batch=1, workers=8,
)  # fmt: skip
COCO_EPOCH = 7330
"""Iterations of 16 pictures in a pass over the 117,266 training pictures that have an object."""
COCO_C4_1X = replace(
    VOC0712_C4, dataset="coco", masks=True, iterations=12 * COCO_EPOCH, milestones=(8 * COCO_EPOCH, 11 * COCO_EPOCH),
    warmup=1000, sides=tuple(range(640, 801, 32)), mask_convs=0, mask_channels=256,
)  # fmt: skip
COCO_FPN_1X = replace(
    COCO_C4_1X, architecture="fpn", norm=True, channels=256, box_convs=4, fc_channels=1024, mask_convs=4,
    anchor_scales=(8.0,), rpn_pre_nms=2000, rpn_proposals=1000, test_pre_nms=1000,
)  # fmt: skip
TWICE: Mapping[str, Any] = {"iterations": 24 * COCO_EPOCH, "milestones": (16 * COCO_EPOCH, 22 * COCO_EPOCH)}


def run(backbone: Backbone, cfg: DetectionConfig, bench: Bench) -> dict[str, float]:
    """Fine-tune on the training split, detect on the test split.

    Raises:
        UsageError: no boxes or masks in VOC layout or COCO json, or an architecture that the network does not fit.
        JobError: mmdet does not import, or the loss diverged.
    """
    import torch

    from evaluators.mm import coco, detector, ops, runner, samples, schedule, splits, voc

    ops.load("mmdet.models", "mmdet.datasets.transforms")
    if cfg.fraction != 1:
        bench.select(schedule=schedule.describe(cfg, PRESETS))
    cfg = schedule.scaled(cfg)
    train, test = splits.load(bench, cfg, cfg.split)
    layout = coco if cfg.masks or not voc.has_boxes(test) else voc
    score, targets = layout.scorer(test, cfg.masks), layout.items(test, cfg.masks)
    items = splits.without(layout.items(train, cfg.masks), targets if cfg.split == "val" else [])
    items = [item for item in items if trainable(item)]
    with runner.preserved_rng():
        torch.manual_seed(cfg.seed)
        model = detector.rcnn(backbone, train.num_classes, cfg, bench.mean, bench.std)
    data = samples.Samples(items, transforms(cfg, training=True))
    wide = [int(item["width"] > item["height"]) for item in items]
    rate = schedule.step_rate(cfg.milestones, 0.1, cfg.warmup, cfg.warmup_ratio)
    runner.finetune(model, data, cfg, bench, rate, groups=wide)

    data = samples.Samples(targets, transforms(cfg, training=False))
    batches = runner.predict(model, data, cfg.test_batch, cfg.workers, bench)
    scores, arrays = score([found(sample, cfg.masks) for batch in batches for sample in batch])
    bench.predictions("detection", **arrays)
    return scores


def trainable(item: dict[str, Any]) -> bool:
    """A picture that is not tiny and has an object that is not to be ignored."""
    large = min(item["width"], item["height"]) >= LEAST_SIDE
    return large and any(not instance["ignore_flag"] for instance in item["instances"])


def transforms(cfg: DetectionConfig, training: bool) -> list[Callable[[Any], Any]]:
    """The mmdet transforms from an item of `voc.items` or `coco.items` to packed inputs."""
    from mmcv.transforms import LoadImageFromFile, RandomChoice
    from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, RandomFlip, Resize

    if not training:
        keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
        return [LoadImageFromFile(), Resize((cfg.max_side, cfg.test_side), keep_ratio=True), PackDetInputs(meta_keys=keys)]
    load = [LoadImageFromFile(), LoadAnnotations(with_bbox=True, with_mask=cfg.masks)]
    resize = [[Resize((cfg.max_side, side), keep_ratio=True)] for side in cfg.sides]
    return [*load, RandomChoice(resize), RandomFlip(prob=float(cfg.flip)), PackDetInputs()]


def found(sample: Any, masks: bool) -> Found:
    """The detections in an mmdet data sample; masks become run lengths, a hundredth of their size."""
    from pycocotools import mask as run_lengths

    from evaluators.mm.boxes import Found

    instances = sample.pred_instances
    boxes, classes, scores = (x.float().cpu().numpy() for x in (instances.bboxes, instances.labels, instances.scores))
    shapes = instances.masks.cpu().numpy().astype("uint8") if masks else ()  # N×H×W
    encoded = [run_lengths.encode(shape.copy(order="F")) for shape in shapes]
    return Found(boxes, classes.astype("int64"), scores, encoded)


PRESETS: Mapping[str, DetectionConfig] = {
    "default": DetectionConfig(),
    "voc0712_c4_24k": VOC0712_C4,
    "coco_fpn_1x": COCO_FPN_1X,
    "coco_fpn_2x": replace(COCO_FPN_1X, **TWICE),
    "coco_c4_1x": COCO_C4_1X,
    "coco_c4_2x": replace(COCO_C4_1X, **TWICE),
}

EVALUATOR = Evaluator(
    name="detection",
    title="Detection",
    task="detection",
    run=run,
    presets=PRESETS,
    metrics=(
        Metric("ap50", "AP50"),
        Metric("map", "AP 50:95"),
        Metric("ap75", "AP75"),
        Metric("mask_map", "mask AP 50:95"),
        Metric("mask_ap50", "mask AP50"),
        Metric("mask_ap75", "mask AP75"),
    ),
    describe={
        "default": "Faster R-CNN on the embedded digit scenes, 80 iterations",
        "voc0712_c4_24k": "Faster R-CNN C4 on VOC07+12 trainval, tested on VOC07 test; 24k iterations of 16 pictures",
        "coco_fpn_1x": "Mask R-CNN with a pyramid on COCO, boxes and masks; 12 epochs of 16 pictures an iteration",
        "coco_fpn_2x": "Mask R-CNN with a pyramid on COCO, boxes and masks; 24 epochs",
        "coco_c4_1x": "Mask R-CNN C4 on COCO, boxes and masks; 12 epochs of 16 pictures an iteration",
        "coco_c4_2x": "Mask R-CNN C4 on COCO, boxes and masks; 24 epochs",
    },
    frozen=False,
    needs=("mmdet", "mmcv", "cv2", "pycocotools"),
)
