"""The windows of the partitions that a screen holds, and when they are written down.

A snapshot is only written when all that it comes from is published. From its offset on a successor
reads again, at first what is committed already: that only advances the windows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from uuid import UUID

from prometheus_client import Gauge

from nnsec.adapters.records import Out, Record
from nnsec.errors import DigestMismatch
from streams.screen_state import Windows, restore, snapshot

SNAPSHOT_EVERY = 1.0
"""Seconds between two snapshots of a partition that has changed …"""
SNAPSHOT_RATE = 50_000
"""… and more for a large one: bytes a second that its snapshots may write."""

SOURCES = Gauge("nnsec_screen_sources", "Sources whose last samples are remembered", ["partition"])

logger = logging.getLogger(__name__)


class Memory:
    """The states of partitions of ``training.samples``.

    Parameters
    ----------
    log:
        Identity of the log of ``training.samples``.
    """

    def __init__(self, log: UUID) -> None:
        self._log = log
        self.states: dict[int, Windows] = {}
        self._before: dict[int, Windows] = {}
        self._written: dict[int, int] = {}
        """The slot of the last snapshot, of partitions that have one."""
        self._firsts: dict[int, Windows] = {}
        """As of when nothing was published yet, of partitions without a snapshot."""
        self._due: dict[int, float] = {}
        self._changed: set[int] = set()
        self._heads: dict[int, Out] = {}

    # --- assignments ---

    def take_up(self, committed: Mapping[int, int], found: Mapping[bytes, bytes]) -> dict[int, int]:
        """Hold partitions: as they are here if that is certain to be published, else as written.

        Parameters
        ----------
        committed:
            By partition, where its group goes on.
        found:
            The newest value of each key on ``state`` that begins with ``screen/``.

        Returns
        -------
        dict
            Where to begin instead, by partition.
        """
        known, self.states = self.states, {}
        self._before, self._written, self._firsts, self._heads = {}, {}, {}, {}
        for number, offset in committed.items():
            state, mine = self._restored(number, found), known.get(number)
            behind = state is None or state.offset < offset
            if behind and mine is not None and mine.offset == offset:
                state = mine  # all that it comes from is committed, and so published
            else:
                self._due.pop(number, None)
                self._changed.discard(number)
            self.states[number] = Windows(offset) if state is None else state
            if number not in self._written:
                self._firsts[number] = self.states[number]
        self._changed &= self.states.keys()
        return {n: s.offset for n, s in self.states.items() if s.offset != committed[n]}

    def _restored(self, number: int, found: Mapping[bytes, bytes]) -> Windows | None:
        try:
            restored = restore(number, found, log=self._log)
        except DigestMismatch as error:
            logger.warning("%s; its sources begin anew", error)
            return None
        if restored is None:
            return None
        state, self._written[number] = restored
        return state

    # --- batches ---

    def base(self, records: Sequence[Record]) -> dict[int, Windows]:
        """The state of each partition as it was before the first of these records.

        Records come again when publishing failed: then what they led to is forgotten first.
        """
        base: dict[int, Windows] = {}
        for record in records:
            number, offset = record.partition, record.offset
            if number in base:
                continue
            state = self.states.get(number) or Windows(offset)
            before = self._before.get(number)
            again = before is not None and before.offset <= offset < state.offset
            base[number] = before if again and before is not None else state
        return base

    def firsts(self, base: Mapping[int, Windows]) -> list[Out]:
        """Snapshots from before the first records of partitions that have none.

        Until a tick has written one they are of the same moment: earlier batches may still be on
        their way, so what comes behind them must not be where a successor begins.
        """
        outs = []
        for number, state in base.items():
            if number not in self._written:
                first = self._firsts.setdefault(number, state)
                parts, head = snapshot(number, first, log=self._log, slot=1)
                outs += [*parts, head]
        return outs

    def advance(self, base: Mapping[int, Windows], states: Mapping[int, Windows]) -> None:
        """Take over the states that a batch led to, from those before it."""
        self._before |= base
        self.states |= states
        self._changed |= states.keys()
        for number, state in states.items():
            SOURCES.labels(str(number)).set(len(state))

    # --- snapshots ---

    def hurry(self) -> None:
        """Let all that has changed be written at the next tick, however large it is."""
        self._due.clear()

    async def tick(self, now: float) -> list[Out]:
        """Snapshots of what has changed, at a time (s); all that it comes from is published.

        The head of one in several parts waits for the next tick; until it is there no more parts
        are written, which would go over those that the head before it speaks of.
        """
        self._before.clear()
        heads, self._heads = self._heads, {}
        outs = list(heads.values())
        for number in sorted(self._changed - heads.keys()):
            if now >= self._due.get(number, 0.0):
                parts, head = await self._snapshot(number)
                size = sum(len(out.value or b"") for out in (*parts, head))
                self._due[number] = now + max(SNAPSHOT_EVERY, size / SNAPSHOT_RATE)
                outs += parts or [head]
                if parts:
                    self._heads[number] = head
        return outs

    async def _snapshot(self, number: int) -> tuple[list[Out], Out]:
        state, slot = self.states[number], 1 - self._written.get(number, 1)
        parts, head = await asyncio.to_thread(snapshot, number, state, log=self._log, slot=slot)
        self._changed.discard(number)
        self._firsts.pop(number, None)
        self._written[number] = slot
        return parts, head
