"""The command line: one command, ``nnsec``, tables for people and ``--json`` for programs.

Each command is a module of `workers.commands`, imported here, so modules import what takes long
(torch, scikit-learn, Faust) only when they run: ``nnsec --help`` answers at once.
"""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated

import typer
from rich.console import Console

from nnsec import settings as configuration
from nnsec.errors import ConfigError
from schemas.errors import NNSecError
from workers import embedded
from workers.commands import (
    alerts,
    bench,
    calibrate,
    checkpoint,
    demo,
    doctor,
    incidents,
    keys,
    quarantine,
    rebuild,
    schema,
    send,
    stream,
    topics,
    up,
    worker,
)
from workers.commands.plain import plain_lines

CONFIG_ERROR = 2
STARTERS = frozenset({"demo", "up"})
"""Commands that start the embedded services; all others use those that run in this folder."""

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nnsec {metadata.version('nnsec')}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[
        str | None, typer.Option(help="Configuration; default NNSEC_CONFIG, then ./nnsec.toml.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A streaming security monitor for neural networks."""
    del version  # its callback has shown it
    if {"-h", "--help"} & set(sys.argv[1:]):
        return  # help must not need a configuration without faults
    settings = configuration.load(config)
    starts = context.invoked_subcommand in STARTERS
    context.obj = settings if starts else embedded.running(settings)


RUN, WATCH, TRUST, LOOK = "Run", "Watch and act", "Checkpoints and keys", "Look, try, measure"

app.command(rich_help_panel=RUN)(demo.demo)
app.command(rich_help_panel=RUN)(up.up)
app.command(rich_help_panel=RUN)(stream.stream)
app.add_typer(worker.app, name="worker", rich_help_panel=RUN)
app.command(rich_help_panel=RUN)(rebuild.rebuild)
app.command(rich_help_panel=WATCH)(alerts.alerts)
app.add_typer(incidents.app, name="incidents", rich_help_panel=WATCH)
app.add_typer(quarantine.app, name="quarantine", rich_help_panel=WATCH)
app.add_typer(checkpoint.app, name="checkpoint", rich_help_panel=TRUST)
app.command(rich_help_panel=TRUST)(calibrate.calibrate)
app.add_typer(keys.app, name="keys", rich_help_panel=TRUST)
app.command(rich_help_panel=LOOK)(doctor.doctor)
app.add_typer(send.app, name="send", rich_help_panel=LOOK)
app.add_typer(bench.app, name="bench", rich_help_panel=LOOK)
app.command(rich_help_panel=LOOK)(topics.topics)
app.command(rich_help_panel=LOOK)(schema.schema)


def main() -> None:
    """Run the command; a wrong configuration ends with status 2, other errors with 1."""
    try:
        app()
    except ConfigError as error:
        _fail(error, CONFIG_ERROR)
    except NNSecError as error:
        _fail(error, 1)


def _fail(error: NNSecError, status: int) -> None:
    Console(stderr=True).print(plain_lines(f"nnsec: {error}", "red"), soft_wrap=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
