"""``nnsec schema``: what an event looks like on the wire."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from schemas import events


def schema(
    event: Annotated[str, typer.Argument(help="Name of an event; none lists them.")] = "",
) -> None:
    """Print the JSON Schema of an event."""
    if not event:
        typer.echo("\n".join(sorted(events.EVENTS)))
        return
    typer.echo(json.dumps(events.json_schema(event), indent=2))
