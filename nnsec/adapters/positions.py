"""Where groups stand: the bounds of logs, committed offsets, and where a new group begins."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError, KafkaError

from nnsec.adapters.clients import (
    RETRY_SECONDS,
    bare_name,
    client_options,
    closed,
    connected,
    outage,
    topic_name,
)
from nnsec.errors import ConfigError
from nnsec.settings import Settings
from schemas.base import to_millis

LATEST, EARLIEST = "latest", "earliest"
_FETCHES = 40


@dataclass(frozen=True, slots=True)
class Bounds:
    """One partition: its first offset, the offset after its last, and what a group committed."""

    begin: int
    end: int
    committed: int | None

    @property
    def lag(self) -> int:
        """Records that the group has not finished."""
        return self.end - (self.begin if self.committed is None else self.committed)


class Positions:
    """Reads where a group stands, without joining it; an asynchronous context manager.

    Parameters
    ----------
    role:
        The group is ``<prefix><role>``.
    topics:
        Without the prefix; declared before.
    """

    def __init__(self, settings: Settings, role: str, topics: Sequence[str]) -> None:
        self._settings = settings
        self._group = topic_name(settings, role)
        self._topics = tuple(topics)
        self._consumer: Any = None

    async def __aenter__(self) -> Self:
        options = client_options(self._settings.kafka)
        options["fetch_max_wait_ms"] = self._settings.kafka.fetch_max_wait_ms
        self._consumer = await connected(
            lambda: AIOKafkaConsumer(**options, group_id=self._group, enable_auto_commit=False)
        )
        try:
            await self._assign()
        except BaseException:
            await closed(self._consumer)
            raise
        return self

    async def _assign(self) -> None:
        """Hold all partitions by hand, which makes no member of the group."""
        names = [topic_name(self._settings, topic) for topic in self._topics]
        client = self._consumer._client  # noqa: SLF001 - there is no other way to the metadata
        while True:
            await client.set_topics(names)
            found = {name: client.cluster.partitions_for_topic(name) for name in names}
            if all(found.values()):
                break
            await asyncio.sleep(RETRY_SECONDS)
        self._consumer.assign([TopicPartition(t, p) for t, ps in found.items() for p in ps or ()])

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await closed(self._consumer)

    async def read(self) -> Mapping[tuple[str, int], Bounds]:
        """Bounds by (topic, partition)."""
        while True:
            try:
                return await self._read()
            except KafkaError as error:
                outage.away(error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _read(self) -> Mapping[tuple[str, int], Bounds]:
        consumer = self._consumer
        held = list(consumer.assignment())
        begins = await consumer.beginning_offsets(held)
        ends = await self._ends()
        return {
            (bare_name(self._settings, tp.topic), tp.partition): Bounds(
                begins[tp], ends[tp], await consumer.committed(tp)
            )
            for tp in held
        }

    async def _ends(self) -> dict[TopicPartition, int]:
        """Find the ends by fetching there.

        The embedded broker lists the end as just after the first record of the last batch; the
        high watermark that comes with a fetch is right on every broker.
        """
        consumer = self._consumer
        listed: dict[TopicPartition, int] = await consumer.end_offsets(list(consumer.assignment()))
        for tp, end in listed.items():
            consumer.seek(tp, end)
        for _ in range(_FETCHES):
            if all(consumer.highwater(tp) is not None for tp in listed):
                break
            await consumer.getmany(timeout_ms=50)
        return {tp: max(end, consumer.highwater(tp) or 0) for tp, end in listed.items()}

    async def commit(self, offsets: Mapping[tuple[str, int], int]) -> bool:
        """Commit for the group; false if it has members, which then do so themselves."""
        chosen = {
            TopicPartition(topic_name(self._settings, topic), partition): offset
            for (topic, partition), offset in offsets.items()
        }
        while True:
            try:
                await self._consumer.commit(chosen)
            except CommitFailedError:
                return False
            except KafkaError as error:
                outage.away(error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return True

    async def at_time(self, milliseconds: int) -> Mapping[tuple[str, int], int]:
        """Offset of the first record at or after a time; the end where there is none."""
        held = list(self._consumer.assignment())
        found = await self._consumer.offsets_for_times(dict.fromkeys(held, milliseconds))
        ends = await self._ends()
        return {
            (bare_name(self._settings, tp.topic), tp.partition): (
                found[tp].offset if found.get(tp) is not None else ends[tp]
            )
            for tp in held
        }


async def commit_start(settings: Settings, role: str, topics: Sequence[str]) -> None:
    """Commit where a group that has no offset yet begins, so that nothing sent later is missed.

    Raises
    ------
    ConfigError
        If ``start_at`` is neither ``latest`` nor ``earliest`` nor an RFC 3339 time.
    """
    start_at = parse_start(settings.kafka.start_at)
    async with Positions(settings, role, topics) as positions:
        bounds = await positions.read()
        fresh = {where for where, found in bounds.items() if found.committed is None}
        if not fresh:
            return
        # A topic that the group knows has grown: what is in its new partitions came since.
        grown = {topic for topic, _ in bounds.keys() - fresh}
        if isinstance(start_at, int):
            offsets = dict(await positions.at_time(start_at))
        else:
            offsets = {w: b.end if start_at == LATEST else b.begin for w, b in bounds.items()}
        offsets |= {where: bounds[where].begin for where in fresh if where[0] in grown}
        await positions.commit({where: offsets[where] for where in fresh})


def parse_start(start_at: str) -> str | int:
    """Read ``start_at``; a time becomes milliseconds since 1970.

    >>> parse_start("1970-01-01T00:00:01Z")
    1000
    """
    if start_at in (LATEST, EARLIEST):
        return start_at
    try:
        found = datetime.fromisoformat(start_at)
    except ValueError as error:
        raise ConfigError(f"[kafka] start_at is {start_at!r}: {_CHOICES}") from error
    if found.tzinfo is None:
        raise ConfigError(f"[kafka] start_at {start_at!r} has no zone: {_CHOICES}")
    return to_millis(found)


_CHOICES = "write latest, earliest or an RFC 3339 time such as 2026-01-02T03:04:05Z"
