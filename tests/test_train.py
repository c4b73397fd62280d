# SPDX-License-Identifier: Apache-2.0
"""The loop: resume after kills, accumulation, two processes against one, divergence, logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from suite import config as configs
from suite import plugins
from suite.errors import JobError, UsageError
from suite.progress import Reporter
from suite.run import Options, prepare, pretrain
from suite.store import Store
from suite.testing import build, trainer
from suite.track import jsonl

ROOT = Path(__file__).resolve().parent.parent


def tiny(name, *assignments):
    recipe = plugins.load("recipes", name)
    return recipe, configs.override(recipe.presets["tiny"], ["precision=32", *assignments])


def losses(some):
    rows = []
    some.log = rows.append
    some.run(Reporter(), "test")
    return [row["loss"] for row in rows]


def test_accumulation_keeps_the_global_batch(digits):
    """A loss that is a mean over samples does not notice accumulation (no batch norm in the way: rates of zero)."""
    recipe, config = tiny("supervised", "max_steps=2", "crop_min=1.0")
    whole = trainer(recipe, config, digits, log_every=1)
    parts = trainer(recipe, config, digits, log_every=1, accumulate=2)
    for some in (whole, parts):
        for module in some.method.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.0
                module.train = lambda mode=True, m=module: m
                module.training = False
    assert [b.index.tolist() for b in whole.loader.epoch(0)][0] == sum(
        [b.index.tolist() for b in list(parts.loader.epoch(0))[:2]], []
    )
    assert losses(whole) == pytest.approx(losses(parts), rel=1e-5)


TRAINED = {name: recipe for name, recipe in plugins.load_all("recipes").items() if recipe.method is not None}


@pytest.mark.parametrize("name", [name for name, r in TRAINED.items() if not r.batch_dependent and not r.labels])
def test_accumulation_changes_nothing_where_the_recipe_warns_of_nothing(name, digits):
    recipe, config = tiny(name, "max_steps=2")
    whole, parts = (trainer(recipe, config, digits, log_every=1, accumulate=number) for number in (1, 2))
    assert losses(whole) == pytest.approx(losses(parts), rel=1e-4)


def test_recipes_whose_samples_see_each_other_say_so(digits):
    """Batch norm is what all of them have; the masked-image models have none."""
    for name, recipe in TRAINED.items():
        norms = [m for m in build(recipe, recipe.presets["tiny"], digits).modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert bool(recipe.batch_dependent) == bool(norms) or recipe.labels, name


def test_the_record_says_what_accumulation_did(tmp_path, cache):
    job = prepare("simclr", "tiny", ["max_steps=1"], 0, "", {})
    record = pretrain(job, Store(tmp_path).run(job.id), Options(accumulate=2), Reporter())
    (note,) = [note for note in record.notes if "accumulated" in note]
    assert note == f"1 process(es) x 2 accumulated step(s): {job.recipe.batch_dependent}"


def test_batch_must_divide(digits):
    recipe, config = tiny("simclr")
    with pytest.raises(UsageError, match="batch 32 does not divide"):
        trainer(recipe, config, digits, accumulate=3)
    with pytest.raises(UsageError, match="larger than"):
        trainer(recipe, configs.override(config, ["batch=1024"]), digits)


def test_divergence_names_step_and_values_and_keeps_the_last_good_checkpoint(digits, tmp_path):
    recipe, config = tiny("simclr", "max_steps=8")
    some = trainer(recipe, config, digits, tmp_path, log_every=1, save_every=0.0)
    usual = some.method.on_step_start

    def poison(progress):
        usual(progress)
        if progress.step == 5:
            with torch.no_grad():
                next(some.method.g.parameters()).fill_(float("nan"))

    some.method.on_step_start = poison
    with pytest.raises(JobError, match="not finite at step 6 .*loss nan"):
        some.run(Reporter(), "test")
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["step"] <= 5 and all(torch.isfinite(v).all() for v in state["method"].values() if v.is_floating_point())


def test_a_damaged_checkpoint_is_one_line(digits, tmp_path):
    recipe, config = tiny("simclr")
    (tmp_path / "last.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(UsageError, match="cannot be resumed"):
        trainer(recipe, config, digits, tmp_path).run(Reporter(), "test")


def test_best_checkpoints_are_kept(digits, tmp_path):
    recipe, config = tiny("supervised", "max_steps=64", "epochs=4", "optim.lr=0.2")
    trainer(recipe, config, digits, tmp_path, keep=2, log_every=4).run(Reporter(), "test")
    assert len(list(tmp_path.glob("epoch*.pt"))) == 2 and (tmp_path / "last.pt").is_file()


def test_log_drops_rows_that_a_resume_repeats(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"ste')
    jsonl(path)({"step": 20})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20]


PARITY = """
import json, sys, torch
from suite import config as configs, engine, plugins
from suite.data import load
from suite.progress import Reporter
from suite.run import Options, prepare, pretrain
from suite.store import Store
from suite.testing import build, trainer
torch.set_num_threads(1)
recipe = plugins.load("recipes", sys.argv[1])
config = configs.override(recipe.presets["tiny"], ["precision=32", "max_steps=2", "sync_bn=true"])
some = trainer(recipe, config, load("digits", "train"), log_every=1)
rows = []
some.log = rows.append
some.run(Reporter(), "test")
main, world = some.fabric.is_global_zero, some.fabric.world_size
engine.leave()
if main:
    print("ROWS", json.dumps([row["loss"] for row in rows]), world)
"""


def _losses_in_processes(name, count, tmp_path):
    script = tmp_path / "parity.py"
    script.write_text(PARITY)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *torchrun, str(script), name], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("ROWS"))
    rows, _, world = line.removeprefix("ROWS ").rpartition(" ")
    assert int(world) == count
    return json.loads(rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_give_the_loss_of_one(name, tmp_path):
    """Two steps: the second loss shows equal gradients. Later ones amplify rounding (1e-6 becomes 1e-2 at the third)."""
    one, two = (_losses_in_processes(name, count, tmp_path) for count in (1, 2))
    assert one == pytest.approx(two, rel=1e-4)
