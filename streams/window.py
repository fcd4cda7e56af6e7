"""Batches whose outputs are on their way: bounded in number and in bytes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nnsec.adapters.records import Out
from streams.hands import Turn
from streams.intake import Batch

BATCHES = 8
BYTES = 32 * 1024 * 1024
_EACH = 256
"""Bytes that an output costs beside its value."""


@dataclass(slots=True, eq=False)
class Flight:
    """One batch, and what is on its way because of it.

    Parameters
    ----------
    began:
        When it was taken, by a clock that never goes back.
    turn:
        Waits for the batch before it to be sent.
    futures:
        True once acknowledged, false if given up.
    """

    batch: Batch
    began: float
    turn: Turn
    records: int = 0
    futures: list[asyncio.Future[bool]] = field(default_factory=list)
    outs: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    given_up: bool = False

    def note(self, outs: Sequence[Out]) -> None:
        """Count what was put on its way."""
        self.outs.update([out.topic for out in outs])
        self.bytes += sum([_EACH + len(out.value or b"") for out in outs])


class Window:
    """What is on its way; used from the event loop only.

    Parameters
    ----------
    batches, size:
        From so many batches or bytes on no more is let in; one batch may go over it.
    """

    def __init__(self, batches: int = BATCHES, size: int = BYTES) -> None:
        self._batches = batches
        self._size = size
        self._flights: set[Flight] = set()
        self._bytes = 0
        self._change = asyncio.Event()

    @property
    def flights(self) -> int:
        """How many batches are on their way."""
        return len(self._flights)

    def add(self, flight: Flight, landed: Callable[[BaseException | None], None]) -> None:
        """Let a batch in; ``landed`` is called once, when all of it is answered for.

        Its argument is the first error of the futures, if there is one.
        """
        if not flight.futures:
            landed(None)
            return
        self._flights.add(flight)
        self._bytes += flight.bytes
        left = len(flight.futures)
        errors: list[BaseException] = []

        def answered(future: asyncio.Future[bool]) -> None:
            nonlocal left
            left -= 1
            if future.cancelled():
                flight.given_up = True
            elif (error := future.exception()) is not None:
                errors.append(error)
            elif not future.result():
                flight.given_up = True
            if left == 0:
                self._flights.remove(flight)
                self._bytes -= flight.bytes
                landed(errors[0] if errors else None)
                self._change.set()

        for future in flight.futures:
            future.add_done_callback(answered)

    async def room(self) -> None:
        """Wait until one more batch may be let in."""
        while len(self._flights) >= self._batches or self._bytes >= self._size:
            await self._changed()

    async def empty(self) -> None:
        """Wait until nothing is on its way."""
        while self._flights:
            await self._changed()

    async def _changed(self) -> None:
        self._change.clear()
        await self._change.wait()
