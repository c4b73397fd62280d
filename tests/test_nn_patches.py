# SPDX-License-Identifier: Apache-2.0
"""Patches, rotations, edges, and measures of collapse, against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional as F

from suite.draws import Draws
from suite.errors import UsageError
from suite.nn.collapse import effective_rank, feature_std, rankme, singular_values
from suite.nn.patches import jittered_grid, neighbour_pairs, patchify, rotations, unpatchify
from suite.nn.sobel import Sobel


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_patchify_by_loops_and_back(side, rows, columns, channels):
    x = randn(2, channels, rows * side, columns * side)
    patches = patchify(x, side)
    for i in range(rows):
        for j in range(columns):
            patch = x[:, :, i * side : (i + 1) * side, j * side : (j + 1) * side]
            assert torch.equal(patches[:, i * columns + j], patch.permute(0, 2, 3, 1).flatten(1))
    assert torch.equal(unpatchify(patches, side, rows), x)


def test_patchify_refuses_a_remainder():
    with pytest.raises(UsageError, match="does not divide"):
        patchify(randn(1, 3, 8, 9), 4)


@pytest.mark.parametrize("channels_last", [False, True])
def test_rotations_turn_counter_clockwise(channels_last):
    x = randn(3, 3, 6, 6)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    turned, labels = rotations(x)
    assert labels.tolist() == [0, 1, 2, 3] * 3
    assert turned.is_contiguous(memory_format=torch.channels_last) == channels_last
    for i in range(12):
        expected = np.rot90(x[i // 4].numpy(), i % 4, (1, 2))
        assert np.array_equal(turned[i].numpy(), expected)
    # By eye: the right column becomes the top row.
    assert torch.equal(turned[1, :, 0], x[0, :, :, -1])


def test_every_patch_lies_in_its_cell():
    """A picture of its own coordinates shows where each patch was cut."""
    n, size, side = 200, 31, 7
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    x = torch.stack([rows, columns, rows * size + columns]).float().expand(n, 3, size, size)
    patches = jittered_grid(x, side, Draws(0, 0, torch.arange(n)))
    assert patches.shape == (n, 9, 3, side, side)
    top, left = patches[:, :, 0, 0, 0], patches[:, :, 1, 0, 0]  # N×9
    span = torch.arange(side)
    assert torch.equal(patches[:, :, 0], (top[..., None] + span)[..., None].expand(n, 9, side, side))
    assert torch.equal(patches[:, :, 1], (left[..., None] + span)[..., None, :].expand(n, 9, side, side))
    for cell in range(9):
        for start, corner in ((top, cell // 3 * 10), (left, cell % 3 * 10)):
            assert sorted(start[:, cell].unique().tolist()) == [corner + j for j in range(4)]  # all of the slack is used
    assert not torch.equal(top, left)


def test_paper_sizes_and_patches_that_do_not_fit():
    patches = jittered_grid(randn(2, 3, 255, 255), 64, Draws(0, 0, torch.arange(2)))
    assert patches.shape == (2, 9, 3, 64, 64)
    with pytest.raises(UsageError, match="do not fit"):
        jittered_grid(randn(2, 3, 255, 255), 86, Draws(0, 0, torch.arange(2)))


def test_neighbour_comes_first_and_the_centre_is_no_neighbour():
    features = torch.arange(18.0).view(2, 9, 1)
    pairs, labels = neighbour_pairs(features)
    assert labels.tolist() == list(range(8)) * 2
    assert pairs[:8, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8] and (pairs[:8, 1] == 4).all()
    assert (pairs[8:, 1] == 13).all()
    with pytest.raises(ValueError, match="9 cells"):
        neighbour_pairs(features[:, :8])


def test_sobel_equals_scipys():
    x = randn(2, 3, 9, 11)
    edges = Sobel()(x)
    assert edges.shape == (2, 2, 9, 11)
    for picture, found in zip(x.double().numpy(), edges.double().numpy(), strict=True):
        grey = picture.mean(0)
        for axis, plane in ((1, found[0]), (0, found[1])):
            expected = -ndimage.sobel(grey, axis, mode="constant")  # left minus right, above minus below
            np.testing.assert_allclose(plane, expected, rtol=1e-5, atol=1e-5)


def test_sobel_is_fixed_and_leaves_no_trace_in_a_checkpoint():
    layer = Sobel()
    assert not list(layer.parameters()) and not layer.state_dict()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(randn(1, 3, 4, 4)).dtype == torch.float32
    assert (layer(torch.ones(1, 3, 5, 5))[:, :, 1:-1, 1:-1] == 0).all()


def naive_rank(matrix, epsilon=0.0):
    sigma = np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)
    p = sigma / sigma.sum() + epsilon
    return math.exp(-sum(v * math.log(v) for v in p if v > 0))


@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (30, 30)])
def test_ranks_equal_the_formulas_on_an_svd(shape):
    x = randn(*shape) + 0.7
    assert rankme(x).item() == pytest.approx(naive_rank(x, 1e-7), rel=1e-5)
    assert effective_rank(x).item() == pytest.approx(naive_rank(x.double() - x.double().mean(0)), rel=1e-5)
    expected = np.linalg.svd(x.double().numpy(), compute_uv=False)[::-1]
    np.testing.assert_allclose(singular_values(x.double()).numpy(), expected, rtol=1e-7, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 100))
def test_effective_rank_of_equal_singular_values_is_their_number(rank, seed):
    left = torch.linalg.qr(randn(20, rank + 1, seed=seed, dtype=torch.float64) + 0)[0]
    left = torch.linalg.qr(left - left.mean(0))[0][:, :rank]  # orthonormal and centred
    right = torch.linalg.qr(randn(9, rank, seed=seed + 1, dtype=torch.float64))[0]
    assert effective_rank(3 * left @ right.T + 5.0).item() == pytest.approx(rank, rel=1e-5)


def test_collapse_is_seen():
    healthy = randn(512, 64)
    assert feature_std(healthy).item() == pytest.approx(1, abs=0.02)
    assert 50 < effective_rank(healthy).item() <= 64
    alike = torch.ones(512, 64)
    assert feature_std(alike).item() == pytest.approx(0, abs=1e-5) and effective_rank(alike).item() == 0
    line = randn(512, 1) * randn(1, 64, seed=1)
    assert effective_rank(line).item() == pytest.approx(1, rel=1e-3)
    z = F.normalize(healthy.double(), dim=1).numpy()
    assert feature_std(healthy).item() == pytest.approx(z.std(0).mean() * 8, rel=1e-5)


def test_a_diverged_batch_gives_nan_and_no_error():
    bad = randn(10, 4)
    bad[3, 2] = torch.nan
    assert math.isnan(effective_rank(bad)) and math.isnan(rankme(bad)) and math.isnan(feature_std(bad))
    assert effective_rank(randn(1, 4)).item() == 0
