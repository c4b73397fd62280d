# SPDX-License-Identifier: Apache-2.0
"""Trackers: what they are told, that they continue after a resume, and that they never end a training."""

from __future__ import annotations

import json
import sys
import types

import pytest

from suite import track
from suite.cli import main
from suite.errors import JobError, UsageError
from suite.store import Store

ROWS = [{"step": step, "epoch": step / 8, "loss": 1 / step, "lr": 0.1} for step in (2, 4)]
CONFIG = {"arch": "resnet18", "optim": {"lr": 0.1, "betas": [0.9, 0.99]}, "arch_options": {}}


class Calls(list):
    """A list of what a fake package was told."""

    def note(self, name, result=None):
        def call(*arguments, **named):
            self.append((name, *arguments, named))
            return result

        return call

    def named(self, name):
        return [call[1:] for call in self if call[0] == name]


@pytest.fixture
def wandb(monkeypatch):
    calls = Calls()
    run = types.SimpleNamespace(log=calls.note("log"), finish=calls.note("finish"))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=calls.note("init", run)))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return calls


@pytest.fixture
def mlflow(monkeypatch):
    calls = Calls()
    run = types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc123"))
    names = ("set_experiment", "log_params", "log_metrics", "end_run")
    fake = types.SimpleNamespace(start_run=calls.note("start_run", run), **{name: calls.note(name) for name in names})
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return calls


def feed(names, folder, rows=ROWS, fail=None):
    seen, warnings = [], []
    with track.tracking(seen.append, names, "run-1", folder, CONFIG, warnings.append) as log:
        for row in rows:
            log(row)
        if fail:
            raise fail
    assert seen == list(rows)
    return warnings


def test_no_tracker_leaves_the_log_alone(tmp_path):
    assert feed((), tmp_path) == [] and not list(tmp_path.iterdir())


def test_wandb_gets_rows_under_the_runs_id(wandb, tmp_path):
    assert feed(("wandb",), tmp_path / "run") == []
    ((options,),) = wandb.named("init")
    assert options["id"] == options["name"] == "run-1" and options["resume"] == "allow" and options["config"] == CONFIG
    assert options["dir"] == str(tmp_path / "run") and options["project"] == "ssl-suite"
    assert wandb.named("log") == [({"epoch": r["epoch"], "loss": r["loss"], "lr": 0.1}, {"step": r["step"]}) for r in ROWS]
    assert wandb.named("finish") == [({"exit_code": 0},)]


def test_an_interrupted_training_is_marked_failed(wandb, mlflow, tmp_path):
    with pytest.raises(JobError, match="diverged"):
        feed(("wandb", "mlflow"), tmp_path, fail=JobError("diverged"))
    assert wandb.named("finish") == [({"exit_code": 1},)] and mlflow.named("end_run") == [("FAILED", {})]


def test_mlflow_continues_its_run(mlflow, tmp_path):
    feed(("mlflow",), tmp_path)
    feed(("mlflow",), tmp_path)
    assert mlflow.named("start_run") == [({"run_name": "run-1"},), ({"run_id": "abc123"},)]
    ((params, _),) = mlflow.named("log_params")
    assert params == {"arch": '"resnet18"', "optim.lr": "0.1", "optim.betas": "[0.9, 0.99]", "arch_options": "{}"}
    assert mlflow.named("log_metrics")[0] == ({"epoch": 0.25, "loss": 0.5, "lr": 0.1}, {"step": 2})
    assert json.loads((tmp_path / "mlflow.json").read_text()) == {"run_id": "abc123"}


def test_a_tracker_that_fails_on_the_way_is_dropped_with_a_warning(wandb, mlflow, tmp_path, monkeypatch):
    def broken(*arguments, **named):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(sys.modules["mlflow"], "log_metrics", broken)
    assert feed(("mlflow", "wandb"), tmp_path) == ["warning: --track mlflow stopped: ConnectionError: no route"]
    assert len(wandb.named("log")) == 2 and mlflow.named("end_run") == [("FAILED", {})]


