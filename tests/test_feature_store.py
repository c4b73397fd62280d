# SPDX-License-Identifier: Apache-2.0
"""The feature store on disk: whole entries only, damage found, bounded, safe under several processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import shutil
import signal
import tracemalloc
from collections import OrderedDict
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suite import featurestore
from suite.errors import JobError, UsageError
from suite.featurestore import FOOTER, HEADER, FeatureStore

SPAWN = multiprocessing.get_context("spawn")
AGAIN = settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def matrix(rows=100, width=8, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, width), np.float32)


def blocks(values, size):
    return ({"x": values[i : i + size]} for i in range(0, len(values), size))


def names(root):
    return sorted(path.name for path in root.iterdir())


@AGAIN
@given(rows=st.integers(1, 60), width=st.integers(1, 12), size=st.integers(1, 70), seed=st.integers(0, 9))
def test_what_comes_back_is_what_was_written_in_blocks(tmp_path, rows, width, size, seed):
    store, values = FeatureStore(tmp_path), matrix(rows, width, seed)
    written = store.create({"x": "key"}, rows, blocks(values, size))["x"]
    for found in (written, store.get("key"), np.load(tmp_path / "key.npy")):
        np.testing.assert_array_equal(found, values)
        assert found.dtype == np.float32
    assert isinstance(store.get("key"), np.memmap) and not store.get("key").flags.writeable
    assert names(tmp_path) == ["key.npy"]


def test_entries_of_one_pass_and_other_types(tmp_path):
    store, values = FeatureStore(tmp_path / "new" / "folder"), matrix().astype(np.float64)
    both = ({"a": block["x"], "b": np.asfortranarray(2 * block["x"][:, ::2])} for block in blocks(values, 32))
    found = store.create({"a": "first", "b": "second"}, len(values), both)
    np.testing.assert_array_equal(found["a"], values.astype(np.float32))
    np.testing.assert_array_equal(store.get("second"), 2 * values[:, ::2].astype(np.float32))


@AGAIN
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tmp_path, place, bit):
    store, path = FeatureStore(tmp_path), tmp_path / "key.npy"
    store.put("key", matrix())
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    assert store.get("key") is None and not path.exists()


@AGAIN
@given(place=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_found(tmp_path, place):
    store, path = FeatureStore(tmp_path), tmp_path / "key.npy"
    store.put("key", matrix())
    os.truncate(path, int(place * path.stat().st_size))
    assert store.get("key") is None and not path.exists()


def test_another_header_is_found(tmp_path):
    store, path = FeatureStore(tmp_path), tmp_path / "key.npy"
    np.save(path, matrix())  # a well-formed array that this store did not write
    assert store.get("key") is None and not path.exists()
    store.put("key", matrix())
    data = path.read_bytes()
    assert data.count(b"(100, 8)") == 1
    path.write_bytes(data.replace(b"(100, 8)", b"(800, 1)"))
    assert store.get("key") is None and not path.exists()
    store.put("key", matrix())
    np.testing.assert_array_equal(store.get("key"), matrix())


def test_large_entries_are_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(featurestore, "CHUNK", 1024)
    monkeypatch.setattr(featurestore, "CHUNKS", 8)
    store, path = FeatureStore(tmp_path), tmp_path / "key.npy"
    read = []
    monkeypatch.setattr(featurestore.zlib, "crc32", lambda data, crc: read.append(len(data)) or crc + sum(data))
    store.put("key", matrix(4000, 16))
    assert sum(read) == 7 * 1024 + 128  # the last chunk is a short one
    np.testing.assert_array_equal(store.get("key"), matrix(4000, 16))
    size = path.stat().st_size
    for place in (200, size - FOOTER.size - 1):
        store.put("key", matrix(4000, 16))
        with open(path, "r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1]))
        assert store.get("key") is None


def test_a_failed_pass_leaves_nothing(tmp_path):
    store = FeatureStore(tmp_path)

    def broken():
        yield {"x": matrix(10), "y": matrix(10)}
        raise JobError("no more")

    with pytest.raises(JobError, match="no more"):
        store.create({"x": "a", "y": "b"}, 20, broken())
    with pytest.raises(ValueError, match="10 rows of features for 20 images"):
        store.create({"x": "a"}, 20, iter([{"x": matrix(10)}]))
    assert names(tmp_path) == []


def test_full_disk_known_before(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 << 20))
    with pytest.raises(JobError, match="3 MiB free, features need 5 MiB") as error:
        FeatureStore(tmp_path).put("a", np.zeros((1024, 1024), np.float32))
    assert "\n" not in str(error.value) and names(tmp_path) == []


def test_nearly_full_disk_gives_up_old_entries_first(tmp_path, monkeypatch):
    store = FeatureStore(tmp_path)
    for i, name in enumerate("ab"):
        store.put(name, matrix(1000, 256))
        os.utime(tmp_path / f"{name}.npy", (i, i))
    free = lambda path: SimpleNamespace(free=(1 << 20) if (tmp_path / "a.npy").exists() else 2 << 20)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", free)
    store.put("c", matrix(1000, 400))
    assert names(tmp_path) == ["b.npy", "c.npy"]


def test_disk_that_fills_while_writing(tmp_path, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(JobError, match="cannot write .*File too large"):
            FeatureStore(tmp_path).put("a", matrix(1000, 256))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(featurestore, "_seal", full)
    with pytest.raises(JobError, match="the disk is full"):
        FeatureStore(tmp_path).put("a", matrix())
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    store = FeatureStore(tmp_path / "file" / "store")
    assert store.get("a") is None
    with pytest.raises(UsageError, match="cannot write"):
        store.put("a", matrix())
    with pytest.raises(UsageError, match="cannot write"), store.lock("a"):
        pass


ENTRY = HEADER + 10_000 + FOOTER.size


@AGAIN
@given(steps=st.text("abcde", max_size=20))
def test_least_recently_used_goes_first(tmp_path_factory, steps):
    """Against a model: an ordered dictionary of at most three."""
    root = tmp_path_factory.mktemp("store")
    store, model = FeatureStore(root, limit=3 * ENTRY), OrderedDict()
    for time, name in enumerate(steps):
        assert (store.get(name) is not None) == (name in model)
        if name not in model:
            store.put(name, np.zeros((100, 25), np.float32))
            model[name] = None
        model.move_to_end(name)
        if len(model) > 3:
            model.popitem(last=False)
        os.utime(root / f"{name}.npy", (time, time))  # the clock of file systems is too coarse for this
        assert sum(path.stat().st_size for path in root.iterdir()) <= store.limit
        assert names(root) == sorted(f"{name}.npy" for name in model)


def test_recency_is_that_of_reading(tmp_path):
    store = FeatureStore(tmp_path)
    store.put("a", matrix())
    os.utime(tmp_path / "a.npy", (1, 1))
    store.get("a")
    assert (tmp_path / "a.npy").stat().st_mtime > 1


def test_what_is_mapped_stays_until_nobody_uses_it(tmp_path):
    store = FeatureStore(tmp_path, limit=1000)
    first = store.put("a", matrix())  # larger than the bound: kept as long as it is used
    part = first[3:7]
    del first
    store.put("b", matrix(seed=1))
    store.trim()
    assert names(tmp_path) == ["a.npy"]
    np.testing.assert_array_equal(part, matrix()[3:7])
    del part
    store.trim()
    assert names(tmp_path) == []


def test_an_array_survives_the_removal_of_its_file(tmp_path):
    store = FeatureStore(tmp_path)
    found = store.put("a", matrix())
    (tmp_path / "a.npy").unlink()
    store.put("a", matrix(seed=1))
    np.testing.assert_array_equal(found, matrix())


def test_writing_needs_the_memory_of_one_block(tmp_path):
    block = matrix(256, 256)
    tracemalloc.start()
    try:
        found = FeatureStore(tmp_path).create({"x": "a"}, 100 * 256, ({"x": block} for _ in range(100)))["x"]
        assert found.nbytes > 20 * tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _put(root, value):
    FeatureStore(root).put("same", np.full((2000, 50), value, np.float32))
    found = FeatureStore(root).get("same")
    return found is not None and (found == found[0, 0]).all()


def test_two_processes_may_write_the_same_entry(tmp_path):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        assert all(pool.map(_put, [tmp_path] * 16, range(16)))
    assert names(tmp_path) == ["same.npy"]


def _count(root, rounds):
    """Add to a number in a file, which only works when nobody else does so meanwhile."""
    for _ in range(rounds):
        with FeatureStore(root / "store").lock("name"):
            number = int((root / "number").read_text())
            (root / "number").write_text(str(number + 1))


def test_a_lock_is_held_by_one_process(tmp_path):
    (tmp_path / "number").write_text("0")
    workers = [multiprocessing.get_context("fork").Process(target=_count, args=(tmp_path, 200)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (tmp_path / "number").read_text() == "600"
    assert names(tmp_path / "store") == []


def _use(root, pipe, what):
    """Map or write an entry, say so, and wait."""
    store = FeatureStore(root, limit=1000)

    def slow():
        yield {"x": matrix(50)}
        pipe.send("ready")
        pipe.recv()
        yield {"x": matrix(50, seed=1)}

    if what == "write":
        store.create({"x": "new"}, 100, slow())
    else:
        held = store.get("old")
        pipe.send("ready")
        pipe.recv()
        pipe.send(float(held.sum()))


@contextmanager
def _other_process(root, what):
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_use, args=(root, theirs, what))
    process.start()
    assert ours.recv() == "ready"
    yield ours, process
    process.join()


def test_another_process_keeps_what_it_reads(tmp_path):
    store = FeatureStore(tmp_path, limit=1000)
    expected = float(store.put("old", matrix()).sum())
    with _other_process(tmp_path, "read") as (pipe, _):
        store.trim()
        assert names(tmp_path) == ["old.npy"]
        pipe.send("go on")
        assert pipe.recv() == expected
    store.trim()
    assert names(tmp_path) == []


def test_another_process_keeps_what_it_writes_and_leaves_nothing_when_killed(tmp_path):
    store = FeatureStore(tmp_path)
    with _other_process(tmp_path, "write") as (pipe, process):
        store.trim()
        assert names(tmp_path) == [".new.partial"] and store.get("new") is None
        pipe.send("go on")
        process.join()
        np.testing.assert_array_equal(store.get("new"), np.concatenate([matrix(50), matrix(50, seed=1)]))
    with _other_process(tmp_path, "write") as (pipe, process):
        os.kill(process.pid, signal.SIGKILL)
    assert ".new.partial" in names(tmp_path)
    store.put("next", matrix())
    assert ".new.partial" not in names(tmp_path)
