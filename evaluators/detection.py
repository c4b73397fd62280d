# SPDX-License-Identifier: Apache-2.0
"""Object detection: fine-tune Faster R-CNN on the weights and report average precision on PASCAL VOC data.

    suite eval RUN --bench detection                    embedded digit scenes, seconds on a CPU
    suite eval RUN --bench detection:voc0712_c4_24k     VOC07+12 trainval to VOC07 test, as in MoCo and MMSelfSup

`ap50` counts a detection from an overlap of 0.5 on and integrates precision over all recalls (VOC 2010 and later);
`ap50.11point` averages it at eleven recalls, which is how figures on VOC 2007 are published; `map` is the mean of the
all-point figure over overlaps 0.5, 0.55, ..., 0.95. Matching follows the VOC development kit for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from suite.spec import EvalConfig, Evaluator, Metric

if TYPE_CHECKING:
    from suite.backbone import Backbone
    from suite.bench import Bench

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(EvalConfig):
    """How to fine-tune and test the detector; the defaults are for the embedded scenes and networks of their size."""

    architecture: Literal["c4", "fpn"] = "fpn"
    "c4: stages up to the third under the region proposals, the last one on each region. fpn: a feature pyramid."
    workers: int = 0
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
    "Side of a region's features before they are pooled or flattened."
    channels: int = 64
    "fpn: width of the pyramid."
    fc_channels: int = 128
    "fpn: width of the box head."
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


def run(backbone: Backbone, cfg: DetectionConfig, bench: Bench) -> dict[str, float]:
    """Fine-tune on the training split, detect on the test split.

    Raises:
        UsageError: no VOC layout, or an architecture that the network does not fit.
        JobError: mmdet does not import, or the loss diverged.
    """
    import torch

    from evaluators.mm import detector, ops, runner, voc

    ops.load("mmdet.models", "mmdet.datasets.transforms")
    train, test = bench.data(cfg, "train"), bench.data(cfg, "test")
    items = [item for item in voc.detection_items(train) if any(not i["ignore_flag"] for i in item["instances"])]
    with runner.preserved_rng():
        torch.manual_seed(cfg.seed)
        model = detector.faster_rcnn(backbone, train.num_classes, cfg, bench.mean, bench.std)
    data = runner.Samples(items, transforms(cfg, training=True))
    wide = [int(item["width"] > item["height"]) for item in items]
    rate = runner.step_rate(cfg.milestones, 0.1, cfg.warmup, cfg.warmup_ratio)
    runner.finetune(model, data, cfg, bench, rate, groups=wide)

    items = voc.detection_items(test)
    detections: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for batch in runner.predict(model, runner.Samples(items, transforms(cfg, training=False)), cfg.test_batch,
                                cfg.workers, bench):  # fmt: skip
        for sample in batch:
            found = sample.pred_instances
            detections.append(tuple(x.float().cpu().numpy() for x in (found.bboxes, found.labels, found.scores)))
    scores, arrays = score(detections, [voc.truth(item) for item in items], test.num_classes)
    bench.predictions("detection", **arrays)
    return scores


def transforms(cfg: DetectionConfig, training: bool) -> list[Callable[[Any], Any]]:
    """The mmdet transforms from an item of `voc.detection_items` to packed inputs."""
    from mmcv.transforms import LoadImageFromFile, RandomChoice
    from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, RandomFlip, Resize

    load = [LoadImageFromFile(), LoadAnnotations(with_bbox=True)]
    if not training:
        keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
        return [*load, Resize((cfg.max_side, cfg.test_side), keep_ratio=True), PackDetInputs(meta_keys=keys)]
    resize = [[Resize((cfg.max_side, side), keep_ratio=True)] for side in cfg.sides]
    return [*load, RandomChoice(resize), RandomFlip(prob=float(cfg.flip)), PackDetInputs()]


def score(
    detections: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], targets: Sequence[Any], classes: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Average precision of detections, and the matches at an overlap of 0.5 behind it.

    Args:
        detections: boxes N×4, classes N, scores N per picture.
        targets: `evaluators.mm.voc.Boxes` per picture.
        classes: number of classes.

    Returns:
        `ap50`, `map` and `ap50.11point` in percent; the arrays of the "detection" predictions.
    """
    from evaluators.mm import voc
    from suite.metrics import detection_ap

    n_gt = np.stack([np.bincount(t.classes[~t.difficult], minlength=classes) for t in targets])  # N×C
    matched = [voc.match(b, c, s, t, THRESHOLDS) for (b, c, s), t in zip(detections, targets, strict=True)]
    tp = np.concatenate([hit for hit, _ in matched], axis=1)  # T×M
    ignored = np.concatenate([skip for _, skip in matched], axis=1)  # T×M
    arrays: dict[str, np.ndarray] = {
        "image": np.repeat(np.arange(len(detections)), [len(b) for b, _, _ in detections]),
        "cls": np.concatenate([c for _, c, _ in detections]).astype(np.int64),
        "score": np.concatenate([s for _, _, s in detections]),
        "n_gt": n_gt,
    }
    values = [detection_ap(**arrays, tp=t, ignored=i)[0] for t, i in zip(tp, ignored, strict=True)]
    arrays |= {"tp": tp[0], "ignored": ignored[0]}
    eleven = eleven_point_ap(arrays["cls"], arrays["score"], tp[0], ignored[0], n_gt.sum(axis=0))
    return {"ap50": values[0], "map": float(np.mean(values)), "ap50.11point": eleven}, arrays


def eleven_point_ap(cls: np.ndarray, score: np.ndarray, tp: np.ndarray, ignored: np.ndarray, total: np.ndarray) -> float:
    """Mean over classes of the precision at recalls 0, 0.1, ..., 1, in percent (VOC 2007 development kit).

    Args:
        cls: class per detection, M.
        score: confidence, M.
        tp: hits, M.
        ignored: detections that count neither way, M.
        total: boxes that are not difficult per class, C.
    """
    order = np.argsort(-score, kind="stable")
    order = order[~ignored[order]]
    values = []
    for c in np.flatnonzero(total):
        hit = tp[order][cls[order] == c]
        recall, precision = np.cumsum(hit) / total[c], np.cumsum(hit) / np.arange(1, len(hit) + 1)
        values.append(np.mean([precision[recall >= r].max(initial=0.0) for r in np.arange(11) / 10]))
    return float(100 * np.mean(values)) if values else float("nan")


PRESETS: Mapping[str, DetectionConfig] = {"default": DetectionConfig(), "voc0712_c4_24k": VOC0712_C4}

EVALUATOR = Evaluator(
    name="detection",
    title="Detection",
    task="detection",
    run=run,
    presets=PRESETS,
    metrics=(
        Metric("ap50", "AP50"),
        Metric("map", "AP 50:95"),
    ),
    describe={
        "default": "Faster R-CNN on the embedded digit scenes, 80 iterations",
        "voc0712_c4_24k": "Faster R-CNN C4 on VOC07+12 trainval, tested on VOC07 test; 24k iterations of 16 pictures",
    },
    frozen=False,
    needs=("mmdet", "mmcv", "cv2"),
)
