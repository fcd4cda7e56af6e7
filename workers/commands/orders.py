"""Orders of an operator: signed, and put on ``commands`` for the remediation worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID, uuid4

import typer
from rich.console import Console

from nnsec.errors import ConfigError
from nnsec.settings import Settings
from nnsec.trust import keys
from nnsec.trust.commands import sign_command
from schemas.command import Command, CommandKind
from workers.commands.plain import printable

if TYPE_CHECKING:
    from workers.outcome import Outcome

Key = Annotated[Path, typer.Option("--key", help="Operator's private key (PEM file).")]
Reason = Annotated[str, typer.Option(help="Why, in one line; kept for ever.")]
Model = Annotated[str, typer.Option(help="The model; default the only one configured.")]
Minutes = Annotated[float, typer.Option(min=0.1, help="Minutes for which the order is valid.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
VALID_MINUTES = 10.0
WAIT = 5.0
"""Seconds in which the outcome is waited for; a worker that is there takes an order in one."""
REFUSED = 1


def give(
    settings: Settings,
    kind: CommandKind,
    *,
    model: str,
    target: str,
    reason: str,
    key: Path,
    minutes: float,
    as_json: bool,
    parameters: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Sign an order, publish it, and say under which id, and what became of it.

    Raises
    ------
    ConfigError
        If the key is not one that the remediation worker would trust, or an incident to dismiss is
        no whole id.
    typer.Exit
        With status 1 if the order was refused.
    """
    if kind == "dismiss":
        target = _whole_id(target)
    now = datetime.now(UTC)
    command = Command(
        id=str(uuid4()), kind=kind, model=model, target=target, reason=" ".join(reason.split()),
        issued=now, expires=now + timedelta(minutes=minutes), parameters=dict(parameters),
    )  # fmt: skip
    found = asyncio.run(_ordered(settings, command, trusted(settings, key)))
    if as_json:
        said = {"command": command.id, "action": command.action_id}
        typer.echo(json.dumps(said | {"outcome": found.state, "reason": found.reason}))
    else:
        Console().print(
            f"ordered: {kind} of {target or model}, command {command.id}, for {minutes:g} min\n"
            f"{found.state}: {printable(found.reason)}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    if found.state == "refused":
        raise typer.Exit(REFUSED)


async def _ordered(settings: Settings, command: Command, key: keys.PrivateKey) -> Outcome:
    """Publish an order, and wait for its outcome."""
    from nnsec.adapters import kafka
    from workers import outcome

    kafka.outage.listen()
    await kafka.declare(settings, now=command.issued)  # who watches needs the topics
    async with outcome.watching(settings) as consumer:
        watch = outcome.Watch(command, await publish(settings, command, key), key.id)
        found = await outcome.follow(settings, consumer, watch, WAIT)
    if command.kind == "dismiss" and not found.final:
        return await outcome.not_dismissed(settings, command.target, found)
    return found


def _whole_id(incident: str) -> str:
    try:
        return str(UUID(incident))
    except ValueError as error:
        raise ConfigError(
            f"{incident!r} is no incident's whole id; `nnsec incidents list` shows them"
        ) from error


def one_model(settings: Settings, model: str) -> str:
    """The model that an order is for.

    Raises
    ------
    ConfigError
        If it is not configured, or none is named and there is not exactly one.
    """
    there = ", ".join(settings.models) or "none"
    if model:
        if model not in settings.models:
            raise ConfigError(f"no model {model!r} is configured; there are: {there}")
        return model
    if len(settings.models) != 1:
        raise ConfigError(f"name the model with --model; configured are: {there}")
    return next(iter(settings.models))


def trusted(settings: Settings, path: Path) -> keys.PrivateKey:
    """Read an operator's key.

    Raises
    ------
    ConfigError
        If it is not one that the remediation worker would trust.
    """
    key = keys.load_private(path)
    if key.id not in {keys.load_public(name).id for name in settings.trust.operator_keys}:
        raise ConfigError(
            f"{path} is no key of [trust] operator_keys, so the order would be refused; "
            f"add {path}.pub there"
        )
    return key


async def publish(settings: Settings, command: Command, key: keys.PrivateKey) -> bytes:
    """Put a signed order on ``commands``, and wait for its acknowledgement; returns the value."""
    from nnsec.adapters import kafka
    from nnsec.adapters.records import Out
    from schemas.headers import event_headers

    kafka.outage.listen()
    await kafka.declare(settings, now=command.issued)
    headers = event_headers(
        "command", id=command.id, source_role="operator", time=command.issued
    )  # fmt: skip
    envelope = sign_command(command, key)
    async with kafka.publisher(settings) as send:
        await send(Out("commands", envelope, command.model.encode(), headers))
    return envelope
