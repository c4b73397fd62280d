# SPDX-License-Identifier: Apache-2.0
"""Stores of embeddings and what is drawn from them: memory bank, queue, moving average, alias method, ODC's memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from suite.errors import UsageError
from suite.nn.alias import AliasSampler
from suite.nn.bank import MemoryBank, draw_negatives, last_of_equal
from suite.nn.ema import EMA, cosine_momentum
from suite.nn.queue import Queue
from suite.nn.sample_memory import SampleMemory


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_bank_updates_one_row_at_a_time_as_the_equation_says(momentum):
    bank = MemoryBank(10, 4, momentum)
    assert torch.allclose(bank.features.norm(dim=1), torch.ones(10))
    index, features, before = torch.tensor([7, 0, 3]), randn(3, 4), bank.features.clone()
    bank.update(index, features)
    for i, f in zip(index, features.double(), strict=True):
        v = momentum * before[i].double() + (1 - momentum) * f / f.norm()
        torch.testing.assert_close(bank.features[i].double(), v / v.norm(), rtol=1e-6, atol=1e-6)
    others = torch.tensor([1, 2, 4, 5, 6, 8, 9])
    assert torch.equal(bank.features[others], before[others])


def test_of_an_image_given_twice_the_last_feature_counts():
    first, second = MemoryBank(5, 3, 0.5), MemoryBank(5, 3, 0.5)
    second.load_state_dict(first.state_dict())
    features = randn(4, 3)
    first.update(torch.tensor([2, 1, 2, 4]), features)
    second.update(torch.tensor([1, 2, 4]), features[1:])
    assert torch.equal(first.features, second.features)
    assert last_of_equal(torch.tensor([5, 2, 5, 5, 2, 0])).tolist() == [3, 4, 3, 3, 4, 5]


@pytest.mark.parametrize("bad", [-1, 10])
def test_bank_refuses_an_index_outside(bad):
    bank = MemoryBank(10, 4)
    with pytest.raises((IndexError, RuntimeError)):
        bank.lookup(torch.tensor([bad]))
    with pytest.raises((IndexError, RuntimeError)):
        bank.update(torch.tensor([0, bad]), randn(2, 4))
    for count in (1, 5):
        with pytest.raises((IndexError, RuntimeError)):
            bank.scores(F.normalize(randn(1, 4)), torch.full((1, count), bad))


@pytest.mark.parametrize("count", [2, 50])
def test_bank_scores_equal_single_products_on_both_routes(count):
    """Few negatives are looked up, many are picked from all products; half precision around does not blur them."""
    bank, index = MemoryBank(40, 6), torch.randint(40, (3, count), generator=torch.Generator().manual_seed(0))
    q = F.normalize(randn(3, 6), dim=1).requires_grad_()
    q64 = q.detach().double().requires_grad_()
    naive = torch.stack([torch.stack([q64[i] @ bank.features[j].double() for j in index[i]]) for i in range(3)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = bank.scores(q, index)
    torch.testing.assert_close(ours.double(), naive, rtol=1e-5, atol=1e-6)
    ours.square().sum().backward()
    naive.square().sum().backward()
    torch.testing.assert_close(q.grad.double(), q64.grad, rtol=1e-5, atol=1e-6)


def test_ensured_negatives_are_uniform_over_the_other_images():
    own = torch.tensor([0, 3, 4])
    drawn = draw_negatives(own, 5, 20_000, generator=torch.Generator().manual_seed(0))
    assert not (drawn == own[:, None]).any() and drawn.min() == 0 and drawn.max() == 4
    for i, row in zip(own, drawn, strict=True):
        share = torch.bincount(row, minlength=5) / 20_000
        expected = torch.full((5,), 0.25).scatter(0, i[None], 0.0)
        assert (share - expected).abs().max() < 0.015  # 5 standard deviations
    plain = draw_negatives(own, 5, 1000, exclude_own=False, generator=torch.Generator().manual_seed(0))
    assert (plain == own[:, None]).any()
    with pytest.raises(UsageError, match="at least 2"):
        draw_negatives(own[:1], 1, 4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30).filter(lambda w: sum(w) > 1e-3))
def test_alias_table_is_the_distribution_itself(weights):
    """Every column's shares, summed exactly, give back the weights: no sampling error involved."""
    sampler = AliasSampler(weights)
    n = len(weights)
    assert ((sampler.accept >= 0) & (sampler.accept <= 1)).all()
    exact = sampler.accept / n
    exact = exact.scatter_add(0, sampler.alias, (1 - sampler.accept) / n)
    expected = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    torch.testing.assert_close(exact, expected, rtol=1e-9, atol=1e-12)


