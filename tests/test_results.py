# SPDX-License-Identifier: Apache-2.0
"""Published results: what may be published, how runs merge, what is read back, and files of older schemas."""

from __future__ import annotations

import json
import platform
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from suite.cli import main
from suite.errors import UsageError
from suite.record import SCHEMA, run_from_json, to_json
from suite.results import Results, file_name, gather, publish
from suite.store import Store
from suite.validate import outdated, publishable
from tests.report_samples import result
from tests.result_samples import KNOWN, proven, proven_result, saved

FROZEN = Path(__file__).parent / "frozen" / "schema1"
OLD = "mocov2-digits-ac202cb4-s0"


def put(tmp_path, made, arrays=(), **how):
    run = saved(tmp_path / "runs", made, arrays)
    good, _ = publishable(Store(tmp_path / "runs").read(run)[0], KNOWN, None, how.pop("stale", False))
    return publish(good, Results(tmp_path / "results"), run, **how)


def test_publishing_twice_leaves_the_same_bytes_and_touches_nothing(tmp_path):
    done = put(tmp_path, proven())
    before, when = done.path.read_bytes(), done.path.stat().st_mtime_ns
    again = put(tmp_path, proven())
    assert (done.added, again.added, again.replaced) == (("knn", "linear"), (), ("knn", "linear"))
    assert done.path.read_bytes() == before and done.path.stat().st_mtime_ns == when