def test_a_tracker_that_does_not_start_is_one_line_and_closes_the_others(wandb, mlflow, tmp_path, monkeypatch):
    def broken(*arguments, **named):
        raise RuntimeError("api_key not configured\nrun wandb login")

    monkeypatch.setattr(sys.modules["wandb"], "init", broken)
    with pytest.raises(JobError, match="--track wandb does not start: RuntimeError: api_key not configured run wandb login"):
        track.trackers(("mlflow", "wandb"), "run-1", tmp_path, CONFIG)
    assert mlflow.named("end_run") == [("FAILED", {})]


def scalars(folder):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, round(e.value, 4)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_replaces_what_a_resume_repeats(tmp_path):
    pytest.importorskip("tensorboard")
    feed(("tensorboard",), tmp_path, [{"step": s, "loss": 1.0} for s in (2, 4, 6)])
    feed(("tensorboard", "tensorboard"), tmp_path, [{"step": s, "loss": 2.0} for s in (4, 6)])
    assert scalars(tmp_path / "tensorboard") == {"loss": [(2, 1.0), (4, 2.0), (6, 2.0)]}


def test_unknown_and_missing_are_refused(monkeypatch):
    with pytest.raises(UsageError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        track.check(("tensorbord",))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=r"--track wandb needs a package .*ssl-suite\[track\]") as caught:
        track.check(("wandb",))
    assert "\n" not in str(caught.value)


PRETRAIN = ("pretrain", "--algo", "simclr", "--preset", "tiny", "precision=32", "max_steps=20", "epochs=2")


def test_the_command_line_refuses_before_it_trains(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    for name in ("mlfow", "mlflow"):
        assert main([*PRETRAIN, "--track", name]) == 2
        err = capfd.readouterr().err
        assert err.count("\n") == 1 and "mlflow" in err
    assert not list(tmp_path.iterdir())


def test_the_command_line_tracks_what_it_logs(wandb, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    assert main([*PRETRAIN, "--track", "tensorboard,wandb"]) == 0
    (name,) = Store(tmp_path / "runs").names()
    run = Store(tmp_path / "runs").run(name)
    rows = [json.loads(line) for line in run.log.read_text().splitlines()]
    assert [(named["step"], values["loss"]) for values, named in wandb.named("log")] == [(r["step"], r["loss"]) for r in rows]
    assert scalars(run.path / "tensorboard")["loss"] == [(r["step"], round(r["loss"], 4)) for r in rows]
    ((options,),) = wandb.named("init")
    assert options["id"] == name and options["config"]["arch"] == "resnet18"


def test_processes_are_started_with_the_same_trackers_and_packing(tmp_path, monkeypatch):
    import subprocess

    from suite import command, engine

    started = []
    monkeypatch.setattr(engine, "respawn", lambda devices, arguments: list(arguments))
    done = types.SimpleNamespace(returncode=1)
    monkeypatch.setattr(subprocess, "run", lambda arguments, check: (started.append(arguments), done)[1])
    source = types.SimpleNamespace(roots={}, pack=256)
    job = types.SimpleNamespace(config=track_config(), algo="./mine.py", preset="tiny", sources=source, id="x")
    options = types.SimpleNamespace(accumulate=1, keep=0, trackers=("wandb", "tensorboard"), again=False)
    with pytest.raises(JobError, match="exit 1"):
        command._spawn(job, Store(tmp_path), command.Asked([], [], [None], "", [], devices=2), options)
    (arguments,) = started
    assert arguments[arguments.index("--track") + 1] == "wandb,tensorboard" and "--pack" in arguments
    assert arguments[arguments.index("--algo") + 1] == "./mine.py"


def track_config():
    from suite import plugins

    return plugins.load("recipes", "simclr").presets["tiny"]
