"""What remediation lives among: accepted samples, signed commands, and workers that hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from nnsec.adapters import kafka
from nnsec.adapters.records import Out
from nnsec.settings import Settings
from nnsec.trust import keys
from nnsec.trust.commands import sign_command
from schemas.command import Command, CommandKind
from schemas.source import Source
from tests.fault.traffic import Feeder
from tests.workers import stage
from tests.workers.field import accepted

PARTITIONS = range(4)


async def identity(settings: Settings) -> UUID:
    """Of the log of training samples."""
    return (await kafka.declare(settings, now=datetime.now(UTC)))["training.samples"]


async def samples(settings: Settings, log: UUID, sources: Iterable[str]) -> None:
    """Let two samples of each source have been accepted."""
    outs = [
        out
        for source in sources
        for start in (int(uuid4().int % 10**9),)
        for out in accepted(log, (start, start + 1), source)
    ]
    async with kafka.publisher(settings) as publish:
        await publish(*outs)


async def order(
    feed: Feeder, key: keys.PrivateKey, what: CommandKind, source: str, model: str = "digits"
) -> None:
    """Send a signed command; its key is the source, so that a trap knows it unopened."""
    now = datetime.now(UTC)
    command = Command(
        id=f"{what}-{source}", kind=what, model=model, target=source, reason="a test",
        issued=now, expires=now + timedelta(hours=1),
    )  # fmt: skip
    await feed.send(sign_command(command, key), topic="commands", key=source.encode())


@asynccontextmanager
async def crew(settings: Settings) -> AsyncIterator[None]:
    """A stream worker in words only: it hears every source statement, and says so at once."""

    async def work() -> None:
        tail = kafka.Tail(settings, ("sources",))
        await tail.start()
        heard = 0
        async with kafka.publisher(settings) as publish:

            async def say() -> None:
                said = stage.status(list(PARTITIONS), sources=heard)
                await publish(Out("models.status", said.encode(), str(said.worker).encode()))

            async def listen() -> None:
                nonlocal heard
                async for record in tail:
                    heard = max(heard, Source.decode(record.value).version)
                    await say()

            listening = asyncio.create_task(listen())
            try:
                while True:
                    await say()
                    await asyncio.sleep(3.0)
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
                await tail.stop()

    working = asyncio.create_task(work())
    try:
        yield
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
