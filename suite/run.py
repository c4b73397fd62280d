# SPDX-License-Identifier: Apache-2.0
"""From the words of a command to a finished pre-training: what to run, on what, with what controls."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from suite import config as configs
from suite import engine, measure, plugins, track, weights
from suite.backbone import Backbone, check_architecture, is_transformer, read_metadata
from suite.data import Sources, card, detect
from suite.data import pack as packing
from suite.errors import UsageError, unknown
from suite.method import Method, TrainSet
from suite.progress import Reporter
from suite.record import RunRecord, Weights, environment
from suite.spec import Config, Recipe
from suite.store import Run, Store
from suite.train import Plan, fit


@dataclass(frozen=True)
class Job:
    """One pre-training that was asked for, fully resolved."""

    recipe: Recipe
    preset: str
    config: Config
    sources: Sources
    fingerprint: str
    "Of the training split."
    algo: str = ""
    "How the recipe was asked for: its name, or a path."

    @property
    def digest(self) -> str:
        """What makes this another experiment: recipe, version, config, data; not the seed."""
        return configs.digest(self.config, self.recipe.name, self.recipe.version, self.fingerprint)

    @property
    def id(self) -> str:
        """The run's id and folder name."""
        return f"{self.recipe.name}-{self.preset}-{self.digest[:8]}-s{self.config.seed}"


@dataclass(frozen=True)
class Options:
    """How to run, beside what."""

    devices: int = 1
    accumulate: int = 1
    keep: int = 0
    trackers: tuple[str, ...] = ()
    again: bool = False
    debug: bool = False
    feature_bytes: int = 20 << 30


def sources(dataset: str, dataset_root: Path | None, roots: Sequence[str]) -> tuple[str, dict[str, Path]]:
    """Data set name and roots from the command line.

    Args:
        dataset: a catalogue name, or empty.
        dataset_root: folder of the pre-training data, or None.
        roots: `NAME=DIR` entries; a bare `DIR` is the pre-training data.

    Raises:
        UsageError: a folder that is missing, or whose layout is not recognised.
    """
    found: dict[str, Path] = {}
    for entry in roots:
        name, equals, folder = entry.partition("=")
        if equals:
            found[card(name).name] = Path(folder)
        elif dataset_root is None:
            dataset_root = Path(entry)
        else:
            raise UsageError(f"--data-root {entry!r}: a second folder needs a name, NAME=DIR")
    if dataset_root is not None:
        dataset = dataset or detect(dataset_root)
        found[card(dataset).name] = dataset_root
    return dataset, found


def prepare(
    algo: str, preset: str, assignments: Sequence[str], seed: int | None, dataset: str, roots: Mapping[str, Path],
    on_broken: str = "refuse", pack: bool = False, scale_lr: bool = False,
) -> Job:  # fmt: skip
    """Resolve recipe, preset, overrides and data.

    Args:
        algo: recipe name or path.
        preset: its preset, empty for the default.
        assignments: `key=value` overrides.
        seed: None keeps the preset's.
        dataset: name of the pre-training data, empty for the preset's.
        roots: folders of data sets by name.
        on_broken: `refuse` or `skip` broken images.
        pack: read a reduced copy of the photographs.
        scale_lr: multiply the learning rate by the batch over the preset's batch.

    Raises:
        UsageError: anything unknown, out of range or missing.
    """
    recipe: Recipe = plugins.load("recipes", algo)
    name = preset or default_preset(recipe, dataset)
    if name not in recipe.presets:
        raise unknown(f"preset of {recipe.name}", name, recipe.presets)
    given = [f'dataset="{dataset}"'] if dataset else []
    given += [f"seed={seed}"] if seed is not None else []
    config = configs.override(recipe.presets[name], [*given, *assignments])
    if scale_lr:
        if any(assignment.startswith(("optim.lr=", "optim=")) for assignment in assignments):
            raise UsageError("--scale-lr and optim.lr=… both set the learning rate; give one of them")
        config = scaled(config, recipe.presets[name].batch)
    check_architecture(config.arch)
    where = Sources(config.dataset, dict(roots), on_broken, pack=packing.side(config.size) if pack else 0)
    return Job(recipe, name, config, where, where.fingerprint(config.dataset, "train"), algo)


def scaled(config: Config, reference: int) -> Config:
    """The config with learning rates for its own batch instead of `reference`, by the linear scaling rule.

    Goyal et al., Accurate, Large Minibatch SGD, 2017, section 2.1. https://arxiv.org/abs/1706.02677
    """
    factor = config.batch / reference
    return replace(config, optim=replace(config.optim, lr=config.optim.lr * factor, min_lr=config.optim.min_lr * factor))


def default_preset(recipe: Recipe, dataset: str) -> str:
    """`photos` for the user's own data where the recipe has it, else the recipe's default."""
    own = dataset and not card(dataset).embedded
    return "photos" if own and "photos" in recipe.presets else recipe.default


def control(job: Job, name: str) -> Job | None:
    """The control run that belongs beside `job`: same architecture, size and data; None where there is none.

    The random control costs nothing and exists for every job. The supervised one is trained only where that takes
    seconds, on the embedded data; elsewhere it is asked for by name.
    """
    recipe: Recipe = plugins.load("recipes", name)
    same = {key: getattr(job.config, key) for key in ("arch", "arch_options", "stem", "dataset", "size", "seed")}
    if recipe.method is None:
        base = recipe.presets.get(job.preset, next(iter(recipe.presets.values())))
        return replace(job, recipe=recipe, algo=name, config=replace(base, **same, workers=job.config.workers))
    # Small transformers learn nothing from so few labels in that time: their supervised control would be no reference.
    if job.preset in recipe.presets and card(job.config.dataset).embedded and not is_transformer(job.config.arch):
        return replace(job, recipe=recipe, algo=name, config=replace(recipe.presets[job.preset], **same))
    return None


