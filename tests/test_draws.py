# SPDX-License-Identifier: Apache-2.0
"""The random numbers behind the views: uniform, independent, the same everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from suite.draws import _GOLDEN, _WORD, Draws, _mix_word, _word
from tests.view_samples import DEVICES, draws


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
