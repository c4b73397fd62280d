# SPDX-License-Identifier: Apache-2.0
"""The command line as a person meets it: exit codes, one-line errors, nothing lost, nothing computed twice."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from suite.cli import main
from suite.data import card
from suite.store import Store

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def suite(tmp_path, monkeypatch, capfd):
    """Run a command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


def tree(root, sizes=(("a", 4), ("b", 4)), splits=("train", "test")):
    """An ImageFolder of small random pictures."""
    rng = np.random.default_rng(0)
    for split in splits:
        for name, count in sizes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (40, 40 + 8 * i, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.jpg")
    return root


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--algo", "mocov4"), "did you mean 'mocov3'"),
        (("run", "--algo", ","), "unknown algorithm"),
        (("run", "--bench", "knnn"), "unknown benchmark 'knnn'; did you mean 'knn'"),
        (("run", "--bench", "knn:mocco"), "did you mean 'moco'"),
        (("run", "--preset", "digit"), "did you mean 'digits'"),
        (("run", "optim.lrr=1"), "did you mean 'optim.lr'"),
        (("run", "epochs=ten"), "'epochs' = 'ten'"),
        (("run", "batch=0"), "should be greater than 0"),
        (("run", "arch=resnet5"), "unknown architecture 'resnet5'; did you mean"),
        (("run", "knn.temprature=1"), "did you mean 'temperature'"),
        (("run", "--seeds", "one"), "not a list of whole numbers"),
        (("run", "--dataset-root", "nowhere"), "nowhere"),
        (("run", "--dataset", "digit"), "did you mean 'digits'"),
        (("run", "--bench", "knn:default@cifar10"), "'cifar10' needs"),
        (("run", "linear.dataset=imagefolder-mine"), "'imagefolder-mine' needs"),
        (("run", "--preset", "resnet50_8xb32-coslr-200e_in1k"), "imagenet"),
        (("run", "--wrong"), "--wrong"),
        (("eval", "nothing.pth"), "nothing.pth"),
        (("ls", "recipe"), "did you mean 'recipes'"),
        (("show", "mocov2", "--preset", "x"), "unknown preset of mocov2"),
        (("compare", "a", "b", "--format", "xml"), "unknown format"),
        (("data", "check", "imagenett"), "did you mean 'imagenet'"),
    ],
    ids=str,
)
def test_wrong_calls_are_one_line_and_exit_2(suite, arguments, message):
    code, out, err = suite(*arguments)
    assert code == 2, err
    assert message in err and err.count("\n") == 1 and "Traceback" not in err
    assert not Path("runs").exists() or not any(Store(Path("runs")).names())


def test_help_is_quick_and_loads_no_torch():
    code = "import sys; from suite.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "pretrain" in done.stdout


