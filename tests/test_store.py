# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import json
import multiprocessing
import os

import pytest

from suite.errors import JobError, UsageError
from suite.record import RunRecord, Weights, run_from_json, to_json
from suite.spec import Evaluator, Metric
from suite.store import Store, arrays_to_bytes, atomic, io_error, write_bytes
from tests.report_samples import result


def record(run_id="a-b-00000000-s0", **changes):
    fields = {"id": run_id, "recipe": "a", "recipe_version": 1, "preset": "b", "config": {}, "digest": "0", "seed": 0,
              "weights": Weights("f" * 64, "resnet18", 1)}  # fmt: skip
    return RunRecord(**{**fields, **changes})


def test_record_round_trip_is_exact():
    text = to_json(record(notes=("one",), loss=0.5))
    assert to_json(run_from_json(text)) == text


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 99}', '{"schema": 1, "weights": 3}'])
def test_bad_records_are_one_line(text):
    with pytest.raises(UsageError) as caught:
        run_from_json(text, "x/run.json")
    assert "x/run.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), atomic(path) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.json"]


def test_full_disk_and_unwritable_folder_are_one_line(tmp_path):
    assert "disk is full" in str(io_error(tmp_path, OSError(errno.ENOSPC, "x")))
    assert isinstance(io_error(tmp_path, OSError(errno.ENOSPC, "x")), JobError)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        Store(tmp_path / "file" / "runs").check_space()


def _hold(path, ready, release):
    with Store(path).run("one").lock():
        ready.set()
        release.wait(30)


def test_a_second_process_is_refused_by_name(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready, release))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(UsageError, match=f"'one' is in use by process {holder.pid}"), Store(tmp_path).run("one").lock():
        pass
    release.set()
    holder.join()
    with Store(tmp_path).run("one").lock():
        pass


def test_a_corrupted_record_is_named_and_the_others_still_load(tmp_path):
    store = Store(tmp_path)
    for name in ("good", "bad"):
        store.run(name).save(record(name))
        store.run(name).save_result(result("knn", "f", {"top1": 1.0}))
    (tmp_path / "bad" / "run.json").write_text("{broken")
    (tmp_path / "good" / "results" / "svm.json").write_text("nonsense")
    records, problems = store.records()
    assert [r.id for r in records] == ["good"] and set(records[0].results) == {"knn"}
    assert (
        len(problems) == 2 and any("bad/run.json" in line for line in problems) and any("svm.json" in line for line in problems)
    )


def test_predictions_come_back_and_stay_inside_the_run(tmp_path):
    import numpy as np

    run = Store(tmp_path).run("r")
    one = result("knn", "f", {"top1": 1.0}, predictions="knn.npz")
    run.save_result(one, {one.predictions: arrays_to_bytes({"label": np.arange(3)})})
    assert run.predictions(one)["label"].tolist() == [0, 1, 2]
    outside = result("knn", "f", {"top1": 1.0}, predictions="../../knn.npz")
    assert json.loads(to_json(outside))["predictions"] == "../../knn.npz"
    assert run.predictions(outside)["label"].tolist() == [0, 1, 2]


def test_find_by_prefix(tmp_path):
    store = Store(tmp_path)
    for name in ("mocov2-digits-1", "mocov2-digits-2", "simclr-digits-1"):
        (tmp_path / name).mkdir()
    assert store.find("simclr").id == "simclr-digits-1"
    with pytest.raises(UsageError, match="ambiguous"):
        store.find("mocov2")
    with pytest.raises(UsageError, match="did you mean 'simclr-digits-1'"):
        store.find("simclr-digit-1x")


def test_evaluator_type_needs_no_torch():
    assert Evaluator(
        name="x", title="X", task="classification", run=lambda *a: {}, presets={}, metrics=(Metric("m", "M"),)
    ).frozen
