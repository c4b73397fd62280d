# SPDX-License-Identifier: Apache-2.0
"""`--pack`: decoded once, read from the packed copy, and another data set in the records."""

from __future__ import annotations

import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from suite.cli import main
from suite.data import Sources
from suite.data import pack as packing
from suite.data.imageset import decode
from suite.errors import JobError
from suite.progress import Reporter, Task
from suite.store import Store

ROOT = Path(__file__).resolve().parent.parent
QUICK = ("--algo", "random", "--preset", "tiny", "--bench", "knn", "--no-controls", "--no-report")


@pytest.fixture
def photos(tmp_path):
    """An ImageFolder of pictures of several sizes, two of them larger than what is packed."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for i, size in enumerate([(300, 420), (310, 290), (40, 50), (40, 60)]):
            path = tmp_path / "photos" / split / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8))
            coarse.resize((size[1], size[0])).save(path)
    return tmp_path / "photos"


class Counting(Reporter):
    """Counts what the bars were told."""

    def __init__(self):
        super().__init__()
        self.tasks = []

    def task(self, what, total, unit="it", start=0):
        import contextlib

        self.tasks.append(Task(what, total, lambda task: None, unit, start))
        return contextlib.nullcontext(self.tasks[-1])


def sources(photos, cache, pack=256):
    return Sources("imagefolder", {"imagefolder": photos}, cache=cache, pack=pack)


def test_packed_once_with_progress_then_read(photos, tmp_path):
    plain, some = sources(photos, tmp_path / "cache", 0), sources(photos, tmp_path / "cache")
    reporter = Counting()
    first = some.load("imagefolder", "train", reporter)
    (task,) = reporter.tasks
    assert (task.done, task.total, task.what) == (4, 4, "packing imagefolder/train")
    (folder,) = (tmp_path / "cache" / "packed").iterdir()
    assert folder.name == first.fingerprint
    stamp = (folder / "images.bin").stat().st_mtime_ns
    second = some.load("imagefolder", "train", reporter)
    assert len(reporter.tasks) == 1 and (folder / "images.bin").stat().st_mtime_ns == stamp
    assert isinstance(second.images, packing.PackedImages) and min(second.images[0].shape[:2]) == 256
    original = plain.load("imagefolder", "train")
    assert np.array_equal(second.images[0], packing.reduced(decode(original.paths[0]), 256))
    assert np.array_equal(second.images[1], original.images[1]) and second.labels.tolist() == original.labels.tolist()


def test_the_packing_is_part_of_the_identity(photos, tmp_path):
    marks = [sources(photos, tmp_path / "cache", pack).fingerprint("imagefolder", "train") for pack in (0, 256, 320)]
    assert len(set(marks)) == 3 and not (tmp_path / "cache").exists(), "knowing the fingerprint packs nothing"
    for mark, pack in zip(marks, (0, 256, 320), strict=True):
        assert sources(photos, tmp_path / "cache", pack).load("imagefolder", "train").fingerprint == mark


def test_the_side_follows_the_views():
    assert [packing.side(size) for size in (32, 96, 224, 288, 448)] == [256, 256, 256, 329, 512]


def test_decoded_sets_and_boxes_are_left_alone(photos, tmp_path):
    some = sources(photos, tmp_path / "cache")
    assert some.load("digits", "train").array is not None
    assert some.fingerprint("digits", "test") == sources(photos, tmp_path, 0).fingerprint("digits", "test")
    assert [some.serving(task).pack for task in ("classification", "multilabel", "detection", "segmentation")] == [
        256,
        256,
        0,
        0,
    ]


def test_a_disk_that_is_too_small_is_refused_at_once(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(JobError, match="GiB needed, 0.0 GiB free"):
        sources(photos, tmp_path / "cache").load("imagefolder", "train")
    assert not list((tmp_path / "cache" / "packed").iterdir())


PACK = """
import sys
from pathlib import Path
from suite.data import Sources
photos, cache = map(Path, sys.argv[1:])
images = Sources("imagefolder", {"imagefolder": photos}, cache=cache, pack=256).load("imagefolder", "train")
print(images.images[0].sum())
"""


@pytest.mark.slow
def test_two_processes_pack_at_once(photos, tmp_path):
    command = [sys.executable, "-c", PACK, str(photos), str(tmp_path / "cache")]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate(timeout=120)[0] for process in both}
    assert len(said) == 1 and all(process.returncode == 0 for process in both)
    assert len(list((tmp_path / "cache" / "packed").iterdir())) == 1


def test_run_pretrain_and_eval_take_the_option(photos, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUITE_CACHE", str(tmp_path / "cache"))
    where = ("--dataset-root", str(photos))
    assert main(["run", *QUICK, *where]) == 0
    assert not (tmp_path / "cache" / "packed").exists()
    capfd.readouterr()
    assert main(["run", *QUICK, *where, "--pack"]) == 0
    assert "packing imagefolder/train" in capfd.readouterr().err
    assert len(list((tmp_path / "cache" / "packed").iterdir())) == 2, "train and test"
    one, other = Store(tmp_path / "runs").records()[0]
    assert one.data["imagefolder/train"] != other.data["imagefolder/train"] and one.digest != other.digest
    assert one.results["knn"].data != other.results["knn"].data
    assert main(["run", *QUICK, *where, "--pack"]) == 0
    err = capfd.readouterr().err
    assert "kept" in err and "packing" not in err
    assert main(["eval", one.id, "--bench", "knn", *where, "--pack", "--no-report"]) == 0
    tiny = ("pretrain", "--algo", "simclr", "--preset", "tiny", "batch=4", "precision=32")
    assert main([*tiny, *where, "--pack"]) == 0
    (record,) = (record for record in Store(tmp_path / "runs").records()[0] if record.recipe == "simclr")
    assert record.notes == ("pictures were packed with the shorter side at most 256 pixels",)