def test_a_published_file_is_a_readable_diff(tmp_path, monkeypatch):
    for module, name in ((socket, "gethostname"), (platform, "node")):
        monkeypatch.setattr(module, name, lambda: "machine-of-mine-4711")
    put(tmp_path, proven())
    path = Results(tmp_path / "results").path(proven().id)
    first = path.read_text().splitlines()
    put(tmp_path, proven(results=lambda sha: [proven_result("knn", sha, {"top1": 61.0})]))
    second = path.read_text().splitlines()
    changed = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    assert changed == [('        "top1": 60.0', '        "top1": 61.0')]
    assert json.loads(path.read_text()) == json.loads(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert "machine-of-mine" not in path.read_text() and str(tmp_path) not in path.read_text()


def test_merging_keeps_what_the_new_run_lacks_and_replaces_what_it_has(tmp_path):
    put(tmp_path, proven())
    done = put(tmp_path / "b", proven(results=lambda sha: [proven_result("svm", sha, {"map": 70.0, "lowshot.k1": 9.0})]))
    assert done.added == ("svm",)
    run = saved(tmp_path / "c", proven(results=lambda sha: [proven_result("knn", sha, {"top1": 1.0}),
                                                             proven_result("svm", sha, {"map": 70.0})]))  # fmt: skip
    done = publish(Store(tmp_path / "c").read(run)[0], Results(tmp_path / "results"), run)
    assert (done.added, done.replaced, done.kept) == (("svm",), ("knn",), ("linear",))
    (found,), problems = Results(tmp_path / "results").records()
    assert not problems
    assert {key: next(iter(one.metrics.values())) for key, one in found.results.items()} == {
        "knn": 1.0, "linear": 64.5, "svm": 70.0,
    }  # fmt: skip


def test_other_weights_are_refused_unless_asked_for(tmp_path):
    first = put(tmp_path, proven())
    before = first.path.read_bytes()
    other = replace(proven(), weights=replace(proven().weights, sha256="e" * 64))
    other = replace(other, results={"knn": proven_result("knn", "e" * 64, {"top1": 2.0})})
    with pytest.raises(UsageError, match="other weights .*--replace"):
        publish(other, Results(tmp_path / "results"))
    assert first.path.read_bytes() == before
    done = publish(other, Results(tmp_path / "results"), again=True)
    (found,), _ = Results(tmp_path / "results").records()
    assert set(found.results) == {"knn"} and done.kept == (), "results of the old weights went with them"


def change(key, **fields):
    def changed(made):
        return replace(made, results={**made.results, key: replace(made.results[key], **fields)})

    return changed


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: replace(m, digest="0" * 64), "digest 000000000000 does not belong to the stored config"),
        (lambda m: replace(m, config={**m.config, "epochs": 31}), "does not belong to the stored config"),
        (lambda m: replace(m, config={**m.config, "epoch": 31}), "unknown config key 'epoch'; did you mean 'epochs'"),
        (lambda m: replace(m, recipe="mine"), "recipe 'mine' is not installed here"),
        (lambda m: replace(m, recipe_version=2), "recipe version 2 is newer"),
        (lambda m: replace(m, created=""), "created is empty"),
        (lambda m: replace(m, seed=5), "seed is 5, its config says 0"),
        (lambda m: replace(m, weights=replace(m.weights, sha256="abc")), "weights.sha256 is no sha256"),
        (lambda m: replace(m, results={}), "no result to publish"),
        (lambda m: replace(m, data={}), "data is empty"),
        (change("knn", weights="c" * 64), "knn: measured on weights cccccccccccc"),
        (change("knn", digest=""), "knn: digest is missing"),
        (change("knn", digest="1" * 64), "knn: digest 111111111111 does not belong"),
        (change("knn", data={}), "knn: created, data or env.packages is empty"),
        (change("knn", metrics={"top1": 60.0, "top2": 1.0}), "knn: metric 'top2' is not declared"),
        (change("knn", metrics={"top1.k5": 60.0}), "knn: the headline metric 'top1' is missing"),
        (change("knn", metrics={"top1": float("nan")}), "knn: top1 is nan"),
        (change("knn", intervals={"top1": [61.0, 59.0]}), "the interval of 'top1'"),
        (change("knn", version=7), "knn: version 7 is newer than the installed 1"),
        (change("knn", evaluator="kn"), "evaluator 'kn' is not installed here"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_proven_is_not_published(spoil, message):
    publishable(proven(), KNOWN, None)
    with pytest.raises(UsageError, match="cannot be published") as caught:
        publishable(spoil(proven()), KNOWN, None)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_weights_at_hand_must_hash_to_what_the_record_says():
    good = proven()
    publishable(good, KNOWN, good.weights.sha256)
    with pytest.raises(UsageError, match="the weights file hashes to 000000000000"):
        publishable(good, KNOWN, "0" * 64)


def test_failed_and_skipped_results_stay_at_home():
    made = proven()
    made = replace(made, results={**made.results, "detection": result("detection", "x", {}, status="skipped", why="no mmdet")})
    assert set(publishable(made, KNOWN, None)[0].results) == {"knn", "linear"}


def test_old_versions_need_a_mark_and_the_mark_is_kept(tmp_path):
    old = proven(results=lambda sha: [proven_result("knn", sha, {"top1": 60.0}, version=0),
                                      proven_result("linear", sha, {"top1": 64.5})])  # fmt: skip
    with pytest.raises(UsageError, match="knn measured with version 0 of knn, the current one is 1 .--stale"):
        publishable(old, KNOWN, None)
    assert [one.key for one in outdated([old], KNOWN)] == ["knn"]
    put(tmp_path, old, stale=True)
    (found,), _ = Results(tmp_path / "results").records()
    assert list(outdated([found], KNOWN)) == [], "marked: no longer a surprise"
    put(tmp_path / "b", proven())
    run = saved(tmp_path / "c", proven(results=lambda sha: [proven_result("linear", sha, {"top1": 65.0})]))
    publish(Store(tmp_path / "c").read(run)[0], Results(tmp_path / "results"), run)
    (found,), _ = Results(tmp_path / "results").records()
    assert list(outdated([found], KNOWN)) == [], "the mark of a kept result is kept"


def test_small_arrays_travel_large_ones_are_named(tmp_path):
    def results(sha):
        more = {"map": "knn.map.npz", "gone": "knn.gone.npz"}
        return [
            proven_result("knn", sha, {"top1": 60.0}, predictions="knn.npz", artifacts=more),
            proven_result("linear", sha, {"top1": 64.5}, predictions="linear.npz"),
        ]

    made = proven(results=results)
    run = saved(tmp_path / "runs", made, {"knn.npz": 900_000, "knn.map.npz": 300_000, "linear.npz": 1_100_000})
    run.log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    archive = Results(tmp_path / "results")
    done = publish(made, archive, run)
    assert done.left_out == (
        "knn.gone.npz: not in the run's folder",
        "knn.map.npz: 0.3 MiB, not published (the limit is 0.25 MiB)",
        "linear.npz: 1.0 MiB, not published (the limit is 1 MiB)",
    )
    assert archive.predictions(made, made.results["knn"])["pred"].shape == (900_000,)
    assert archive.predictions(made, made.results["linear"]) is None
    assert archive.log(made) == [{"step": 1, "loss": 2.0}]
    saved(tmp_path / "runs", made, {"knn.npz": 1_200_000})
    run.log.write_text("x" * 300_000)
    publish(made, archive, run)
    assert archive.predictions(made, made.results["knn"]) is None, "an older array is of another measurement"
    assert archive.log(made) == []


@pytest.mark.parametrize(
    "name", ["../out", "a.json", "/etc/passwd", "x" * 500, "\u202egnp", "<script>", "a\\b", ".", "..", "", "🦆"]
)
def test_hostile_ids_stay_inside_the_folder(tmp_path, name):
    root = tmp_path / "deep" / "results"
    hostile = replace(proven(), id=name)
    publish(hostile, Results(root))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.parent for path in files] == [root] and files[0].name == file_name(name)
    (found,), problems = Results(root).records()
    assert found.id == name and not problems
    one = replace(found.results["knn"], predictions="../../secret.npz", artifacts={"a": name})
    assert Results(root).predictions(found, one) is None and Results(root).artifact(found, one, "a") is None
    assert Results(root).log(found) == []
    store = Store(tmp_path / "runs")
    assert store.predictions(found, one) is None and store.log(found) == [] and store.artifact(found, one, "a") is None