def test_alias_draws_follow_the_table():
    sampler = AliasSampler([1, 0, 3, 4])
    drawn = sampler.draw(200, 100, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    assert drawn.shape == (200, 100) and share[1] == 0
    assert (share - torch.tensor([0.125, 0, 0.375, 0.5])).abs().max() < 0.018  # 5 standard deviations
    for bad in ([], [0.0, 0.0], [1.0, -1.0], [float("nan")]):
        with pytest.raises(UsageError, match="weights"):
            AliasSampler(bad)


def test_queue_keeps_the_newest_keys_in_order():
    queue = Queue(5, 2)
    pushed = [randn(2, 2, seed=s) for s in range(4)]
    for keys in pushed:
        queue.push(keys)
    assert torch.equal(queue.keys, torch.stack([pushed[2][1], pushed[3][0], pushed[3][1], pushed[1][1], pushed[2][0]]))
    with pytest.raises(UsageError, match="smaller than"):
        queue.push(randn(6, 2))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(1, 12), max_size=8), st.integers(0, 99))
def test_queue_is_a_list_that_forgets(size, counts, seed):
    """Whatever the batches: read from the oldest on, it holds the last `size` keys of all that ever came."""
    torch.manual_seed(seed)
    queue = Queue(size, 3)
    everything = queue.keys.clone()
    for i, count in enumerate(c for c in counts if c <= size):
        keys = randn(count, 3, seed=i)
        queue.push(keys)
        everything = torch.cat([everything, keys])
    assert torch.equal(queue.keys.roll(-int(queue.position), 0), everything[-size:])


def test_queue_starts_with_unit_vectors_and_is_state():
    queue, other = Queue(6, 4), Queue(6, 4)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(6))
    queue.push(randn(4, 4).bfloat16().requires_grad_())
    assert queue.keys.dtype == torch.float32 and not queue.keys.requires_grad and not list(queue.parameters())
    other.load_state_dict(queue.state_dict())
    for some in (queue, other):
        some.push(randn(3, 4, seed=1))
    assert torch.equal(queue.keys, other.keys) and int(queue.position) == int(other.position) == 1


def test_moving_average_follows_parameters_and_leaves_buffers():
    source = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = EMA(source)
    assert all(torch.equal(a, b) for a, b in zip(average.module.parameters(), source.parameters(), strict=True))
    before = [p.double().clone() for p in source.parameters()]
    with torch.no_grad():
        for p in source.parameters():
            p.add_(randn(*p.shape))
    source(randn(8, 3))
    average.update(source, 0.9)
    for old, new, mean in zip(before, source.parameters(), average.module.parameters(), strict=True):
        torch.testing.assert_close(mean.double(), 0.9 * old + 0.1 * new.double(), rtol=1e-6, atol=1e-7)
        assert not mean.requires_grad
    assert average.module[1].num_batches_tracked == 0 and source[1].num_batches_tracked == 1
    assert not average(randn(4, 3).requires_grad_()).requires_grad


