"""``nnsec alerts``: follow what is wrong, one line for each alert."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, get_args

import typer
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from rich.console import Console
from rich.text import Text

from nnsec.adapters.clients import client_options, closed, connected, outage, topic_name
from nnsec.adapters.declaration import declare
from nnsec.errors import ConfigError, SchemaError
from nnsec.settings import Settings
from schemas.alert import Alert
from schemas.base import SEVERITIES, Severity, format_time
from schemas.threats import THREATS
from workers.commands.plain import plain, printable

STYLES: dict[Severity, str] = {
    "info": "dim", "low": "cyan", "medium": "yellow", "high": "red", "critical": "white on red",
}  # fmt: skip
POLL_MS = 500


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which alerts to show; empty means any."""

    models: Collection[str] = ()
    threats: Collection[str] = ()
    severity: Severity = "info"

    def __contains__(self, alert: Alert) -> bool:
        return (
            (not self.models or alert.model in self.models)
            and (not self.threats or alert.threat in self.threats)
            and SEVERITIES.index(alert.severity) >= SEVERITIES.index(self.severity)
        )


def alerts(
    context: typer.Context,
    model: Annotated[list[str] | None, typer.Option(help="Only this model; repeatable.")] = None,
    threat: Annotated[list[str] | None, typer.Option(help="Only this threat; repeatable.")] = None,
    severity: Annotated[str, typer.Option(help="Only from this severity upwards.")] = "info",
    beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Show those of the past first.")
    ] = False,
    limit: Annotated[int, typer.Option(min=0, help="End after so many; 0 for never.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Follow alerts until Ctrl-C."""
    settings: Settings = context.obj
    wanted = Wanted(model or (), _known(threat or (), THREATS, "threat"), _severity(severity))
    outage.listen()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_show(settings, wanted, beginning=beginning, limit=limit, as_json=as_json))


async def _show(
    settings: Settings, wanted: Wanted, *, beginning: bool, limit: int, as_json: bool
) -> None:
    console, notes = Console(), Console(stderr=True)
    shown = 0
    if notes.is_terminal and not as_json:
        notes.print("following alerts; Ctrl-C ends it", style="dim")
    async with contextlib.aclosing(follow(settings, beginning=beginning)) as values:
        async for value in values:
            try:
                alert = Alert.decode(value)
            except SchemaError as error:
                notes.print(plain(f"no alert, passed over: {error}", "red"))
                continue
            if alert not in wanted:
                continue
            if as_json:
                typer.echo(alert.encode())
            else:
                console.print(line(alert), soft_wrap=True)
            shown += 1
            if shown == limit:
                return


async def follow(settings: Settings, *, beginning: bool) -> AsyncGenerator[bytes | None]:
    """Yield the values of ``alerts``, for ever, waiting for a broker that is away.

    Parameters
    ----------
    beginning:
        Whether to begin with the oldest that is kept; else with the next one.
    """
    await declare(settings, now=datetime.now(UTC))
    options = client_options(settings.kafka) | {
        "auto_offset_reset": "earliest" if beginning else "latest", "enable_auto_commit": False,
        "fetch_max_wait_ms": settings.kafka.fetch_max_wait_ms,
    }  # fmt: skip
    name = topic_name(settings, "alerts")
    consumer: Any = await connected(lambda: AIOKafkaConsumer(name, **options))
    try:
        while True:
            try:
                found = await consumer.getmany(timeout_ms=POLL_MS)
            except KafkaError as error:
                outage.away(error)
                continue
            outage.back()
            for message in (one for messages in found.values() for one in messages):
                yield message.value
    finally:
        await closed(consumer)


def line(alert: Alert) -> Text:
    """One alert for people; nothing in it is taken for markup or for a terminal's orders."""
    return Text.assemble(
        (format_time(alert.time)[:19].replace("T", " ") + "Z", "dim"), " ",
        (f"{alert.severity:<8}", STYLES[alert.severity]), " ",
        (alert.threat, "bold"), f" by {alert.subject.kind} ",
        (printable(alert.subject.id), "bold"),
        printable(f" on {alert.model} {alert.model_version}".rstrip() + f": {alert.explanation}"),
        (f" (evidence {alert.evidence:.2f}, alert {alert.seq} of this episode)", "dim"),
    )  # fmt: skip


def _known(values: Collection[str], there: Collection[str], what: str) -> Collection[str]:
    for value in values:
        if value not in there:
            raise ConfigError(f"no {what} {value!r}; there are {', '.join(there)}")
    return values


def _severity(text: str) -> Severity:
    _known([text], SEVERITIES, "severity")
    found: Severity = next(one for one in get_args(Severity) if one == text)
    return found
