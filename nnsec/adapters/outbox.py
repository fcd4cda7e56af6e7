"""Records on their way to the broker: whole batches, in order, until they are acknowledged.

Each partition has a lane. One batch of it is on its way at a time and what comes meanwhile waits
and goes together in the next, so that order is kept whatever fails, and batches grow by themselves
when the broker is slow. Whoever submits records gets one future for all of them.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from nnsec.adapters.clients import RETRY_SECONDS, outage
from nnsec.adapters.partition import partitions
from nnsec.adapters.records import Out
from nnsec.errors import NNSecError

Lines = Sequence[Out]


class TooLarge(NNSecError):  # noqa: N818 - a published dead-letter class
    """A record that its topic does not take, however often it is tried."""


class Ticket:
    """What one submission waits for: all of its records, or word that they were given up.

    Parameters
    ----------
    count:
        Records.
    stale:
        Asked before each try; true gives up.
    """

    __slots__ = ("future", "given_up", "left", "refused", "stale")

    def __init__(self, count: int, stale: Callable[[], bool]) -> None:
        self.future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.left = count
        self.stale = stale
        self.given_up = False
        self.refused: TooLarge | None = None
        self.settle(0)

    def settle(self, count: int) -> None:
        """Note that so many records need no more tries."""
        self.left -= count
        if self.left or self.future.done():
            return
        if self.refused is not None and not self.given_up:
            self.future.set_exception(self.refused)
        else:
            self.future.set_result(not self.given_up)

    def give_up(self, count: int) -> None:
        """Note that so many records are not sent any more."""
        self.given_up = True
        self.settle(count)

    def fail(self, error: BaseException) -> None:
        """Pass an error of the program on."""
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(slots=True)
class Parcel:
    """Records of one submission for one partition."""

    ticket: Ticket
    lines: Lines


@dataclass(frozen=True, slots=True)
class Load:
    """What goes in one batch."""

    batch: Any
    parcels: Sequence[Parcel]
    count: int


class Lane:
    """The way to one partition.

    Parameters
    ----------
    topic:
        As Kafka names it.
    refuse:
        Told the size (bytes) of a record that the broker refused as too large.
    """

    def __init__(
        self, producer: Any, topic: str, partition: int, refuse: Callable[[int], None]
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._partition = partition
        self._refuse = refuse
        self._queue: deque[Parcel] = deque()
        self._task: asyncio.Task[None] | None = None
        self._singly = 0
        """So many records go one by one, as they were refused together."""

    def add(self, parcel: Parcel) -> None:
        """Put records behind those that wait, and see that they go."""
        self._queue.append(parcel)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Give up what is not acknowledged."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        while self._queue:
            parcel = self._queue.popleft()
            parcel.ticket.give_up(len(parcel.lines))

    async def _run(self) -> None:
        while (load := self._load()) is not None:
            try:
                future = await self._producer.send_batch(
                    load.batch, self._topic, partition=self._partition
                )
                await future
            except MessageSizeTooLargeError as error:
                self._too_large(load, error)
            except KafkaError as error:
                outage.away(error)
                self._return(load)
                await asyncio.sleep(RETRY_SECONDS)
            except asyncio.CancelledError:
                self._return(load)
                raise
            except Exception as error:  # noqa: BLE001 - whoever submitted it must hear of it
                for parcel in load.parcels:
                    parcel.ticket.fail(error)
            else:
                outage.back()
                for parcel in load.parcels:
                    parcel.ticket.settle(len(parcel.lines))

    def _load(self) -> Load | None:
        """Fill one batch with what waits and still counts; None if nothing does."""
        batch, parcels, count = self._producer.create_batch(), [], 0
        while self._queue:
            parcel = self._queue[0]
            if parcel.ticket.stale():
                self._queue.popleft()
                parcel.ticket.give_up(len(parcel.lines))
                continue
            fitting = _fill(batch, parcel.lines[:1] if self._singly else parcel.lines)
            count += fitting
            if fitting:
                parcels.append(Parcel(parcel.ticket, parcel.lines[:fitting]))
            if fitting < len(parcel.lines):
                parcel.lines = parcel.lines[fitting:]
                break
            self._queue.popleft()
            if self._singly:
                break
        self._singly -= min(count, self._singly)
        return Load(batch, parcels, count) if count else None

    def _return(self, load: Load) -> None:
        self._queue.extendleft(reversed(load.parcels))

    def _too_large(self, load: Load, error: KafkaError) -> None:
        """Send one by one what was refused together; what was refused alone will never pass."""
        if load.count > 1:
            self._return(load)
            self._singly = load.count
            return
        (parcel,) = load.parcels
        self._refuse(size(parcel.lines[0]))
        parcel.ticket.refused = TooLarge(f"the broker refused a record: {error}")
        parcel.ticket.settle(1)


class Outbox:
    """Lanes for all partitions of all topics.

    Parameters
    ----------
    producer:
        A started aiokafka producer.
    name:
        Makes Kafka's name of a topic.
    limits:
        The largest batch that a topic takes (bytes), by its name in `Out`; what is refused all
        the same is learnt.
    limit:
        The largest batch that the producer takes.
    """

    def __init__(
        self, producer: Any, name: Callable[[str], str], limits: dict[str, int], limit: int
    ) -> None:
        self._producer = producer
        self._name = name
        self._limits = limits
        self._limit = limit
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._refused: set[str] = set()

    async def submit(self, outs: Lines, stale: Callable[[], bool]) -> asyncio.Future[bool]:
        """Put records on their way, in order for each partition; waits only for metadata.

        Returns
        -------
        Future
            True once all are acknowledged, false if some were given up; raises `TooLarge` after
            all others were acknowledged, if the broker refuses a record.

        Raises
        ------
        TooLarge
            Before any is sent, if a record is larger than its topic is known to take.
        """
        for out in outs:
            self._check(out)
        counts: dict[str, int] = {}
        for topic in dict.fromkeys([out.topic for out in outs]):
            counts[topic] = await self._count(topic, stale)
            if not counts[topic]:
                ticket = Ticket(1, stale)
                ticket.give_up(1)
                return ticket.future
        ticket = Ticket(len(outs), stale)
        for (topic, number), lines in _sorted(outs, counts).items():
            self._lane(topic, number).add(Parcel(ticket, lines))
        return ticket.future

    async def close(self) -> None:
        """Give up what is not acknowledged."""
        for lane in self._lanes.values():
            await lane.close()
        self._lanes.clear()

    async def _count(self, topic: str, stale: Callable[[], bool]) -> int:
        """How many partitions a topic has; waits for a broker that is away. 0 if given up."""
        while True:
            try:
                return len(await self._producer.partitions_for(self._name(topic)))
            except KafkaError as error:
                outage.away(error)
            if stale():
                return 0
            await asyncio.sleep(RETRY_SECONDS)

    def _lane(self, topic: str, partition: int) -> Lane:
        found = self._lanes.get((topic, partition))
        if found is None:

            def refuse(size: int) -> None:
                self._limits[topic] = min(self._limits.get(topic, size), size - 1)
                self._refused.add(topic)

            found = Lane(self._producer, self._name(topic), partition, refuse)
            self._lanes[topic, partition] = found
        return found

    def _check(self, out: Out) -> None:
        limit = self._limits.get(out.topic, self._limit)
        # Headers are small or few; where value and key take half of the room it is counted out, and
        # where something was refused before.
        plain = len(out.value or b"") + len(out.key or b"")
        near = plain > limit // 2 or len(out.headers) > _MANY or out.topic in self._refused
        if near and size(out) > limit:
            raise TooLarge(f"{out.topic} takes {limit} bytes, a record for it has {size(out)}")


_MANY = 16
"""Headers from which on their size is counted before a record is sent."""


def size(out: Out) -> int:
    """Bytes of a batch that holds one record alone."""
    batch: Any = DefaultRecordBatchBuilder(
        2, 0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=0, batch_size=1
    )
    batch.append(0, 0, key=out.key, value=out.value, headers=list(out.headers))
    return int(batch.size())


def _fill(batch: Any, lines: Iterable[Out]) -> int:
    """Append records until one does not fit any more; how many did."""
    count = 0
    for out in lines:
        added = batch.append(
            timestamp=out.timestamp, key=out.key, value=out.value, headers=list(out.headers)
        )
        if added is None:
            break
        count += 1
    return count


def _sorted(outs: Lines, counts: dict[str, int]) -> dict[tuple[str, int], list[Out]]:
    """Deal records out to partitions; those without a key go together to any one."""
    by_topic: dict[str, list[Out]] = {}
    for out in outs:
        by_topic.setdefault(out.topic, []).append(out)
    found: dict[tuple[str, int], list[Out]] = {}
    for topic, lines in by_topic.items():
        anywhere = random.randrange(counts[topic])
        hashed = iter(
            partitions(
                [out.key for out in lines if out.partition is None and out.key is not None],
                counts[topic],
            )
        )
        for out in lines:
            if out.partition is not None:
                number = out.partition
            else:
                number = anywhere if out.key is None else next(hashed)
            found.setdefault((topic, number), []).append(out)
    return found
