# SPDX-License-Identifier: Apache-2.0
"""The command line. Heavy imports happen inside commands, so that `suite --help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from suite.cli_files import data_app, weights_app
from suite.cli_options import (
    Accumulate,
    Again,
    Algo,
    Bench,
    Broken,
    DataRoot,
    Dataset,
    DatasetRoot,
    Debug,
    Devices,
    Keep,
    Overrides,
    Pack,
    Pages,
    Preset,
    Published,
    Replace,
    Runs,
    Scale,
    Seeds,
    Stale,
    Track,
)
from suite.errors import SuiteError, UsageError, unknown

app = typer.Typer(
    name="suite",
    help="Self-supervised learning: pre-train by a recipe, run every benchmark, regenerate the model-zoo pages.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(weights_app, name="weights")
app.add_typer(data_app, name="data")


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
    from suite import listing

    for line in listing.of(what, runs):
        typer.echo(line)


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(help="An algorithm.")],
    overrides: Overrides = None,
    preset: Annotated[str, typer.Option("--preset", help="Preset; empty: the default.")] = "",
    debug: Debug = False,
) -> None:
    """Print a recipe's card and its resolved settings."""
    from suite import listing

    for line in listing.show(recipe, preset, overrides or []):
        typer.echo(line)


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
