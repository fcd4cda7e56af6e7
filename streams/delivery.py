"""The only place for acknowledgement, retry and dead letters: around every agent, the same."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol
from uuid import UUID

from nnsec.adapters.records import Out, Record
from nnsec.adapters.tail import record_of
from nnsec.errors import TransientError
from nnsec.settings import Settings
from streams import metrics
from streams.agent import Agent
from streams.intake import Batch, Intake, Where
from streams.poison import dead_letter, error_class

ATTEMPTS = 3
"""How often a record that is alone in its batch is tried before it becomes a dead letter."""
TICK_SECONDS = 0.25
_FIRST_WAIT = 0.05
_LONGEST_WAIT = 2.0

logger = logging.getLogger(__name__)


class Abandoned(Exception):  # noqa: N818 - no error: the records come again, here or elsewhere
    """The batch in hand no longer counts."""


class Publish(Protocol):
    """What `nnsec.adapters.publisher.Publisher` does."""

    async def __call__(self, *outs: Out, stale: Callable[[], bool] = ...) -> bool:
        """Publish and wait until all are acknowledged; false if given up."""
        ...


class Source(Protocol):
    """What `streams.transport.Consumer` offers."""

    intake: Intake

    async def rewind(self, offsets: Mapping[Where, int]) -> None:
        """Read again from other offsets."""
        ...


class Delivery:
    """Runs one agent: takes a batch, processes, publishes, and only then lets it be committed.

    Parameters
    ----------
    logs:
        Topic, without the prefix, to the identity of its log; dead letters name it.
    now:
        Seconds since 1970.
    """

    def __init__(
        self,
        agent: Agent,
        source: Source,
        publish: Publish,
        settings: Settings,
        logs: Mapping[str, UUID],
        now: Callable[[], float] = time.time,
    ) -> None:
        self.agent = agent
        self._source = source
        self._publish = publish
        self._settings = settings
        self._logs = logs
        self._now = now
        self._serial = 0
        self._next_tick = 0.0
        self._retries = 0

    @property
    def settled(self) -> bool:
        """Whether the agent knows the newest assignment."""
        intake = self._source.intake
        return 0 < self._serial == intake.assignment.serial

    async def run(self) -> None:
        """Deliver until cancelled; nothing but the cancellation ever leaves."""
        while True:
            try:
                await self.step()
            except Exception:
                # Whatever it is, the place in the log is kept and the next round tries again.
                logger.exception("%s: unexpected, going on", self.agent.role)
                await asyncio.sleep(_LONGEST_WAIT)

    async def step(self) -> None:
        """One round: a new assignment, or else a batch if there is one and a tick if it is due."""
        intake = self._source.intake
        if intake.open and intake.assignment.serial != self._serial:
            await self._assign()
            return
        batch = await intake.take(self._settings.kafka.max_batch, TICK_SECONDS)
        if batch is not None:
            await self._guarded(batch)
        if intake.open and self._now() >= self._next_tick and self.settled:
            self._next_tick = self._now() + TICK_SECONDS
            await self._tick()

    # --- assignments and ticks ---

    async def _assign(self) -> None:
        intake = self._source.intake
        assignment, prefix = intake.assignment, self._settings.kafka.prefix
        held = frozenset((topic.removeprefix(prefix), p) for topic, p in assignment.partitions)
        try:
            offsets = await self.agent.assigned(held)
        except Exception as error:  # noqa: BLE001 - an agent may raise anything
            await self._wait("assigned", error)
            return
        if assignment is not intake.assignment:
            return
        if offsets:
            await self._source.rewind({(prefix + t, p): o for (t, p), o in offsets.items()})
        self._serial, self._retries = assignment.serial, 0
        metrics.PARTITIONS.labels(self.agent.role).set(len(held))
        logger.info("%s: holds %d partitions", self.agent.role, len(held))

    async def _tick(self) -> None:
        try:
            outs = await self.agent.tick(self._now())
        except Exception as error:  # noqa: BLE001 - an agent may raise anything
            await self._wait("tick", error)
            return
        self._retries = 0
        epoch = self._source.intake.epoch
        if outs:
            with contextlib.suppress(Abandoned):
                await self._send(outs, lambda: self._source.intake.epoch != epoch)

    # --- batches ---

    async def _guarded(self, batch: Batch) -> None:
        intake, began = self._source.intake, time.monotonic()
        try:
            records = [record_of(self._settings, message) for message in batch.messages]
            await self._deliver(records, lambda: intake.stale(batch))
        except Abandoned:
            logger.info("%s: gave up a batch after a rebalance", self.agent.role)
            intake.abandon()
        except BaseException:
            intake.abandon()
            raise
        else:
            intake.finish(batch)
            role = self.agent.role
            metrics.RECORDS.labels(role).inc(len(records))
            metrics.BATCH_RECORDS.labels(role).observe(len(records))
            metrics.BATCH_SECONDS.labels(role).observe(time.monotonic() - began)

    async def _deliver(self, records: Sequence[Record], stale: Callable[[], bool]) -> None:
        """Process and publish; split what fails until the record that cannot pass is alone."""
        attempt = 0
        while True:
            if stale():
                raise Abandoned
            try:
                outs = await self.agent.process(records)
                await self._send(outs, stale)
            except (TransientError, Abandoned) as error:
                if isinstance(error, Abandoned):
                    raise
                await self._wait("process", error)
            except Exception as error:  # noqa: BLE001 - an agent may raise anything
                attempt += 1
                self._count_retry(error)
                if len(records) > 1:
                    middle = len(records) // 2
                    await self._deliver(records[:middle], stale)
                    await self._deliver(records[middle:], stale)
                    return
                if attempt >= ATTEMPTS:
                    await self._bury(records[0], error, attempt, stale)
                    return
            else:
                self._retries = 0
                return

    async def _bury(
        self, record: Record, error: Exception, attempts: int, stale: Callable[[], bool]
    ) -> None:
        where = f"{record.topic}/{record.partition}/{record.offset}"
        logger.error("%s: %s cannot pass", self.agent.role, where, exc_info=error)
        letter = dead_letter(self._settings, self._logs, record, error, attempts)
        await self._send([letter], stale)

    async def _send(self, outs: Sequence[Out], stale: Callable[[], bool]) -> None:
        if outs and not await self._publish(*outs, stale=stale):
            raise Abandoned
        for out in outs:
            metrics.OUTPUTS.labels(self.agent.role, out.topic).inc()
            if out.topic == "dead-letters":
                metrics.DEAD_LETTERS.labels(self.agent.role, error_class(out)).inc()

    async def _wait(self, what: str, error: Exception) -> None:
        """Say so the first time, then wait longer each time."""
        self._count_retry(error)
        if self._retries == 0:
            logger.warning(
                "%s: %s waits and tries again: %s", self.agent.role, what, error,
                exc_info=None if isinstance(error, TransientError) else error,
            )  # fmt: skip
        pause = min(_LONGEST_WAIT, _FIRST_WAIT * 2**self._retries)
        self._retries = min(self._retries + 1, 16)
        await asyncio.sleep(pause)

    def _count_retry(self, error: Exception) -> None:
        metrics.RETRIES.labels(self.agent.role, type(error).__name__).inc()
