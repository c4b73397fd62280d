# SPDX-License-Identifier: Apache-2.0
"""What may be compared: run ids, folders, records, published results, git revisions; and what git may not make us read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace

import pytest

from suite.compare import compare, matches
from suite.errors import UsageError
from suite.record import to_json, with_results
from suite.sides import resolve
from suite.store import arrays_to_bytes
from tests.prediction_samples import make_run, one_result, planted, scores
from tests.report_samples import record


def published(folder, arrays, run_id="mocov2-digits-abc-s0", seed=0, stored=True):
    """A record as `reports/results` holds it, its predictions in a folder beside it."""
    one = one_result(arrays)
    made = replace(with_results(record("mocov2", results=[]), {one.key: one}), id=run_id, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{run_id}.json").write_text(to_json(made))
    if stored:
        (folder / run_id).mkdir(exist_ok=True)
        (folder / run_id / one.predictions).write_bytes(arrays_to_bytes(arrays))
    return folder / f"{run_id}.json"


def git(repo, *arguments):
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    for who in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{who}_NAME": "A", f"GIT_{who}_EMAIL": "a@example.org", f"GIT_{who}_DATE": "2024-01-01T00:00:00Z"}
    command = ["git", "-C", str(repo), "-c", "init.defaultBranch=main", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.strip()


@pytest.fixture
def repo(tmp_path):
    """Two commits of published results: `good`, then 40 images lost in one of two runs; a third run is new."""
    root = tmp_path / "repo"
    root.mkdir()
    git(root, "init", "-q")
    good, bad = planted(drop=40)
    results = root / "reports" / "results"
    published(results, good)
    published(results, good, "simclr-digits-def-s0")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "good")
    git(root, "tag", "good")
    published(results, bad)
    published(results, good, "byol-digits-123-s0")
    (root / "README.md").write_text("no results\n")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "bad")
    return root


def test_published_records_bring_their_predictions(tmp_path):
    a, b = planted(drop=40)
    base, head = published(tmp_path / "a", a), published(tmp_path / "b", b)
    (row,) = scores(compare(base, head))
    assert row.verdict == "worse" and row.note == "paired over 2,000 images (top1)"
    assert compare(base, make_run(tmp_path, b, run_id="b2")).regressed  # a record against a run folder
    assert compare(tmp_path / "a", tmp_path / "b").regressed  # whole folders
    (row,) = scores(compare(base, published(tmp_path / "c", b, stored=False)))
    assert row.verdict == "inconclusive" and "no predictions" in row.note


def test_revisions_are_compared_run_by_run(repo):
    verdict = compare("good", "HEAD", repository=repo)
    by = {row.what: row.verdict for row in scores(verdict)}
    assert by == {"mocov2-digits-abc linear/top1": "worse", "simclr-digits-def linear/top1": "same"}
    assert list(verdict.notes) == ["byol-digits-123-s0: only in head"]
    assert (verdict.base, verdict.head) == ("good", "HEAD")
    assert not compare("HEAD", "HEAD", repository=repo).regressed


@pytest.mark.parametrize(
    "base", ["good:reports/results/mocov2-digits-abc-s0", "good:reports/results/mocov2-digits-abc-s0.json", "HEAD~1"]
)
def test_one_run_of_a_revision_against_the_working_tree(repo, base):
    head = repo / "reports" / "results" / "mocov2-digits-abc-s0.json"
    (row,) = scores(compare(base, head, repository=repo))
    assert row.verdict == "worse" and row.difference == pytest.approx(-2.0)


def test_seeds_of_a_revision_stand_together(repo):
    a, b = planted(drop=40)
    results = repo / "reports" / "results"
    for seed in (1, 2):
        published(results, a, f"mocov2-digits-abc-s{seed}", seed)
    published(results, a)
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", "three seeds")
    for seed in (0, 1, 2):
        published(results, b, f"mocov2-digits-abc-s{seed}", seed)
    (row,) = [row for row in scores(compare("HEAD", results, repository=repo)) if "mocov2" in row.what]
    assert row.verdict == "worse" and "3 and 3 seeds" in row.note


def test_reading_a_revision_changes_nothing(repo):
    before = sorted((str(path), path.stat().st_mtime_ns) for path in repo.rglob("*") if ".git/" not in str(path))
    compare("good", "HEAD", repository=repo)
    assert sorted((str(path), path.stat().st_mtime_ns) for path in repo.rglob("*") if ".git/" not in str(path)) == before
    assert git(repo, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("good:../outside", "inside the repository"),
        ("good:/etc/passwd", "inside the repository"),
        ("good:reports/../../etc", "inside the repository"),
        ("good:nothing/here", "no results under"),
        ("good:README.md", "no results under"),
        ("--output=stolen", "git revision"),
        ("-good", "git revision"),
        ("nonsense", "git revision"),
        ("good\nHEAD", "git revision"),
        ("nonsense:reports/results", "git revision"),
    ],
)
def test_paths_that_leave_and_revisions_that_are_none(repo, what, message):
    with pytest.raises(UsageError, match=message) as caught:
        compare(what, "HEAD", repository=repo)
    assert str(caught.value).count("\n") == 0
    assert not (repo / "stolen").exists()


def test_links_and_paths_in_a_hostile_commit_are_not_followed(repo, tmp_path):
    """A link that a commit carries, and a record that names a file outside as its predictions."""
    secret = tmp_path / "secret.json"
    shutil.copy(repo / "reports" / "results" / "simclr-digits-def-s0.json", secret)
    (repo / "reports" / "results" / "stolen-s0.json").symlink_to(secret)
    own = repo / "reports" / "results" / "mocov2-digits-abc-s0.json"
    raw = json.loads(own.read_text())
    raw["results"]["linear"]["predictions"] = "../../../../secret.npz"
    own.write_text(json.dumps(raw))
    (tmp_path / "secret.npz").write_bytes(arrays_to_bytes(planted()[0]))
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", "hostile")
    side = resolve("HEAD", repository=repo)
    assert "stolen-s0" not in {entry.record.id for entry in side.entries} and len(side.entries) == 3
    entry = next(entry for entry in side.entries if entry.record.id == "mocov2-digits-abc-s0")
    assert entry.read(entry.record.results["linear"]) is None
    assert resolve(own).entries[0].read(entry.record.results["linear"]) is None


def test_a_broken_record_is_named_and_left_out(repo):
    (repo / "reports" / "results" / "broken-s0.json").write_text("{")
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", "broken")
    for base, head in (("HEAD", "HEAD"), ("HEAD", repo / "reports" / "results")):
        verdict = compare(base, head, repository=repo)
        assert len(scores(verdict)) == 3 and "broken-s0.json: corrupted JSON" in verdict.notes[0]


def test_predictions_that_are_no_arrays_are_one_line(tmp_path):
    a, _ = planted()
    base = published(tmp_path / "a", a)
    for data, why in (
        (b"version https://git-lfs.github.com/spec/v1\noid", "LFS"),
        (b"PK\x03\x04cut", "not readable as arrays"),
    ):
        (tmp_path / "a" / "mocov2-digits-abc-s0" / "linear.npz").write_bytes(data)
        with pytest.raises(UsageError, match=why):
            compare(base, base)


def test_seeds_are_found_by_the_start_of_their_ids(tmp_path):
    a, _ = planted()
    for name, seed in (("one-s0", 0), ("one-s1", 1), ("other-s0", 0)):
        make_run(tmp_path, a, run_id=name, seed=seed)
    assert [entry.record.seed for entry in resolve("one", tmp_path).entries] == [0, 1]
    assert [entry.record.id for entry in resolve("one-s1", tmp_path).entries] == ["one-s1"]
    with pytest.raises(UsageError, match="ambiguous"):
        resolve("o", tmp_path)
    with pytest.raises(UsageError, match="did you mean 'other-s0'"):
        resolve("othr-s0", tmp_path, tmp_path)
    one = resolve("one", tmp_path)
    (match,), notes = matches(one, resolve("other", tmp_path))
    assert (len(match.base), len(match.head), notes) == (2, 1, [])


def test_folders_of_runs(tmp_path):
    a, b = planted(drop=40)
    for name, arrays in (("old", a), ("new", b)):
        make_run(tmp_path / name, arrays, run_id="one-s0")
        make_run(tmp_path / name, a, run_id="two-s0")
    verdict = compare(tmp_path / "old", tmp_path / "new", function=False)
    assert {row.what: row.verdict for row in verdict.rows} == {
        "weights": "same", "one linear/top1": "worse", "two linear/top1": "same",
    }  # fmt: skip
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="holds no run"):
        compare(tmp_path / "none", tmp_path / "new")


def test_a_run_that_has_not_finished_says_so(tmp_path):
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match="has not finished"):
        resolve(tmp_path / "half")