def test_moving_average_at_the_ends_and_over_many_steps():
    """m = 1 stays, m = 0 copies; t steps towards a source that stands still leave m^t of the distance."""
    source = nn.Linear(3, 2)
    average, begin = EMA(source), source.weight.detach().clone()
    with torch.no_grad():
        source.weight.add_(1.0)
    average.update(source, 1.0)
    assert torch.equal(average.module.weight, begin)
    for _ in range(10):
        average.update(source, 0.9)
    torch.testing.assert_close(source.weight - average.module.weight, torch.full((2, 3), 0.9**10))
    average.update(source, 0.0)
    assert torch.equal(average.module.weight, source.weight) and average.module.weight is not source.weight
    half = EMA(nn.Linear(3, 2).bfloat16())
    half.update(source, 0.0)
    assert torch.equal(half.module.weight, source.weight.bfloat16())
    with pytest.raises(ValueError):
        average.update(nn.Linear(3, 2, bias=False), 0.5)


def test_momentum_rises_from_base_to_one():
    values = [cosine_momentum(0.99, t / 100) for t in range(101)]
    assert values[0] == pytest.approx(0.99) and values[50] == pytest.approx(0.995) and values[100] == 1.0
    assert values == sorted(values)


def filled(n=60, d=4, k=6, seed=0):
    memory = SampleMemory(n, d, k)
    features = randn(n, d, seed=seed)
    memory.fill(features, torch.arange(n) % k)
    return memory, F.normalize(features.double(), dim=1)


def test_sample_memory_follows_the_papers_steps():
    memory, features = filled()
    labels = torch.arange(60) % 6
    centroids = torch.stack([features[labels == c].mean(0) for c in range(6)])
    torch.testing.assert_close(memory.centroids.double(), centroids, rtol=1e-5, atol=1e-6)
    index, new = torch.tensor([5, 17, 40]), randn(3, 4, seed=3)
    changed = memory.update(index, new)
    moved = 0
    for i, f in zip(index.tolist(), new.double(), strict=True):
        f = 0.5 * features[i] + 0.5 * f / f.norm()
        f = f / f.norm()
        torch.testing.assert_close(memory.features[i].double(), f, rtol=1e-5, atol=1e-6)
        assert int(memory.labels[i]) == int((centroids @ f).argmax())
        moved += int(memory.labels[i]) != int(labels[i])
    assert changed.item() == pytest.approx(moved / 3)
    torch.testing.assert_close(memory.centroids.double(), centroids, rtol=1e-5, atol=1e-6)


def test_an_empty_clusters_centroid_stays():
    memory, _ = filled()
    memory.labels[memory.labels == 2] = 3
    before = memory.centroids.clone()
    memory.update_centroids()
    assert torch.equal(memory.centroids[2], before[2]) and not torch.equal(memory.centroids[3], before[3])


def test_small_clusters_are_emptied_and_refilled_from_the_largest():
    memory, features = filled(120)
    memory.labels[memory.labels == 4] = 0
    memory.labels[:3] = 4  # one small cluster of 3, one empty below
    memory.labels[memory.labels == 5] = 1
    memory.update_centroids()
    assert memory.resolve_small(10) == 2
    sizes = memory.sizes()
    assert (sizes > 0).all() and sizes.sum() == 120
    assert memory.resolve_small(1) == 0
    for c in (4, 5):
        rows = memory.features[memory.labels == c]
        torch.testing.assert_close(memory.centroids[c], rows.mean(0), rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="every cluster"):
        memory.resolve_small(1000)


def test_equal_features_are_halved():
    memory = SampleMemory(10, 3, 2)
    memory.fill(torch.ones(10, 3), torch.zeros(10, dtype=torch.int64))
    assert memory.resolve_small(1) == 1
    assert sorted(memory.sizes().tolist()) == [5, 5]


def test_everything_a_resume_needs_is_state():
    memory, _ = filled()
    memory.update(torch.tensor([1]), randn(1, 4))
    other = SampleMemory(60, 4, 6)
    other.load_state_dict(memory.state_dict())
    assert bool(other.filled) and all(torch.equal(a, b) for a, b in zip(memory.buffers(), other.buffers(), strict=True))
    with pytest.raises(UsageError, match="filled"):
        other.fill(randn(59, 4), torch.zeros(59, dtype=torch.int64))
