# SPDX-License-Identifier: Apache-2.0
"""RandAugment against Pillow, operation by operation, and against timm's ranges; random erasing with noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from suite.draws import Draws
from suite.errors import UsageError
from suite.views import NoiseErasing, Normalize, RandAugment, RandomResizedCrop, View
from suite.views.randaugment import OPERATIONS, argument

FILL = (124, 116, 104)
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def pictures(n: int = 6, height: int = 33, width: int = 40) -> torch.Tensor:
    """Smooth pictures with noise, a grey one and one that lacks both ends of the scale: N×3×H×W whole levels."""
    generator = torch.Generator().manual_seed(n + height)
    coarse = torch.rand(n, 3, 7, 7, generator=generator) * 1.4 - 0.2
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    levels = ((smooth + 0.2 * torch.rand(n, 3, height, width, generator=generator) - 0.1).clamp(0, 1) * 255).round()
    levels[0] = levels[0, :1]
    levels[1] = (levels[1] / 3 + 70).round()
    return levels


def draws(index) -> Draws:
    return Draws(7, 2, torch.as_tensor(index))


def in_pillow(name: str, image: Image.Image, value: float, resample: Image.Resampling) -> Image.Image:
    """The operation as a person would write it with Pillow; `value` as `argument` gives it."""
    w, h = image.size
    affine = {
        "ShearX": (1, value, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, value, 1, 0),
        "TranslateX": (1, 0, value * w, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, value * h),
    }
    if name in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[name], resample, fillcolor=FILL)
    if name == "SolarizeAdd":
        return image.point([min(255, i + int(value)) if i < 128 else i for i in range(256)] * 3)
    simple = {
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Invert": lambda: ImageOps.invert(image),
        "Rotate": lambda: image.rotate(value, resample, fillcolor=FILL),
        "Posterize": lambda: ImageOps.posterize(image, int(value)),
        "Solarize": lambda: ImageOps.solarize(image, int(value)),
        **{
            kind: lambda kind=kind: getattr(ImageEnhance, kind)(image).enhance(value)
            for kind in ("Color", "Contrast", "Brightness", "Sharpness")
        },
    }
    return simple[name]()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_equals_pillow(name, interpolation):
    levels = pictures()
    moves = name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
    off = total = 0
    for magnitude in (0.0, 3.3, 9.0, 9.7):
        for sign in (-1.0, 1.0):
            value = argument(name, torch.full((6,), magnitude), torch.full((6,), sign))
            got = RandAugment(interpolation=interpolation).operate(levels.clone(), name, value)
            for picture, result in zip(levels, got, strict=True):
                image = Image.fromarray(picture.permute(1, 2, 0).numpy().astype(np.uint8))
                want = np.asarray(in_pillow(name, image, value[0].item(), RESAMPLING[interpolation])).astype(int)
                difference = np.abs(result.permute(1, 2, 0).numpy() - want)
                assert difference.max() <= 1
                off, total = off + (difference > 0).sum(), total + difference.size
    assert off / total < (0.02 if moves else 0.001)


@pytest.mark.parametrize("name", OPERATIONS)
def test_one_coloured_picture_survives_every_operation(name):
    flat = torch.full((2, 3, 9, 9), 77.0)
    flat[1] = torch.tensor([0.0, 255.0, 128.0])[:, None, None]
    got = RandAugment().operate(flat, name, argument(name, torch.full((2,), 9.0), torch.ones(2)))
    assert got.isfinite().all() and got.min() >= 0 and got.max() <= 255 and torch.equal(got, got.round())
    if name in ("AutoContrast", "Equalize", "Sharpness"):
        assert torch.equal(got, flat)


def test_arguments_equal_those_of_timm(monkeypatch):
    timm = pytest.importorskip("timm.data.auto_augment")
    names = dict(zip(OPERATIONS, timm._RAND_INCREASING_TRANSFORMS, strict=True))
    for sign in (-1.0, 1.0):
        monkeypatch.setattr(timm, "_randomly_negate", lambda v, sign=sign: sign * v)
        for name, theirs in names.items():
            level = timm.LEVEL_TO_ARG[theirs]
            for magnitude in (0.0, 0.4, 2.5, 5.1, 7.75, 9.0, 10.0) if level else ():
                got = argument(name, torch.tensor([magnitude]), torch.tensor([sign])).item()
                assert got == pytest.approx(level(magnitude, {})[0], abs=1e-5), (name, magnitude)


def test_no_bits_left_is_black():
    value = argument("Posterize", torch.tensor([10.0]), torch.ones(1))
    assert value.item() == 0
    assert not RandAugment().operate(pictures()[:1], "Posterize", value).any()


def test_draws_have_the_stated_distribution():
    op, n = RandAugment(layers=2, magnitude=9.0, std=0.5), 20_000
    params = op.draw(draws(range(n)), torch.tensor([[8, 8]]).expand(n, 2))
    assert params["on"].float().mean().item() == pytest.approx(0.5, abs=0.01)
    for column in params["operation"].T:
        assert stats.chisquare(torch.bincount(column, minlength=15).numpy()).pvalue > 1e-3
    assert params["sign"].mean().abs().item() < 0.02
    # Noise of std 0.5 around 9, cut at 10: two standard deviations.
    assert params["magnitude"].max() == 10
    assert (params["magnitude"] == 10).float().mean().item() == pytest.approx(stats.norm.sf(2), abs=0.005)
    below = params["magnitude"][params["magnitude"] < 9].numpy()
    assert stats.kstest(9 - below, stats.halfnorm(scale=0.5).cdf).pvalue > 1e-3
    columns = [params[key].double().T for key in ("on", "operation", "magnitude", "sign")]
    correlation = np.corrcoef(torch.cat(columns).numpy())
    assert np.abs(correlation - np.eye(8)).max() < 0.04


def test_update_applies_the_layers_in_order():
    op, levels, n = RandAugment(p=0.8, layers=3), pictures(12), 12
    params = op.draw(draws(range(n)), torch.tensor([[33, 40]]).expand(n, 2))
    got = op.update(levels / 255, params)
    for i in range(n):
        want = levels[i : i + 1]
        for layer in range(3):
            if params["on"][i, layer]:
                name = OPERATIONS[int(params["operation"][i, layer])]
                value = argument(name, params["magnitude"][i : i + 1, layer], params["sign"][i : i + 1, layer])
                want = op.operate(want.clone(), name, value)
        torch.testing.assert_close(got[i : i + 1] * 255, want)


def test_a_picture_does_not_depend_on_its_batch():
    view = View((RandomResizedCrop(24), RandAugment(), Normalize(), NoiseErasing(p=0.6)))
    images = pictures(16).to(torch.uint8)
    whole = view(images, draws(range(16)))
    order = torch.tensor([3, 11, 0])
    # Resampling is a matrix product, whose last bit depends on the batch: no more than that may differ before RandAugment.
    late = View((RandAugment(), Normalize(), NoiseErasing(p=0.6)))
    assert torch.equal(late(images[order], draws(order)), late(images, draws(range(16)))[order])
    assert (view(images[order], draws(order)) - whole[order]).abs().mean() < 0.01
    assert not torch.equal(late(images, draws(range(16))), late(images, Draws(7, 3, torch.arange(16))))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_picture_is_the_same_on_a_gpu():
    view, images = View((RandAugment(p=1.0), Normalize(), NoiseErasing(p=0.6))), pictures(64).to(torch.uint8)
    difference = (view(images.cuda(), draws(range(64))).cpu() - view(images, draws(range(64)))).abs()
    assert (difference > 1e-4).float().mean() < 0.002 and difference.max() < 0.03  # now and then a level, never more


def test_values_stay_in_range_and_input_is_left_alone():
    images = pictures(16).to(torch.uint8)
    before = images.clone()
    op = RandAugment()
    got = op.apply(images, op.draw(draws(range(16)), torch.tensor([[33, 40]]).expand(16, 2)))
    assert got.dtype == torch.float32 and got.min() >= 0 and got.max() <= 1
    assert torch.equal(images, before)


def test_unknown_interpolation_is_refused():
    with pytest.raises(UsageError, match="bicubic"):
        RandAugment(interpolation="bicubc")


def test_erased_boxes_hold_standard_normal_noise_and_nothing_else_changes():
    op, n = NoiseErasing(p=0.25), 400
    images = torch.full((n, 3, 32, 32), 5.0)
    params = op.draw(draws(range(n)), torch.tensor([[32, 32]]).expand(n, 2))
    got = op.update(images.clone(), params)
    assert params["on"].float().mean().item() == pytest.approx(0.25, abs=0.06)
    inside = torch.zeros(n, 32, 32, dtype=torch.bool)
    for i in params["on"].nonzero().flatten():
        top, left, tall, wide = params["box"][i].tolist()
        inside[i, top : top + tall, left : left + wide] = True
        assert 0.01 < tall * wide / 1024 < 0.37
    changed = got != 5
    assert torch.equal(changed, inside[:, None].expand_as(changed))
    noise = got.permute(0, 2, 3, 1)[inside]  # pixels×3
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(noise.T.numpy()) - np.eye(3)).max() < 0.03
