"""Reading topics that every process reads in full: without a group, to the end, and on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from nnsec.adapters.clients import (
    RETRY_SECONDS,
    bare_name,
    client_options,
    closed,
    connected,
    outage,
    patient_wait_ms,
    topic_name,
)
from nnsec.adapters.records import Record
from nnsec.settings import Settings

_POLL_MS = 500


class Tail:
    """All records of some topics from the beginning, in log order per partition.

    Parameters
    ----------
    topics:
        Without the prefix; declared before.
    start:
        (topic, partition) to the offset to begin at; others begin at the beginning.
    only:
        Whether the partitions named in ``start`` are all that is read.
    follows:
        Whether it goes on after the end, with time, and not as fast as it can to the end.
    """

    def __init__(
        self,
        settings: Settings,
        topics: Sequence[str],
        start: Mapping[tuple[str, int], int] = MappingProxyType({}),
        *,
        only: bool = False,
        follows: bool = True,
    ) -> None:
        self._settings = settings
        self._follows = follows
        self._topics = () if only else tuple(topics)
        self._start = start
        self._next: dict[TopicPartition, int] = {}
        self._consumer: Any = None

    async def start(self) -> None:
        """Connect, waiting for a broker that is away."""
        kafka = self._settings.kafka
        names = [topic_name(self._settings, topic) for topic in self._topics]
        options = client_options(kafka)
        options |= {"auto_offset_reset": "earliest", "enable_auto_commit": False}
        options["fetch_max_wait_ms"] = (
            patient_wait_ms(kafka) if self._follows else kafka.fetch_max_wait_ms
        )
        self._consumer = await connected(lambda: AIOKafkaConsumer(*names, **options))
        places = {
            TopicPartition(topic_name(self._settings, topic), partition): offset
            for (topic, partition), offset in self._start.items()
        }
        self._next = dict(places)
        if not names:
            self._consumer.assign(list(places))
        for partition, offset in places.items():
            self._consumer.seek(partition, offset)

    async def stop(self) -> None:
        """Disconnect; twice is once."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await closed(consumer)

    async def starts(self, topic: str) -> dict[int, int]:
        """The first offset that a topic still has in each partition; empty if it cannot be told."""
        name = topic_name(self._settings, topic)
        places = [one for one in self._consumer.assignment() if one.topic == name]
        try:
            found = await self._consumer.beginning_offsets(places)
        except KafkaError as error:
            outage.away(error)
            return {}
        return {place.partition: offset for place, offset in found.items()}

    async def to_end(self) -> AsyncIterator[Record]:
        """Yield what lies before the end as it is now, then stop."""
        # Twice, as the embedded broker names the end of the log as just after the first record of
        # its last batch; what it says when records are fetched is right.
        for _ in range(2):
            ends = await self._ends()
            while await self._before(ends):
                for record in await self._poll():
                    yield record

    async def __aiter__(self) -> AsyncIterator[Record]:
        """Yield what comes, for ever."""
        while self._consumer is not None:
            for record in await self._poll():
                yield record

    async def _ends(self) -> Mapping[TopicPartition, int]:
        while True:
            try:
                found: Mapping[TopicPartition, int] = await self._consumer.end_offsets(
                    list(self._consumer.assignment())
                )
            except KafkaError as error:
                outage.away(error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return {
                    tp: max(end, self._consumer.highwater(tp) or 0) for tp, end in found.items()
                }

    async def _before(self, ends: Mapping[TopicPartition, int]) -> bool:
        for partition, end in ends.items():
            if end > 0 and await self._consumer.position(partition) < end:
                return True
        return False

    async def _poll(self) -> list[Record]:
        try:
            found = await self._consumer.getmany(timeout_ms=_POLL_MS)
        except KafkaError as error:
            outage.away(error)
            await asyncio.sleep(RETRY_SECONDS)
            return []
        # Where a topic gets another partition, aiokafka begins anew with all of them.
        return [
            record_of(self._settings, message)
            for partition, messages in found.items()
            for message in self._new(partition, messages)
        ]

    def _new(self, partition: TopicPartition, messages: Sequence[Any]) -> list[Any]:
        reached = self._next.get(partition, 0)
        self._next[partition] = max(reached, messages[-1].offset + 1)
        return [message for message in messages if message.offset >= reached]


async def read_to_end(
    settings: Settings,
    topics: Sequence[str],
    start: Mapping[tuple[str, int], int] = MappingProxyType({}),
    *,
    only: bool = False,
) -> AsyncIterator[Record]:
    """Yield all records that topics hold now; parameters as for `Tail`."""
    if only and not start:
        return
    tail = Tail(settings, topics, start, only=only, follows=False)
    await tail.start()
    try:
        async for record in tail.to_end():
            yield record
    finally:
        await tail.stop()


def record_of(settings: Settings, message: Any) -> Record:
    """Convert what aiokafka read."""
    return Record(
        bare_name(settings, message.topic), message.partition, message.offset, message.timestamp,
        message.key, message.value, tuple(message.headers),
    )  # fmt: skip