def pretrain(job: Job, run: Run, options: Options, reporter: Reporter) -> RunRecord:
    """Weights and record of a job: read back when finished before, resumed when interrupted, else trained now.

    Raises:
        Interrupted, JobError: see `suite.train.fit`.
        UsageError: bad settings or data.
    """
    old = run.record()
    if old is not None and run.weights.is_file() and not options.again:
        return old
    main = engine.main_process()
    reporter.say(f"{job.id}: pre-training" if job.recipe.method else f"{job.id}: initialising")
    torch.manual_seed(job.config.seed)
    images = job.sources.load(job.config.dataset, "train", reporter)
    backbone = Backbone(job.config.arch, job.config.arch_options, job.config.stem)
    began = RunRecord(
        id=job.id, recipe=job.recipe.name, recipe_version=job.recipe.version, preset=job.preset,
        config=configs.to_dict(job.config), digest=job.digest, seed=job.config.seed,
        weights=Weights("", job.config.arch, backbone.parameters_count()),
        data={f"{images.name}/{images.split}": images.fingerprint},
    )  # fmt: skip
    if job.recipe.method is None:
        return _finish(began, run, backbone, job, {}) if main else began
    method: Method = job.recipe.method(job.config, backbone, TrainSet(images, job.config.seed))
    fabric = engine.make_fabric(job.config.precision)
    engine.make_deterministic(fabric.device)
    plan = Plan.of(job.config, accumulate=options.accumulate, keep=options.keep)
    names = options.trackers if main else ()
    with track.tracking(track.jsonl(run.log), names, job.id, run.path, began.config, reporter.say) as log:
        outcome = fit(
            method, images, job.recipe.views(job.config), plan, fabric,
            folder=run.checkpoints, log=log, reporter=reporter, what=job.recipe.name,
        )  # fmt: skip
    world = fabric.world_size
    notes = []
    if isinstance(images.images, packing.PackedImages):
        notes.append(f"pictures were packed with the shorter side at most {job.sources.pack} pixels")
    if (world > 1 or options.accumulate > 1) and job.recipe.batch_dependent:
        notes.append(f"{world} process(es) x {options.accumulate} accumulated step(s): {job.recipe.batch_dependent}")
    if engine.supported(job.config.precision, fabric.device) != job.config.precision:
        notes.append(f"this device has no {job.config.precision} arithmetic, float32 was used")
    if outcome.collapsed:
        spread = f"embeddings of spread {outcome.feature_std:.3f} and effective rank {outcome.feature_rank:.1f}"
        notes.append(f"collapsed: training ended with {spread}")
    measured = {
        "feature_std": outcome.feature_std, "feature_rank": outcome.feature_rank,
        "seconds": round(outcome.seconds, 2), "images_per_second": round(outcome.images_per_second, 1),
        "steps": outcome.steps, "loss": outcome.loss, "peak_memory_mb": round(engine.peak_memory_mb(fabric.device), 1),
        "notes": tuple(notes),
    }  # fmt: skip
    engine.leave()
    return _finish(began, run, method.backbone.cpu(), job, measured) if main else began


def _finish(record: RunRecord, run: Run, backbone: Backbone, job: Job, measured: dict[str, Any]) -> RunRecord:
    """Write the weights, then the record that says they are done, then drop the checkpoint."""
    meta = {"recipe": job.recipe.name, "run": job.id, "size": str(job.config.size)}
    sha = backbone.save(run.weights, meta)
    record = replace(
        record,
        weights=replace(record.weights, sha256=sha, source=job.id),
        env=environment(str(engine.default_device()), engine.threads()),
        created=measure.now(),
        **measured,
    )
    run.save(record)
    (run.checkpoints / "last.pt").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: the best ones were asked for
        run.checkpoints.rmdir()
    return record


def adopt(path: Path, store: Store, dataset: str, size: int | None, reporter: Reporter, **how: Any) -> tuple[Run, RunRecord]:
    """A run for a weights file from anywhere: read, checked and copied into the store as our own file.

    Raises:
        UsageError: unreadable, unsafe or not completely matching weights.
    """
    backbone, coverage = weights.load_backbone(path, **how)
    for line in coverage.report():
        reporter.say(f"  {line}")
    own = read_metadata(path) if path.suffix == ".safetensors" else {}
    side = size or int(own.get("size", 0)) or (32 if backbone.stem == "cifar" else 224)
    sha = backbone.sha256()
    run = store.run(f"{path.stem.replace('.', '-')}-{sha[:8]}")
    config = {"arch": backbone.arch, "arch_options": backbone.options, "stem": backbone.stem, "dataset": dataset, "size": side,
              "workers": 2}  # fmt: skip
    record = RunRecord(
        id=run.id, recipe=own.get("recipe", path.stem), recipe_version=1, preset="weights", config=config, digest=sha, seed=0,
        weights=Weights(sha, backbone.arch, backbone.parameters_count(), path.name), env=environment(), created=measure.now(),
        notes=tuple(coverage.notes),
    )  # fmt: skip
    with run.lock():
        if run.record() is None:
            backbone.save(run.weights, {"size": str(side), "source": path.name})
            run.save(record)
    return run, record
