"""Reading from Kafka, in a thread of its own so that heartbeats never wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import CommitFailedError, ConsumerStoppedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from nnsec.adapters.batches import TAKEN_BYTES
from nnsec.adapters.clients import connected, outage
from streams.intake import Where

if TYPE_CHECKING:
    from streams.transport import Transport

POLL_SECONDS = 0.2
HEARTBEAT_SECONDS = 1.0
GATHER_MS = 2
GATHER_BYTES = 64 * 1024
"""While nobody waits for records the broker answers after so long, or with so much."""
ROOM_BYTES = 32 * 1024 * 1024
BATCH_BYTES = 8 * 1024 * 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """How records are read.

    Parameters
    ----------
    client:
        Arguments of every aiokafka client: addresses and secrets.
    max_batch:
        Records of one fetch and of one batch at most.
    fetch_wait_ms:
        How long the broker may hold a fetch back when there is nothing to read.
    session_timeout:
        s; so long after it died a member's partitions go to others.
    room_bytes:
        Bytes that may wait before fetching pauses.
    batch_bytes:
        Bytes from which on a batch takes no more records.
    """

    client: Mapping[str, Any]
    max_batch: int = 512
    fetch_wait_ms: int = 100
    session_timeout: float = 10.0
    room_bytes: int = ROOM_BYTES
    batch_bytes: int = BATCH_BYTES


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a group goes on in a partition, and the first offset that its log still holds."""

    offset: int
    first: int


