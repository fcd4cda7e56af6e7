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
import time
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.errors import (
    ConsumerStoppedError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from nnsec.adapters.clients import RETRY_SECONDS, outage
from nnsec.adapters.records import Out
from streams import metrics
from streams.fetching import POLL_SECONDS, Beginning, ConsumerThread, Options, Unreadable
from streams.intake import Intake, Where
from streams.stops import NOTICE_SECONDS, Notice, Stop

ROOM_BATCHES = 8
"""Batches that may wait in the queue; it is filled again when half of them are gone."""

_SHOWN = 200
"""Characters of an error of a client library that are repeated."""

logger = logging.getLogger(__name__)


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
        self.stops: dict[Where, Stop] = {}
        self._begun: Mapping[Where, Beginning] = {}
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
                await self._fetch(active)
            except ConsumerStoppedError:
                return

    async def _fetch(self, active: set[TP]) -> None:
        """Queue what has come."""
        try:
            epoch, found = await self._thread.fetch(
                active, self.intake.room, gather=self.intake.busy
            )
        except OffsetOutOfRangeError as error:
            for tp, offset in error.args[0].items():
                await self._stop(tp, offset)
        except Unreadable as error:
            await self._stop(error.tp, error.offset, f"{error.reason!r}")
        except NoOffsetForPartitionError:
            pass  # `_set_positions` gives it one
        except ConsumerStoppedError:
            raise
        except KafkaError as error:
            outage.away(error)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            if found:
                outage.back()
            self.intake.put(epoch, found)

    def _runs(self, tp: TP) -> bool:
        return (tp.topic, tp.partition) not in self.stops

    async def _stop(self, tp: TP, offset: int, reason: str = "") -> None:
        """Read a partition no more, unless positions were set anew meanwhile."""
        epoch = self.intake.epoch
        try:
            position, first, end = await self._thread.edges(tp)
        except KafkaError as error:
            outage.away(error)
            return  # the next fetch finds the same
        if position != offset or self.intake.epoch != epoch:
            return
        stop = Stop(tp.topic, tp.partition, offset, first, end, time.time(), reason[:_SHOWN])
        self.stops[tp.topic, tp.partition] = stop
        metrics.STOPPED.labels(self.role).set(len(self.stops))
        logger.error(
            "%s: stopped reading %s/%d, %s; reset the group's offset on purpose to go on",
            self.app.conf.id, tp.topic, tp.partition, stop,
        )  # fmt: skip

    def notices(self, now: float) -> list[Out]:
        """What is to be written about partitions that stand still, as long as they do."""
        found: list[Out] = []
        for stop in self.stops.values():
            if time.monotonic() >= stop.due:
                found += self.transport.notice(stop, now)
                stop.told, stop.due = stop.told + 1, time.monotonic() + NOTICE_SECONDS
        return found

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

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Give up setting positions for the assignment before, which may still go on."""
        if self._placing is not None:
            self._placing.cancel()
        self.intake.void()
        await super().on_partitions_assigned(assigned, generation_id)

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
                self._begun = await self._thread.beginnings()
            except (KafkaError, AssertionError) as error:
                outage.away(error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                break
        self._forget(self.stops)
        offsets = {where: begun.offset for where, begun in self._begun.items()}
        await self._thread.place(self.intake.void(), offsets)
        self.intake.admit(frozenset(offsets))

    def _forget(self, places: Iterable[Where]) -> None:
        """Read partitions again that stood still, for they begin elsewhere."""
        for where in tuple(places):
            self.stops.pop(where, None)
        metrics.STOPPED.labels(self.role).set(len(self.stops))

    async def restart(self) -> None:
        """Read again from what is committed, under a new assignment."""
        await self.commit()
        if self.flow_active:  # else the rebalance that goes on ends in the same
            await self.perform_seek()

    async def rewind(self, offsets: Mapping[Where, int]) -> None:
        """Begin at offsets that an agent names, before it was handed anything of an assignment.

        All other partitions begin where they did, as what was read of them meanwhile is dropped.
        """
        self.intake.close()
        places = {where: begun.offset for where, begun in self._begun.items()}
        for where, offset in offsets.items():
            begun = self._begun[where]
            if offset < begun.first <= begun.offset:
                logger.warning(
                    "%s: %s/%d goes on at %d, as committed: the log begins at %d now, after the %d "
                    "that its state is of", self.app.conf.id, *where, begun.offset, begun.first,
                    offset,
                )  # fmt: skip
                continue
            places[where] = offset
        self._forget(offsets)
        epoch = self.intake.void()
        # What an agent reads again below what is committed must not take the group back.
        self.intake.committed(epoch, {w: begun.offset for w, begun in self._begun.items()})
        await self._thread.place(epoch, places)
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
    notice:
        Makes what is written about partitions that stand still.
    """

    Consumer = Consumer

    def __init__(self, url: Any, app: Any, *, options: Options, role: str, notice: Notice) -> None:
        super().__init__(url, app)
        self.options = options
        self.role = role
        self.notice = notice
