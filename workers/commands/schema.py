"""``nnsec schema``: what an event looks like on the wire."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from nnsec.errors import ConfigError, SchemaError
from schemas import events


def schema(
    event: Annotated[str, typer.Argument(help="Name of an event; none lists them.")] = "",
) -> None:
    """Print the JSON Schema of an event."""
    if not event:
        typer.echo("\n".join(sorted(events.EVENTS)))
        return
    try:
        found = events.json_schema(event)
    except SchemaError as error:  # here it is the command line that is wrong
        raise ConfigError(str(error)) from error
    typer.echo(json.dumps(found, indent=2))
