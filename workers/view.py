"""The view: what holds now, in Redis, for people and programs to read. Its only writer.

Kafka is the record. Each change and the place in the log from which it came are written by one
script (view.lua), so that Redis may be killed, emptied or set back at any moment: the worker sees
that the place is not where it left it, and goes on from the place that it finds; where there is
none, or it is of a log that is no more, it builds the view anew.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence

import redis.asyncio as redis
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from nnsec.adapters import kafka
from nnsec.adapters.records import Record
from nnsec.errors import TransientError
from nnsec.settings import Settings
from nnsec.trust import keys as trust_keys
from workers import changes, process, store
from workers.changes import Change
from workers.process import Process
from workers.scripts import Lost, Refused, Scripts, offsets

COUNTS = ("training.accepted", "training.quarantine")
TOPICS = ("incidents", "models", "sources", *COUNTS)
LOOK_EVERY = 1.0
"""Seconds between two looks at whether the view is still there."""
BEHIND = "the view does not show yet all that is in the log"
POLL_MS = 200
CONNECTING = 60.0
"""Seconds for a whole topic to be read, over a connection of its own."""
BATCH = 500
COUNTED = 10_000
"""Sources that are counted in all partitions of a topic together: users choose their names."""

logger = logging.getLogger(__name__)


class View:
    """Applies records to Redis, exactly once each.

    Parameters
    ----------
    settings:
        ``[redis]``, ``[kafka]`` and ``[trust] release_keys`` count.
    consumer:
        Reads all partitions of `TOPICS`, without a group.
    client:
        Of Redis.
    """

    def __init__(self, settings: Settings, consumer: AIOKafkaConsumer, client: redis.Redis) -> None:
        self._settings = settings
        self._consumer = consumer
        self._names = store.Keys(settings.redis.prefix)
        self._scripts = Scripts(client, self._names)
        self._topics = {kafka.topic_name(settings, name): name for name in TOPICS}
        self._keys = tuple(trust_keys.load_public(p) for p in settings.trust.release_keys)
        self._believed: dict[str, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._refused: Counter[tuple[str, int]] = Counter()
        self._partitions = self._assigned()

    def _assigned(self) -> dict[str, TopicPartition]:
        return {f"{self._topics[p.topic]}/{p.partition}": p for p in self._consumer.assignment()}

    async def resume(self) -> None:
        """Go on from the positions in Redis; build anew where they are missing or of other logs."""
        self._partitions = self._assigned()
        stored = await self._scripts.stored()
        logs = await self._identities()
        known = offsets(stored)
        positions = {place: known[place] for place in self._partitions if place in known}
        ends, starts = await self._bounds()
        others = [name for name, log in logs.items() if stored.get(name) != log]
        others += [p for p, at in positions.items() if at >= ends[self._partitions[p]]]
        if positions and others:
            # The topics were made anew: what the view shows is of logs that are no more.
            logger.warning("the view is of another log at %s", ", ".join(sorted(others)))
        if others or len(positions) < len(self._partitions):
            positions = await self.clear()
        for place, at in positions.items():
            partition = self._partitions[place]
            self._consumer.seek(partition, max(at + 1, starts[partition]))
        self._believed, self._ends = positions, dict(ends)

    async def _bounds(self) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        """Ends and beginnings of the partitions."""
        own = list(self._partitions.values())
        starts = await process.answered(self._consumer.beginning_offsets(own))
        ends = await process.answered(self._consumer.end_offsets(own))
        return {p: self._end(p, end) for p, end in ends.items()}, starts

    def _end(self, partition: TopicPartition, said: int) -> int:
        # The embedded broker names the end of a log as just after the first record of its last
        # batch; what it says when records are fetched is right.
        return max(said, self._consumer.highwater(partition) or 0)

    async def _identities(self) -> dict[str, str]:
        """Field of the positions to the identity of the log that it is about."""
        found = await process.answered(kafka.identities(self._settings), CONNECTING)
        return {f"{topic}/log": str(found.get(topic, "")) for topic in TOPICS}

    async def clear(self) -> dict[str, int]:
        """Empty the view at once, and set its places before the beginning of the logs."""
        logger.info("building the view anew")
        positions = dict.fromkeys(self._partitions, -1)
        await self._scripts.clear({**await self._identities(), **positions})
        return positions

    async def look(self) -> None:
        """Check that Redis holds what was written to it.

        Raises
        ------
        Lost
            If it was emptied or set back.
        """
        stored = offsets(await self._scripts.stored())
        if any(stored.get(place) != at for place, at in self._believed.items()):
            raise Lost("the view was emptied or set back")

    async def poll(self) -> int:
        """Apply what has come; returns how many records that was.

        Raises
        ------
        Lost
            As `apply`, or if a partition is read from its beginning again: aiokafka does so with
            all of them where a topic gets another partition, and where one was made anew.
        """
        # Statements first: the counts of a source with one are not forgotten.
        first = [p for p in await self.behind() if self._topics[p.topic] not in COUNTS]
        batch = await self._consumer.getmany(*first, timeout_ms=POLL_MS, max_records=BATCH)
        count = 0
        for messages in batch.values():
            records = [kafka.record_of(self._settings, message) for message in messages]
            if records[0].offset <= self._believed.get(_place(records[0]), -1):
                raise Lost(f"{_place(records[0])} is read again from {records[0].offset}")
            await self.apply(records)
            count += len(records)
        return count

    async def apply(self, records: Sequence[Record]) -> None:
        """Apply records of one partition in order, in one round trip; not those applied before.

        Raises
        ------
        Lost
            If Redis is elsewhere; nothing of what is out of place was written.
        """
        records = [r for r in records if r.offset > self._believed.get(_place(r), -1)]
        try:
            last = await self._scripts.apply(self._changes(records), self._believed)
        except Refused as error:
            change = error.change
            self._refused[change.place, change.offset] += 1
            await self.clear()
            raise Lost(f"{change.place}/{change.offset}: {error}") from error
        self._believed.update(last)

    async def behind(self) -> Sequence[TopicPartition]:
        """Partitions of which not yet all was applied that they held at the last `resume`."""
        for partition, end in list(self._ends.items()):
            if await self._consumer.position(partition) >= self._end(partition, end):
                del self._ends[partition]
        return tuple(self._ends)

    def _changes(self, records: Sequence[Record]) -> Sequence[Change]:
        if not records:
            return ()
        if records[0].topic in COUNTS:
            topic = f"{records[0].topic}/"
            places = sum(place.startswith(topic) for place in self._partitions)
            return (changes.counts(records, self._names, max(1, COUNTED // max(1, places))),)
        return [self._change(record) for record in records]

    def _change(self, record: Record) -> Change:
        if self._refused[_place(record), record.offset] < 2:
            return changes.of(record, self._names, self._keys)
        # A view built anew holds nothing of others: it is the record that is at fault.
        logger.warning("left out %s/%d: Redis refuses it", _place(record), record.offset)
        return Change("skip", _place(record), record.offset)


def _place(record: Record) -> str:
    return f"{record.topic}/{record.partition}"


async def follow(settings: Settings, running: Process) -> None:
    """Keep the view up to date until asked to end."""
    async with (
        store.connect(settings) as client,
        process.reader(settings, TOPICS) as consumer,
    ):
        view = View(settings, consumer, client)
        placed, looked = False, 0.0
        while not running.stop.is_set():
            try:
                if not placed or kafka.outage.since is not None:
                    await view.resume()
                    kafka.outage.back()
                    placed = True
                    running.problem("start", BEHIND if await view.behind() else "")
                    running.problem("Redis")
                elif time.monotonic() - looked > LOOK_EVERY:
                    await view.look()
                    looked = time.monotonic()
                await view.poll()
                running.problem("start", BEHIND if await view.behind() else "")
            except Lost as error:
                logger.warning("%s; going on from where it is", error)
                running.problem("start", BEHIND)
                placed = False
            except KafkaError as error:
                kafka.outage.away(error)
                await process.pause(running)
            except TransientError as error:
                running.problem("Redis", str(error))
                placed = False
                await process.pause(running)


async def run(settings: Settings) -> int:
    """Run the view worker; returns the exit status."""
    return await process.run(settings, "view", lambda running: follow(settings, running))


async def rebuild(settings: Settings) -> int:
    """Empty the view and replay it to the end of the log; returns how many records it took.

    Raises
    ------
    TransientError
        If Redis or Kafka goes away meanwhile; a view worker or another try does the rest.
    """
    async with (
        store.connect(settings) as client,
        process.reader(settings, TOPICS) as consumer,
    ):
        view = View(settings, consumer, client)
        try:
            await view.clear()
            return await _replay(view)
        except KafkaError as error:
            raise TransientError(f"Kafka: {error}; the view is not complete") from error


async def _replay(view: View) -> int:
    await view.resume()
    count = 0
    while await view.behind():
        try:
            count += await view.poll()
        except Lost:  # a view worker that runs too was first
            await view.resume()
    return count
