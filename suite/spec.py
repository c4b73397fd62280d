# SPDX-License-Identifier: Apache-2.0
"""The plug-in types. A recipe makes weights, an evaluator makes numbers, a page makes tables: this file says what each is.

Nothing here imports torch, so that listing and validating stay instant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from suite.backbone import Backbone
    from suite.bench import Bench
    from suite.record import Result, RunRecord
    from suite.views import View


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a parameter whose name matches `pattern` (a regular expression, searched) does differently."""

    pattern: str
    lr_mult: NonNegativeFloat = 1.0
    weight_decay: float | None = None
    "None keeps the recipe's value."
    adapt: bool = True
    "False: LARS leaves the gradient of this parameter unscaled."
    momentum: float | None = None
    fixed_lr: bool = False
    "True: the schedule does not touch this group (SimSiam's predictor)."


@dataclass(frozen=True, kw_only=True)
class Optim:
    """Optimizer and learning-rate schedule. `lr` is for the recipe's global batch; nothing rescales it silently."""

    name: Literal["sgd", "adamw", "lars", "lamb", "adam"] = "sgd"
    lr: PositiveFloat
    momentum: NonNegativeFloat = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[float, ...] = ()
    "Epochs at which a step schedule multiplies the rate by `gamma`."
    gamma: NonNegativeFloat = 0.1
    warmup: NonNegativeFloat = 0.0
    "Epochs of linear warm-up."
    warmup_ratio: NonNegativeFloat = 0.0
    "The rate at step 0 as a fraction of the regular one."
    min_lr: NonNegativeFloat = 0.0
    every: Literal["step", "epoch"] = "step"
    "How often the schedule moves."
    shift: bool = True
    "True: the cosine starts after the warm-up. False: it runs from step 0 under it."
    clip: PositiveFloat | None = None
    "Largest global gradient norm, or None."
    layer_decay: PositiveFloat | None = None
    rules: tuple[Rule, ...] = ()
    "Every matching rule applies, later ones override earlier ones."


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every recipe has. A recipe's own config extends this one level, never deeper."""

    arch: str = "resnet50"
    "A timm model name."
    arch_options: Mapping[str, Any] = field(default_factory=dict)
    "Passed to timm.create_model."
    stem: Literal["imagenet", "cifar", "nopool", "sobel"] = "imagenet"
    "cifar: first convolution with stride 1, no max-pooling; nopool: no max-pooling; sobel: edges instead of colours."
    dataset: str = "imagenet"
    size: PositiveInt = 224
    "Side of the (first) training view in pixels."
    epochs: PositiveInt = 200
    batch: PositiveInt = 256
    "Global batch: the same on any number of devices."
    optim: Optim = field(default_factory=lambda: Optim(lr=0.03))
    precision: Literal["32", "bf16", "16"] = "32"
    sync_bn: bool = False
    max_steps: PositiveInt | None = None
    "Stop after this many steps in all, None: after `epochs`."
    seed: NonNegativeInt = 0
    workers: NonNegativeInt = 2
    compare: str = ""
    "Preset whose published figures stand beside this run; empty: the preset itself."


OUTSIDE_DIGEST = ("seed", "workers", "compare")
"""Config fields that do not change what is being measured."""


@dataclass(frozen=True)
class Paper:
    """The source of a recipe."""

    title: str
    authors: str
    venue: str
    url: str
    summary: str = ""
    "One or two sentences, in our own words."


