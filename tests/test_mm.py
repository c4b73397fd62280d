# SPDX-License-Identifier: Apache-2.0
"""Detection and segmentation: adapters, the fine-tuning loop, the metrics against mmdet's and mmseg's, and both evaluators."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from suite.backbone import Backbone
from suite.data.imageset import FileImages, ImageSet
from suite.errors import JobError, UsageError
from suite.metrics import PREDICTIONS, headline

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from evaluators import detection, segmentation
from evaluators.mm import backbone as adapters
from evaluators.mm import detector, ops, runner, segmenter, voc

COLOURS = ((220, 40, 40), (40, 200, 60), (50, 80, 230))
NAMES = ("red", "green", "blue")
SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
QUICK = detection.DetectionConfig(iterations=3, batch=2, sides=(64,), test_side=64, frozen_stages=0)
SEGMENT = segmentation.SegmentationConfig(
    iterations=3, batch=2, crop=64, scale=(64, 64), frozen_stages=0, background_weight=1.0
)


class FakeBench:
    """The part of a bench that the two evaluators use."""

    device, precision = torch.device("cpu"), "32"
    mean, std = MEAN, STD

    def __init__(self, out: Path, sets: dict[str, ImageSet] | None = None) -> None:
        self.out, self.sets, self.stored, self.bars = out, sets or {}, {}, []

    def data(self, cfg: Any, split: str) -> ImageSet:
        return self.sets[split]

    def predictions(self, kind: str, **arrays: np.ndarray) -> None:
        self.stored[kind] = arrays

    @contextlib.contextmanager
    def progress(self, total: int, what: str) -> Iterator[Callable[[int], None]]:
        self.bars.append([what, total, 0])

        def advance(count: int) -> None:
            self.bars[-1][2] += count

        yield advance


def squares(root: Path, split: str, count: int, seed: int) -> ImageSet:
    """Coloured squares on grey noise in VOC layout."""
    rng = np.random.default_rng(seed)
    base = root / "VOCdevkit" / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    names, labels = [f"{split}{i:03d}" for i in range(count)], np.full((count, len(NAMES)), -1, dtype=np.int8)
    for i, name in enumerate(names):
        picture = rng.integers(90, 160, (64, 80, 3), dtype=np.uint8)
        mask = np.zeros((64, 80), dtype=np.uint8)
        objects = ""
        for _ in range(int(rng.integers(1, 3))):
            c, side = int(rng.integers(3)), int(rng.integers(16, 32))
            y, x = int(rng.integers(64 - side)), int(rng.integers(80 - side))
            picture[y : y + side, x : x + side], mask[y : y + side, x : x + side] = COLOURS[c], c + 1
            labels[i, c] = 1
            box = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + side, y + side), strict=True)
            corners = "".join(f"<{key}>{value}</{key}>" for key, value in box)
            objects += f"<object><name>{NAMES[c]}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>"
        Image.fromarray(picture).save(base / "JPEGImages" / f"{name}.jpg", quality=95)
        Image.fromarray(mask).save(base / "SegmentationClass" / f"{name}.png")
        size = "<size><width>80</width><height>64</height></size>"
        (base / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names))
    paths = [base / "JPEGImages" / f"{name}.jpg" for name in names]
    return ImageSet("squares", split, NAMES, labels, FileImages(paths), "0", root=root, paths=paths)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageSet]:
    root = tmp_path_factory.mktemp("squares")
    return {"train": squares(root, "train", 24, 0), "test": squares(root, "test", 10, 1)}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    ops.load("mmdet.models", "mmseg.models")
    yield
    torch.set_num_threads(before)


def network(arch: str = "resnet18", stem: str = "imagenet", **options: Any) -> Backbone:
    torch.manual_seed(0)
    return Backbone(arch, options or (SMALL if arch == "resnet18" else {}), stem)


BOTTLENECK = {"layers": [1, 1, 1, 1], "channels": [8, 8, 12, 16]}
VIT = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 64, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4}


@pytest.mark.parametrize(
    ("arch", "stem", "options", "architecture"),
    [
        ("resnet18", "imagenet", SMALL, "c4"),
        ("resnet18", "cifar", SMALL, "c4"),
        ("resnet18", "cifar", SMALL, "fpn"),
        ("resnet50d", "imagenet", BOTTLENECK, "c4"),
        ("convnext_atto", "imagenet", {}, "fpn"),
        ("swin_tiny_patch4_window7_224", "imagenet", SWIN, "fpn"),
        ("vit_tiny_patch16_224", "imagenet", VIT, "fpn"),
    ],
)
def test_detector_holds_the_weights_and_trains_all_of_them(
    arch: str, stem: str, options: dict[str, Any], architecture: Any, tmp_path: Path
) -> None:
    net = Backbone(arch, options, stem)
    digest = net.save(tmp_path / "backbone.safetensors")
    loaded = Backbone.load(tmp_path / "backbone.safetensors")
    model = detector.faster_rcnn(loaded, 3, dataclasses.replace(QUICK, architecture=architecture), MEAN, STD)
    assert trains_everything(model, detection_batch(96, 128))
    assert loaded.sha256() == digest, "building or training the detector changed the backbone it was given"


@pytest.mark.parametrize(
    ("arch", "stem", "options", "side"),
    [
        ("resnet18", "imagenet", SMALL, 8),
        ("resnet18", "cifar", SMALL, 8),
        ("vit_tiny_patch16_224", "imagenet", VIT, 6),
    ],
)
def test_segmenter_holds_the_weights_at_output_stride_8(arch: str, stem: str, options: dict[str, Any], side: int) -> None:
    net = Backbone(arch, options, stem)
    size = 64 if arch == "resnet18" else 96
    cfg = dataclasses.replace(SEGMENT, auxiliary=0.4, concat=True, crop=size)
    model = segmenter.fcn(net, 4, cfg, MEAN, STD)
    maps = model.backbone(torch.zeros(1, 3, size, size))
    assert [tuple(m.shape[2:]) for m in maps][-1] == (side, side)
    assert trains_everything(model, segmentation_batch(size))


def test_small_stem_is_dilated_to_the_stride_asked_for() -> None:
    net = network("resnet18", "cifar")
    assert adapters.dilated(net, 4).strides == (1, 1, 2, 4, 4)
    assert adapters.dilated(network(), 8).strides == (2, 4, 8, 8, 8)
    with pytest.raises(UsageError, match="output_stride"):
        adapters.dilated(network(), 2)


def test_weighted_loss_is_mmsegs_where_all_classes_weigh_the_same() -> None:
    from mmseg.models.losses import CrossEntropyLoss

    logits, label = torch.randn(2, 4, 5, 5), torch.randint(0, 4, (2, 5, 5))
    label[0, 0] = segmenter.IGNORE
    want = CrossEntropyLoss(avg_non_ignore=True, loss_weight=0.4)(logits, label, ignore_index=segmenter.IGNORE)
    torch.testing.assert_close(segmenter.WeightedLoss(1.0, 4, 0.4)(logits, label), want)
    only = torch.zeros(1, 2, 2, dtype=torch.int64)
    assert segmenter.WeightedLoss(0.1, 4, 1.0)(logits[:1, :, :2, :2], only) > 0


def test_published_presets_keep_their_figures() -> None:
    voc0712 = detection.EVALUATOR.presets["voc0712_c4_24k"]
    assert (voc0712.iterations, voc0712.batch, voc0712.lr, voc0712.milestones) == (24_000, 16, 0.02, (18_000, 22_000))
    assert (voc0712.warmup, voc0712.warmup_ratio, voc0712.weight_decay, len(voc0712.sides)) == (100, 0.001, 1e-4, 11)
    assert (voc0712.flip, voc0712.frozen_stages, voc0712.roi_side, voc0712.clip) == (0.5, 0, 7, None)
    for name, iterations, batch, crop in (("voc12aug_fcn_20k", 20_000, 16, 512), ("cityscapes_fcn_40k", 40_000, 8, 769)):
        cfg = segmentation.EVALUATOR.presets[name]
        assert (cfg.iterations, cfg.batch, cfg.crop, cfg.lr, cfg.weight_decay) == (iterations, batch, crop, 0.01, 5e-4)
        assert (cfg.flip, cfg.frozen_stages, cfg.background_weight, cfg.clip) == (0.5, 0, 1.0, None)


def trains_everything(model: torch.nn.Module, batch: dict[str, list[Any]]) -> bool:
    """One backward pass gives every parameter inside the backbone a gradient, but for norms behind the last map."""
    data = model.train().data_preprocessor(batch, training=True)
    runner.total_loss(model.loss(data["inputs"], data["data_samples"])).backward()
    used = [n for n, p in model.named_parameters() if p.grad is None]
    return all(".norm." in name or "head.norm" in name or "fc_norm" in name for name in used)


def detection_batch(height: int, width: int) -> dict[str, list[Any]]:
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    sample = DetDataSample(metainfo={"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1, 1)})
    boxes, labels = torch.tensor([[10.0, 10, 50, 60], [40, 20, 90, 80]]), torch.tensor([0, 2])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    picture = torch.randint(0, 255, (3, height, width), dtype=torch.uint8)
    return {"inputs": [picture, picture.flip(2)], "data_samples": [sample, sample.clone()]}


def segmentation_batch(size: int) -> dict[str, list[Any]]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo={"img_shape": (size, size), "ori_shape": (size, size)})
    sample.gt_sem_seg = PixelData(data=torch.randint(0, 4, (1, size, size)))
    picture = torch.randint(0, 255, (3, size, size), dtype=torch.uint8)
    return {"inputs": [picture, picture.flip(2)], "data_samples": [sample, sample.clone()]}


def test_c4_trunk_and_head_are_the_network() -> None:
    net = network("resnet18", "cifar").eval()
    copy = adapters.copy_of(net).eval()
    trunk, res5 = adapters.Trunk(copy).eval(), adapters.Res5(copy, extra_norm=False).eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(res5(trunk(x)[0]), net.stages(x, [4])[0])
    assert (trunk.stride, res5.stride, res5.dim) == (4, 2, 32)


def test_a_lost_or_changed_tensor_is_named() -> None:
    net = network()
    levels = adapters.Stages(adapters.copy_of(net), [3, 4])
    adapters.check_loaded(net.net.state_dict(), levels)
    with torch.no_grad():
        levels.body.net.layer3[0].conv1.weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(JobError, match="layer3.0.conv1.weight"):
        adapters.check_loaded(net.net.state_dict(), levels)
    trunk = adapters.Trunk(adapters.copy_of(net))
    with pytest.raises(JobError, match="lacks 'layer4"):
        adapters.check_loaded(net.net.state_dict(), trunk)


def test_frozen_stages_keep_weights_and_statistics() -> None:
    cfg = dataclasses.replace(QUICK, architecture="c4", frozen_stages=2)
    net = network("resnet18", "cifar")
    model = detector.faster_rcnn(net, 3, cfg, MEAN, STD)
    data = model.train().data_preprocessor(detection_batch(64, 64), training=True)
    runner.total_loss(model.loss(data["inputs"], data["data_samples"])).backward()
    state = net.net.state_dict()
    for name, tensor in model.backbone.state_dict().items():
        if name.startswith(("conv1", "bn1", "layer1")):
            assert torch.equal(tensor, state[name]), name
    grads = {name.split(".")[0] for name, p in model.backbone.named_parameters() if p.grad is not None}
    assert grads == {"layer2", "layer3"}


def test_c4_of_a_transformer_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="c4.*fpn"):
        detector.faster_rcnn(Backbone("vit_tiny_patch16_224", VIT), 3, dataclasses.replace(QUICK, architecture="c4"), MEAN, STD)


def random_detections(seed: int) -> tuple[list[Any], list[voc.Boxes]]:
    rng = np.random.default_rng(seed)

    def boxes(n: int) -> np.ndarray:
        corner = rng.uniform(0, 60, (n, 2))
        return np.concatenate([corner, corner + rng.uniform(5, 40, (n, 2))], axis=1).astype(np.float32)

    detections, targets = [], []
    for _ in range(12):
        target = voc.Boxes(boxes(5), rng.integers(0, 3, 5), rng.random(5) < 0.25)
        near = np.repeat(target.boxes, 3, axis=0) + rng.normal(0, 3, (15, 4)).astype(np.float32)
        found = np.concatenate([near, boxes(6)])
        detections.append((found, rng.integers(0, 3, 21), rng.random(21).astype(np.float32)))
        targets.append(target)
    return detections, targets


@pytest.mark.parametrize("seed", [6, 8, 25])
def test_average_precision_is_mmdets(seed: int) -> None:
    # mmdet holds recalls in float32, so sets whose box counts share a factor with 10 differ at the eleven recalls
    from mmdet.evaluation.functional import eval_map

    detections, targets = random_detections(seed)
    rows = [[np.c_[b, s][c == k] for k in range(3)] for b, c, s in detections]
    annotations = [
        {"bboxes": t.boxes[~t.difficult], "labels": t.classes[~t.difficult], "bboxes_ignore": t.boxes[t.difficult],
         "labels_ignore": t.classes[t.difficult]}
        for t in targets
    ]  # fmt: skip
    scores, arrays = detection.score(detections, targets, 3)

    def theirs(threshold: float, mode: str) -> float:
        return 100 * eval_map(rows, annotations, iou_thr=threshold, logger="silent", nproc=1, eval_mode=mode)[0]

    assert scores["ap50"] == pytest.approx(theirs(0.5, "area"), abs=1e-3)
    assert scores["ap50.11point"] == pytest.approx(theirs(0.5, "11points"), abs=1e-3)
    assert scores["map"] == pytest.approx(np.mean([theirs(t, "area") for t in detection.THRESHOLDS]), abs=1e-3)
    assert 0 < scores["map"] < scores["ap50"] < 100
    assert headline("detection", arrays) == pytest.approx(scores["ap50"])


def test_matching_follows_the_development_kit() -> None:
    target = voc.Boxes(np.array([[0, 0, 10, 10], [20, 0, 30, 10]], dtype=np.float32), np.array([0, 0]), np.array([False, True]))
    found = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [50, 50, 60, 60], [0, 0, 10, 10]], dtype=np.float32)
    hit, ignored = voc.match(found, np.array([0, 0, 0, 0, 1]), np.array([0.5, 0.9, 0.8, 0.7, 0.6]), target, (0.5, 0.95))
    assert hit[0].tolist() == [False, True, False, False, False], "the second, higher score takes the box"
    assert hit[1].tolist() == [True, False, False, False, False], "at 0.95 only the exact box reaches it"
    assert ignored.tolist() == [[False, False, True, False, False]] * 2, "a detection on a difficult box counts neither way"


def test_no_detection_at_all_scores_zero() -> None:
    _, targets = random_detections(0)
    nothing = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    scores, arrays = detection.score([nothing] * len(targets), targets, 3)
    assert scores == {"ap50": 0.0, "map": 0.0, "ap50.11point": 0.0}
    assert set(arrays) == set(PREDICTIONS["detection"])


def test_confusion_sums_to_mmsegs_iou_metric() -> None:
    from mmseg.evaluation import IoUMetric

    generator = torch.Generator().manual_seed(0)
    total, results = np.zeros((4, 4), dtype=np.int64), []
    for _ in range(5):
        label = torch.randint(0, 5, (9, 11), generator=generator)
        label[label == 4] = segmenter.IGNORE
        pred = torch.where(torch.rand(9, 11, generator=generator) < 0.6, label.clamp(max=3), torch.tensor(1))
        total += segmentation.confusion(label, pred, 4)
        results.append(IoUMetric.intersect_and_union(pred, label, 4, segmenter.IGNORE))
    intersection, union, _, _ = (sum(part) for part in zip(*results, strict=True))
    from suite.metrics import iou_per_class

    np.testing.assert_allclose(iou_per_class(total), 100 * (intersection / union).numpy(), rtol=1e-5)
    assert total.sum() == sum(float(r[3].sum()) for r in results)


def test_draws_do_not_depend_on_where_they_start() -> None:
    groups = [0, 0, 1, 0, 1, 1, 0]
    whole = list(runner.Draws(groups, 2, 0, 20, seed=3))
    assert list(runner.Draws(groups, 2, 13, 20, seed=3)) == whole[13:]
    assert list(runner.Draws(groups, 2, 0, 20, seed=4)) != whole
    assert all(len({groups[i] for _, i in batch}) == 1 for batch in whole)
    assert {i for batch in whole[:4] for _, i in batch} == set(range(7)), "a pass sees every picture"
    assert len({draw for batch in whole for draw, _ in batch}) == 40


def test_rates() -> None:
    step = runner.step_rate((18_000, 22_000), 0.1, 100, 0.001)
    assert [step(i) for i in (0, 50, 100, 17_999)] == pytest.approx([0.001, 0.5005, 1, 1])
    assert [step(i) for i in (18_000, 22_000)] == pytest.approx([0.1, 0.01])
    poly = runner.poly_rate(100, 0.9, 0.01)
    assert poly(0) == 1 and poly(99) == pytest.approx(0.99 * 0.01**0.9 + 0.01)


class Line(torch.nn.Module):
    """The smallest model with the interface of OpenMMLab's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def data_preprocessor(self, batch: dict[str, list[Any]], training: bool) -> dict[str, list[Any]]:
        return batch

    def loss(self, inputs: list[Tensor], data_samples: list[Any]) -> dict[str, Any]:
        noise = torch.rand(1)
        return {"loss_a": [((self.weight - x - noise) ** 2) for x in inputs], "acc": torch.ones(1)}


