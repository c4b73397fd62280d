# SPDX-License-Identifier: Apache-2.0
"""The kNN evaluation against a plain torch loop, and its search against the machine's matrix product."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from evaluators.knn import vote
from suite import engine
from suite.data import ImageSet
from suite.nn.neighbours import search
from tests.bench.paired import Effort, Row, Side, measure, row
from tests.bench.training import synchronise

K, T, CLASSES = 200, 0.07, 1000


def rows(images: ImageSet, effort: Effort) -> list[Row]:
    """10,000 queries in a bank of 50,000 with 512 features; a twentieth of both when one short repetition is asked for."""
    share = 20 if effort.most == 1 else 1
    bank, queries = (unit_rows(count // share, seed) for seed, count in enumerate((50_000, 10_000)))
    labels = np.random.default_rng(2).integers(0, CLASSES, len(bank))
    name = f"kNN, {len(queries)} queries in {len(bank)} × {bank.shape[1]}, k {K}"
    sides = [Side("ours", neighbours(bank, labels, queries)), Side("loop", plain(bank, labels, queries))]
    against_loop = row(f"{name} / plain torch loop", measure(sides, effort), "ours", "loop", 2.0)
    sides = [Side("search", flops(bank, queries)), Side("product", product(4096 if share == 1 else 1024))]
    speeds = measure(sides, effort)
    return [against_loop, row(f"{name}, search alone / matrix product", speeds, "search", "product", 0.6, "MFLOP/s")]


def unit_rows(count: int, seed: int, width: int = 512) -> np.ndarray:
    """Random directions."""
    x = np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def neighbours(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> Callable[[int], int]:
    """Search and vote as the evaluator does them."""

    def run(passes: int) -> int:
        for _ in range(passes):
            similarity, position = search(bank, queries, K, device=engine.default_device(), threads=engine.threads())
            vote(similarity, labels[position], CLASSES, [K], T)
        return passes * len(queries)

    return run


def plain(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, chunk: int = 100) -> Callable[[int], int]:
    """A hundred queries at a time against the whole bank: product, topk, one-hot, weighted sum, sort, as people write it."""
    device = engine.default_device()
    keys, asked, classes = (torch.from_numpy(part).to(device) for part in (bank, queries, labels))
    transposed = keys.t()
    one_hot = torch.zeros(chunk * K, CLASSES, device=device)

    @torch.no_grad()
    def run(passes: int) -> int:
        for _ in range(passes):
            for x in asked.split(chunk):
                similarity, index = (x @ transposed).topk(K, dim=1)  # n×k
                near = one_hot[: index.numel()].zero_().scatter_(1, classes[index].view(-1, 1), 1)
                votes = near.view(len(x), K, CLASSES) * similarity.div(T).exp_()[:, :, None]  # n×k×C
                votes.sum(1).sort(1, descending=True).indices[:, 0].cpu()
        return passes * len(queries)

    return run


def flops(bank: np.ndarray, queries: np.ndarray) -> Callable[[int], int]:
    """The search alone; counts the millions of operations of its matrix product."""

    def run(passes: int) -> int:
        for _ in range(passes):
            search(bank, queries, K, device=engine.default_device(), threads=engine.threads())
        return passes * 2 * len(bank) * len(queries) * bank.shape[1] // 1_000_000

    return run


def product(side: int) -> Callable[[int], int]:
    """Square matrices; counts millions of operations."""
    x, out = (torch.randn(side, side, device=engine.default_device()) for _ in range(2))

    def run(passes: int) -> int:
        for _ in range(passes):
            torch.mm(x, x, out=out)
        synchronise()
        return max(1, passes * 2 * side**3 // 1_000_000)

    return run