class Unreadable(Exception):  # noqa: N818 - no error of the program: what lies in the log is odd
    """A partition holds what cannot be read at an offset, however often it is tried."""

    def __init__(self, tp: TP, offset: int, reason: BaseException) -> None:
        super().__init__(f"{tp.topic}/{tp.partition}/{offset}: {reason!r}")
        self.tp = tp
        self.offset = offset
        self.reason = reason


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Owns the aiokafka consumer."""

    transport: Transport
    epoch = 0
    _careful: set[TP]
    """Partitions that are read record by record, as something in them could not be read."""

    async def on_start(self) -> None:
        """Connect, waiting for a broker that is away."""
        self.time_started = asyncio.get_running_loop().time()
        self._careful = set()
        self._consumer = await connected(self._new_consumer)

    def _new_consumer(self) -> AIOKafkaConsumer:
        options, group = self.transport.options, self.app.conf.id
        session = int(options.session_timeout * 1000)
        return AIOKafkaConsumer(
            **options.client,
            group_id=group,
            client_id=group,
            partition_assignment_strategy=[RangePartitionAssignor],
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=options.fetch_wait_ms,
            max_poll_records=options.max_batch,
            session_timeout_ms=session,
            rebalance_timeout_ms=max(session, 10_000),
            heartbeat_interval_ms=int(min(HEARTBEAT_SECONDS * 1000, session / 3)),
            max_poll_interval_ms=24 * 3600 * 1000,
        )

    async def fetch(
        self, active: set[TP], limit: int, *, gather: bool
    ) -> tuple[int, Mapping[Any, list[Any]]]:
        """Read what has come, up to a limit, with the epoch that it was read in.

        Parameters
        ----------
        gather:
            Let the broker wait a moment before it answers the next request, so that more comes at
            once: nobody waits for it.
        """
        return await self.call_thread(self._fetch, active, limit, gather)  # type: ignore[no-any-return]

    async def _fetch(
        self, active: set[TP], limit: int, gather: bool
    ) -> tuple[int, Mapping[Any, list[Any]]]:
        # aiokafka's own `getmany` would wait inside, so that a seek could come in between; its
        # parts are not public, but pinned with the version.
        consumer: Any = self._ensure_consumer()
        fetcher: Any = consumer._fetcher  # noqa: SLF001
        subscription: Any = consumer._subscription  # noqa: SLF001
        # Of the request that goes out once the records are taken. Here they must not wait instead:
        # as long as they do aiokafka asks for no more.
        fetcher._fetch_min_bytes = GATHER_BYTES if gather else 1  # noqa: SLF001
        wait_ms = self.transport.options.fetch_wait_ms
        fetcher._fetch_max_wait_ms = min(GATHER_MS, wait_ms) if gather else wait_ms  # noqa: SLF001
        deadline = asyncio.get_running_loop().time() + POLL_SECONDS
        while True:
            if consumer._closed or fetcher._closed:  # noqa: SLF001
                raise ConsumerStoppedError
            if subscription.reassignment_in_progress:
                await asyncio.sleep(POLL_SECONDS / 4)
                return self.epoch, {}
            with subscription.fetch_context():
                # Without a timeout this never yields to the loop, so nobody seeks between
                # reading and noting the epoch.
                found = await self._read(active, limit)
            left = deadline - asyncio.get_running_loop().time()
            if found or left <= 0:
                return self.epoch, found
            waiter = fetcher._create_fetch_waiter()  # noqa: SLF001
            _, pending = await asyncio.wait([waiter], timeout=left)
            for future in pending:
                future.cancel()

    async def _read(self, active: set[TP], limit: int) -> dict[Any, list[Any]]:
        """Read what has come, partition by partition.

        One that cannot be read must not have aiokafka drop what it read of others before it. Read
        record by record, it gives what lies before that, and only then it raises.
        """
        fetcher: Any = self._ensure_consumer()._fetcher  # noqa: SLF001
        found: dict[Any, list[Any]] = {}
        size = 0
        for tp in [tp for tp in fetcher._records if tp in active]:  # noqa: SLF001
            # To the end: what is left of one partition must not go before all others again.
            result = fetcher._records[tp] = fetcher._records.pop(tp)  # noqa: SLF001
            fetched = isinstance(result, FetchResult)
            part: list[Any] = []
            try:
                while tp in fetcher._records and limit:  # noqa: SLF001
                    most = 1 if tp in self._careful else limit
                    more = (await fetcher.fetched_records({tp}, 0, most)).get(tp, [])
                    part += more
                    limit -= len(more)
                    if not more or most > 1:
                        break
                else:
                    self._careful.discard(tp)
            except Exception as error:
                # Else aiokafka would go on behind the records that it has not given.
                fetcher._records.pop(tp, None)  # noqa: SLF001
                first = not found and not part  # else it comes again, behind what was read
                if first and not fetched:
                    raise  # what the broker said
                if first and tp in self._careful:
                    raise Unreadable(tp, self._position(tp), error) from error
                if fetched:
                    self._careful.add(tp)
            if part:
                found[tp] = part
                size += sum([len(message.value or b"") for message in part])
            if not limit or size >= TAKEN_BYTES:
                break
        return found

    def _position(self, tp: TP) -> int:
        """Where a partition is read on; −1 if it is not held, or has no position yet."""
        subscription: Any = self._ensure_consumer()._subscription.subscription  # noqa: SLF001
        held = subscription.assignment if subscription is not None else None
        state = held.state_value(tp) if held is not None else None
        return int(state.position) if state is not None and state.has_valid_position else -1

    async def place(self, epoch: int, offsets: Mapping[Where, int]) -> None:
        """Set positions; all that is fetched from then on belongs to the epoch."""
        await self.call_thread(self._place, epoch, offsets)

    async def _place(self, epoch: int, offsets: Mapping[Where, int]) -> None:
        consumer = self._ensure_consumer()
        for where, offset in offsets.items():
            consumer.seek(TopicPartition(*where), offset)
        self.epoch = epoch

    async def beginnings(self) -> dict[Where, Beginning]:
        """Find where to begin in each partition that is held."""
        return await self.call_thread(self._beginnings)  # type: ignore[no-any-return]

    async def _beginnings(self) -> dict[Where, Beginning]:
        consumer = self._ensure_consumer()
        held = consumer.assignment()
        firsts = await consumer.beginning_offsets(held) if held else {}
        found: dict[Where, Beginning] = {}
        for tp in held:
            committed = await consumer.committed(tp)
            # Without one the partition is younger than the group, so all of it is new.
            offset = firsts[tp] if committed is None else committed
            found[tp.topic, tp.partition] = Beginning(offset, firsts[tp])
        return found

    async def edges(self, tp: TP) -> tuple[int, int, int]:
        """Find a partition's position, the first offset in its log, and the one after its last."""
        return await self.call_thread(self._edges, tp)  # type: ignore[no-any-return]

    async def _edges(self, tp: TP) -> tuple[int, int, int]:
        consumer = self._ensure_consumer()
        firsts = await consumer.beginning_offsets([tp])
        ends = await consumer.end_offsets([tp])
        return self._position(tp), firsts[tp], ends[tp]

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit; that another member holds the partition, or nobody answers, is no crash."""
        consumer = self._ensure_consumer()
        held = consumer.assignment()
        wanted = {
            TopicPartition(*tp): OffsetAndMetadata(offset, "")
            for tp, offset in offsets.items()
            if TopicPartition(*tp) in held
        }
        try:
            if wanted:
                await consumer.commit(wanted)
        except (CommitFailedError, IllegalStateError) as error:
            logger.info("%s: commit after a rebalance: %s", self.app.conf.id, type(error).__name__)
            return False
        except KafkaError as error:
            outage.away(error)
            return False
        return bool(wanted)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Leave Faust's guesses about slow streams out; lag and readiness are measured."""
