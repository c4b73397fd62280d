# SPDX-License-Identifier: Apache-2.0
"""Whole views: the same as their operations in turn, deterministic, independent of batch and device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from suite import views as V
from suite.draws import Draws
from tests.view_samples import DEVICES, SIZES, close, draws, pictures

SIMCLR = V.View(
    (V.RandomResizedCrop(28, interpolation="bicubic"), V.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8), V.Grayscale(0.2),
     V.GaussianBlur(p=0.5), V.Solarize(p=0.2), V.HorizontalFlip(), V.Normalize())
)  # fmt: skip


def by_hand(view: V.View, images: Tensor, d: Draws) -> Tensor:
    """The operations one after the other, no flip folded into the crop."""
    for i, op in enumerate(view.ops):
        size = torch.tensor([images.shape[2:]]).expand(len(images), 2)
        images = op.apply(images, op.draw(view._draws(d, i), size))
    return images


@pytest.mark.parametrize("device", DEVICES)
def test_view_equals_its_operations_in_turn(device: str) -> None:
    images = pictures(64)
    for view in (
        SIMCLR,
        V.View((V.RandomResizedCrop(20), V.HorizontalFlip(), V.RandomErasing(1), V.HorizontalFlip(), V.Rotate(9))),
    ):
        want = by_hand(view, images, draws(64))
        got = view(images.to(device), draws(64))
        assert got.dtype == torch.float32 and got.shape == (64, 3, view.size, view.size) and got.device.type == device
        close(got, want, 2e-3 if view is SIMCLR else 1e-5)


def test_view_is_deterministic_and_leaves_its_input_alone() -> None:
    images = pictures(32)
    kept = images.clone()
    first = SIMCLR(images, draws(32))
    assert torch.equal(first, SIMCLR(images, draws(32))) and torch.equal(images, kept)
    floats = images.float() / 255
    close(SIMCLR.rest(floats, draws(32)), SIMCLR.rest(images, draws(32)), 1e-4)
    assert torch.equal(floats, kept.float() / 255)
    assert not torch.allclose(first, SIMCLR(images, draws(32, seed=1)))
    assert not torch.allclose(first, SIMCLR(images, draws(32).fold(1)))


def test_samples_do_not_see_each_other() -> None:
    """Up to the last bits, which depend on how the matrix library splits a batch."""
    images, index = pictures(32), torch.arange(32)
    whole = SIMCLR(images, Draws(0, 0, index))
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    close(SIMCLR(images[order], Draws(0, 0, index[order])), whole[order], 1e-4)
    single = torch.cat([SIMCLR(images[i : i + 1], Draws(0, 0, index[i : i + 1])) for i in range(32)])
    close(single, whole, 1e-4)


def test_operations_of_a_view_are_independent() -> None:
    n = 10_000
    view = V.View((V.RandomResizedCrop(8), *[V.HorizontalFlip()] * 2, *[V.Grayscale(0.5)] * 2, V.Solarize(p=0.5)))
    on = [op.draw(view._draws(draws(n), i), SIZES.expand(n, 2))["on"] for i, op in enumerate(view.ops) if i]
    box = view.ops[0].draw(draws(n), SIZES.expand(n, 2))["boxes"]
    correlation = np.corrcoef(torch.cat([torch.stack(on), box.T]).float().numpy())[: len(on)]
    assert np.abs(correlation - np.eye(*correlation.shape)).max() < 0.05


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_first_in_a_worker_and_the_rest_on_the_device(interpolation: str) -> None:
    """Pillow rounds after each of its two passes: half a grey level, times the cubic's 1.3 at most, plus another half.

    It also clamps after each, which only differs from clamping once where a bicubic overshoots: these pictures leave room.
    """
    images = pictures(16, 60, 80) // 2 + 64
    crop = V.RandomResizedCrop(28, interpolation=interpolation)
    view = V.View((crop, V.HorizontalFlip(), V.ColorJitter(brightness=0.2), V.Normalize()))
    d = draws(16)
    photos = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images]
    crops = [view.crop(photo, d[i : i + 1]) for i, photo in enumerate(photos)]
    assert crops[0].shape == (28, 28, 3) and crops[0].dtype == np.uint8
    got = view.rest(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2), d)
    close(got, view(images, d), 1.2 * 1.2 / 255 / 0.224)
    assert (got - view(images, d)).abs().mean() < 0.5 / 255 / 0.224
    assert view.first is crop
    box = crop.boxes(d, torch.tensor([[60, 80]]).expand(16, 2))[5]
    assert np.array_equal(V.crop_pil(photos[5], box, crop.size, crop.interpolation), crops[5])


def test_evaluation_view_of_photographs_of_any_size() -> None:
    view = V.View((V.Resize(32), V.CenterCrop(28), V.Normalize()))
    for height, width in ((50, 70), (91, 40), (28, 28)):
        images = pictures(1, height, width)
        crop = view.crop(Image.fromarray(images[0].permute(1, 2, 0).numpy()), draws(1))
        got = view.rest(torch.from_numpy(crop).permute(2, 0, 1)[None], draws(1))
        close(got, view(images, draws(1)), 2 / 255 / 0.224)


def test_grey_photographs_become_three_channels() -> None:
    photo = Image.fromarray(np.full((40, 50), 77, np.uint8))
    assert (V.View((V.Warp(8),)).crop(photo, draws(1)) == 77).all()
    assert V.View((V.Normalize(),)).crop(photo, draws(1)).shape == (40, 50, 3)


def test_view_size_and_first() -> None:
    assert (SIMCLR.size, V.View((V.Resize(256), V.CenterCrop(224))).size) == (28, 224)
    assert V.View((V.Resize(256),)).size is None and V.View((V.Normalize(),)).size is None
    assert V.View((V.Normalize(),)).first is None and V.View(()).first is None


def test_wrong_number_of_draws_is_an_error() -> None:
    with pytest.raises(ValueError, match="4 images with draws for 3"):
        SIMCLR(pictures(4), draws(3))


def test_multi_crop() -> None:
    views = V.multi_crop(V.HorizontalFlip(), V.Normalize(), sizes=(24, 12), numbers=(2, 3), scales=((0.5, 1), (0.05, 0.14)))
    assert [view.size for view in views] == [24, 24, 12, 12, 12]
    images, d = pictures(8), draws(8)
    out = [view(images, d.fold(v)) for v, view in enumerate(views)]
    assert [x.shape[-1] for x in out] == [24, 24, 12, 12, 12]
    assert not torch.allclose(out[0], out[1]) and not torch.allclose(out[2], out[3])
    small = views[2].first
    assert small is not None
    boxes = small.boxes(draws(2000), torch.tensor([[100, 100]]).expand(2000, 2))
    area = boxes[:, 2:].prod(1) / 1e4
    assert area.min() > 0.045 and area.max() < 0.145


def test_views_are_not_lowered_to_half_precision() -> None:
    images = pictures(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = SIMCLR(images, draws(8))
    assert torch.equal(got, SIMCLR(images, draws(8)))
