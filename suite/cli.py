# SPDX-License-Identifier: Apache-2.0
"""The command line. Heavy imports happen inside commands, so that `suite --help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from suite.errors import SuiteError, UsageError, unknown

app = typer.Typer(
    name="suite",
    help="Self-supervised learning: pre-train by a recipe, run every benchmark, regenerate the model-zoo pages.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
weights_app = typer.Typer(help="Read, extract, convert and publish weights files.", no_args_is_help=True)
data_app = typer.Typer(help="List data sets and check the ones you have.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")
app.add_typer(data_app, name="data")

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. optim.lr=0.1, or knn.temperature=0.1")
]
Algo = Annotated[str, typer.Option("--algo", help="Algorithm, a list with commas, `all`, or a path to a .py file.")]
Bench = Annotated[str, typer.Option("--bench", help="`all`, or a list such as `knn,linear:pooled`.")]
Preset = Annotated[str, typer.Option("--preset", help="Preset or a list; empty: the recipe's default.")]
Seeds = Annotated[str, typer.Option("--seeds", help="A list such as 0,1,2; empty: the preset's seed.")]
Dataset = Annotated[str, typer.Option("--dataset", help="Pre-training data by catalogue name.")]
DatasetRoot = Annotated[Path | None, typer.Option("--dataset-root", help="Folder of the pre-training data.")]
DataRoot = Annotated[list[str] | None, typer.Option("--data-root", help="NAME=DIR for any data set; may repeat.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of the runs.")]
Pages = Annotated[Path, typer.Option("--pages", help="Folder of the pages.")]
Published = Annotated[Path, typer.Option("--results", help="Folder of published results.")]
Replace = Annotated[bool, typer.Option("--replace", help="Drop a published record that is about other weights.")]
Stale = Annotated[bool, typer.Option("--stale", help="Publish results of older versions too, marked as such.")]
Broken = Annotated[str, typer.Option("--on-broken", help="Broken images: refuse or skip.")]
Devices = Annotated[int, typer.Option("--devices", min=1, help="Processes (GPUs) to train on.")]
Accumulate = Annotated[int, typer.Option("--accumulate", min=1, help="Micro-batches per step; the global batch stays.")]
Keep = Annotated[int, typer.Option("--keep", min=0, help="Best checkpoints to keep beside the last one.")]
Track = Annotated[str, typer.Option("--track", help="tensorboard, wandb, mlflow, or a list.")]
Pack = Annotated[
    bool,
    typer.Option(
        "--pack",
        help="Decode photographs once into the cache, with the shorter side at most 256 pixels (more for views above 224), "
        "and read that copy from then on. The reduced pictures count as another data set in the records.",
    ),
]
Scale = Annotated[bool, typer.Option("--scale-lr", help="Scale the learning rate with batch=… (linear rule).")]
Again = Annotated[bool, typer.Option("--again", help="Compute anew what is already there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def _reporter() -> Any:
    from rich.console import Console

    from suite.progress import Reporter

    return Reporter(Console(stderr=True))


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seeds(text: str) -> list[int | None]:
    try:
        return [int(part) for part in _list(text)] or [None]
    except ValueError:
        raise UsageError(f"--seeds {text!r} is not a list of whole numbers") from None


def _algos(text: str) -> list[str]:
    from suite import plugins

    names = _list(text)
    if not names:
        raise unknown("algorithm", text, plugins.find("recipes"))
    return list(plugins.find("recipes")) if names == ["all"] else names


@app.command()
def run(
    overrides: Overrides = None,
    algo: Algo = "mocov2",
    bench: Bench = "all",
    preset: Preset = "",
    seeds: Seeds = "",
    dataset: Dataset = "",
    dataset_root: DatasetRoot = None,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    pages: Pages = Path("model-zoo"),
    controls: Annotated[bool, typer.Option(help="Run the control rows too (random, supervised).")] = True,
    report: Annotated[bool, typer.Option(help="Regenerate the pages at the end.")] = True,
    from_record: Annotated[Path | None, typer.Option("--from", help="Repeat the run of a run.json.")] = None,
    on_broken: Broken = "refuse",
    devices: Devices = 1,
    accumulate: Accumulate = 1,
    keep: Keep = 0,
    track: Track = "",
    pack: Pack = False,
    scale_lr: Scale = False,
    again: Again = False,
    debug: Debug = False,
) -> None:
    """Pre-train, run the benchmarks, regenerate the pages. What is done already is not done again."""
    from suite import command

    asked = command.Asked(
        _algos(algo), _list(preset), _seeds(seeds), bench, overrides or [], dataset, dataset_root, data_root or [], on_broken,
        devices, accumulate, keep, tuple(_list(track)), again, debug, pack, scale_lr,
    )  # fmt: skip
    if from_record is not None:
        asked = command.repeat(asked, from_record)
    command.run(asked, runs, pages if report else None, controls, _reporter())


@app.command()
def pretrain(
    overrides: Overrides = None,
    algo: Algo = "mocov2",
    preset: Preset = "",
    seeds: Seeds = "",
    dataset: Dataset = "",
    dataset_root: DatasetRoot = None,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    on_broken: Broken = "refuse",
    devices: Devices = 1,
    accumulate: Accumulate = 1,
    keep: Keep = 0,
    track: Track = "",
    pack: Pack = False,
    scale_lr: Scale = False,
    again: Again = False,
    debug: Debug = False,
) -> None:
    """Pre-train only: `run` without benchmarks, controls and pages."""
    run(
        overrides, algo, "", preset, seeds, dataset, dataset_root, data_root, runs, Path("model-zoo"), False, False, None,
        on_broken, devices, accumulate, keep, track, pack, scale_lr, again, debug,
    )  # fmt: skip


@app.command(name="eval")
def evaluate(
    weights: Annotated[Path, typer.Argument(help="A weights file from anywhere, or the id of a run.")],
    overrides: Overrides = None,
    bench: Bench = "all",
    arch: Annotated[str, typer.Option(help="timm name, where it cannot be inferred.")] = "",
    prefix: Annotated[str | None, typer.Option(help="Prefix of the backbone's keys in the file.")] = None,
    size: Annotated[int, typer.Option(min=0, help="Side at which to evaluate; 0: as the file or the network says.")] = 0,
    dataset: Dataset = "",
    dataset_root: DatasetRoot = None,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    pages: Pages = Path("model-zoo"),
    report: Annotated[bool, typer.Option(help="Regenerate the pages at the end.")] = True,
    on_broken: Broken = "refuse",
    pack: Pack = False,
    again: Again = False,
    debug: Debug = False,
) -> None:
    """Run benchmarks on a weights file from anywhere."""
    from suite import command

    asked = command.Asked(
        [],
        [],
        [None],
        bench,
        overrides or [],
        dataset,
        dataset_root,
        data_root or [],
        on_broken,
        again=again,
        debug=debug,
        pack=pack,
    )
    how = {"arch": arch or None, "prefix": prefix}
    command.evaluate(weights, asked, runs, pages if report else None, size or None, how, _reporter())


@app.command()
def report(
    runs: Runs = Path("runs"),
    pages: Pages = Path("model-zoo"),
    results: Annotated[
        Path | None, typer.Option("--results", help="Folder of published results; default: reports/results, when there is one.")
    ] = None,
    docs: Annotated[
        list[Path], typer.Option("--docs", help="Markdown files or folders with tables between markers; may repeat.")
    ] = [Path("README.md"), Path("docs")],  # noqa: B006  # typer copies it
    form: Annotated[str, typer.Option("--format", help="Exports beside md and html: json, csv, latex, or a list.")] = "",
    stamp: Annotated[bool, typer.Option("--stamp", help="Say on the first page when it was made.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 when something is not current.")] = False,
    debug: Debug = False,
) -> None:
    """Regenerate the model-zoo pages, and the tables in README and docs, from the records."""
    from suite import command

    command.report(runs, pages, check, _reporter(), results, docs, _list(form), stamp)


@app.command()
def publish(
    run: Annotated[str, typer.Argument(help="Run id, or run folder.")],
    runs: Runs = Path("runs"),
    results: Published = Path("reports/results"),
    again: Replace = False,
    stale: Stale = False,
    debug: Debug = False,
) -> None:
    """Check a run and merge it into the published results, one JSON file that a pull request can carry."""
    from suite import contribute

    contribute.publish(run, runs, results, again, stale, _reporter())


@app.command(name="import")
def import_(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="MTEB-style JSON, MMSelfSup metafile.yml, timm results CSV, or a record."),
    ],
    published: Annotated[Path, typer.Option("--published", help="Folder of published figures.")] = Path("reports/published"),
    results: Published = Path("reports/results"),
    name: Annotated[str, typer.Option("--name", help="Names imported-NAME.csv; empty: after the kind of source.")] = "",
    model: Annotated[str, typer.Option("--model", help="The model, where an MTEB result does not name it.")] = "",
    again: Replace = False,
    stale: Stale = False,
    debug: Debug = False,
) -> None:
    """Take in results of other projects as published figures, and records as published results."""
    from suite import contribute

    contribute.import_(files, published, results, name, model, again, stale, _reporter())


@app.command()
def compare(
    base: Annotated[str, typer.Argument(help="Run, record, weights file, folder of results, or git revision REV[:PATH].")],
    head: Annotated[str, typer.Argument(help="The same, to compare with it.")],
    bench: Annotated[str, typer.Option(help="What to compare; run on weights and runs where it is missing.")] = "",
    tolerance: Annotated[float, typer.Option(min=0, help="A drop of so many points does not matter.")] = 0.5,
    alpha: Annotated[float, typer.Option(min=1e-6, max=0.4, help="Chance of a false alarm, over all scores.")] = 0.05,
    form: Annotated[str, typer.Option("--format", help="markdown, json, junit or github.")] = "markdown",
    markdown: Annotated[Path | None, typer.Option(help="Also write the verdict to this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write it as JSON.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write it as JUnit XML.")] = None,
    dataset: Dataset = "",
    dataset_root: DatasetRoot = None,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    repository: Annotated[Path, typer.Option("--repo", help="Git repository of the revisions.")] = Path("."),
    debug: Debug = False,
) -> None:
    """Compare two checkpoints, or two revisions of results: same bytes, function, score. Exit 1 on a regression."""
    from suite import command
    from suite.store import write_bytes
    from suite.verdict_forms import FORMS

    if form not in FORMS:
        raise unknown("format", form, FORMS)
    asked = command.Asked([], [], [None], bench, [], dataset, dataset_root, data_root or [])
    verdict = command.compare(base, head, asked, tolerance, alpha, runs, repository, _reporter())
    for name, file in (("markdown", markdown), ("json", json), ("junit", junit)):
        if file is not None:
            write_bytes(file, FORMS[name](verdict).encode())
    typer.echo(FORMS[form](verdict), nl=False)
    if verdict.regressed:
        raise typer.Exit(1)


@app.command(name="ls")
def list_(
    what: Annotated[str, typer.Argument(help="recipes, evaluators, datasets, pages or runs")] = "recipes",
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """List what there is."""
    from suite import command

    for line in command.listing(what, runs):
        typer.echo(line)


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(help="An algorithm.")],
    overrides: Overrides = None,
    preset: Annotated[str, typer.Option("--preset", help="Preset; empty: the default.")] = "",
    debug: Debug = False,
) -> None:
    """Print a recipe's card and its resolved settings."""
    from suite import command

    for line in command.show(recipe, preset, overrides or []):
        typer.echo(line)


