"""What every worker does around its work: wait for the broker, answer probes, end in good order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, KafkaTimeoutError

from nnsec.adapters import kafka
from nnsec.adapters.probes import Probes
from nnsec.adapters.records import Record
from nnsec.settings import Settings

RETRY = 0.5
"""Seconds until something that was away is tried again."""
ASK_EVERY = 2.0
"""Seconds between two looks at whether the broker is there."""
PATIENCE = 5.0
"""Seconds until an answer of the broker is overdue."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Process:
    """One worker process.

    Parameters
    ----------
    role:
        ``view``, ``remediation``, …
    logs:
        Topic to the identity of its log, once the broker answered.
    stop:
        Set when the process is asked to end.
    problems:
        What keeps it from being ready, by what it is about.
    """

    role: str
    logs: Mapping[str, UUID] = field(default_factory=dict)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    problems: dict[str, str] = field(default_factory=dict)

    def problem(self, about: str, text: str = "") -> None:
        """Say once that something is wrong, and once that it is over (an empty text)."""
        before = self.problems.get(about, "")
        if text:
            self.problems[about] = text
            if not before:
                logger.warning("%s: %s; waiting", self.role, text)
        elif before:
            del self.problems[about]
            logger.info("%s: %s is there", self.role, about)

    def ready(self) -> tuple[str, ...]:
        """What keeps this process from being ready; empty if nothing does."""
        away = () if kafka.outage.since is None else ("Kafka does not answer",)
        return (*self.problems.values(), *away)


async def run(settings: Settings, role: str, work: Callable[[Process], Awaitable[None]]) -> int:
    """Run one worker until it is asked to end.

    Parameters
    ----------
    work:
        Returns soon after ``process.stop`` is set, its effects complete and its offsets committed.

    Returns
    -------
    The exit status: 0, or 1 if the work did not end within ``kafka.drain_seconds``.

    Raises
    ------
    ConfigError
        If the configuration or a topic is wrong.
    """
    process = Process(
        role, problems={"the broker": "the broker has not answered", "start": "starting"}
    )
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        # Outside the main thread there are no signals: tests set `stop`, or cancel.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, process.stop.set)
    kafka.outage.listen()
    try:
        async with Probes(settings, role, process.ready):
            return await _until_stopped(settings, process, _declared(settings, process, work))
    finally:
        for number in signals:
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(number)


async def _declared(
    settings: Settings, process: Process, work: Callable[[Process], Awaitable[None]]
) -> None:
    declaring = asyncio.create_task(kafka.declare(settings, now=datetime.now(UTC)))
    stopped = asyncio.create_task(process.stop.wait())
    try:
        await asyncio.wait({declaring, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not declaring.done():
            return
        process.logs = declaring.result()
    finally:
        for task in (declaring, stopped):
            task.cancel()
        await asyncio.gather(declaring, stopped, return_exceptions=True)
    asking = asyncio.create_task(_ask(settings))
    process.problem("the broker")
    try:
        await work(process)
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def _ask(settings: Settings) -> None:
    """Ask the broker now and then: while it is away, reading says nothing."""
    place = TopicPartition(kafka.topic_name(settings, "meta"), 0)
    while True:
        try:
            async with reader(settings, ()) as consumer:
                while True:
                    await answered(consumer.end_offsets([place]))
                    kafka.outage.back()
                    await asyncio.sleep(ASK_EVERY)
        except KafkaError as error:
            kafka.outage.away(error)  # and over a new connection: the old one may be dead
        await asyncio.sleep(ASK_EVERY)


async def answered(call: Awaitable[T], seconds: float | None = None) -> T:
    """What Kafka answers.

    Raises
    ------
    KafkaError
        Also if it does not answer within so long, by default `PATIENCE`.
    """
    seconds = PATIENCE if seconds is None else seconds
    try:
        async with asyncio.timeout(seconds):
            return await call
    except TimeoutError as error:
        raise KafkaTimeoutError(f"no answer within {seconds:g} s") from error


async def _until_stopped(settings: Settings, process: Process, work: Awaitable[None]) -> int:
    task = asyncio.ensure_future(work)
    stopped = asyncio.create_task(process.stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        done, _ = await asyncio.wait({task}, timeout=settings.kafka.drain_seconds)
        if done:
            task.result()
            return 0
        logger.error("%s did not end within %g s", process.role, settings.kafka.drain_seconds)
        return 1
    finally:
        for one in (task, stopped):
            one.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


async def pause(process: Process, seconds: float = RETRY) -> None:
    """Wait, but not past the end."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.stop.wait(), seconds)


@contextlib.asynccontextmanager
async def reader(
    settings: Settings, topics: Sequence[str], **options: Any
) -> AsyncIterator[AIOKafkaConsumer]:
    """Open a consumer of topics, from the earliest record and without a group unless told."""
    given = {
        "group_id": None,
        "auto_offset_reset": "earliest",
        "enable_auto_commit": False,
        "fetch_max_wait_ms": kafka.patient_wait_ms(settings.kafka),
        **options,
    }
    names = [kafka.topic_name(settings, topic) for topic in topics]
    consumer = await kafka.connected(
        lambda: AIOKafkaConsumer(*names, **kafka.client_options(settings.kafka), **given)
    )
    try:
        yield consumer
    finally:
        await kafka.closed(consumer)


async def since(settings: Settings, topic: str, milliseconds: int) -> AsyncIterator[Record]:
    """Yield the records of a topic from a time (ms since 1970) to its end as it is now."""
    start: dict[tuple[str, int], int] = {}
    async with reader(settings, (topic,)) as consumer:
        partitions = list(consumer.assignment())
        try:
            found = await consumer.offsets_for_times(dict.fromkeys(partitions, milliseconds))
            ends = await consumer.end_offsets(partitions)
        except KafkaError as error:
            # Not every broker can look for a time; then the records are looked through.
            logger.debug("no offsets by time: %s", error)
        else:
            for partition, at in found.items():
                offset = at.offset if at is not None else ends[partition]
                start[topic, partition.partition] = offset
    async for record in kafka.read_to_end(settings, (topic,), start):
        if record.timestamp >= milliseconds:
            yield record