@dataclass(frozen=True)
class Published:
    """One published figure with its source."""

    metric: str
    "`evaluator/metric` in our names, e.g. `linear/top1`."
    value: float
    source: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A way to turn images into backbone weights: one file under `recipes/`."""

    name: str
    title: str
    paper: Paper
    method: Callable[..., Any] | None
    "Method class, called as method(config, backbone, data); None: no training, random weights."
    views: Callable[[Any], Sequence[View]]
    "From the config to one View per picture that the method wants of an image."
    presets: Mapping[str, Config]
    default: str = "digits"
    reference: Mapping[str, Sequence[Published]] = field(default_factory=dict)
    "Published figures per preset."
    control: bool = False
    "Shown as a control row beside every other recipe."
    labels: bool = False
    "True: the method reads the labels."
    batch_dependent: str = ""
    "What a smaller batch per device changes about the objective; empty: nothing."
    needs: tuple[str, ...] = ()
    version: int = 1


@dataclass(frozen=True)
class Metric:
    """One number that an evaluator reports."""

    name: str
    title: str
    unit: str = "%"
    higher_is_better: bool = True


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What every evaluator preset has. An evaluator's own config extends this one level."""

    dataset: str = ""
    "A catalogue name; empty: the run's own data set, or the embedded one that fits the task."
    seed: NonNegativeInt = 0
    workers: NonNegativeInt = 2


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """A way to turn weights into numbers: one file under `evaluators/`."""

    name: str
    title: str
    task: Literal["classification", "multilabel", "detection", "segmentation"]
    run: Callable[[Backbone, Any, Bench], Mapping[str, float]]
    "Returns metric name to value; the names may extend a Metric's name with a suffix (`top1`, `top1.k20`)."
    presets: Mapping[str, EvalConfig]
    metrics: Sequence[Metric]
    "The first one is the headline."
    describe: Mapping[str, str] = field(default_factory=dict)
    "One line per preset."
    selects_on_test: tuple[str, ...] = ()
    "Presets that reproduce a published protocol which selects on test data: their rows are marked."
    default: str = "default"
    diagnostic: bool = False
    "True: it describes features rather than scoring them, and counts in no ranking."
    frozen: bool = True
    "True: the backbone may not change, and the bench checks that it did not."
    layers: Callable[[Backbone, Any, int], Sequence[str]] | None = None
    """From (backbone, config, picture side) to the cached feature layers that `run` asks for: one extraction then serves
    all evaluators of a command."""
    warp: bool = False
    "Whether it asks for them of pictures warped to a square."
    needs: tuple[str, ...] = ()
    "Importable modules without which the evaluator is skipped with the reason."
    version: int = 1


def base_preset(preset: str) -> str:
    """The evaluator's preset behind a result's: `default@cityscapes` is `default` on data that it does not name itself."""
    return preset.partition("@")[0]


@dataclass(frozen=True)
class Cell:
    """A table cell: what is shown, the number behind it for sorting, and where it comes from."""

    text: str
    value: float | None = None
    hover: str = ""
    link: str = ""
    kind: Literal["", "control", "published", "stale", "missing", "best"] = ""


@dataclass(frozen=True)
class Table:
    """A titled table; every row has one Cell per column."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """A figure as SVG text."""

    title: str
    svg: str
    alt: str


@dataclass(frozen=True)
class Versus:
    """Any two of many things side by side: in HTML the reader chooses which, markdown shows the first two."""

    title: str
    names: Sequence[str]
    "What can be chosen."
    links: Sequence[str]
    "The page of each, or an empty string."
    rows: Sequence[tuple[str, str]]
    "Heading and label of every row."
    values: Sequence[Sequence[float | str | None]]
    "Per thing, a value per row: numbers are subtracted, text is only shown."


@dataclass(frozen=True)
class Document:
    """What a page builds: rendered to markdown and HTML by the same templates."""

    name: str
    "File name without suffix."
    title: str
    summary: str
    parts: Sequence[Table | Plot | Versus | str]
    "Tables, plots, comparisons and paragraphs in order."
    group: str = ""
    "Heading under which the first page lists this one: Algorithms, Benchmarks, Runs; empty: among the views."


class Archive(Protocol):
    """What a page may read beside the records. Any of it may be missing: published records keep only part."""

    def predictions(self, record: RunRecord, result: Result) -> Mapping[str, Any] | None:
        """Per-sample arrays of a result, see `suite.metrics.PREDICTIONS`; None when there are none."""

    def artifact(self, record: RunRecord, result: Result, name: str) -> Mapping[str, Any] | None:
        """Arrays that an evaluator left for pages; None when there are none of that name."""

    def log(self, record: RunRecord) -> Sequence[Mapping[str, Any]]:
        """Rows of the training log: step, epoch, loss, lr, images_per_second, feature_std, …; empty without one."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A way to turn records into documents: one file under `reports/`."""

    name: str
    title: str
    build: Callable[[Sequence[RunRecord], Mapping[str, Recipe], Mapping[str, Evaluator], Archive], Sequence[Document]]
    "From records, known recipes, known evaluators, and what lies beside the records."
    version: int = 1
