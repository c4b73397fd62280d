# SPDX-License-Identifier: Apache-2.0
"""Batches from photographs on disk: the same whatever decodes them, and errors that name the file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from suite.data import load
from suite.data.imageset import ImageSet
from suite.data.loader import Loader
from suite.errors import JobError, UsageError
from suite.views import CenterCrop, ColorJitter, GaussianBlur, HorizontalFlip, Normalize, RandomResizedCrop, Resize, View

ROOT = Path(__file__).resolve().parent.parent
PAIR = (
    View((RandomResizedCrop(24), HorizontalFlip(), ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), GaussianBlur(p=0.5), Normalize())),
    View((RandomResizedCrop(16, scale=(0.1, 0.5)), Normalize())),
)
PLAIN = (View((Resize(28), CenterCrop(24), Normalize())),)


def photos(root: Path, count: int = 18) -> Path:
    """An ImageFolder of smooth JPEGs of many sizes, two classes."""
    rng = np.random.default_rng(3)
    for split, n in (("train", count), ("test", 4)):
        for i in range(n):
            path = root / split / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 255, (5, 6, 3), dtype=np.uint8))
            coarse.resize((30 + 3 * i, 64 - 2 * i), Image.Resampling.BICUBIC).save(path, quality=90)
    return root


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    images = load("imagefolder", "train", photos(tmp_path_factory.mktemp("photos")))
    assert images.array is None and len(images) == 18
    return images


def batches(images, views=PAIR, batch=4, epoch=1, start=0, **options):
    """An epoch's batches, each as a list of tensors."""
    some = Loader(images, views, batch, seed=5, **options)
    return [[b.index, b.label, *b.views] for b in some.epoch(epoch, start=start)]


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(train, workers):
    torch.manual_seed(0)
    alone = batches(train)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    same(alone, batches(train, workers=workers))
    assert torch.equal(torch.get_rng_state(), before), "decoding consumes the training's random numbers"
    assert len(alone) == 4 and alone[0][2].shape == (4, 3, 24, 24) and alone[0][3].shape == (4, 3, 16, 16)


def test_epochs_differ_and_do_not_depend_on_the_one_before(train):
    some = Loader(train, PAIR, 4, seed=5, workers=1)
    first, second = ([b.views[0] for b in some.epoch(epoch)] for epoch in (0, 1))
    assert not torch.equal(first[0], second[0])
    assert all(torch.equal(x, y[2]) for x, y in zip(second, batches(train), strict=True))


def test_an_image_looks_the_same_in_any_batch(train):
    """With one order, batches of 4 and of 6 hold the same samples."""
    by_four, by_six = ([torch.cat(parts) for parts in zip(*batches(train, batch=n), strict=True)] for n in (4, 6))
    same([[x[:16] for x in by_six]], [by_four])


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_share_what_one_sees(train, workers):
    whole = batches(train)
    ranks = [batches(train, rank=rank, world=2, workers=workers) for rank in (0, 1)]
    same(whole, [[torch.cat(parts) for parts in zip(*pair, strict=True)] for pair in zip(*ranks, strict=True)])