def line_data(stop_at: int = -1) -> runner.Samples:
    seen = []

    def pack(item: dict[str, Any]) -> dict[str, Any]:
        seen.append(1)
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        return {"inputs": torch.tensor(item["x"] + np.random.rand()), "data_samples": None}

    return runner.Samples([{"x": float(i)} for i in range(5)], [pack])


def test_an_interrupted_fine_tuning_continues_exactly(tmp_path: Path) -> None:
    cfg, bench = detection.DetectionConfig(iterations=9, batch=2, lr=0.01, workers=0), FakeBench(tmp_path)
    straight, resumed = Line(), Line()
    runner.finetune(straight, line_data(), cfg, bench, lambda step: 1.0)
    with pytest.raises(KeyboardInterrupt):
        runner.finetune(Line(), line_data(13), cfg, bench, lambda step: 1.0, save_every=0.0)
    assert (tmp_path / "finetune.pt").is_file()
    runner.finetune(resumed, line_data(), cfg, bench, lambda step: 1.0)
    assert torch.equal(straight.weight, resumed.weight)
    assert not (tmp_path / "finetune.pt").exists()
    assert bench.bars[0][2] == bench.bars[2][2] == 9


def test_a_checkpoint_of_other_settings_or_damaged_is_not_resumed(tmp_path: Path) -> None:
    cfg, bench = detection.DetectionConfig(iterations=4, batch=2, lr=0.01, workers=0), FakeBench(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        runner.finetune(Line(), line_data(5), cfg, bench, lambda step: 1.0, save_every=0.0)
    other, straight = Line(), Line()
    changed = dataclasses.replace(cfg, lr=0.02)
    runner.finetune(other, line_data(), changed, bench, lambda step: 1.0)
    runner.finetune(straight, line_data(), changed, FakeBench(tmp_path), lambda step: 1.0)
    assert torch.equal(other.weight, straight.weight)
    (tmp_path / "finetune.pt").write_bytes(b"cut short")
    runner.finetune(other, line_data(), changed, bench, lambda step: 1.0)


def test_parts_of_a_batch_give_the_gradient_of_the_whole(tmp_path: Path) -> None:
    cfg = detection.DetectionConfig(iterations=1, batch=4, lr=0.01, workers=0)
    weights = []
    for parts in (1, 2):
        model = Line()
        model.loss = lambda inputs, samples, m=model: {"loss": torch.stack([(m.weight - x) ** 2 for x in inputs])}
        runner.finetune(model, line_data(), dataclasses.replace(cfg, accumulate=parts), FakeBench(tmp_path), lambda s: 1.0)
        weights.append(model.weight.item())
    assert weights[0] == pytest.approx(weights[1]) and weights[0] != 0


def test_divergence_names_the_learning_rate(tmp_path: Path) -> None:
    model = Line()
    model.loss = lambda inputs, samples: {"loss": model.weight.sum() * float("nan")}
    with pytest.raises(JobError, match="nan at iteration 0.*lr=0.5"):
        runner.finetune(model, line_data(), detection.DetectionConfig(lr=0.5, workers=0), FakeBench(tmp_path), lambda s: 1.0)


def test_fine_tuning_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    cfg = detection.DetectionConfig(iterations=2, batch=2, lr=0.01, workers=0)
    runner.finetune(Line(), line_data(), cfg, FakeBench(tmp_path), lambda s: 1.0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_voc_boxes_are_read_as_mmdet_reads_them(sets: dict[str, ImageSet]) -> None:
    from mmdet.datasets import VOCDataset

    data = sets["test"]
    assert data.root is not None
    (data.root / "ids.txt").write_text("\n".join(path.stem for path in data.paths or ()))
    theirs = VOCDataset(
        ann_file=str(data.root / "ids.txt"), data_prefix={"sub_data_root": f"{data.root}/VOCdevkit/VOC2007/"},
        metainfo={"classes": NAMES}, pipeline=[], test_mode=True,
    )  # fmt: skip
    for item, other in zip(voc.detection_items(data), theirs, strict=True):
        assert item["instances"] == other["instances"]
        assert (item["height"], item["width"]) == (64, 80) == (other["height"], other["width"])


def test_data_without_annotations_is_a_usage_error(tmp_path: Path, sets: dict[str, ImageSet]) -> None:
    bare = ImageSet("bare", "test", NAMES, None, np.zeros((2, 8, 8, 3), np.uint8), "0")
    with pytest.raises(UsageError, match="bare.*no boxes"):
        voc.detection_items(bare)
    with pytest.raises(UsageError, match="bare.*no label maps"):
        voc.segmentation_items(bare)
    with pytest.raises(UsageError, match="other.txt"):
        voc.segmentation_items(sets["train"], [("other", "SegmentationClass")])


def test_cityscapes_ids_become_training_classes(tmp_path: Path) -> None:
    from mmseg.datasets.transforms import LoadAnnotations

    for name, values in (("a_gtFine_labelIds", [0, 7, 33, 34]), ("b_gtFine_labelTrainIds", [255, 0, 18, 255])):
        Image.fromarray(np.array([values, values], dtype=np.uint8)).save(tmp_path / f"{name}.png")
    for mask in sorted(tmp_path.glob("*.png")):
        data = ImageSet("cityscapes", "val", NAMES, None, np.zeros((1, 1, 4, 3), np.uint8), "0", paths=[mask], masks=[mask])
        item = LoadAnnotations()(voc.segmentation_items(data)[0])
        assert item["gt_seg_map"].tolist() == [[255, 0, 18, 255]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["fpn", "c4"])
def test_detection_runs_end_to_end_twice_the_same(architecture: Any, sets: dict[str, ImageSet], tmp_path: Path) -> None:
    net, cfg = network("resnet18", "cifar"), dataclasses.replace(QUICK, architecture=architecture, workers=0)
    before = net.sha256()
    first, second = FakeBench(tmp_path, sets), FakeBench(tmp_path, sets)
    scores = detection.run(net, cfg, first)
    assert scores == detection.run(net, cfg, second)
    assert set(scores) == {"ap50", "map", "ap50.11point"} and all(np.isfinite(list(scores.values())))
    assert headline("detection", first.stored["detection"]) == pytest.approx(scores["ap50"])
    assert first.bars == [["fine-tuning", 3, 3], ["predicting", 10, 10]]
    assert net.sha256() == before


@pytest.mark.slow
def test_segmentation_learns_the_squares(sets: dict[str, ImageSet], tmp_path: Path) -> None:
    cfg = dataclasses.replace(SEGMENT, iterations=40, batch=4, workers=0)
    bench = FakeBench(tmp_path, sets)
    scores = segmentation.run(network("resnet18", "cifar"), cfg, bench)
    assert scores["miou"] > 35, "guessing background everywhere gives about 20"
    stored = bench.stored["miou"]["confusion"]
    assert stored.shape == (10, 4, 4) and stored.sum() == 10 * 64 * 80
    assert headline("miou", bench.stored["miou"]) == pytest.approx(scores["miou"])


@pytest.mark.slow
def test_detection_learns_the_squares(sets: dict[str, ImageSet], tmp_path: Path) -> None:
    cfg = dataclasses.replace(QUICK, iterations=40, batch=4, milestones=(30,), workers=0)
    scores = detection.run(network("resnet18", "cifar"), cfg, FakeBench(tmp_path, sets))
    assert scores["ap50"] > 15
