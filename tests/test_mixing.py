# SPDX-License-Identifier: Apache-2.0
"""Mixup, CutMix and the soft cross entropy against naive float64 arithmetic."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from suite.method import Batch, TrainSet
from suite.nn.classifier import Classifier
from suite.nn.mixing import Mix, Mixing, cut_mix, soft_targets


def naive_targets(label, classes, smoothing, own):
    """One sample at a time: smoothed one-hot of the picture and of the one at the mirrored position."""
    rows = []
    for i in range(len(label)):
        row = np.zeros(classes)
        for share, position in ((own, i), (1 - own, len(label) - 1 - i)):
            row += share * smoothing / classes
            row[label[position]] += share * (1 - smoothing)
        rows.append(row)
    return np.array(rows)


def naive_images(x, own, box):
    x = x.numpy().astype(np.float64)
    mixed = np.empty_like(x)
    for i in range(len(x)):
        partner = x[len(x) - 1 - i]
        if box is None:
            mixed[i] = own * x[i] + (1 - own) * partner
        else:
            mixed[i] = x[i]
            for y in range(box[0], box[1]):
                for z in range(box[2], box[3]):
                    mixed[i, :, y, z] = partner[:, y, z]
    return mixed


@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize("box", [None, (2, 5, 0, 9), (3, 3, 4, 4)])
def test_pictures_and_labels_are_mixed_as_defined(count, box):
    generator = torch.Generator().manual_seed(count)
    x, label = torch.rand(count, 3, 8, 9, generator=generator), torch.randint(5, (count,), generator=generator)
    own = 0.3 if box is None else 1 - (box[1] - box[0]) * (box[3] - box[2]) / 72
    mix, before = Mix(own, box), x.clone()
    np.testing.assert_allclose(mix.images(x).numpy(), naive_images(x, own, box), atol=1e-6)
    assert torch.equal(x, before)
    target = mix.targets(soft_targets(label, 5, 0.1))
    np.testing.assert_allclose(target.numpy(), naive_targets(label.numpy(), 5, 0.1, own), atol=1e-6)
    torch.testing.assert_close(target.sum(1), torch.ones(count))


def test_box_is_the_square_root_of_the_share_and_cut_at_the_border():
    middle = cut_mix(0.75, 20, 40, 0.5, 0.5)
    assert middle.box == (5, 15, 10, 30) and middle.own == 0.75
    corner = cut_mix(0.75, 20, 40, 0.0, 0.999)
    assert corner.box == (0, 5, 29, 40)
    assert corner.own == pytest.approx(1 - 5 * 11 / 800)
    assert cut_mix(1.0, 20, 40, 0.5, 0.5).own == 1
    assert cut_mix(0.0, 20, 40, 0.5, 0.5).box == (0, 20, 0, 40)


def test_share_is_corrected_to_the_area_that_was_cut():
    torch.manual_seed(0)
    cut = Mixing(mixup=0.0, cutmix=1.0)
    for _ in range(200):
        mix = cut.draw(17, 23)
        ones = torch.zeros(2, 1, 17, 23)
        ones[1] = 1
        assert mix.images(ones)[0].mean().item() == pytest.approx(1 - mix.own, abs=1e-6)
        assert 0 <= mix.own <= 1


def test_draws_have_the_stated_shares_and_distribution():
    from scipy import stats

    torch.manual_seed(0)
    mixes = [Mixing(0.8, 1.0, prob=0.7, switch=0.4).draw(64, 64) for _ in range(4000)]
    mixed = [m for m in mixes if m.box is not None or m.own < 1]
    assert len(mixed) / len(mixes) == pytest.approx(0.7, abs=0.03)
    assert np.mean([m.box is not None for m in mixed]) == pytest.approx(0.4, abs=0.03)
    up = [m.own for m in mixed if m.box is None]
    assert stats.kstest(up, stats.beta(0.8, 0.8).cdf).pvalue > 1e-3


def test_draws_follow_the_seed_and_stop_when_off():
    torch.manual_seed(5)
    first = [Mixing().draw(32, 32) for _ in range(20)]
    torch.manual_seed(5)
    assert [Mixing().draw(32, 32) for _ in range(20)] == first and len(set(first)) > 10
    assert Mixing(0.0, 0.0).draw(8, 8) == Mixing(1.0, 1.0, prob=0.0).draw(8, 8) == Mix(1.0)
    assert all(Mixing(0.0, 1.0).draw(8, 8).box for _ in range(20))
    assert not any(Mixing(1.0, 0.0).draw(8, 8).box for _ in range(20))


class Flat(nn.Module):
    """A backbone of no depth."""

    dim, is_vit = 3 * 4 * 4, False

    def forward(self, x):
        return x.flatten(1)


def classifier(mixing, smoothing=0.1, classes=5):
    data = SimpleNamespace(images=SimpleNamespace(labels=np.zeros(1), name="x"), num_classes=classes)
    torch.manual_seed(1)
    return Classifier(SimpleNamespace(label_smoothing=smoothing), Flat(), data, mixing=mixing, head_std=0.5)


@pytest.mark.parametrize("mixing", [None, Mixing(0.8, 0.0), Mixing(0.0, 1.0)])
def test_loss_and_gradient_equal_the_formula_in_float64(mixing):
    method = classifier(mixing)
    x, label = torch.rand(6, 3, 4, 4), torch.tensor([0, 3, 1, 4, 4, 2])
    torch.manual_seed(3)
    out = method(Batch([x], label, torch.arange(6)))
    out["loss"].backward()
    torch.manual_seed(3)
    mix = mixing.draw(4, 4) if mixing else Mix(1.0)
    pixels = naive_images(x, mix.own, mix.box).reshape(6, -1)
    target = naive_targets(label.numpy(), 5, 0.1, mix.own)
    w, b = (p.detach().numpy().astype(np.float64) for p in (method.head.weight, method.head.bias))
    logits = pixels @ w.T + b
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    assert out["loss"].item() == pytest.approx(-(target * np.log(p)).sum(1).mean(), rel=1e-5)
    np.testing.assert_allclose(method.head.weight.grad.numpy(), (p - target).T @ pixels / 6, rtol=1e-4, atol=1e-6)
    assert out["top1"].item() == pytest.approx(100 * np.mean(p.argmax(1) == target.argmax(1)))


def test_evaluation_mode_mixes_nothing():
    method = classifier(Mixing(1.0, 1.0)).eval()
    batch = Batch([torch.rand(6, 3, 4, 4)], torch.arange(6) % 5, torch.arange(6))
    assert method(batch)["loss"].item() == method(batch)["loss"].item()
    assert classifier(Mixing(0.0, 0.0)).mixing is None


def test_head_and_classes_come_from_the_data(digits):
    assert Classifier(SimpleNamespace(), Flat(), TrainSet(digits)).head.out_features == 10
