# SPDX-License-Identifier: Apache-2.0
"""The neighbour search against a float64 brute force: both libraries, any block sizes, ties, subsets, little memory."""

from __future__ import annotations

import itertools

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.errors import JobError
from suite.nn import neighbours
from suite.nn.neighbours import search, unit

LIBRARIES = ("faiss", "torch")


def brute_force(bank, queries, k):
    """Cosine similarity in float64; of equal rows the lower index first."""
    bank, queries = (x.astype(np.float64) for x in (bank, queries))
    bank, queries = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (bank, queries))
    similarity = np.array([[float(q @ row) for row in bank] for q in queries])
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, order, 1), order


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("elements", [1 << 26, 500, 1])
@pytest.mark.parametrize(("n", "m", "k"), [(300, 40, 20), (300, 1, 1), (7, 3, 7), (1, 2, 1), (300, 33, 299)])
def test_finds_what_brute_force_finds(library, elements, n, m, k):
    bank, queries = normal(n, 8), normal(m, 8, seed=1)
    similarity, position = search(bank, queries, k, library=library, elements=elements)
    expected, order = brute_force(bank, queries, k)
    assert similarity.dtype == np.float32 and position.dtype == np.int64
    np.testing.assert_allclose(similarity, expected, atol=1e-6)
    np.testing.assert_array_equal(position, order)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_equal_similarities_stand_in_the_order_of_the_bank(data):
    """Rows with one or four equal entries in 4 dimensions have products without rounding: ties are many and exact."""
    n, m = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 30))
    rows = np.array([row for row in itertools.product((-1, 0, 1), repeat=4) if sum(map(abs, row)) in (0, 1, 4)], np.float32)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    bank, queries = rows[rng.integers(0, len(rows), n)], rows[rng.integers(0, len(rows), m)]
    k, elements = data.draw(st.integers(1, n)), data.draw(st.sampled_from([1 << 20, 64, 12, 1]))
    expected, order = brute_force(bank, queries, k)
    for library in LIBRARIES:
        similarity, position = search(bank, queries, k, library=library, elements=elements)
        np.testing.assert_array_equal(position, order, err_msg=library)
        np.testing.assert_array_equal(similarity, expected.astype(np.float32), err_msg=library)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_collapsed_bank_answers_with_its_first_rows(library, monkeypatch):
    monkeypatch.setitem(neighbours.SCORES, "cpu", 1000)  # the tied queries go in several parts
    _, position = search(np.ones((300, 6), np.float32), normal(50, 6), 9, library=library)
    assert (position == np.arange(9)).all()


@pytest.mark.parametrize("library", LIBRARIES)
def test_searches_a_part_of_the_bank_for_a_part_of_the_queries(library):
    x = normal(200, 8)
    rng = np.random.default_rng(2)
    asking = np.sort(rng.permutation(200)[:50])
    among = np.setdiff1d(np.arange(200), asking)
    similarity, position = search(x, x, 5, among=among, asking=asking, library=library, elements=256)
    expected, order = search(x[among], x[asking], 5)
    np.testing.assert_array_equal(position, among[order])
    np.testing.assert_allclose(similarity, expected, atol=1e-6)


def test_reads_memory_maps_block_by_block(tmp_path):
    """Never more than a block of rows at a time, and nothing is written."""
    np.save(tmp_path / "bank.npy", normal(500, 8))
    mapped = np.load(tmp_path / "bank.npy", mmap_mode="r")

    class Watched:
        shape, largest = mapped.shape, 0

        def __len__(self):
            return len(mapped)

        def __getitem__(self, rows):
            self.largest = max(self.largest, len(mapped[rows]))
            return mapped[rows]

    bank, done = Watched(), []
    _, position = search(bank, mapped[:20], 3, elements=64 * 8, advance=done.append)
    np.testing.assert_array_equal(position[:, 0], np.arange(20))
    assert bank.largest == 64 and sum(done) == 500


@pytest.mark.parametrize("room", [400, 60, 20])
def test_blocks_are_halved_until_they_fit(room, monkeypatch):
    """A device that holds `room` similarities."""
    product = neighbours._product_top

    def small(queries, block, k):
        if len(queries) * len(block) > room:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return product(queries, block, k)

    bank, queries = normal(90, 8), normal(30, 8, seed=1)
    monkeypatch.setattr(neighbours, "_product_top", small)
    _, position = search(bank, queries, 5, library="torch", elements=20 * 8)
    np.testing.assert_array_equal(position, brute_force(bank, queries, 5)[1])
    if room < len(bank):
        with pytest.raises(JobError, match="do not fit into GPU memory"):
            search(bank, queries, 5, library="torch")


def test_a_block_of_the_bank_is_halved_too(monkeypatch):
    take = torch.Tensor.to

    def small(self, *args, **kwargs):
        if len(self) > 16:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return take(self, *args, **kwargs)

    bank, queries = normal(90, 8), normal(10, 8, seed=1)
    monkeypatch.setattr(torch.Tensor, "to", small)
    _, position = search(bank, queries, 5, library="torch")
    np.testing.assert_array_equal(position, brute_force(bank, queries, 5)[1])


def test_the_number_of_threads_changes_nothing():
    bank, queries = normal(3000, 16), normal(200, 16, seed=1)
    one, two = (search(bank, queries, 150, threads=threads) for threads in (1, 2))
    np.testing.assert_array_equal(one[1], two[1])


def test_faiss_keeps_its_own_threads_and_blocks():
    before = faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_query_bs
    precision = torch.get_float32_matmul_precision()
    search(normal(10, 4), normal(3, 4), 2, threads=before[0] + 1)
    with pytest.raises(JobError):
        search(np.full((10, 4), np.nan, np.float32), normal(3, 4), 2, threads=before[0] + 1)
    with pytest.raises(JobError):
        search(np.full((10, 4), np.nan, np.float32), normal(3, 4), 2, library="torch")
    assert (faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_query_bs) == before
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("side", ["bank", "queries"])
def test_features_that_are_not_finite_are_refused(bad, side):
    both = {"bank": normal(10, 4), "queries": normal(3, 4)}
    both[side][2, 1] = bad
    with pytest.raises(JobError, match=r"features of stage3 are not finite for 1 of \d+ images"):
        search(both["bank"], both["queries"], 2, what="stage3")


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="cannot find 11 neighbours of .* among 10 rows of 4 features"):
        search(normal(10, 4), normal(3, 4), 11)
    with pytest.raises(ValueError, match="cannot find 2"):
        search(normal(10, 4), normal(3, 5), 2)
    with pytest.raises(ValueError, match="cannot find 0"):
        search(normal(10, 4), normal(3, 4), 0)


def test_unit_rows():
    x = normal(20, 5) * np.logspace(-6, 6, 20)[:, None].astype(np.float32)
    x[3] = 0
    found = unit(x)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.arange(20) != 3, atol=1e-6)
    np.testing.assert_allclose(found, x / np.maximum(np.linalg.norm(x.astype(np.float64), axis=1), 1e-30)[:, None], atol=1e-6)
