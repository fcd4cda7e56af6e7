"""The only place for acknowledgement, retry and dead letters: around every agent, the same.

While the outputs of one batch are on their way to the broker, the next is processed, and some
agents process two at once; outputs are sent in the order of their batches. A batch counts as
finished once all that it led to is acknowledged, and only what lies before the oldest unfinished
one is committed. Whatever goes wrong on the way, reading begins again at what was committed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from nnsec.adapters.outbox import TooLarge
from nnsec.adapters.records import Out, Record
from nnsec.errors import TransientError
from streams import metrics
from streams.agent import Agent, Bury, Submit
from streams.hands import Hands, Turn
from streams.intake import Batch, Source, record
from streams.poison import error_class
from streams.window import BATCHES, Flight, Window

ATTEMPTS = 3
"""How often a record that is alone in its batch is tried before it becomes a dead letter."""
TICK_SECONDS = 0.25
_FIRST_WAIT = 0.05
_LONGEST_WAIT = 2.0

logger = logging.getLogger(__name__)


class Abandoned(Exception):  # noqa: N818 - no error: the records come again, here or elsewhere
    """The batch in hand no longer counts."""


class Delivery:
    """Runs one agent: takes a batch, processes, publishes, and only then lets it be committed.

    Parameters
    ----------
    submit:
        Puts records on their way and gives one future for all of them.
    bury:
        Makes dead letters.
    prefix:
        What Kafka's names of topics begin with, and the agent's do not.
    max_batch:
        Records in one batch at most.
    now:
        Seconds since 1970.
    clock:
        Seconds that never go back; ticks follow it.
    """

    def __init__(
        self,
        agent: Agent,
        source: Source,
        submit: Submit,
        bury: Bury,
        *,
        prefix: str = "",
        max_batch: int = 512,
        window: Window | None = None,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.agent = agent
        self._source = source
        self._submit = submit
        self._bury = bury
        self._prefix = prefix
        self._max_batch = max_batch
        self._now, self._clock = now, clock
        self._overlaps = bool(getattr(agent, "overlaps", False))
        self._settle: Callable[[], None] | None = getattr(agent, "settle", None)
        self._window = window or Window()
        self._hands = Hands(int(getattr(agent, "at_once", 1)))
        self._serial = 0
        self._next_tick = 0.0
        self._retries = 0
        self._singly = 0  # so many batches are of one record, to find one that leads to too much
        # An earlier delivery may have given up what it had in hand.
        self._broken = source.intake.assignment.serial > 0

    @property
    def settled(self) -> bool:
        """Whether the agent knows the newest assignment."""
        intake = self._source.intake
        return 0 < self._serial == intake.assignment.serial

    async def run(self) -> None:
        """Deliver until cancelled; nothing but the cancellation ever leaves."""
        try:
            while True:
                try:
                    await self.step()
                except Exception:
                    # Whatever it is, nothing behind it may be committed: begin again where it was.
                    logger.exception("%s: unexpected, beginning again", self.agent.role)
                    self._break()
                    await asyncio.sleep(_LONGEST_WAIT)
        finally:
            await self._hands.close()

    async def step(self) -> None:
        """One round: a new assignment, or else a batch if there is one and a tick if it is due."""
        intake = self._source.intake
        if self._broken:
            await self._hands.empty()
            self._broken = False
            await self._source.restart()
        if intake.open and intake.assignment.serial != self._serial:
            await self._assign()
            return
        if intake.open and self._clock() >= self._next_tick:
            self._next_tick = self._clock() + TICK_SECONDS
            await self._tick()
        # Only a backlog is worked at twice at once: else what comes later should join the batch.
        await (self._hands.room() if intake.plenty(self._max_batch) else self._hands.empty())
        await self._window.room()
        most = 1 if self._singly else self._max_batch
        if (batch := await intake.take(most, TICK_SECONDS, self._serial)) is not None:
            self._singly -= bool(self._singly)
            self._hands.take(partial(self._guarded, batch))

    def _break(self) -> None:
        """Give up all that is in hand; it comes again."""
        self._source.intake.abandon()
        self._broken = True

    # --- assignments and ticks ---

    async def _assign(self) -> None:
        intake = self._source.intake
        assignment = intake.assignment
        await self._empty()  # so that state is not read while more of it is being written
        held = frozenset((t.removeprefix(self._prefix), p) for t, p in assignment.partitions)
        try:
            offsets = await self.agent.assigned(held)
        except Exception as error:  # noqa: BLE001 - an agent may raise anything
            await self._wait("assigned", error)
            return
        if assignment is not intake.assignment:
            return
        if offsets:
            await self._source.rewind({(self._prefix + t, p): o for (t, p), o in offsets.items()})
        self._serial, self._retries = assignment.serial, 0
        metrics.PARTITIONS.labels(self.agent.role).set(len(held))
        logger.info("%s: holds %d partitions", self.agent.role, len(held))

    async def _tick(self) -> None:
        """Let the agent do what time asks for, with nothing on its way: all is acknowledged."""
        intake = self._source.intake
        epoch = intake.epoch
        await self._empty()
        if intake.epoch != epoch:
            return
        try:
            outs = [*await self.agent.tick(now := self._now()), *self._source.notices(now)]
        except Exception as error:  # noqa: BLE001 - an agent may raise anything
            await self._wait("tick", error)
            return
        try:
            if outs and await (await self._submit(outs, lambda: intake.epoch != epoch)):
                metrics.published(self.agent.role, Counter([out.topic for out in outs]))
        except TooLarge as error:
            await self._wait("tick", error)
        else:
            self._retries = 0

    async def _empty(self) -> None:
        """Wait until nothing is in process, or on its way."""
        await self._hands.empty()
        await self._window.empty()

    # --- batches ---

    async def _guarded(self, batch: Batch, turn: Turn) -> None:
        flight = Flight(batch, time.monotonic(), turn)
        try:
            records = [record(message, self._prefix) for message in batch.messages]
            batch.messages = ()  # what was read need not be kept until it is acknowledged
            flight.records = len(records)
            await self._deliver(records, flight)
        except Abandoned:
            flight.given_up = True
            logger.info("%s: gave up a batch", self.agent.role)
        except BaseException:
            self._source.intake.abandon()
            raise
        self._window.add(flight, partial(self._landed, flight))

    def _landed(self, flight: Flight, error: BaseException | None) -> None:
        """Finish a batch whose outputs are all answered for."""
        intake, role = self._source.intake, self.agent.role
        if error is not None:
            logger.error("%s: a batch was not published, beginning again: %r", role, error)
            self._break()
        if error is not None or flight.given_up or intake.stale(flight.batch):
            return
        intake.finish(flight.batch)
        metrics.published(role, flight.outs)
        metrics.RECORDS.labels(role).inc(flight.records)
        metrics.BATCH_RECORDS.labels(role).observe(flight.records)
        metrics.BATCH_SECONDS.labels(role).observe(time.monotonic() - flight.began)

    def _begin(self, flight: Flight) -> None:
        if self._source.intake.stale(flight.batch):
            raise Abandoned
        alone = self._hands.count == 1 and not (self._window.flights or flight.futures)
        if self._settle is not None and alone:
            self._settle()

    async def _deliver(self, records: Sequence[Record], flight: Flight) -> None:
        """Process and publish; split what fails until the record that cannot pass is alone."""
        attempt = 0
        while True:
            self._begin(flight)
            try:
                outs = await self.agent.process(records)
            except TransientError as error:
                await self._wait("process", error)
            except Exception as error:  # noqa: BLE001 - an agent may raise anything
                attempt += 1
                self._count_retry(error)
                if len(records) > 1:
                    middle = len(records) // 2
                    await self._deliver(records[:middle], flight)
                    await self._deliver(records[middle:], flight)
                    return
                if attempt >= ATTEMPTS:
                    await self._give_up(records[0], error, attempt, flight)
                    return
            else:
                self._retries = 0
                break
        try:  # the agent has taken note of them, so what fails from here on has all begin again
            await self._send(outs, flight)
        except TooLarge as error:
            await self._too_large(records, error, flight)

    async def _too_large(self, records: Sequence[Record], error: TooLarge, flight: Flight) -> None:
        """Bury a record whose outputs a topic never takes; of several, find it first."""
        if len(records) == 1:
            self._singly = 0
            await self._give_up(records[0], error, 1, flight)
            return
        logger.warning("%s: %s; its batch comes again record by record", self.agent.role, error)
        self._singly = self._max_batch * (BATCHES + 1)
        self._break()
        raise Abandoned

    async def _give_up(
        self, record: Record, error: Exception, attempts: int, flight: Flight
    ) -> None:
        where = f"{record.topic}/{record.partition}/{record.offset}"
        logger.error("%s: %s cannot pass", self.agent.role, where, exc_info=error)
        await self._send([self._bury(record, error, attempts)], flight)

    async def _send(self, outs: Sequence[Out], flight: Flight) -> None:
        """Put outputs on their way, behind those of earlier batches.

        Wait for them too, if the agent asks for that.
        """
        if not outs:
            return
        await flight.turn()
        stale = partial(self._source.intake.stale, flight.batch)
        if stale():
            raise Abandoned
        future = await self._submit(outs, stale)
        if self._overlaps:
            flight.futures.append(future)
        elif not await future:
            raise Abandoned
        flight.note(outs)
        for out in outs:
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
