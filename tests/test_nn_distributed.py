# SPDX-License-Identifier: Apache-2.0
"""Two gloo processes, each with half of a batch, against one process with all of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from suite.data.imageset import ImageSet
from suite.nn.bank import MemoryBank, draw_negatives
from suite.nn.cluster import kmeans_on_main
from suite.nn.gather import gather, gather_detached, permutation, rank, shuffled, synchronise_batch_norm, unshuffled
from suite.nn.sample_memory import SampleMemory
from suite.nn.sinkhorn import sinkhorn
from suite.nn.sweep import sweep
from suite.views import Normalize, View

WORLD = 2
N = 12
"""Global batch."""


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mine(x):
    """This process's rows of a global batch."""
    return x.chunk(WORLD)[rank()] if dist.is_initialized() else x


def whole(x):
    return gather_detached(x.contiguous())


def sinkhorn_codes():
    return {"codes": whole(sinkhorn(mine(randn(N, 7)), 0.05)), "uneven": _uneven()}


def _uneven():
    """Processes hold 9 and 3 samples."""
    scores = randn(N, 5, seed=1)
    if not dist.is_initialized():
        return sinkhorn(scores, 0.3)
    codes = sinkhorn(scores[:9] if rank() == 0 else scores[9:], 0.3)
    padded = whole(F.pad(codes, (0, 0, 0, 9 - len(codes))))
    return padded[torch.arange(N)]


def gathered_gradient():
    """A loss over all pairs, whose gradient with respect to a row comes from every process."""
    x = mine(randn(N, 3)).clone().requires_grad_()
    everyone = gather(x)
    loss = (x @ everyone.T).sin().sum() / N
    loss.backward()
    return {"gradient": whole(x.grad)}


def shuffle_and_back():
    x = mine(randn(N, 3, seed=2))
    order = permutation(N, x.device)
    return {"same": whole(unshuffled(shuffled(x, order) * 2, order)), "order": order.sort().values}


def shuffled_rows_come_from_both():
    """Statistics of a shuffled batch mix the processes (MoCo, section 3.3)."""
    x = torch.full((N // WORLD, 1), float(rank()))
    torch.manual_seed(1)
    order = permutation(N, x.device)
    return {"mixed": torch.tensor(0 < float(shuffled(x, order).mean()) < 1), "agreed": whole(order).view(-1, N).unique(dim=0)}


def batch_norm():
    torch.manual_seed(0)
    net = synchronise_batch_norm(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.device("cpu"))
    x = mine(randn(N, 3, seed=3)).clone().requires_grad_()
    y = net(x)
    (y * mine(randn(N, 4, seed=4))).sum().backward()
    return {"y": whole(y.detach()), "gradient": whole(x.grad), "mean": net[1].running_mean, "var": net[1].running_var}


def bank():
    torch.manual_seed(0)
    some = MemoryBank(40, 4)
    index = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:N]
    some.update(gather_detached(mine(index)), gather_detached(mine(randn(N, 4, seed=5))))
    negatives = draw_negatives(gather_detached(mine(index)), 40, 6, generator=torch.Generator().manual_seed(2))
    return {"features": some.features, "negatives": negatives}


def memory():
    some = SampleMemory(60, 4, 6)
    some.fill(randn(60, 4, seed=6 + rank()), torch.arange(60) % 6)  # process 0's features count
    index = torch.arange(5, 5 + N)
    some.update(gather_detached(mine(index)), gather_detached(mine(randn(N, 4, seed=7))))
    some.resolve_small(10)
    some.update_centroids()
    return dict(some.named_buffers())


def clusters():
    found = kmeans_on_main(randn(50, 4, seed=8 + rank()), 5, torch.device("cpu"))
    return {"labels": found.labels, "centroids": found.centroids}


def all_features():
    """29 pictures in batches of 8: the last one is short. Process 1's running statistics do not count."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5), nn.BatchNorm1d(5))
    net[2].running_mean.fill_(1.0 + rank())
    pixels = np.random.default_rng(0).integers(0, 256, (29, 4, 4, 3), dtype=np.uint8)
    images = ImageSet("noise", "train", ("a",), None, pixels, "f", array=pixels)
    found = sweep(net, images, View((Normalize(),)), batch=8, device=torch.device("cpu"))
    assert net.training and found.shape == (29, 5)
    return {"features": found}


JOBS = (sinkhorn_codes, gathered_gradient, shuffle_and_back, batch_norm, bank, memory, clusters, all_features)


def run(number, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=WORLD)
    found = {job.__name__: job() for job in (*JOBS, shuffled_rows_come_from_both)}
    torch.save(found, folder / f"{number}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(run, (folder,), nprocs=WORLD)
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(WORLD)]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_two_processes_equal_one(two, job):
    alone = job()
    for found in two:
        for name, value in alone.items():
            torch.testing.assert_close(
                found[job.__name__][name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_both_processes_hold_the_same(two):
    first, second = two
    for job in JOBS:
        for name, value in first[job.__name__].items():
            assert torch.equal(value, second[job.__name__][name]), f"{job.__name__}: {name}"


def test_shuffling_mixes_processes_by_one_agreed_order(two):
    for found in two:
        assert bool(found["shuffled_rows_come_from_both"]["mixed"])
        assert len(found["shuffled_rows_come_from_both"]["agreed"]) == 1
