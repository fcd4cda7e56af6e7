"""Faust's Kafka transport, with what loses records or costs time in it replaced.

Faust keeps the group, the rebalances, the consumer's thread and the timing of commits. Replaced
are: fetching (records go to the role's `Intake` in chunks instead of one by one through four
tasks each), acknowledging (`Intake` is the ledger), seeking after a rebalance (an offset outside
the log stops the partition and is never reset silently), and the reaction to a broker that is
away (waiting instead of a crash).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    CommitFailedError,
    ConsumerStoppedError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from nnsec.adapters.clients import RETRY_SECONDS, connected, outage
from streams import metrics
from streams.intake import Intake, Where

POLL_SECONDS = 0.2
HEARTBEAT_SECONDS = 1.0
ROOM_BATCHES = 8
"""Batches that may wait in the queue; it is filled again when half of them are gone."""
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


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Owns the aiokafka consumer, in a thread of its own so that heartbeats never wait."""

    transport: Transport
    epoch = 0

    async def on_start(self) -> None:
        """Connect, waiting for a broker that is away."""
        self.time_started = asyncio.get_running_loop().time()
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

    async def fetch(self, active: set[TP], limit: int) -> tuple[int, Mapping[Any, list[Any]]]:
        """Read what has come, up to a limit, with the epoch that it was read in."""
        return await self.call_thread(self._fetch, active, limit)  # type: ignore[no-any-return]

    async def _fetch(self, active: set[TP], limit: int) -> tuple[int, Mapping[Any, list[Any]]]:
        # aiokafka's own `getmany` would wait inside, so that a seek could come in between; its
        # parts are not public, but pinned with the version.
        consumer: Any = self._ensure_consumer()
        fetcher: Any = consumer._fetcher  # noqa: SLF001
        subscription: Any = consumer._subscription  # noqa: SLF001
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
                found = await fetcher.fetched_records(active, timeout=0, max_records=limit)
            left = deadline - asyncio.get_running_loop().time()
            if found or left <= 0:
                return self.epoch, found
            waiter = fetcher._create_fetch_waiter()  # noqa: SLF001
            _, pending = await asyncio.wait([waiter], timeout=left)
            for future in pending:
                future.cancel()

    async def place(self, epoch: int, offsets: Mapping[Where, int]) -> None:
        """Set positions; all that is fetched from then on belongs to the epoch."""
        await self.call_thread(self._place, epoch, offsets)

    async def _place(self, epoch: int, offsets: Mapping[Where, int]) -> None:
        consumer = self._ensure_consumer()
        for where, offset in offsets.items():
            consumer.seek(TopicPartition(*where), offset)
        self.epoch = epoch

    async def beginnings(self) -> dict[Where, int]:
        """Find the offset to begin at in each partition that is held."""
        return await self.call_thread(self._beginnings)  # type: ignore[no-any-return]

    async def _beginnings(self) -> dict[Where, int]:
        consumer = self._ensure_consumer()
        found: dict[Where, int] = {}
        for tp in consumer.assignment():
            committed = await consumer.committed(tp)
            if committed is None:
                # The partition is younger than the group, so all of it is new.
                committed = (await consumer.beginning_offsets([tp]))[tp]
            found[tp.topic, tp.partition] = committed
        return found

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