def test_accumulated_parts_make_the_batch(train):
    whole, parts = batches(train), batches(train, accumulate=2)
    joined = zip(parts[::2], parts[1::2], strict=True)
    same(whole, [[torch.cat(pieces) for pieces in zip(*pair, strict=True)] for pair in joined])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_start_in_the_middle_gives_the_rest(train, workers, accumulate):
    whole = batches(train, accumulate=accumulate)
    same(whole[2 * accumulate :], batches(train, accumulate=accumulate, workers=workers, start=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_keeps_order_and_the_short_last_batch(train, workers):
    got = batches(train, PLAIN, batch=8, shuffle=False, workers=workers)
    assert torch.cat([b[0] for b in got]).tolist() == list(range(18)) and [len(b[0]) for b in got] == [8, 8, 2]
    assert torch.cat([b[1] for b in got]).tolist() == train.labels.tolist()


def test_memory_and_disk_agree_on_pictures_of_one_size():
    """The path for decoded sets and the one for files give the same samples up to the rounding of pixels."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (8, 5, 5, 3), dtype=np.uint8)
    pixels = np.stack([np.asarray(Image.fromarray(c).resize((40, 40), Image.Resampling.BICUBIC)) for c in coarse])
    labels = np.arange(8)
    memory = ImageSet("x", "train", tuple("abcdefgh"), labels, pixels, "0", array=pixels)
    disk = ImageSet("x", "train", tuple("abcdefgh"), labels, pixels, "0")
    view = (View((RandomResizedCrop(24), HorizontalFlip(), Normalize((0, 0, 0), (1, 1, 1)))),)
    (one,), (two,) = batches(memory, view, batch=8), batches(disk, view, batch=8)
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert (one[2] - two[2]).abs().max() < 2.5 / 255


@pytest.mark.parametrize("workers", [0, 2])
def test_a_jpeg_that_breaks_when_decoded_is_one_line(tmp_path, workers):
    """Its first and last bytes are right, so that only decoding finds it."""
    root = photos(tmp_path / "photos")
    bad = root / "train" / "a" / "8.jpg"
    data = bad.read_bytes()
    bad.write_bytes(data[:20] + bytes(len(data) - 22) + data[-2:])
    images = load("imagefolder", "train", root)
    with pytest.raises(UsageError) as caught:
        batches(images, workers=workers)
    message = str(caught.value)
    assert str(bad) in message and "\n" not in message and "Traceback" not in message


class Threads:
    """Pictures that say how many torch threads decode them."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return np.full((8, 8, 3), torch.get_num_threads(), dtype=np.uint8)


class Dying(Threads):
    """Decoding that takes the process down, as the kernel does when memory runs out."""

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def image_set(images):
    return ImageSet("x", "train", ("a",), np.zeros(8, dtype=np.int64), images, "0")


def test_workers_use_one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        view = (View((CenterCrop(8), Normalize((0, 0, 0), (1, 1, 1)))),)
        got = batches(image_set(Threads()), view, workers=2)
    finally:
        torch.set_num_threads(before)
    assert {round(float(v) * 255) for b in got for v in b[2].unique()} == {1}


def test_a_killed_worker_is_one_line():
    with pytest.raises(JobError, match="DataLoader worker .*fewer workers") as caught:
        batches(image_set(Dying()), PLAIN, workers=1)
    assert "\n" not in str(caught.value)


def test_leaving_an_epoch_early_ends_its_workers(train):
    import multiprocessing

    epoch = Loader(train, PAIR, 4, workers=2).epoch(0)
    next(epoch)
    assert len(multiprocessing.active_children()) == 2
    epoch.close()
    assert not multiprocessing.active_children()


ABANDON = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.test_loader import PLAIN, Threads, image_set
from suite.data.loader import Loader
kept = Loader(image_set(Threads()), PLAIN, 2, workers=2).epoch(0)
next(kept)
raise ValueError("a defect, with the workers waiting")
"""


def test_a_crash_does_not_hang_on_waiting_workers():
    """At exit nobody has told the workers to end; being deaf to the first SIGTERM must not keep them."""
    done = subprocess.run([sys.executable, "-c", ABANDON, str(ROOT)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "a defect" in done.stderr


COMMAND = ("pretrain", "--algo", "simclr", "--preset", "tiny", "max_steps=100000", "epochs=100000", "batch=8", "workers=2",
           "precision=32")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves_and_ends(tmp_path, number):
    """A terminal's Ctrl-C and a scheduler's SIGTERM reach the workers too; they must not die before the step is done."""
    root = photos(tmp_path / "photos")
    process = subprocess.Popen(
        [sys.executable, "-m", "suite.cli", *COMMAND, "--dataset-root", str(root)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("runs/*/log.jsonl")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert f"stopped by {number.name}" in err and "Traceback" not in err and "Error" not in err
    assert list(tmp_path.glob("runs/*/checkpoints/last.pt"))
