# SPDX-License-Identifier: Apache-2.0
"""Each operation of a view against torchvision's per-image function, given the same parameters."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv
from torchvision.transforms.v2 import functional as tv2

from suite import views as V
from suite.errors import UsageError
from tests.view_samples import DEVICES, MODES, close, drawn, draws, each, pictures


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [8, 24, 70])
def test_random_resized_crop(interpolation: str, side: int, device: str) -> None:
    images, op = pictures(), V.RandomResizedCrop(side, interpolation=interpolation)
    params = drawn(op, len(images))
    want = each(images, params, lambda x, p: tv.resized_crop(
        x, *p["boxes"].tolist(), [side, side], MODES[interpolation], antialias=True).clamp(0, 1))  # fmt: skip
    close(op.apply(images.to(device), params), want, 2e-5)
    close(op.apply(images.to(device).float() / 255, params), want, 2e-5)


@pytest.mark.parametrize("interpolation", list(V.KERNELS))
def test_resample_equals_pillow(interpolation: str) -> None:
    """Pillow's float images go through the same filters without rounding; it also has Lanczos."""
    image = torch.rand(1, 1, 50, 37, generator=torch.Generator().manual_seed(0))
    for box, size in [((3, 5, 40, 20), (16, 16)), ((0, 0, 50, 37), (90, 64)), ((10, 2, 4, 30), (9, 31))]:
        top, left, height, width = box
        crop = Image.fromarray(image[0, 0].numpy()).crop((left, top, left + width, top + height))
        want = np.asarray(crop.resize(size[::-1], V.KERNELS[interpolation][1]))
        got = V.resample(image, torch.tensor([box]), size, interpolation)
        close(got[0, 0], torch.from_numpy(want.copy()), 2e-5)


def test_resample_of_the_whole_image_at_its_own_size_is_the_identity() -> None:
    images = pictures().float() / 255
    whole = torch.tensor([[0, 0, 32, 40]]).expand(len(images), 4)
    for interpolation in V.KERNELS:
        close(V.resample(images, whole, (32, 40), interpolation), images, 1e-6)
    mirror = torch.arange(len(images)) % 2 == 1
    want = torch.where(mirror[:, None, None, None], images.flip(3), images)
    close(V.resample(images, whole, (32, 40), flip=mirror), want, 1e-6)


def test_unknown_interpolation_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="did you mean 'bicubic'"):
        V.resample(pictures(1), torch.tensor([[0, 0, 9, 9]]), 8, "bicubik")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("height", "width"), [(32, 40), (40, 32), (33, 61), (20, 41)])