@weights_app.command()
def inspect(file: Path, debug: Debug = False) -> None:
    """Say what a weights file holds: containers, prefixes, architecture, coverage."""
    from suite import weights

    for line in weights.inspect(file).report():
        typer.echo(line)


@weights_app.command()
def extract(
    file: Path,
    out: Path,
    arch: str = "",
    prefix: Annotated[str | None, typer.Option()] = None,
    debug: Debug = False,
) -> None:
    """Write a file's backbone as our safetensors."""
    from suite import weights

    for line in weights.extract(file, out, arch=arch or None, prefix=prefix).report():
        typer.echo(line)


@weights_app.command()
def convert(file: Path, out: Path, to: Annotated[str, typer.Option("--to")] = "torchvision", debug: Debug = False) -> None:
    """Write a backbone in another project's layout."""
    from suite import weights

    weights.convert(file, to, out)
    typer.echo(str(out))


@weights_app.command(name="publish")
def publish_weights(file: Path, folder: Path, debug: Debug = False) -> None:
    """Copy a backbone to `<arch>-<sha8>.safetensors`."""
    from suite import weights

    typer.echo(str(weights.publish(file, folder)))


@data_app.command(name="ls")
def data_list(debug: Debug = False) -> None:
    """List the catalogue."""
    from suite import command

    for line in command.listing("datasets", Path("runs")):
        typer.echo(line)


