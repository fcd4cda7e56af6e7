"""The remediation worker: incidents and commands become actions, each carried out once.

An offset is committed when what follows from its record stands on ``actions``; from there, not
from the offset, an action is resumed. Redis is not needed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from nnsec import policy
from nnsec.adapters import kafka
from nnsec.adapters.records import Out, Record
from nnsec.errors import NNSecError, SchemaError, TransientError
from nnsec.settings import Settings
from schemas.dead_letter import dead_letter
from schemas.incident import Incident
from workers import process, site
from workers.actions import discover
from workers.desk import Desk
from workers.lanes import Lanes
from workers.process import Process
from workers.site import Site
from workers.vault import RegistryVault, Vault, warm

GROUP = "remediation"
TOPICS = ("incidents", "commands")
COUNTED = ("inference.inputs", "training.samples", "incidents")
POLL_MS = 200

logger = logging.getLogger(__name__)


class Remediation:
    """The work of one process.

    Parameters
    ----------
    place:
        What is known; read to the end.
    vault:
        The registry.
    """

    def __init__(self, place: Site, vault: Vault) -> None:
        self.site = place
        self.lanes = Lanes(place, vault)
        self._desk = Desk(place)

    async def take(self, record: Record) -> None:
        """Carry one record so far that its offset may be committed."""
        try:
            if record.topic == "incidents":
                incident = Incident.decode(record.value)
                await self.lanes.propose(incident)
            else:
                await self._desk.take(record)
                self.lanes.wake()
        except TransientError:
            raise
        except NNSecError as error:
            logger.warning(
                "%s/%d/%d is without effect: %s",
                record.topic, record.partition, record.offset, error,
            )  # fmt: skip
            await self._bury(record, error)

    async def _bury(self, record: Record, error: NNSecError) -> None:
        fault = error
        if not isinstance(error, SchemaError):
            fault = SchemaError(str(error), field="value", error_class=type(error).__name__)
        key, value, headers = dead_letter(
            record.key, record.value, record.headers, log=self.site.logs[record.topic],
            topic=record.topic, partition=record.partition, offset=record.offset,
            timestamp=record.timestamp, error=fault, attempts=1, limit=1024 * 1024,
        )  # fmt: skip
        await self.site.publish(Out("dead-letters", value, key, tuple(headers)))


class _Shift(ConsumerRebalanceListener):  # type: ignore[misc]
    """Lanes stop when partitions go, and start from the log when they come."""

    def __init__(self, settings: Settings, remediation: Remediation, running: Process) -> None:
        self._settings = settings
        self._work = remediation
        self._running = running

    async def on_partitions_revoked(self, revoked: list[TopicPartition]) -> None:
        del revoked
        self._work.lanes.hold(frozenset())
        await self._work.lanes.stop()

    async def on_partitions_assigned(self, assigned: list[TopicPartition]) -> None:
        name = kafka.topic_name(self._settings, "incidents")
        # What another worker said last must be known before its actions are gone on with.
        async for record in kafka.read_to_end(self._settings, ("actions",)):
            self._work.site.learn(record)
        self._work.lanes.hold(frozenset(p.partition for p in assigned if p.topic == name))
        self._work.lanes.wake()
        self._running.problem("start")


async def work(settings: Settings, running: Process, vault: Vault | None = None) -> None:
    """Consume incidents and commands until asked to end."""
    policy.check(settings.policy, {name: one.kinds for name, one in discover().items()})
    async with _site(settings, running) as (place, following):
        remediation = Remediation(place, vault or RegistryVault(settings))
        async with process.reader(
            settings, (), group_id=kafka.topic_name(settings, GROUP),
            session_timeout_ms=int(settings.kafka.session_timeout * 1000),
            heartbeat_interval_ms=1000,
            # A model's incidents and commands come to one worker, as both topics have equal counts.
            partition_assignment_strategy=(RangePartitionAssignor,),
        ) as consumer:  # fmt: skip
            warming = asyncio.create_task(_warm(running))
            names = [kafka.topic_name(settings, topic) for topic in TOPICS]
            consumer.subscribe(names, listener=_Shift(settings, remediation, running))
            try:
                await _together(
                    *(_consume(running, remediation, consumer, name) for name in names),
                    _tend(running, remediation, following),
                )
            finally:
                await remediation.lanes.stop()
                await asyncio.gather(warming, return_exceptions=True)


async def _together(*works: Coroutine[Any, Any, None]) -> None:
    """Run them side by side until all have ended; the error of one ends all."""
    tasks = [asyncio.create_task(one) for one in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _warm(running: Process) -> None:
    """Work begins meanwhile, but ready is who can roll back at once."""
    running.problems["checkpoints"] = "loading what checks checkpoints"
    await asyncio.to_thread(warm)
    running.problem("checkpoints")


async def _consume(
    running: Process, remediation: Remediation, consumer: AIOKafkaConsumer, topic: str
) -> None:
    """Take the records of one topic: no command waits until incidents are through."""
    while not running.stop.is_set():
        own = [one for one in consumer.assignment() if one.topic == topic]
        if not own:
            await process.pause(running, POLL_MS / 1000)
            continue
        try:
            batch = await consumer.getmany(*own, timeout_ms=POLL_MS)
        except KafkaError as error:
            kafka.outage.away(error)
            await process.pause(running)
            continue
        for partition, messages in batch.items():
            for message in messages:
                if running.stop.is_set():
                    return
                if partition not in consumer.assignment():
                    break  # taken away meanwhile: whoever has it now reads it
                if await _taken(
                    remediation, kafka.record_of(remediation.site.settings, message), running
                ):
                    await _commit(consumer, partition, message.offset + 1)


async def _tend(running: Process, remediation: Remediation, following: asyncio.Task[None]) -> None:
    """Look after what time alone changes, and after the tasks beside."""
    while not running.stop.is_set():
        await remediation.lanes.tick()
        if following.done():
            following.result()  # it ends by itself only with an error
        await process.pause(running, POLL_MS / 1000)


async def _taken(remediation: Remediation, record: Record, running: Process) -> bool:
    """Take a record, however long that lasts; False if asked to end before."""
    while not running.stop.is_set():
        try:
            await remediation.take(record)
        except TransientError as error:
            running.problem("the registry", str(error))
            await process.pause(running)
        else:
            running.problem("the registry")
            return True
    return False


async def _commit(consumer: AIOKafkaConsumer, partition: TopicPartition, offset: int) -> None:
    try:
        await consumer.commit({partition: offset})
    except (CommitFailedError, IllegalStateError) as error:
        logger.info("%s was taken away: %s", partition, error)
    except KafkaError as error:
        # The record comes again, and does nothing then; the next commit covers it.
        logger.info("an offset is not committed yet: %s", error)


@asynccontextmanager
async def _site(
    settings: Settings, running: Process
) -> AsyncIterator[tuple[Site, asyncio.Task[None]]]:
    """The site, read to the end, and the task that follows it as long as the block runs."""
    async with process.reader(settings, COUNTED) as consumer:
        counts = dict.fromkeys(COUNTED, 0)
        for partition in consumer.assignment():
            counts[kafka.bare_name(settings, partition.topic)] += 1
    async with kafka.publisher(settings) as publish:
        place = Site(settings, running.logs, counts, publish)
        tail = kafka.Tail(settings, site.TOPICS)
        await tail.start()
        try:
            async for record in tail.to_end():
                place.learn(record)
            place.caught_up()
            following = asyncio.create_task(_follow(tail, place))
            try:
                yield place, following
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
        finally:
            await tail.stop()


async def _follow(tail: kafka.Tail, place: Site) -> None:
    async for record in tail:
        place.learn(record)


async def run(settings: Settings, vault: Vault | None = None) -> int:
    """Run the remediation worker; returns the exit status.

    Raises
    ------
    ConfigError
        If the policy names what does not exist, or a key cannot be read.
    """
    return await process.run(settings, GROUP, lambda running: work(settings, running, vault))
