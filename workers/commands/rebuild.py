"""``nnsec rebuild``: empty the view in Redis and fill it again from Kafka."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console

from nnsec.settings import Settings
from workers.words import counted


def rebuild(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Empty the view and replay it from Kafka, by the rules of the view worker.

    A view worker that runs meanwhile notices it, and goes on from the same place.
    """
    settings: Settings = context.obj
    records = asyncio.run(_rebuild(settings))
    if as_json:
        typer.echo(json.dumps({"records": records}))
    else:
        Console().print(f"built anew from {counted(records, 'record')}", highlight=False)


async def _rebuild(settings: Settings) -> int:
    from nnsec.adapters.kafka import declare, outage
    from workers import view

    outage.listen()
    await declare(settings, now=datetime.now(UTC))
    return await view.rebuild(settings)
