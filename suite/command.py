# SPDX-License-Identifier: Apache-2.0
"""What the command line's commands do, as functions of plain values."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite import config as configs
from suite import plugins
from suite.errors import JobError, UsageError, unknown
from suite.progress import Reporter
from suite.store import Run, Store

if TYPE_CHECKING:
    from suite.compare import Verdict
    from suite.run import Job

RESULTS_FOLDER = Path("reports/results")
"""Where published results lie in a repository."""
DOCS = (Path("README.md"), Path("docs"))
"""Where tables between markers are looked for."""


@dataclass(frozen=True)
class Asked:
    """A `run` command line."""

    algos: list[str]
    presets: list[str]
    seeds: list[int | None]
    bench: str
    overrides: list[str]
    dataset: str = ""
    dataset_root: Path | None = None
    data_roots: list[str] = dataclasses.field(default_factory=list)
    on_broken: str = "refuse"
    devices: int = 1
    accumulate: int = 1
    keep: int = 0
    trackers: tuple[str, ...] = ()
    again: bool = False
    debug: bool = False
    pack: bool = False
    scale_lr: bool = False


def repeat(asked: Asked, path: Path) -> Asked:
    """The command that a stored record came from.

    Raises:
        UsageError: no such file or not a record.
    """
    from suite.record import run_from_json

    if not path.is_file():
        raise UsageError(f"record {str(path)!r} does not exist")
    record = run_from_json(path.read_text(errors="replace"), str(path))
    fixed = [f"{key}={json.dumps(value)}" for key, value in record.config.items()]
    return replace(
        asked, algos=[record.recipe], presets=[record.preset], seeds=[record.seed], overrides=[*fixed, *asked.overrides]
    )


def run(asked: Asked, runs: Path, pages: Path | None, controls: bool, reporter: Reporter) -> None:
    """Pre-train every (algorithm, preset, seed), run the benchmarks on each, write the pages.

    Raises:
        UsageError: before anything is computed, if any part of the command is wrong.
        JobError: after everything else ran, if an evaluator failed.
    """
    from suite import engine, track
    from suite.benchmarks import Benchmarks, split_assignments
    from suite.run import Options

    track.check(asked.trackers)
    store = Store(runs)
    own, theirs = split_assignments(asked.overrides)
    benchmarks = Benchmarks.parse(asked.bench, theirs)
    jobs = list(_jobs(asked, own))
    if controls:
        jobs += _controls(jobs)
    for job in jobs:
        benchmarks.require(job.sources)
    if engine.launched() and len(jobs) > 1:
        raise UsageError("under torchrun, run one algorithm at a time with --no-controls (or use --devices)")
    options = Options(asked.devices, asked.accumulate, asked.keep, asked.trackers, asked.again, asked.debug)
    store.check_space()
    main, failed = engine.main_process(), []
    for job in jobs:
        failed += _one(job, store, benchmarks, options, asked, reporter, main)
        if not main:
            return
    if pages is not None:
        report(runs, pages, False, reporter)
    if failed:
        raise JobError(f"{len(failed)} benchmark(s) failed: {'; '.join(failed[:3])}")


def _jobs(asked: Asked, overrides: Sequence[str]) -> Iterator[Job]:
    from suite.run import prepare, sources

    dataset, roots = sources(asked.dataset, asked.dataset_root, asked.data_roots)
    for algo in asked.algos:
        for preset in asked.presets or [""]:
            for seed in asked.seeds:
                yield prepare(algo, preset, overrides, seed, dataset, roots, asked.on_broken, asked.pack, asked.scale_lr)


def _controls(jobs: Sequence[Job]) -> list[Job]:
    """Control jobs that belong beside these and are not among them."""
    from suite.run import control

    names = [name for name in ("random", "supervised") if name in plugins.find("recipes")]
    wanted = {extra.id: extra for job in jobs for name in names if (extra := control(job, name)) is not None}
    return [extra for run_id, extra in wanted.items() if run_id not in {job.id for job in jobs}]


def _one(job: Job, store: Store, benchmarks: Any, options: Any, asked: Asked, reporter: Reporter, main: bool) -> list[str]:
    """Pre-training and benchmarks of one job; returns a line for each benchmark that failed."""
    from suite import engine
    from suite.benchmarks import benchmark
    from suite.run import pretrain

    folder = store.run(job.id)
    if asked.devices > 1 and not engine.launched() and job.recipe.method is not None and not _done(folder, asked.again):
        _spawn(job, store, asked, options)
        options = replace(options, again=False)
    if not main:
        pretrain(job, folder, options, Reporter())
        return []
    with folder.lock():
        record = pretrain(job, folder, options, reporter)
        results = benchmark(folder, record, benchmarks, job.sources, store, options, reporter)
    return [f"{job.id} {result.key}: {result.why}" for result in results if result.status == "failed"]


def _done(folder: Run, again: bool) -> bool:
    return not again and folder.weights.is_file() and folder.record() is not None


def _spawn(job: Job, store: Store, asked: Asked, options: Any) -> None:
    """Pre-train one job in several processes: the same command line under torchrun.

    Raises:
        JobError: it failed.
    """
    from suite import engine

    fixed = [f"{key}={json.dumps(value)}" for key, value in configs.to_dict(job.config).items()]
    roots = [f"--data-root={name}={folder}" for name, folder in job.sources.roots.items()]
    arguments = ["pretrain", "--algo", job.algo, "--preset", job.preset, "--runs", str(store.root), *roots,
                 "--on-broken", asked.on_broken, "--accumulate", str(options.accumulate), "--keep", str(options.keep),
                 *(["--track", ",".join(options.trackers)] if options.trackers else []),
                 *(["--pack"] if job.sources.pack else []), *(["--again"] if options.again else []), *fixed]  # fmt: skip
    done = subprocess.run(engine.respawn(asked.devices, arguments), check=False)
    if done.returncode:
        raise JobError(f"{job.id}: pre-training on {asked.devices} devices failed (exit {done.returncode})")


def evaluate(
    weights: Path, asked: Asked, runs: Path, pages: Path | None, size: int | None, how: dict[str, Any], reporter: Reporter
) -> None:
    """Benchmarks on a weights file, or on a finished run."""
    from suite.backbone import read_metadata
    from suite.benchmarks import Benchmarks, benchmark, split_assignments
    from suite.data import Sources
    from suite.data.pack import side
    from suite.run import Options, adopt, sources

    store = Store(runs)
    own, theirs = split_assignments(asked.overrides)
    if own:
        raise unknown("evaluator setting", own[0].partition("=")[0], [f"{name}." for name in plugins.find("evaluators")])
    benchmarks = Benchmarks.parse(asked.bench, theirs)
    dataset, roots = sources(asked.dataset, asked.dataset_root, asked.data_roots)
    benchmarks.require(Sources(dataset or "digits", roots))
    store.check_space()
    if not weights.exists() and weights.name in store.names():
        folder = store.find(weights.name)
        record = folder.record()
        if record is None:
            raise UsageError(f"run {folder.id!r} has not finished pre-training")
        dataset = dataset or str(record.config.get("dataset", "digits"))
    else:
        folder, record = adopt(weights, store, dataset or "digits", size, reporter, **how)
    short = side(int(read_metadata(folder.weights).get("size", "224"))) if asked.pack else 0
    where = Sources(dataset or "digits", roots, asked.on_broken, pack=short)
    with folder.lock():
        options = Options(again=asked.again, debug=asked.debug)
        results = benchmark(folder, record, benchmarks, where, store, options, reporter)
    if pages is not None:
        report(runs, pages, False, reporter)
    failed = [f"{result.key}: {result.why}" for result in results if result.status == "failed"]
    if failed:
        raise JobError(f"{len(failed)} benchmark(s) failed: {'; '.join(failed[:3])}")


def report(
    runs: Path, pages: Path, check: bool, reporter: Reporter, results: Path | None = None, docs: Sequence[Path] = DOCS,
    formats: Sequence[str] = (), stamp: bool = False,
) -> None:  # fmt: skip
    """Write the pages, or check that they are current.

    Args:
        runs: folder of the runs.
        pages: folder of the pages.
        check: write nothing.
        reporter: says what happened.
        results: folder of published results; None: `reports/results`, when there is one.
        docs: markdown files and folders with tables between markers; missing ones are left out.
        formats: exports beside the pages.
        stamp: say on the first page when, and from which revision, it was made.

    Raises:
        JobError: `check` and something is not current.
    """
    from suite import regenerate

    folder = results if results is not None else RESULTS_FOLDER if RESULTS_FOLDER.is_dir() else None
    if results is not None and not results.is_dir():
        raise UsageError(f"results folder {str(results)!r} does not exist")
    asked = regenerate.Asked(runs, pages, folder, tuple(docs), tuple(formats), _stamp() if stamp else "")
    (regenerate.check if check else regenerate.report)(asked, reporter.say)


def _stamp() -> str:
    from datetime import datetime, timezone

    from suite.record import environment

    env = environment()
    made = f"Made {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC by ssl-suite {env.suite}"
    return f"{made}, revision {env.git}" if env.git else made


def compare(
    base: str, head: str, asked: Asked, tolerance: float, alpha: float, runs: Path, repository: Path, reporter: Reporter
) -> Verdict:
    """Verdict on two sides, evaluating what `asked.bench` names where weights or runs have no result yet.

    Raises:
        UsageError: an input that cannot be read, or an unknown benchmark.
        JobError: an evaluation that could not be carried out at all; one that failed is part of the verdict.
    """
    from suite import compare as comparison

    names = [part.strip() for part in asked.bench.split(",") if part.strip()]
    if names:
        base, head = (_evaluated(side, asked, runs, reporter) for side in (base, head))
    return comparison.compare(
        base, head, store=runs, repository=repository, bench=names, tolerance=tolerance, alpha=alpha,
        evaluators=plugins.load_all("evaluators"), load=_backbone,
    )  # fmt: skip


def _backbone(path: Path) -> Any:
    """A backbone from any weights file, for the comparison of functions."""
    from suite.weights import load_backbone

    return load_backbone(path)[0]


def _evaluated(side: str, asked: Asked, runs: Path, reporter: Reporter) -> str:
    """The side with every benchmark that was asked for; weights files become runs. What is stored is taken as it is."""
    path, store = Path(side), Store(runs)
    if path.is_file() and path.suffix != ".json":
        from suite.run import adopt

        folder, _ = adopt(path, store, asked.dataset or "digits", None, reporter)
        _measured(folder, asked, runs, reporter)
        return folder.id
    known = [] if path.exists() else [name for name in store.names() if len(path.parts) == 1 and name.startswith(side)]
    for name in [side] if side in known else known:
        if store.run(name).record() is not None:
            _measured(store.run(name), asked, runs, reporter)
    return side


def _measured(folder: Run, asked: Asked, runs: Path, reporter: Reporter) -> None:
    try:
        evaluate(Path(folder.id), asked, runs, None, None, {}, reporter)
    except JobError:
        if all(result.status != "failed" for result in folder.results()[0].values()):
            raise
