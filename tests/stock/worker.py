"""A worker on stock Faust, or on the sluice, that meets one mishap: ``worker.py SIDE FACT …``.

Both sides copy every record of a topic to another one. Files in a folder say how far it is.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import faust

from nnsec.errors import TransientError
from streams.sluice import Options, Out, Record, Sluice, Stateless

SIDE, FACT, SERVERS, SOURCE, TARGET, GROUP, FOLDER = sys.argv[1:]
POISON = b"12"
first_run = not (Path(FOLDER) / "began").exists()


def said(name: str) -> bool:
    return (Path(FOLDER) / name).exists()


def say(name: str) -> None:
    (Path(FOLDER) / name).touch()


def stumble(values: Sequence[bytes]) -> None:
    """Raise at one record, the first time."""
    if POISON in values and not said("stumbled"):
        say("stumbled")
        raise RuntimeError("stumbled")


async def linger() -> None:
    """In the first run, take long enough to be told to stop."""
    if first_run:
        say("began")
        await asyncio.sleep(3.0)


async def wait_for_the_outage() -> None:
    """Go on only when the broker does not answer any more."""
    say("began")
    while not said("frozen"):  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.02)


app: Any = faust.App(
    GROUP, broker=f"kafka://{SERVERS}", store="memory://", web_enabled=False,
    topic_disable_leader=True, topic_allow_declare=False, key_serializer="raw",
    value_serializer="raw", broker_commit_interval=0.2, broker_session_timeout=4.0,
    broker_rebalance_timeout=4.0, broker_heartbeat_interval=0.5, producer_request_timeout=1.0,
    stream_wait_empty=FACT != "hurried",
)  # fmt: skip
source = app.topic(SOURCE, key_serializer="raw", value_serializer="raw")
target = app.topic(TARGET, key_serializer="raw", value_serializer="raw")


async def send(values: Sequence[bytes]) -> None:
    for value in values:
        await (await target.send(value=value))


# --- stock Faust, as its guide shows it ---


async def take(stream: Any) -> None:
    """A batch raises."""
    async for values in stream.take(10, within=0.2):
        stumble(values)
        await send(values)


async def kept(stream: Any) -> None:
    """A batch raises, and the generator was kept in a variable."""
    batches = stream.take(10, within=0.2)
    async for values in batches:
        stumble(values)
        await send(values)


async def iterated(stream: Any) -> None:
    """A record raises in plain iteration."""
    async for value in stream:
        stumble([value])
        await send([value])


async def withheld(stream: Any) -> None:
    """A record is not acknowledged, so that it comes again."""
    async for event in stream.noack().events():
        if event.value == b"0" and first_run:
            say("began")
            continue
        await send([event.value])
        event.ack()


async def hurried(stream: Any) -> None:
    """A worker is told to stop in the middle of a batch."""
    async for values in stream.take(40, within=0.2):
        await linger()
        await send(values)


async def unheard(stream: Any) -> None:
    """A send fails, and nobody looks at its future."""
    async for values in stream.take(40, within=0.2):
        await wait_for_the_outage()
        for value in values:
            await target.send(value=value)


# --- the sluice ---


async def copy(records: Sequence[Record]) -> Sequence[Out]:
    values = [record.value or b"" for record in records]
    if FACT in ("take", "kept", "iterated"):
        stumble(values)
    elif FACT == "withheld" and first_run and b"0" in values:
        say("began")
        raise TransientError("not yet")
    elif FACT == "hurried":
        await linger()
    elif FACT == "unheard":
        await wait_for_the_outage()
    return [Out(TARGET, value) for value in values]


async def main() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if SIDE == "stock":
        agents: dict[str, Callable[[Any], Awaitable[None]]] = {
            "take": take, "kept": kept, "iterated": iterated, "withheld": withheld,
            "hurried": hurried, "unheard": unheard,
        }  # fmt: skip
        app.agent(source, name=FACT, concurrency=1)(agents[FACT])
    else:
        options = Options({"bootstrap_servers": SERVERS}, 10 if FACT != "hurried" else 40, 10, 4.0)
        Sluice(app, Stateless(FACT, (SOURCE,), copy), options=options)
    await app.start()
    await stop.wait()
    await app.stop()


asyncio.run(main())