def test_broken_published_files_are_named_and_nothing_else_is_lost(tmp_path):
    archive = Results(tmp_path)
    for seed in range(4):
        publish(proven(seed=seed), archive)
    paths = [archive.path(proven(seed=seed).id) for seed in range(4)]
    paths[0].write_text(paths[0].read_text()[:-200])
    raw = json.loads(paths[1].read_text())
    raw["results"]["knn"]["metrics"] = {"top1": "high"}
    paths[1].write_text(json.dumps(raw))
    paths[2].rename(tmp_path / "other.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{}")
    found, problems = archive.records()
    assert [one.id for one in found] == sorted(proven(seed=seed).id for seed in (1, 3))
    assert set(next(one for one in found if one.seed == 1).results) == {"linear"}
    assert len(problems) == 5 and all("\n" not in line for line in problems)
    for part in (paths[0].name, "results.knn: not a result (metrics.top1", "other.json: the record calls itself", "deep.json",
                 "bytes.json"):  # fmt: skip
        assert any(part in line for line in problems), part


def test_runs_and_published_files_are_united(tmp_path):
    early, late = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"
    made = proven()
    sha = made.weights.sha256
    theirs = replace(made, results={
        "knn": proven_result("knn", sha, {"top1": 50.0}, created=late),
        "linear": proven_result("linear", sha, {"top1": 10.0}, created=early),
        "svm": proven_result("svm", sha, {"map": 70.0}, predictions="svm.npz"),
    })  # fmt: skip
    mine = replace(theirs, results={
        "knn": proven_result("knn", sha, {"top1": 40.0}, created=early),
        "linear": proven_result("linear", sha, {"top1": 20.0}, created=early),
    })  # fmt: skip
    run = saved(tmp_path / "elsewhere", theirs, {"svm.npz": 10})
    publish(theirs, Results(tmp_path / "results"), run)
    saved(tmp_path / "runs", mine, {"svm.npz": 99})
    library = gather(Store(tmp_path / "runs"), Results(tmp_path / "results"))
    (found,) = library.records
    values = {key: next(iter(one.metrics.values())) for key, one in found.results.items()}
    assert values == {"knn": 50.0, "linear": 20.0, "svm": 70.0}
    assert len(library.predictions(found, found.results["svm"])["pred"]) == 10, "arrays come from where the result came from"
    (tmp_path / "results" / made.id / "svm.npz").write_bytes(b"PK broken")
    assert library.predictions(found, found.results["svm"]) is None and "svm.npz: not readable" in library.problems[0]
    newer = replace(made, created=late, weights=replace(made.weights, sha256="9" * 64), results={})
    publish(newer, Results(tmp_path / "results"), again=True)
    (found,) = gather(Store(tmp_path / "runs"), Results(tmp_path / "results")).records
    assert found.weights.sha256 == "9" * 64 and not found.results


def test_files_of_schema_1_read_publish_and_report(tmp_path, monkeypatch, capfd):
    shutil.copytree(FROZEN, tmp_path / "old")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUITE_CACHE", str(tmp_path / "cache"))
    (own,), problems = Store(Path("old/runs")).records()
    (published,), more = Results(Path("old/results")).records()
    assert not problems and not more
    assert own.schema == published.schema == SCHEMA and set(own.results) == {"knn", "linear", "rank"}
    assert own.results["knn"].metrics["top1"] == pytest.approx(34.72222222222222) and own.results["knn"].intervals == {}
    assert main(["publish", OLD, "--runs", "old/runs", "--results", "old/results", "--stale"]) == 0
    assert json.loads(Path(f"old/results/{OLD}.json").read_text())["schema"] == SCHEMA
    assert main(["report", "--runs", "nowhere", "--results", "old/results"]) == 0
    assert "34.7" in Path("model-zoo/mocov2.md").read_text()
    assert "no weights file at hand" in capfd.readouterr().err


@pytest.mark.parametrize("schema", [SCHEMA + 1, 0, -1, "2", None, True, 2.0])
def test_unknown_schemas_are_refused(tmp_path, schema):
    raw = json.loads(to_json(proven())) | {"schema": schema, "new field": 1}
    with pytest.raises(UsageError, match=r"schema .* is not known \(this version reads 1 to 2\)"):
        run_from_json(json.dumps(raw))
    (tmp_path / file_name(proven().id)).write_text(json.dumps(raw))
    assert Results(tmp_path).records()[0] == []


def test_weights_of_another_network_are_refused_by_the_command(tmp_path, monkeypatch, capfd):
    from suite.backbone import Backbone

    monkeypatch.chdir(tmp_path)
    shutil.copytree(FROZEN / "runs", "runs")
    record, _ = Store(Path("runs")).read(Store(Path("runs")).run(OLD))
    Backbone(record.weights.arch, dict(record.config["arch_options"]), record.config["stem"]).save(
        Path("runs") / OLD / "backbone.safetensors", {}
    )
    assert main(["publish", OLD, "--stale"]) == 2
    err = capfd.readouterr().err
    assert "the weights file hashes to" in err and err.count("\n") == 1 and not Path("reports").exists()
