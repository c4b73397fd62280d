# SPDX-License-Identifier: Apache-2.0
"""Distributions of the parameters that operations draw, against torchvision's and theory."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomErasing as TorchvisionErasing
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop

from suite import views as V
from tests.view_samples import drawn, draws


@pytest.mark.parametrize("size", [(200, 260), (40, 400), (400, 40)])
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    n, op = 4000, V.RandomResizedCrop(224)
    got = op.boxes(draws(n), torch.tensor([size]).expand(n, 2)).to(torch.float64)
    torch.manual_seed(0)
    blank = torch.empty(1, *size)
    want = torch.tensor([TorchvisionCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)], dtype=torch.float64)
    assert (got[:, :2] >= 0).all() and (got[:, :2] + got[:, 2:] <= torch.tensor(size)).all()
    for measure in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0], lambda b: b[:, 1]):
        assert stats.ks_2samp(measure(got).numpy(), measure(want).numpy()).pvalue > 1e-3


def test_boxes_fall_back_to_the_centre() -> None:
    op = V.RandomResizedCrop(8, scale=(0.9, 1.0))
    for size in ((30, 300), (301, 31), (16, 17)):
        boxes = op.boxes(draws(500), torch.tensor([size]).expand(500, 2))
        want = TorchvisionCrop.get_params(torch.empty(1, *size), [2.0, 2.0], [3 / 4, 4 / 3])
        if size != (16, 17):
            assert boxes.unique(dim=0).tolist() == [list(want)]
        never = V.RandomResizedCrop(8, scale=(2.0, 2.0)).boxes(draws(5), torch.tensor([size]).expand(5, 2))
        assert never.unique(dim=0).tolist() == [list(want)]


def test_erased_boxes_are_distributed_as_torchvisions() -> None:
    n, op = 3000, V.RandomErasing(0.25)
    params = drawn(op, n, size=torch.tensor([[60, 90]]))
    got = params["box"].to(torch.float64)
    assert abs(params["on"].float().mean() - 0.25) < 0.03
    torch.manual_seed(0)
    blank = torch.empty(3, 60, 90)
    get = TorchvisionErasing.get_params
    want = torch.tensor([get(blank, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(n)], dtype=torch.float64)
    for measure in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0], lambda b: b[:, 1]):
        assert stats.ks_2samp(measure(got).numpy(), measure(want).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("op", [V.HorizontalFlip(0.5), V.Grayscale(0.2), V.Solarize(p=0.1), V.GaussianBlur(p=0.7),
                                V.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)], ids=lambda op: type(op).__name__)  # fmt: skip
def test_probabilities(op: V.Op) -> None:
    n = 10_000
    on = drawn(op, n)["on"]
    assert stats.binomtest(int(on.sum()), n, op.p).pvalue > 1e-3  # type: ignore[attr-defined]


def test_factors_sigma_and_angle_are_uniform_in_their_ranges() -> None:
    n = 10_000
    params = drawn(V.ColorJitter(0.4, 1.0, 1.5, 0.2), n)
    ranges = ((0.6, 1.4), (0.0, 2.0), (0.0, 2.5), (-0.2, 0.2))
    for column, (low, high) in zip(params["factor"].T, ranges, strict=True):
        assert stats.kstest(column.numpy(), "uniform", (low, high - low)).pvalue > 1e-3
    sigma = drawn(V.GaussianBlur((0.1, 2.0)), n)["sigma"]
    assert stats.kstest(sigma.numpy(), "uniform", (0.1, 1.9)).pvalue > 1e-3
    angle = drawn(V.Rotate(2), n)["angle"]
    assert stats.kstest(angle.numpy(), "uniform", (-2, 4)).pvalue > 1e-3


def test_all_24_orders_are_equally_likely() -> None:
    order = drawn(V.ColorJitter(0.4, 0.4, 0.4, 0.1), 12_000)["order"]
    _, counts = order.unique(dim=0, return_counts=True)
    assert len(counts) == 24 and torch.equal(order.sort(1).values, torch.arange(4).expand_as(order))
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