def test_resize_center_crop_and_warp(height: int, width: int, device: str) -> None:
    images = pictures(3, height, width)
    x = images.float() / 255
    view = V.View((V.Resize(28), V.CenterCrop(24)))
    want = tv.center_crop(tv.resize(x, [28], antialias=True), [24])
    close(view(images.to(device), draws(3)), want, 2e-5)
    close(V.View((V.CenterCrop(37),))(images.to(device), draws(3)), tv.center_crop(x, [37]), 1e-6)
    want = tv.resize(x, [25, 25], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    close(V.View((V.Warp(25, "bicubic"),))(images.to(device), draws(3)), want, 2e-5)


def test_random_crop_pads_with_black_and_reaches_every_corner() -> None:
    images, op = pictures(200, 32, 32), V.RandomCrop(32, padding=4)
    params = drawn(op, 200, size=torch.tensor([[32, 32]]))
    padded = torch.nn.functional.pad(images.float() / 255, (4, 4, 4, 4))
    corners = params["boxes"][:, :2] + 4
    want = torch.stack([x[:, t : t + 32, s : s + 32] for x, (t, s) in zip(padded, corners.tolist(), strict=True)])
    close(op.apply(images, params), want, 1e-6)
    assert all(set(column.tolist()) == set(range(9)) for column in corners.T)
    with pytest.raises(UsageError, match="at least"):
        drawn(V.RandomCrop(41), 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("turn", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_operation(turn: str, device: str) -> None:
    """1e-5, and 2e-4 where the luma weights enter: torchvision rounds the first to 0.2989."""
    images, op = pictures(), V.ColorJitter(**{turn: 0.5 if turn == "hue" else 0.9})
    params = drawn(op, len(images))
    column = ["brightness", "contrast", "saturation", "hue"].index(turn)
    adjust = getattr(tv, f"adjust_{turn}")
    want = each(images, params, lambda x, p: adjust(x, p["factor"][column].item()))
    assert (params["factor"][:, column].std() > 0.1) and params["factor"].std(0).count_nonzero() == 1
    close(op.apply(images.to(device), params), want, 2e-4 if turn in ("contrast", "saturation") else 1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_color_jitter_in_every_order(device: str) -> None:
    images, op = pictures(48), V.ColorJitter(0.8, 0.8, 0.8, 0.2)
    params = drawn(op, 48)
    params["order"] = torch.tensor(list(itertools.permutations(range(4)))).repeat(2, 1)
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)

    def jitter(image: Tensor, p: V.Params) -> Tensor:
        for i in p["order"].tolist():
            image = adjust[i](image, p["factor"][i].item())
        return image

    got = op.apply(images.to(device), params)
    close(got, each(images, params, jitter), 1e-3)
    assert got.min() >= 0 and got.max() <= 1


OTHERS = {
    "flip": (V.HorizontalFlip(), lambda x, p: tv.hflip(x), 0.0),
    "jitter, some": (V.ColorJitter(brightness=0.4, p=0.5), lambda x, p: tv.adjust_brightness(x, p["factor"][0].item()), 1e-6),
    "grayscale": (V.Grayscale(0.5), lambda x, p: tv.rgb_to_grayscale(x, 3), 1.1e-4),
    "blur": (V.GaussianBlur(p=0.6), lambda x, p: tv.gaussian_blur(x, [13, 13], [p["sigma"].item()] * 2), 1e-5),
    "blur, all": (V.GaussianBlur((0.5, 1.0), 1), lambda x, p: tv.gaussian_blur(x, [7, 7], [p["sigma"].item()] * 2), 1e-5),
    "solarize": (V.Solarize(p=0.5), lambda x, p: tv2.solarize(x, 128 / 255), 0.0),
    "normalize": (V.Normalize(), lambda x, p: tv.normalize(x, V.IMAGENET_MEAN, V.IMAGENET_STD), 2e-6),
    "rotate": (V.Rotate(30), lambda x, p: tv.rotate(x, p["angle"].item()), 0.0),
    "erase": (V.RandomErasing(0.5, value=0.3), lambda x, p: tv.erase(x, *p["box"].tolist(), torch.tensor(0.3)), 0.0),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OTHERS)
def test_other_operations(name: str, device: str) -> None:
    op, reference, tolerance = OTHERS[name]
    images = pictures()
    params = drawn(op, len(images))
    want = each(images, params, reference)
    got = op.apply(images.to(device), params)
    if isinstance(op, V.Rotate):  # where a coordinate falls between two pixels, rounding decides
        assert ((got.cpu() - want).abs() > 1e-6).float().mean() < 2e-3
    else:
        close(got, want, tolerance)
    assert not torch.equal(got.cpu(), images.float() / 255)


def test_blur_kernel_is_capped_to_small_images() -> None:
    images, op = pictures(4, 5, 6), V.GaussianBlur((1.5, 2.0), 1)
    params = drawn(op, 4)
    want = each(images, params, lambda x, p: tv.gaussian_blur(x, [11, 9], [p["sigma"].item()] * 2))
    close(op.apply(images, params), want, 1e-5)


def test_solarize_splits_at_128() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    got = (V.Solarize(p=1).apply(ramp, {"on": torch.ones(1, dtype=torch.bool)}) * 255).round()[0, 0, 0]
    assert got.tolist() == [v if v < 128 else 255 - v for v in range(256)]


def test_lighting_adds_one_colour_along_the_components() -> None:
    op, images = V.Lighting(), pictures(2000, 2, 2)
    params = drawn(op, 2000)
    colour = op.apply(images, params) - images.float() / 255
    close(colour, colour[:, :, :1, :1].expand_as(colour), 1e-6)
    vectors, values = torch.tensor(V.Lighting.vectors), torch.tensor(V.Lighting.values)
    close(vectors.T @ vectors, torch.eye(3), 1e-3)
    want = vectors @ torch.diag((0.1 * values) ** 2) @ vectors.T
    close(torch.cov(colour[:, :, 0, 0].T), want, 4e-5)


def test_apply_leaves_its_input_alone() -> None:
    ops = [op for op, _, _ in OTHERS.values()]
    for op in (*ops, V.ColorJitter(0.4, 0.4, 0.4, 0.1), V.Lighting(), V.RandomResizedCrop(16)):
        images = pictures().float() / 255
        kept = images.clone()
        op.apply(images, drawn(op, len(images)))
        assert torch.equal(images, kept), op
