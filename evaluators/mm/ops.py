# SPDX-License-Identifier: Apache-2.0
"""The compiled half of mmcv, written over torchvision's operators, so that mmdet and mmseg run on any PyTorch.

`mmcv-lite` holds all of `mmcv.ops` except the compiled module `mmcv._ext`. This file stands in for that module with the
same C-level functions, which write into tensors that the caller allocates. Half-precision inputs are computed in float32.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torchvision  # noqa: F401  # registers torch.ops.torchvision
from torch import Tensor

from suite.errors import JobError

NAME = "mmcv._ext"


def install() -> None:
    """Make `mmcv.ops` importable: a compiled mmcv is left alone, otherwise this module's functions take its place.

    Raises:
        JobError: mmcv or one of the libraries under it does not import; one line with the remedy.
    """
    if NAME in sys.modules:
        return
    try:
        importlib.import_module("mmcv")
    except ImportError as error:
        raise JobError(import_problem(error)) from error
    try:
        importlib.import_module(NAME)
    except ImportError:
        sys.modules[NAME] = _stand_in()


def load(*modules: str) -> list[ModuleType]:
    """Install the operators and import OpenMMLab modules by name, quietly.

    Raises:
        JobError: one of them does not import; one line with the remedy.
    """
    install()
    try:
        found = [importlib.import_module(module) for module in modules]
        logging = importlib.import_module("mmengine.logging")
    except (ImportError, AssertionError) as error:  # mmdet and mmseg assert the version of mmcv
        raise JobError(import_problem(error)) from error
    logging.MMLogger.get_current_instance().setLevel("ERROR")
    return found


def import_problem(error: Exception) -> str:
    """One line that says what failed to import and what to install."""
    text = " ".join(str(error).split())
    remedies = {
        "libGL": "install opencv-python-headless in place of opencv-python",
        "libgthread": "install opencv-python-headless in place of opencv-python",
        "libglib": "install opencv-python-headless in place of opencv-python",
        "cv2": "install opencv-python-headless",
        "pkg_resources": 'pip install "setuptools<81"',
        "distutils": "pip install setuptools",
        "MMCV==": 'pip install "mmcv-lite==2.1.0"',
        "find_loader": "use Python 3.13 or older",
    }
    remedy = next((value for key, value in remedies.items() if key in text), "install the extra: pip install '.[mm]'")
    return f"mmdet and mmseg cannot be imported: {text}; {remedy}"


class _StandIn(ModuleType):
    """Every name exists, as `mmcv.ops` checks on import; one that is not written here raises when called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: object, **kwargs: object) -> None:
            raise NotImplementedError(f"mmcv operator {name!r} needs a compiled mmcv")

        return missing


def _stand_in() -> ModuleType:
    module = _StandIn(NAME, "mmcv's compiled operators over torchvision.")
    module.__spec__ = ModuleSpec(NAME, None)
    for function in (
        nms, roi_align_forward, roi_align_backward, roi_pool_forward, roi_pool_backward,
        sigmoid_focal_loss_forward, sigmoid_focal_loss_backward,
    ):  # fmt: skip
        setattr(module, function.__name__, function)
    return module


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes (N×4, x1 y1 x2 y2) that greedy suppression keeps, by falling score.

    `offset` 1 counts pixels inclusively: a box's width is x2 - x1 + 1.
    """
    boxes = boxes.float()
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    return torch.ops.torchvision.nms(boxes, scores.float(), iou_threshold)


def roi_align_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, aligned_height: int,
    aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool,
) -> None:  # fmt: skip
    """RoIAlign (He et al. 2017, section 3) of N×C×H×W at R×5 rois (image index, x1 y1 x2 y2) into `output` R×C×h×w."""
    _average_only(pool_mode)
    output.copy_(
        torch.ops.torchvision.roi_align(
            input.float(), rois.float(), spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
        )
    )


def roi_align_backward(
    grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, aligned_height: int,
    aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool,
) -> None:  # fmt: skip
    """Gradient of `roi_align_forward` with respect to its input, into `grad_input`."""
    _average_only(pool_mode)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output.float(), rois.float(), spatial_scale, aligned_height, aligned_width, *grad_input.shape,
            sampling_ratio, aligned,
        )
    )  # fmt: skip


def _average_only(pool_mode: int) -> None:
    if pool_mode == 0:
        raise NotImplementedError("mmcv operator 'roi_align' with pool_mode='max' needs a compiled mmcv")


def roi_pool_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> None:
    """RoI max pooling (Girshick 2015, section 2.1) into `output` and `argmax`, both R×C×h×w."""
    pooled, where = torch.ops.torchvision.roi_pool(input.float(), rois.float(), spatial_scale, pooled_height, pooled_width)
    output.copy_(pooled)
    argmax.copy_(where)


def roi_pool_backward(
    grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, pooled_height: int, pooled_width: int,
    spatial_scale: float,
) -> None:  # fmt: skip
    """Gradient of `roi_pool_forward` with respect to its input, into `grad_input`."""
    grad_input.copy_(
        torch.ops.torchvision._roi_pool_backward(
            grad_output.float().contiguous(), rois.float(), argmax, spatial_scale, pooled_height, pooled_width,
            *grad_input.shape,
        )
    )  # fmt: skip


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss (Lin et al. 2017, equation 5) of N×C logits, target N in 0..C (C: background), into `output` N×C."""
    output.copy_(_focal(input.float(), target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Gradient of the sum of `sigmoid_focal_loss_forward` with respect to the logits, into `grad_input`."""
    with torch.enable_grad():
        logits = input.detach().float().requires_grad_()
        (grad,) = torch.autograd.grad(_focal(logits, target, weight, gamma, alpha).sum(), logits)
    grad_input.copy_(grad)


def _focal(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    classes = logits.shape[1]
    positive = target[:, None] == torch.arange(classes, device=logits.device)  # N×C
    signed = torch.where(positive, logits, -logits)
    balance = torch.where(positive, alpha, 1 - alpha)
    loss = -balance * torch.sigmoid(-signed) ** gamma * torch.nn.functional.logsigmoid(signed)
    if weight.numel():
        loss = loss * weight.float()[target.clamp(max=classes - 1)][:, None]
    return loss