@data_app.command()
def check(name: str, data_root: Annotated[Path | None, typer.Option("--data-root")] = None, debug: Debug = False) -> None:
    """Say whether a data set is complete, and what is wrong with it. Exit 1 when something is."""
    from suite import command

    lines, ok = command.check_data(name, data_root)
    for line in lines:
        typer.echo(line)
    if not ok:
        raise typer.Exit(1)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; errors are one line on standard error.

    Returns:
        0 done, 1 a job or gate failed, 2 wrong call, 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        return int(app(arguments, standalone_mode=False, prog_name="suite") or 0)
    except SuiteError as error:
        if debug:
            raise
        typer.echo(f"suite: {' '.join(str(error).split())}", err=True)
        return error.exit_code
    except KeyboardInterrupt:
        typer.echo("suite: interrupted; the same command continues", err=True)
        return 130
    except typer.Exit as stop:
        return stop.exit_code
    except Exception as error:
        return _unexpected(error, debug)


def _unexpected(error: Exception, debug: bool) -> int:
    """A wrong call that the parser found, or a defect of ours: one line either way."""
    import click

    if isinstance(error, click.ClickException) or hasattr(error, "format_message"):
        typer.echo(f"suite: {error.format_message()}", err=True)  # type: ignore[attr-defined]  # click's errors have it
        return 2
    if debug:
        raise error
    if isinstance(error, OSError):
        typer.echo(f"suite: {error}", err=True)
        return 1
    typer.echo(f"suite: internal error: {type(error).__name__}: {error} (--debug shows where)", err=True)
    return 1


def entry() -> None:
    """Console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