def test_listing_and_reporting_load_no_networks():
    code = (
        "import sys; from suite.cli import main; codes = [main(['ls', 'recipes']), main(['ls', 'evaluators'])];"
        "sys.exit(any(codes) or bool({'timm', 'torchvision', 'scipy.optimize'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "mocov2" in done.stdout and "knn" in done.stdout, done.stderr


def test_truncated_jpeg_is_refused_or_skipped(suite, tmp_path):
    root = tree(tmp_path / "photos", (("a", 6), ("b", 6)))
    bad = root / "train" / "a" / "0.jpg"
    bad.write_bytes(bad.read_bytes()[:-100])
    small = ("--algo", "mocov2", "--preset", "tiny", "--bench", "knn", "--no-controls", "batch=8", "--dataset-root", root)
    code, _, err = suite("run", *small)
    assert code == 2 and "0.jpg" in err and err.count("\n") == 1
    code, _, err = suite("run", *small, "--on-broken", "skip")
    assert code == 0, err


def test_data_check_says_what_is_missing(suite, tmp_path):
    root = tree(tmp_path / "photos")
    code, out, _ = suite("data", "check", "imagefolder", "--data-root", root)
    assert code == 0 and "train: 8 images" in out and "complete" in out
    (root / "train" / "a" / "0.jpg").write_bytes(b"not a picture")
    code, out, _ = suite("data", "check", "imagefolder", "--data-root", root)
    assert code == 1 and "0.jpg" in out
    few = tree(tmp_path / "few", tuple((name, 1) for name in card("cifar10").classes))
    code, out, _ = suite("data", "check", "cifar10", "--data-root", few)
    assert code == 1 and "50000 expected" in out


def test_run_twice_computes_once_and_pages_stay_current(suite):
    command = ("run", "--algo", "mocov2", "--preset", "tiny", "--bench", "knn,linear", "linear.epochs=2", "--no-controls")
    assert suite(*command)[0] == 0
    (name,) = Store(Path("runs")).names()
    before = {path: path.stat().st_mtime_ns for path in Path("runs", name).rglob("*.json")}
    assert len(before) == 3
    code, _, err = suite(*command)
    assert code == 0 and err.count("kept") == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert suite("report", "--check")[0] == 0
    page = Path("model-zoo", "index.md")
    page.write_text(page.read_text() + "typed by hand\n")
    code, _, err = suite("report", "--check")
    assert code == 1 and "index.md" in err
    assert suite("compare", name, name)[0] == 0
    assert suite("ls", "runs")[1].startswith(name)


def test_a_changed_setting_or_version_is_measured_again(suite, monkeypatch):
    command = ("run", "--algo", "random", "--preset", "tiny", "--bench", "knn", "--no-controls")
    assert suite(*command)[0] == 0
    assert "kept" in suite(*command)[2]
    assert "kept" not in suite(*command, "knn.temperature=0.1")[2]


def test_from_record_repeats_the_run(suite):
    assert suite("pretrain", "--algo", "simclr", "--preset", "tiny", "optim.lr=0.07", "--seeds", "3")[0] == 0
    (name,) = Store(Path("runs")).names()
    sha = Store(Path("runs")).run(name).record().weights.sha256
    assert (
        suite("run", "--from", f"runs/{name}/run.json", "--bench", "", "--no-controls", "--runs", "again", "--no-report")[0]
        == 0
    )
    assert Store(Path("again")).run(name).record().weights.sha256 == sha


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_a_malicious_pickle_does_not_run(suite, tmp_path, suffix):
    import torch

    path, proof = tmp_path / f"weights.{suffix}", tmp_path / "payload-ran"
    if suffix == "pth":
        torch.save({"state_dict": Payload(proof)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Payload(proof)}))
    code, _, err = suite("eval", path, "--bench", "knn")
    assert code == 2 and err.count("\n") == 1 and "mkdir" in err
    assert not proof.exists()


def test_truncated_and_partial_weights_are_refused(suite, tmp_path):
    import torch

    from suite.backbone import Backbone
    from suite.presets import SMALL_RESNET

    small = Backbone(SMALL_RESNET["arch"], SMALL_RESNET["arch_options"], "cifar")
    good = tmp_path / "good.safetensors"
    small.save(good, {"size": "32"})
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-1000])
    code, _, err = suite("eval", tmp_path / "cut.safetensors", "--bench", "knn")
    assert code == 2 and "cut.safetensors" in err and err.count("\n") == 1
    state = Backbone("resnet18").net.state_dict()
    del state["layer4.1.conv2.weight"]
    torch.save(state, tmp_path / "partial.pth")
    code, _, err = suite("eval", tmp_path / "partial.pth", "--bench", "knn")
    assert code == 2 and "layer4.1.conv2.weight" in err and err.count("\n") == 1
    code, _, err = suite("eval", good, "--bench", "knn")
    assert code == 0 and "kNN top-1" in err and "tensors" in err
    (stored,) = Path("runs").glob("*/run.json")
    assert "good.safetensors" in stored.read_text() and str(tmp_path) not in stored.read_text()


def _start(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "suite.cli", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


LONG = ("run", "--algo", "simclr", "--preset", "tiny", "--bench", "knn,linear", "linear.epochs=2", "--no-controls",
        "max_steps=150", "epochs=2", "precision=32")  # fmt: skip


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_continues(tmp_path):
    process = _start(tmp_path, *LONG)
    log = tmp_path / "runs"
    deadline = time.monotonic() + 120
    while not list(log.glob("*/log.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command continues" in err and "Traceback" not in err
    process = _start(tmp_path, *LONG)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0 and "resuming at step" in err


@pytest.mark.slow
def test_kill_at_random_moments_changes_nothing(tmp_path):
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    calm.mkdir(), stormy.mkdir()
    process = _start(calm, *LONG)
    assert process.wait(timeout=300) == 0
    rng = np.random.default_rng(int(os.environ.get("SUITE_TEST_SEED", "0")))
    for _ in range(10):
        process = _start(stormy, *LONG, "--no-report")
        time.sleep(float(rng.uniform(3, 12)))
        process.kill()
        process.communicate()
    process = _start(stormy, *LONG)
    assert process.wait(timeout=300) == 0
    (one,), (other,) = (Store(folder / "runs").records()[0] for folder in (calm, stormy))
    assert one.weights.sha256 == other.weights.sha256
    assert {key: result.metrics for key, result in one.results.items()} == {
        key: result.metrics for key, result in other.results.items()
    }
    rows = [json.loads(line)["step"] for line in (stormy / "runs" / other.id / "log.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows))
