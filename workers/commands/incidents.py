"""``nnsec incidents``: what is wrong and what is done about it, and what a person says to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnsec.errors import ConfigError
from nnsec.settings import Settings
from schemas.base import format_time, from_millis
from schemas.command import CommandKind
from workers.commands import orders
from workers.commands.plain import plain, printable, show_tables

if TYPE_CHECKING:
    from workers.transitions import Entry

app = typer.Typer(
    no_args_is_help=True,
    help="Incidents: list, show and watch them; approve, deny, dismiss; halt the automation.",
)
Incident = Annotated[str, typer.Argument(help="Id of an incident.")]
Target = Annotated[str, typer.Argument(help="Id of an incident, or of one action of it.")]
Wide = Annotated[str, typer.Option("--model", help="Only this model; default all of them.")]
PAGE = 1000
STYLES = {
    "open": "yellow", "awaiting_approval": "bold yellow", "containing": "cyan",
    "contained": "green", "failed": "bold red", "resolved": "dim", "dismissed": "dim",
}  # fmt: skip
PARTS = ("threats", "subjects", "actions", "evidence")
"""Fields of an incident's hash that hold JSON."""


@app.command("list")
def show_all(
    context: typer.Context,
    finished: Annotated[bool, typer.Option("--all", help="Finished ones too.")] = False,
    as_json: orders.Json = False,
) -> None:
    """List incidents, the one that changed last at the end."""
    found = asyncio.run(_all(context.obj, finished=finished))
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table("incident", "state", "severity", "model", "family", "subjects", "last seen")
    table.columns[0].no_wrap = True  # `show` and `dismiss` need all of the id
    for one in found:
        table.add_row(
            plain(one["id"]), _state(one["state"]), plain(one["severity"]), plain(one["model"]),
            plain(one["family"]), str(len(one["subjects"])),
            _time(one["last_seen"]),
        )  # fmt: skip
    show_tables(table)


@app.command()
def show(context: typer.Context, incident: Incident, as_json: orders.Json = False) -> None:
    """Show one incident: its subjects, their evidence, and the actions."""
    found = asyncio.run(_one(context.obj, incident))
    if found is None:
        raise ConfigError(f"no incident {incident!r} in the view; see `nnsec incidents list --all`")
    if as_json:
        typer.echo(json.dumps(found))
        return
    console = Console()
    head = Text.assemble(
        _state(found["state"]), printable(f" {found['severity']} "),
        plain(", ".join(found["threats"]), "bold"),
        printable(f" on {found['model']}, version {found['version']}, from "),
        f"{_time(found['first_seen'])} to {_time(found['last_seen'])}",
    )  # fmt: skip
    console.print(head, soft_wrap=True)
    subjects = Table("subject", "threats", "alerts", "evidence", "first seen")
    for one in found["subjects"]:
        subjects.add_row(
            _subject(one), plain(", ".join(one["threats"])), str(one["alerts"]),
            f"{one['evidence']:.2f}", plain(one["first_seen"]),
        )  # fmt: skip
    actions = Table("action", "subject", "state", "by", "reason", "id")
    actions.columns[-1].no_wrap = True  # `approve` needs all of it
    for one in found["actions"]:
        actions.add_row(
            plain(one["action"]), _subject(one), plain(one["state"]), plain(one["by"][:12]),
            plain(one["reason"]), plain(one["action_id"]),
        )  # fmt: skip
    show_tables(subjects, actions)


