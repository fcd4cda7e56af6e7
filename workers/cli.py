"""The command line: one command, ``nnsec``, tables for people and ``--json`` for programs."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from nnsec import settings as configuration
from nnsec.adapters.declaration import declare
from nnsec.errors import ConfigError
from nnsec.settings import Settings
from schemas import events
from schemas.errors import NNSecError
from schemas.topics import TOPICS

CONFIG_ERROR = 2
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[
        str | None, typer.Option(help="Configuration; default NNSEC_CONFIG, then ./nnsec.toml.")
    ] = None,
) -> None:
    """A streaming security monitor for neural networks."""
    context.obj = configuration.load(config)


@app.command()
def schema(
    event: Annotated[str, typer.Argument(help="Name of an event; none lists them.")] = "",
) -> None:
    """Print the JSON Schema of an event."""
    if not event:
        typer.echo("\n".join(sorted(events.EVENTS)))
        return
    typer.echo(json.dumps(events.json_schema(event), indent=2))


@app.command()
def topics(
    context: typer.Context,
    create: Annotated[bool, typer.Option("--declare", help="Make what is missing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show the topics, and make them if asked."""
    settings: Settings = context.obj
    logs = asyncio.run(declare(settings, now=datetime.now(UTC))) if create else {}
    rows = [
        {
            "topic": settings.kafka.prefix + topic.name,
            "writers": list(topic.writers),
            "key": topic.key,
            "cleanup": "compact" if topic.compact else "delete",
            "log": str(logs.get(topic.name, "")),
        }
        for topic in TOPICS.values()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("topic", "written by", "key", "cleanup", "log")
    for row in rows:
        table.add_row(*(", ".join(v) if isinstance(v, list) else v for v in row.values()))
    Console().print(table)


def main() -> None:
    """Run the command; a wrong configuration ends with status 2, other errors with 1."""
    try:
        app()
    except ConfigError as error:
        Console(stderr=True).print(f"nnsec: {error}", markup=False, style="red")
        sys.exit(CONFIG_ERROR)
    except NNSecError as error:
        Console(stderr=True).print(f"nnsec: {error}", markup=False, style="red")
        sys.exit(1)
