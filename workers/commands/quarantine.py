"""``nnsec quarantine``: sources of training samples that are shut out, and orders about them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

import typer
from rich.table import Table

from nnsec.settings import Settings
from schemas.command import CommandKind
from workers.commands import orders
from workers.commands.plain import plain, show_tables

app = typer.Typer(
    no_args_is_help=True, help="Sources of training samples: list, add, release, drop."
)
Source = Annotated[str, typer.Argument(help="The source, as samples name it.")]
COLUMNS = ("state", "accepted", "quarantined", "incident", "reason")


@app.command("list")
def show(
    context: typer.Context,
    everyone: Annotated[bool, typer.Option("--all", help="Trusted sources too.")] = False,
    as_json: orders.Json = False,
) -> None:
    """List the sources that are quarantined or watched, from Redis."""
    found = asyncio.run(_read(context.obj))
    rows = {
        name: fields for name, fields in found.items() if everyone or fields["state"] != "trusted"
    }
    if as_json:
        typer.echo(json.dumps([{"source": name} | fields for name, fields in rows.items()]))
        return
    table = Table("source", *COLUMNS)
    for name, fields in rows.items():
        table.add_row(plain(name), *(plain(fields.get(one, "")) for one in COLUMNS))
    table.columns[4].no_wrap = True  # an incident's id is copied
    show_tables(table)


@app.command()
def add(
    context: typer.Context,
    source: Source,
    key: orders.Key,
    reason: orders.Reason = "ordered by hand",
    model: orders.Model = "",
    minutes: orders.Minutes = orders.VALID_MINUTES,
    as_json: orders.Json = False,
) -> None:
    """Quarantine a source: accept no more of it, and revoke what was accepted lately."""
    _order(context, "quarantine", source, key, reason, model, minutes, as_json)


@app.command()
def release(
    context: typer.Context,
    source: Source,
    key: orders.Key,
    reason: orders.Reason = "released by hand",
    model: orders.Model = "",
    minutes: orders.Minutes = orders.VALID_MINUTES,
    as_json: orders.Json = False,
) -> None:
    """Trust a source again: withdraw its revocations, and accept what was held back of it."""
    _order(context, "release", source, key, reason, model, minutes, as_json)


@app.command()
def drop(
    context: typer.Context,
    source: Source,
    key: orders.Key,
    reason: orders.Reason = "dropped by hand",
    model: orders.Model = "",
    minutes: orders.Minutes = orders.VALID_MINUTES,
    as_json: orders.Json = False,
) -> None:
    """Keep a source's samples out for good."""
    _order(context, "drop", source, key, reason, model, minutes, as_json)


def _order(
    context: typer.Context, kind: CommandKind, source: str, key: Path, reason: str,
    model: str, minutes: float, as_json: bool,
) -> None:  # fmt: skip
    settings: Settings = context.obj
    orders.give(
        settings, kind, model=orders.one_model(settings, model), target=source, reason=reason,
        key=key, minutes=minutes, as_json=as_json,
    )  # fmt: skip


async def _read(settings: Settings) -> dict[str, dict[str, str]]:
    """The hashes of all sources in the view, by name."""
    from workers import store

    names = store.Keys(settings.redis.prefix)
    found: dict[str, dict[str, str]] = {}
    async with store.connect(settings) as client:
        with store.converted():
            async for key in client.scan_iter(match=names.pattern("source"), count=1000):
                name = unquote(key.removeprefix(names.source("")))
                found[name] = await store.read_hash(client, key)
    return dict(sorted(found.items()))
