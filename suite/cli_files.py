# SPDX-License-Identifier: Apache-2.0
"""The commands about files that exist already: `suite weights …` and `suite data …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from suite.cli_options import Debug

weights_app = typer.Typer(help="Read, extract, convert and publish weights files.", no_args_is_help=True)
data_app = typer.Typer(help="List data sets and check the ones you have.", no_args_is_help=True)


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
    from suite import listing

    for line in listing.of("datasets", Path("runs")):
        typer.echo(line)


@data_app.command()
def check(name: str, data_root: Annotated[Path | None, typer.Option("--data-root")] = None, debug: Debug = False) -> None:
    """Say whether a data set is complete, and what is wrong with it. Exit 1 when something is."""
    from suite import listing

    lines, ok = listing.check_data(name, data_root)
    for line in lines:
        typer.echo(line)
    if not ok:
        raise typer.Exit(1)