class Consumer(driver.Consumer):
    """Feeds the role's intake and commits what its ledger says."""

    transport: Transport
    _thread: ConsumerThread

    def __post_init__(self) -> None:
        options = self.transport.options
        self.intake = Intake(
            options.max_batch * ROOM_BATCHES, options.room_bytes, options.batch_bytes
        )
        self.role = self.transport.role
        self.stopped_partitions: dict[Where, str] = {}
        self._placing: asyncio.Task[None] | None = None

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # --- fetching ---

    async def _drain_messages(self, fetcher: Any) -> None:
        while not (self.should_stop or fetcher.should_stop):
            if not self.flow_active or not self.intake.open or self.intake.full:
                await self.intake.wait_for_room(POLL_SECONDS / 4)
                continue
            active = {tp for tp in self._get_active_partitions() if self._runs(tp)}
            if not active:
                await asyncio.sleep(POLL_SECONDS)
                continue
            try:
                epoch, found = await self._thread.fetch(active, self.intake.room)
            except ConsumerStoppedError:
                return
            except OffsetOutOfRangeError as error:
                self._refuse(error)
            except NoOffsetForPartitionError:
                continue  # `_set_positions` gives it one
            except KafkaError as error:
                outage.away(error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                if found:
                    outage.back()
                self.intake.put(epoch, found)

    def _runs(self, tp: TP) -> bool:
        return (tp.topic, tp.partition) not in self.stopped_partitions

    def _refuse(self, error: OffsetOutOfRangeError) -> None:
        for tp, offset in error.args[0].items():
            self._stop_partition((tp.topic, tp.partition), f"offset {offset} is outside the log")

    def _stop_partition(self, where: Where, reason: str) -> None:
        if where not in self.stopped_partitions:
            self.stopped_partitions[where] = reason
            metrics.STOPPED.labels(self.role).set(len(self.stopped_partitions))
            logger.error(
                "%s: stopped reading %s/%d, %s: records were lost or the topic was made anew; "
                "reset the group's offset on purpose to go on", self.app.conf.id, *where, reason,
            )  # fmt: skip

    # --- rebalances ---

    def stop_flow(self) -> None:
        """Hand out no more batches; called when partitions are revoked and at the end."""
        self.intake.close()
        super().stop_flow()

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Let the batch in hand finish and commit it; then it no longer counts."""
        if self._placing is not None:
            self._placing.cancel()
        await super().on_partitions_revoked(revoked)
        self.intake.close()
        self.intake.void()

    async def perform_seek(self) -> None:
        """Begin to set positions; fetching waits for it, and it waits for the broker."""
        if self._placing is not None:
            self._placing.cancel()
        self._placing = asyncio.create_task(self._set_positions())

    def resume_flow(self) -> None:
        """Go on, at once if nothing is held and so nothing is to be positioned."""
        super().resume_flow()
        if not self.assignment():
            self.intake.void()
            self.intake.admit(frozenset())

    async def _set_positions(self) -> None:
        while True:
            try:
                offsets = await self._thread.beginnings()
            except (KafkaError, AssertionError) as error:
                outage.away(error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                break
        self.stopped_partitions.clear()
        metrics.STOPPED.labels(self.role).set(0)
        await self._thread.place(self.intake.void(), offsets)
        self.intake.admit(frozenset(offsets))

    async def restart(self) -> None:
        """Read again from what is committed, under a new assignment."""
        await self.commit()
        if self.flow_active:  # else the rebalance that goes on ends in the same
            await self.perform_seek()

    async def rewind(self, offsets: Mapping[Where, int]) -> None:
        """Read again from offsets that an agent names, of partitions that it holds."""
        self.intake.close()
        await self._thread.place(self.intake.void(), offsets)
        self.intake.resume()

    # --- committing ---

    async def wait_empty(self) -> None:
        """Give what is in hand or on its way time to finish, then commit."""
        if not await self.intake.wait_idle(self.transport.options.session_timeout / 2):
            logger.info("%s: a batch did not finish in time; it will come again", self.app.conf.id)
        await self.commit()

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:  # noqa: ARG002 - Faust's signature
        """Commit what is finished."""
        epoch, offsets = self.intake.epoch, self.intake.committable()
        if not offsets:
            return False
        done = await self._thread.commit({TP(*where): o for where, o in offsets.items()})
        if done:
            self.intake.committed(epoch, offsets)
        return bool(done)

    async def on_stop(self) -> None:
        """Stop setting positions, then as Faust does."""
        if self._placing is not None:
            self._placing.cancel()
        await super().on_stop()
        self.intake.void()


class Transport(driver.Transport):
    """Makes the consumer above.

    Parameters
    ----------
    role:
        Under which name its metrics are counted.
    """

    Consumer = Consumer

    def __init__(self, url: Any, app: Any, *, options: Options, role: str) -> None:
        super().__init__(url, app)
        self.options = options
        self.role = role
