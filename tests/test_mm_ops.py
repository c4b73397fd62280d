# SPDX-License-Identifier: Apache-2.0
"""The stand-in for mmcv's compiled operators, against torchvision and mmdet's own Python versions."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")

from evaluators.mm import ops
from suite.errors import JobError


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    ops.install()


def boxes(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(n, 2, generator=generator) * 40, torch.rand(n, 2, generator=generator) * 30 + 2
    return torch.cat([corner, corner + size], dim=1)


def test_nms_keeps_what_the_definition_keeps() -> None:
    from mmcv.ops import nms

    rois, scores = boxes(60), torch.rand(60, generator=torch.Generator().manual_seed(1))
    for offset in (0, 1):
        keep: list[int] = []
        for i in scores.argsort(descending=True).tolist():
            if all(overlap(rois[i], rois[j], offset) <= 0.4 for j in keep):
                keep.append(i)
        dets, kept = nms(rois, scores, 0.4, offset=offset)
        assert kept.tolist() == keep
        torch.testing.assert_close(dets[:, 4], scores[keep])


def overlap(a: torch.Tensor, b: torch.Tensor, offset: int) -> float:
    width = (min(a[2], b[2]) - max(a[0], b[0]) + offset).clamp(min=0)
    height = (min(a[3], b[3]) - max(a[1], b[1]) + offset).clamp(min=0)
    area_a, area_b = ((x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b))
    return float(width * height / (area_a + area_b - width * height))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "aligned"), [("align", True), ("align", False), ("pool", None)])
def test_roi_features_and_gradients_match_torchvision(name: str, aligned: bool | None, dtype: torch.dtype) -> None:
    import torchvision
    from mmcv.ops import roi_align, roi_pool

    rois = torch.cat([torch.tensor([[0.0], [1.0], [1.0]]), boxes(3)], dim=1)
    ours = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
    theirs = ours.detach().float().requires_grad_()
    if name == "align":
        got = roi_align(ours, rois, (4, 4), 0.25, 2, "avg", aligned)
        want = torchvision.ops.roi_align(theirs, rois, (4, 4), 0.25, 2, aligned=bool(aligned))
    else:
        got, want = roi_pool(ours, rois, (4, 4), 0.25), torchvision.ops.roi_pool(theirs, rois, (4, 4), 0.25)
    torch.testing.assert_close(got, want.to(dtype))
    up = torch.randn(want.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    got.backward(up)
    want.backward(up.float())
    assert theirs.grad is not None and theirs.grad.abs().sum() > 0
    torch.testing.assert_close(ours.grad, theirs.grad.to(dtype))


def test_focal_loss_matches_mmdets_python_version() -> None:
    from mmcv.ops import sigmoid_focal_loss
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(12, 5, generator=generator).requires_grad_()
    target = torch.randint(0, 6, (12,), generator=generator)  # 5: background
    other = logits.detach().clone().requires_grad_()
    one_hot = torch.nn.functional.one_hot(target, 6)[:, :5]
    got = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "sum")
    want = py_sigmoid_focal_loss(other, one_hot, gamma=2.0, alpha=0.25, reduction="sum")
    torch.testing.assert_close(got, want)
    got.backward()
    want.backward()
    torch.testing.assert_close(logits.grad, other.grad)


def test_focal_loss_weighs_the_classes() -> None:
    from mmcv.ops import sigmoid_focal_loss

    logits, target = torch.randn(6, 3, generator=torch.Generator().manual_seed(5)), torch.tensor([0, 1, 2, 0, 1, 2])
    weight = torch.tensor([1.0, 2.0, 0.5])
    plain = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "none")
    torch.testing.assert_close(sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, "none"), plain * weight[target][:, None])


def test_an_operator_that_is_not_written_says_its_name() -> None:
    if not isinstance(sys.modules[ops.NAME], ops._StandIn):
        pytest.skip("a compiled mmcv is installed")
    from mmcv.ops import soft_nms

    with pytest.raises(NotImplementedError, match="softnms"):
        soft_nms(boxes(4), torch.rand(4))


def test_max_roi_align_is_refused() -> None:
    if not isinstance(sys.modules[ops.NAME], ops._StandIn):
        pytest.skip("a compiled mmcv is installed")
    from mmcv.ops import roi_align

    with pytest.raises(NotImplementedError, match="max"):
        roi_align(torch.zeros(1, 1, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]]), (2, 2), 1.0, 2, "max", True)


def test_installing_twice_keeps_the_first() -> None:
    first = sys.modules[ops.NAME]
    ops.install()
    assert sys.modules[ops.NAME] is first


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("libGL.so.1: cannot open shared object file: No such file or directory", "opencv-python-headless"),
        ("No module named 'cv2'", "opencv-python-headless"),
        ("No module named 'pkg_resources'", "setuptools<81"),
        ("No module named 'distutils'", "setuptools"),
        ("MMCV==2.2.0 is used but incompatible. Please install mmcv>=2.0.0rc4, <2.2.0.", "mmcv-lite==2.1.0"),
        ("No module named 'mmdet'", "[mm]"),
    ],
)
def test_import_problems_are_one_line_with_the_remedy(message: str, remedy: str) -> None:
    text = ops.import_problem(ImportError(message))
    assert remedy in text and message in text and "\n" not in text


def test_a_module_that_does_not_import_is_a_job_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, package: str | None = None) -> None:
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(JobError, match="opencv-python-headless"):
        ops.load("mmdet.models")


def test_listing_evaluators_does_not_import_openmmlab() -> None:
    code = (
        "import sys, evaluators.detection, evaluators.segmentation\n"
        "assert not {'mmcv', 'mmdet', 'mmseg', 'mmengine', 'cv2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
