# SPDX-License-Identifier: Apache-2.0
"""CIFAR in all its versions, damaged or malicious batches."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from suite.data import card, detect, load
from suite.errors import UsageError
from tests.data_samples import tree


def cifar10_batches(root: Path, protocol: int = 2) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
    root.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
        batch = {b"data": pixels[2 * i : 2 * i + 2].copy(), b"labels": [i, 9 - i], b"batch_label": b"x"}
        (root / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    (root / "batches.meta").write_bytes(pickle.dumps({b"label_names": [n.encode() for n in "abcdefghij"]}, protocol=2))
    return pixels


@pytest.mark.parametrize("protocol", range(6))
def test_cifar10_python_version(tmp_path, protocol):
    pixels = cifar10_batches(tmp_path / "cifar-10-batches-py", protocol)
    train, test = load("cifar10", "train", tmp_path), load("cifar10", "test", tmp_path / "cifar-10-batches-py")
    assert train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5] and test.labels.tolist() == [5, 4]
    assert train.classes == tuple("abcdefghij")
    assert np.array_equal(train.array, pixels[:10].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert detect(tmp_path) == "cifar10"


def test_cifar10_python_2_strings(tmp_path):
    cifar10_batches(tmp_path)
    batch = pickle.loads((tmp_path / "test_batch").read_bytes())
    text = {key.decode(): value for key, value in batch.items()}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(text, protocol=2))
    assert load("cifar10", "test", tmp_path).labels.tolist() == [5, 4]


def test_cifar_binary_versions(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (4, 3073), dtype=np.uint8)
    rows[:, 0] = [3, 1, 4, 1]
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(rows.tobytes())
    (tmp_path / "test_batch.bin").write_bytes(rows.tobytes())
    test = load("cifar10", "test", tmp_path)
    assert test.labels.tolist() == [3, 1, 4, 1] and test.classes[3] == "cat"
    assert np.array_equal(test.array[1], rows[1, 1:].reshape(3, 32, 32).transpose(1, 2, 0))
    (tmp_path / "test_batch.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(UsageError, match="cut short"):
        load("cifar10", "test", tmp_path)
    hundred = tmp_path / "cifar-100-binary"
    hundred.mkdir()
    for name in ("train", "test"):
        (hundred / f"{name}.bin").write_bytes(np.concatenate([[[7], [7], [7], [7]], rows], 1).astype(np.uint8).tobytes())
    found = load("cifar100", "test", tmp_path)
    assert found.labels.tolist() == [3, 1, 4, 1] and found.num_classes == 100


def test_cifar100_uses_fine_labels(tmp_path):
    data = np.zeros((2, 3072), dtype=np.uint8)
    for name in ("train", "test"):
        batch = {b"data": data, b"fine_labels": [99, 0], b"coarse_labels": [1, 1]}
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=2))
    (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": [str(i).encode() for i in range(100)]}))
    assert load("cifar100", "train", tmp_path).labels.tolist() == [99, 0] and detect(tmp_path) == "cifar100"


def test_cifar_in_class_folders(tmp_path):
    for folder in ("train", "test"):
        tree(tmp_path, {f"{folder}/{name}": 1 for name in card("cifar10").classes})
    assert load("cifar10", "test", tmp_path).classes == card("cifar10").classes


class Payload:
    """Pickles to a call that leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,)) if self.path.name == "direct" else (exec, (f"open({str(self.path)!r}, 'w')",))


@pytest.mark.parametrize("trace", ["direct", "code"])
def test_a_malicious_pickle_does_not_run(tmp_path, trace):
    cifar10_batches(tmp_path / "set")
    mark = tmp_path / trace
    bad = pickle.dumps({b"data": Payload(mark), b"labels": [1, 2]}, protocol=2)
    pickle.loads(bad)
    assert mark.exists()  # the payload works where pickles are run
    mark.unlink()
    (tmp_path / "set" / "test_batch").write_bytes(bad)
    with pytest.raises(UsageError, match="which no CIFAR file needs"):
        load("cifar10", "test", tmp_path / "set")
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1, 2]), pickle.dumps({b"data": 3})])
def test_damaged_cifar_batches(tmp_path, content):
    cifar10_batches(tmp_path)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(UsageError, match="test_batch") as caught:
        load("cifar10", "test", tmp_path)
    assert "\n" not in str(caught.value)


def test_cifar_label_out_of_range(tmp_path):
    cifar10_batches(tmp_path)
    batch = {b"data": np.zeros((1, 3072), dtype=np.uint8), b"labels": [10]}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(UsageError, match="label 10"):
        load("cifar10", "test", tmp_path)
