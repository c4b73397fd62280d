# SPDX-License-Identifier: Apache-2.0
"""Views against torchvision's per-image functions, and the random numbers behind them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import RandomErasing as TorchvisionErasing
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms import functional as tv
from torchvision.transforms.v2 import functional as tv2

from suite import views as V
from suite.draws import _GOLDEN, _WORD, Draws, _mix_word, _word
from suite.errors import UsageError

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
SIZES = torch.tensor([[32, 40]])


def pictures(n: int = 24, height: int = 32, width: int = 40, device: str = "cpu") -> Tensor:
    """Smooth random pictures with some exact greys, blacks and whites: N×3×H×W uint8."""
    generator = torch.Generator().manual_seed(n + height)
    coarse = torch.rand(n, 3, 7, 7, generator=generator) * 1.4 - 0.2
    noise = torch.rand(n, 3, height, width, generator=generator) * 0.2
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear") + noise - 0.1
    smooth[0] = smooth[0, :1]
    return (smooth.clamp(0, 1) * 255).round().to(torch.uint8).to(device)


def draws(n: int, seed: int = 0, device: str = "cpu") -> Draws:
    return Draws(seed, 3, torch.arange(n, device=device))


def drawn(op: V.Op, n: int, seed: int = 0, size: Tensor = SIZES) -> V.Params:
    return op.draw(draws(n, seed), size.expand(n, 2))


def each(images: Tensor, params: V.Params, function) -> Tensor:
    """Apply `function(image, its parameters)` to the float images one by one where `on`."""
    images = images.cpu().float() / 255
    rows = [
        function(image, {k: v[i] for k, v in params.items()}) if params.get("on", torch.ones(len(images)))[i] else image
        for i, image in enumerate(images)
    ]
    return torch.stack(rows)


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.dtype == torch.float32
    assert got.shape == want.shape
    assert (got.cpu() - want).abs().max() <= tolerance


# The random numbers


def test_draws_are_uniform() -> None:
    u = draws(20_000).uniform("a", 4)
    assert u.dtype == torch.float32 and u.shape == (20_000, 4)
    assert u.min() >= 0 and u.max() < 1
    for column in u.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-3


def test_draws_are_independent_across_everything_they_depend_on() -> None:
    n, index = 20_000, torch.arange(20_000)
    base = Draws(0, 0, index)
    others = [
        Draws(1, 0, index), Draws(0, 1, index), Draws(0, 0, index + 1), Draws(0, 0, index + n), Draws(1, 1, index),
        base.fold(0), base.fold(1), base.fold("a"), base.fold(0).fold(1), base.fold(1).fold(0),
    ]  # fmt: skip
    columns = [d.uniform(stream, 2) for d in (base, *others) for stream in ("a", "b", 0, 1)]
    correlation = np.corrcoef(torch.cat(columns, 1).T.numpy())
    off = correlation[~np.eye(len(correlation), dtype=bool)]
    assert np.abs(off).max() < 5 / math.sqrt(n)
    pairs = np.histogram2d(*base.uniform("a", 2).T.numpy(), bins=10)[0].ravel()
    assert stats.chisquare(pairs).pvalue > 1e-3
    neighbours = base.uniform("a")[:, 0].numpy()
    assert abs(np.corrcoef(neighbours[1:], neighbours[:-1])[0, 1]) < 5 / math.sqrt(n)


def test_draws_do_not_depend_on_the_batch() -> None:
    whole = Draws(7, 2, torch.arange(50)).fold(1)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Draws(7, 2, order).fold(1).uniform("x", 3), whole.uniform("x", 3)[order])
    assert torch.equal(whole[order[:5]].uniform("x", 3), whole.uniform("x", 3)[order[:5]])
    single = torch.cat([Draws(7, 2, torch.tensor([i])).fold(1).uniform("x", 3) for i in range(50)])
    assert torch.equal(single, whole.uniform("x", 3))
    assert torch.equal(whole.uniform("x", 9)[:, :3], whole.uniform("x", 3))


def test_draws_stay_the_same_between_releases() -> None:
    """A stored run can only be repeated while these hold."""
    got = Draws(0, 0, torch.tensor([0, 1, 2**40])).fold(1).uniform("box", 2) * 2**24
    assert got.to(torch.int64).tolist() == [[2241848, 11157182], [7312529, 6655036], [14892337, 13364162]]


def test_draws_match_a_reference_in_python_integers() -> None:
    """The same chain of SplitMix64 finalisers on unbounded integers; catches a sign or a shift gone wrong on tensors."""
    assert _mix_word(_GOLDEN) == 0xE220A8397B1DCDAF  # published first output of SplitMix64 from state 0
    index, seed, epoch = -3, 2**62, 9
    key = _mix_word(_mix_word((index + _GOLDEN) & _WORD) ^ _mix_word(_word(seed) ^ _word(epoch ^ _GOLDEN)))
    key = _mix_word(key ^ _word("s"))
    want = [(_mix_word((key + (j + 1) * _GOLDEN) & _WORD) >> 40) / 2**24 for j in range(3)]
    assert Draws(seed, epoch, torch.tensor([index])).uniform("s", 3)[0].tolist() == want


def test_normal_draws_are_normal() -> None:
    z = draws(20_000).normal("n", 2)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(z.T.numpy())[0, 1]) < 0.04


def test_draws_refuse_what_is_no_index() -> None:
    for index in (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(3), torch.zeros(3, dtype=torch.bool)):
        with pytest.raises(ValueError, match="vector of integers"):
            Draws(0, 0, index)


@pytest.mark.parametrize("device", DEVICES)
def test_draws_are_the_same_on_every_device(device: str) -> None:
    assert torch.equal(draws(99, device=device).uniform("a", 5).cpu(), draws(99).uniform("a", 5))
    assert torch.equal(draws(99).to(device).fold(2).uniform("a", 5).cpu(), draws(99).fold(2).uniform("a", 5))


# Each operation against torchvision, given the same parameters


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


# Distributions of the parameters


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


# Whole views

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