@app.command()
def watch(
    context: typer.Context,
    beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Show the transitions of the past first.")
    ] = False,
    limit: Annotated[int, typer.Option(min=0, help="End after so many; 0 for never.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Follow every change of an incident's state until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_watch(context.obj, beginning=beginning, limit=limit, as_json=as_json))


@app.command()
def approve(
    context: typer.Context,
    target: Target,
    key: orders.Key,
    reason: orders.Reason = "approved",
    model: orders.Model = "",
    minutes: orders.Minutes = orders.VALID_MINUTES,
    as_json: orders.Json = False,
) -> None:
    """Let actions run that wait for approval, and try again those that failed."""
    _order(context, "approve", target, key, reason, model, minutes, as_json)


@app.command()
def deny(
    context: typer.Context,
    target: Target,
    key: orders.Key,
    reason: orders.Reason = "denied",
    model: orders.Model = "",
    minutes: orders.Minutes = orders.VALID_MINUTES,
    as_json: orders.Json = False,
) -> None:
    """Refuse actions that wait."""
    _order(context, "deny", target, key, reason, model, minutes, as_json)


@app.command()
def dismiss(
    context: typer.Context,
    incident: Incident,
    key: orders.Key,
    reason: orders.Reason,
    model: orders.Model = "",
    minutes: orders.Minutes = orders.VALID_MINUTES,
    as_json: orders.Json = False,
) -> None:
    """End an incident as none; its episodes open no other."""
    _order(context, "dismiss", incident, key, reason, model, minutes, as_json)


@app.command()
def halt(
    context: typer.Context,
    key: orders.Key,
    reason: orders.Reason,
    model: Wide = "*",
    minutes: orders.Minutes = orders.VALID_MINUTES,
    as_json: orders.Json = False,
) -> None:
    """Stop the automation: nothing new begins without a person, until `resume`."""
    _switch(context, "halt", key, reason, model, minutes, as_json)


@app.command()
def resume(
    context: typer.Context,
    key: orders.Key,
    reason: orders.Reason,
    model: Wide = "*",
    minutes: orders.Minutes = orders.VALID_MINUTES,
    as_json: orders.Json = False,
) -> None:
    """Let the automation go on."""
    _switch(context, "resume", key, reason, model, minutes, as_json)


def _switch(
    context: typer.Context, kind: CommandKind, key: Path, reason: str, model: str,
    minutes: float, as_json: bool,
) -> None:  # fmt: skip
    settings: Settings = context.obj
    if model != "*":
        orders.one_model(settings, model)
    orders.give(
        settings, kind, model=model, target="", reason=reason, key=key, minutes=minutes,
        as_json=as_json,
    )  # fmt: skip


def _order(
    context: typer.Context, kind: CommandKind, target: str, key: Path, reason: str,
    model: str, minutes: float, as_json: bool,
) -> None:  # fmt: skip
    settings: Settings = context.obj
    if not model and len(settings.models) > 1:
        model = asyncio.run(_model_of(settings, target))
    orders.give(
        settings, kind, model=orders.one_model(settings, model), target=target, reason=reason,
        key=key, minutes=minutes, as_json=as_json,
    )  # fmt: skip


async def _model_of(settings: Settings, target: str) -> str:
    """The model of an incident or action, from the view; empty if it is not there."""
    for one in await _all(settings, finished=True):
        if target == one["id"] or any(a["action_id"] == target for a in one["actions"]):
            return str(one["model"])
    return ""


# --- reading the view ---


async def _all(settings: Settings, *, finished: bool) -> list[dict[str, Any]]:
    """Incidents by the time of their last change, oldest first."""
    from workers import store

    names = store.Keys(settings.redis.prefix)
    async with store.connect(settings) as client:
        with store.converted():
            found = [names.incident(str(i)) for i in await client.zrange(names.active, 0, -1)]
            if finished:
                pattern = names.pattern("incident")
                found = [key async for key in client.scan_iter(match=pattern, count=PAGE)]
            hashes = [await store.read_hash(client, key) for key in found]
    shown = [_parsed(one) for one in hashes if one]  # one may have expired meanwhile
    return sorted(shown, key=lambda one: int(one["last_seen"])) if finished else shown


async def _one(settings: Settings, incident: str) -> dict[str, Any] | None:
    from workers import store

    names = store.Keys(settings.redis.prefix)
    async with store.connect(settings) as client:
        with store.converted():
            found = await store.read_hash(client, names.incident(incident))
    return _parsed(found) if found else None


def _state(state: str) -> Text:
    return plain(state, STYLES.get(state, ""))


def _subject(one: dict[str, Any]) -> Text:
    return plain(f"{one['subject']['kind']} {one['subject']['id']}")


def _time(milliseconds: str) -> str:
    return format_time(from_millis(int(milliseconds)))[:19].replace("T", " ") + "Z"


def _parsed(fields: dict[str, str]) -> dict[str, Any]:
    return {k: json.loads(v) if k in PARTS and v else v for k, v in fields.items()}


async def _watch(settings: Settings, *, beginning: bool, limit: int, as_json: bool) -> None:
    from workers.transitions import follow

    console, shown = Console(), 0
    async for entry in follow(settings, beginning=beginning):
        if as_json:
            typer.echo(entry.json())
        else:
            console.print(_line(entry), soft_wrap=True)
        shown += 1
        if shown == limit:
            return


def _line(entry: Entry) -> Text:
    return Text.assemble(
        (entry.time[:19].replace("T", " ") + "Z", "dim"), printable(f" {entry.incident[:8]} "),
        plain(f"{entry.from_ or 'new'} → {entry.to}", STYLES.get(entry.to, "")),
        printable(f" by {entry.by[:12]}: {entry.reason}"),
    )  # fmt: skip
