# SPDX-License-Identifier: Apache-2.0
"""Exact nearest neighbours by cosine similarity, in feature matrices that may be larger than memory.

On the CPU faiss searches one block of the bank after the other; its fused search spends four fifths and more of its time in
the matrix product. Elsewhere torch multiplies blocks and takes the best k of each. Both compute in float32: two neighbours
whose similarities differ by less than about 1e-6 may stand in the other order than in float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from suite.errors import JobError

T = TypeVar("T")
CPU = torch.device("cpu")
SCORES = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Similarities held at once by the blocked matrix product."""


def search(
    bank: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    device: torch.device = CPU,
    threads: int = 1,
    among: np.ndarray | None = None,
    asking: np.ndarray | None = None,
    what: str = "features",
    library: Literal["faiss", "torch"] | None = None,
    elements: int = 1 << 26,
    advance: Callable[[int], object] = lambda n: None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of `bank` with the highest cosine similarity to each query, best first.

    Every row is scaled to length 1 as its block is read (a zero row stays zero, and is as similar to everything: 0). Rows of
    equal float32 similarity stand in the order of the bank, also where only some of them are among the k.

    Args:
        bank: N×d float32, may be memory-mapped: it is read once, block by block, and never copied as a whole.
        queries: M×d float32, as `bank`; read once for every block of the bank.
        k: how many; at most the number of rows to search.
        device: where to search. Blocks that do not fit into a GPU's memory are halved.
        threads: of faiss.
        among: ascending positions of the rows of `bank` to search; None: all.
        asking: positions of the queries to answer; None: all.
        what: names the features in the error.
        library: None: faiss on the CPU, torch elsewhere.
        elements: numbers in a block of the bank.
        advance: called with the number of rows of the bank done since the last call.

    Returns:
        Similarities float32 and positions in `bank` int64, both M×k.

    Raises:
        JobError: a feature is not finite.
        ValueError: k is less than 1 or more than the rows to search, or the widths differ.
    """
    total, width = len(bank) if among is None else len(among), bank.shape[1]
    if not 1 <= k <= total or queries.shape[1] != width:
        raise ValueError(f"cannot find {k} neighbours of {queries.shape} queries among {total} rows of {width} features")
    fused = (library or ("faiss" if device.type == "cpu" else "torch")) == "faiss"
    best = _Best(len(queries) if asking is None else len(asking), k, device)
    with _faiss(threads) if fused else full_precision():
        for start, block in _blocks(bank, among, max(1, elements // width), device, what):
            size = elements // (4 * width) if fused else SCORES.get(device.type, 1 << 24) // len(block)

            def answer(first: int, last: int, start: int = start, block: Tensor = block) -> None:
                rows = slice(first, last) if asking is None else asking[first:last]
                asked = torch.from_numpy(unit(queries[rows], what)).to(device)  # q×d
                best.merge(first, start, *(_fused_top if fused else _product_top)(asked, block, min(k, len(block))))

            for _ in halving(answer, len(best.similarity), max(1, size)):
                pass
            advance(len(block))
    found = best.position.cpu().numpy()
    return best.similarity.cpu().numpy(), found if among is None else np.asarray(among)[found]


class _Best:
    """The k best of the blocks so far, M×k, best first."""

    def __init__(self, queries: int, k: int, device: torch.device) -> None:
        self.similarity = torch.full((queries, k), -torch.inf, device=device)
        self.position = torch.zeros((queries, k), dtype=torch.int64, device=device)

    def merge(self, first: int, start: int, values: Tensor, index: Tensor) -> None:
        """Take in what a block that begins at row `start` has for the queries from `first` on, q×k or less."""
        mine = slice(first, first + len(values))
        both = torch.cat([self.similarity[mine], values], 1)
        both, order = both.sort(dim=1, descending=True, stable=True)  # stable: earlier blocks first
        k = self.position.shape[1]
        self.position[mine] = torch.cat([self.position[mine], index + start], 1).gather(1, order[:, :k])
        self.similarity[mine] = both[:, :k]


def similarities(
    bank: np.ndarray, queries: np.ndarray, *, device: torch.device = CPU, what: str = "features", elements: int = 1 << 26
) -> Tensor:
    """Cosine similarity of each query to every row of `bank`, M×N float32 on `device`.

    Args:
        bank: N×d float32, may be memory-mapped.
        queries: M×d float32, few enough that the result fits.
        device: where to multiply.
        what: names the features in the error.
        elements: numbers in a block of the bank.

    Raises:
        JobError: a feature is not finite.
    """
    asked = torch.from_numpy(unit(queries, what)).to(device)  # M×d
    out = torch.empty(len(asked), len(bank), device=device)
    with full_precision():
        for start, block in _blocks(bank, None, max(1, elements // bank.shape[1]), device, what):
            torch.mm(asked, block.T, out=out[:, start : start + len(block)])
    return out


def unit(block: np.ndarray, what: str = "features") -> np.ndarray:
    """Rows scaled to length 1, a float32 copy; a zero row stays zero.

    Raises:
        JobError: a row is not finite, or so large that its square is not.
    """
    block = np.asarray(block, np.float32)
    norm = np.sqrt(np.einsum("ij,ij->i", block, block))  # n
    if not np.isfinite(norm).all():
        bad = int((~np.isfinite(norm)).sum())
        raise JobError(f"features of {what} are not finite for {bad} of {len(norm)} images: the weights are broken")
    return block / np.maximum(norm, np.float32(1e-12))[:, None]


def halving(work: Callable[[int, int], T], total: int, size: int) -> Iterator[T]:
    """What `work(first, last)` gives for consecutive ranges of `size`; halved for good when a GPU's memory does not suffice.

    Raises:
        JobError: it does not suffice for one.
    """
    first = 0
    while first < total:
        last = min(first + size, total)
        done: list[T] = []
        try:
            done.append(work(first, last))
        except torch.cuda.OutOfMemoryError as error:
            if last - first == 1:
                raise JobError("one row of a feature matrix and its similarities do not fit into GPU memory") from error
            size = -(-(last - first) // 2)
        if not done:
            torch.cuda.empty_cache()  # here, where the error and what its traceback holds have gone
            continue
        yield done.pop()
        first = last


def _blocks(
    bank: np.ndarray, among: np.ndarray | None, size: int, device: torch.device, what: str
) -> Iterator[tuple[int, Tensor]]:
    """First position and unit rows n×d of every block."""
    total = len(bank) if among is None else len(among)

    def load(first: int, last: int) -> tuple[int, Tensor]:
        rows = slice(first, last) if among is None else among[first:last]
        return first, torch.from_numpy(unit(bank[rows], what)).to(device)

    yield from halving(load, total, size)


@contextlib.contextmanager
def _faiss(threads: int) -> Iterator[None]:
    """Faiss on so many threads, with blocks of similarities that stay in the cache (1024×4096 instead of 4096×1024)."""
    import faiss

    before = faiss.omp_get_max_threads()
    blas = faiss.cvar.distance_compute_blas_query_bs, faiss.cvar.distance_compute_blas_database_bs
    faiss.omp_set_num_threads(threads)
    faiss.cvar.distance_compute_blas_query_bs, faiss.cvar.distance_compute_blas_database_bs = 1024, 4096
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
        faiss.cvar.distance_compute_blas_query_bs, faiss.cvar.distance_compute_blas_database_bs = blas


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 in matrix products: its three digits would reorder neighbours."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _fused_top(queries: Tensor, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `_product_top`, by faiss."""
    import faiss

    wanted = min(k + 1, len(block))
    found = faiss.knn(queries.numpy(), block.numpy(), wanted, metric=faiss.METRIC_INNER_PRODUCT)
    values, index = (torch.from_numpy(part) for part in found)
    if wanted > k:  # of rows as similar as the k-th, faiss keeps any
        tied = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]
        values, index = values[:, :k], index[:, :k]
        for some in tied.split(max(1, SCORES["cpu"] // len(block))):
            values[some], index[some] = _product_top(queries[some], block, k)
    return _in_order(values, index)


def _product_top(queries: Tensor, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest similarities of each query and the rows of the block, q×k."""
    return _top(queries @ block.T, k)


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, best first, of equal ones the lower column."""
    values, index = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    if values.shape[1] > k:
        tied = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]
        values, index = values[:, :k], index[:, :k]
        if len(tied):
            rows, edge = scores[tied], values[tied, k - 1 :]
            above, equal = rows > edge, rows == edge
            kept = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
            index[tied] = kept.nonzero()[:, 1].view(-1, k)
            values[tied] = rows.gather(1, index[tied])
    return _in_order(values, index)


def _in_order(values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of equal values, which stand together, by ascending index."""
    rows = (values[:, 1:] == values[:, :-1]).any(1).nonzero()[:, 0]
    if len(rows):
        ascending, order = index[rows].sort(1)
        values[rows], again = values[rows].gather(1, order).sort(dim=1, descending=True, stable=True)
        index[rows] = ascending.gather(1, again)
    return values, index
