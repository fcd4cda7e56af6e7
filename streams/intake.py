"""Between fetching and processing: a queue bounded in records and bytes, and the ledger.

A batch is finished as a whole and the batches of a partition come in log order, one at a time.
So the offset after the newest finished record is all there is to commit: it can never pass a
record in hand. Whatever belongs to an earlier assignment is dropped by its epoch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Where = tuple[str, int]
"""Topic as Kafka names it, and partition."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the group gave this member; a new serial for each rebalance."""

    serial: int
    partitions: frozenset[Where]


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages as the client library read them, in log order per partition."""

    epoch: int
    messages: Sequence[Any]
    ends: Mapping[Where, int]
    """Offset after the last message of each partition in it."""


NOBODY = Assignment(0, frozenset())
_EACH = 128
"""Bytes that a message costs beside what it carries."""


def weight(message: Any) -> int:
    """Bytes that a message, as aiokafka read it, holds in memory."""
    headers = sum(len(name) + len(content or b"") for name, content in message.headers)
    return _EACH + len(message.key or b"") + len(message.value or b"") + headers


class Intake:
    """The queue of one role; used from the event loop only.

    Parameters
    ----------
    room:
        Messages that it holds before fetching pauses.
    room_bytes:
        Bytes that they hold before fetching pauses; one fetch may go over it.
    batch_bytes:
        Bytes from which on a batch takes no more messages; one message may go over it.
    """

    def __init__(
        self, room: int, room_bytes: int = 32 * 1024 * 1024, batch_bytes: int = 8 * 1024 * 1024
    ) -> None:
        self._room = room
        self._room_bytes = room_bytes
        self._batch_bytes = batch_bytes
        self._queue: deque[tuple[Where, Any, int]] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._done: dict[Where, int] = {}
        self._committed: dict[Where, int] = {}
        self.epoch = 0
        """Goes up whenever positions are set anew; what was read before is void."""
        self.assignment = NOBODY
        self.open = False

    # --- the side that fetches ---

    def close(self) -> None:
        """Drop what is queued and hand out no more; what is in hand may still finish."""
        self.open = False
        self._clear()

    def void(self) -> int:
        """Begin a new epoch: what is queued or in hand no longer counts."""
        self.epoch += 1
        self._clear()
        self._done.clear()
        self._committed.clear()
        return self.epoch

    def admit(self, partitions: frozenset[Where]) -> None:
        """Hand out records again, under a new assignment."""
        self.assignment = Assignment(self.assignment.serial + 1, partitions)
        self.resume()

    def resume(self) -> None:
        """Hand out records again."""
        self.open = True
        self._filled.set()

    def put(self, epoch: int, found: Mapping[Any, Sequence[Any]]) -> None:
        """Queue what was fetched, unless positions were set anew meanwhile."""
        if epoch != self.epoch or not self.open:
            return
        for tp, messages in found.items():
            where = (tp.topic, tp.partition)
            for message in messages:
                size = weight(message)
                self._queue.append((where, message, size))
                self._bytes += size
        if self._queue:
            self._filled.set()

    @property
    def full(self) -> bool:
        """Whether fetching should pause."""
        return len(self._queue) >= self._room or self._bytes >= self._room_bytes

    async def wait_for_room(self, seconds: float) -> None:
        """Wait until something was taken, or for a time (s)."""
        self._emptied.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._emptied.wait(), seconds)

    async def wait_idle(self, seconds: float) -> bool:
        """Wait until nothing is in hand, or for a time (s); tell which."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
        return self._idle.is_set()

    def committable(self) -> dict[Where, int]:
        """Offsets that are finished and not committed yet."""
        return {w: o for w, o in self._done.items() if o > self._committed.get(w, -1)}

    def committed(self, epoch: int, offsets: Mapping[Where, int]) -> None:
        """Note that a commit came through."""
        if epoch == self.epoch:
            self._committed.update(offsets)

    # --- the side that processes ---

    async def take(self, limit: int, seconds: float) -> Batch | None:
        """Take what is queued, up to a limit; None if nothing came in time (s).

        Whoever takes a batch calls `finish` or `abandon` before the next.
        """
        if not (self.open and self._queue):
            self._filled.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._filled.wait(), seconds)
        if not (self.open and self._queue):
            return None
        messages: list[Any] = []
        ends: dict[Where, int] = {}
        taken = 0
        while self._queue and len(messages) < limit and taken < self._batch_bytes:
            where, message, size = self._queue.popleft()
            messages.append(message)
            ends[where] = message.offset + 1
            taken += size
        self._bytes -= taken
        self._emptied.set()
        self._idle.clear()
        return Batch(self.epoch, messages, ends)

    def stale(self, batch: Batch) -> bool:
        """Whether a batch no longer counts and will be delivered anew, here or elsewhere."""
        return batch.epoch != self.epoch

    def finish(self, batch: Batch) -> None:
        """Note that all that a batch led to is acknowledged."""
        if not self.stale(batch):
            self._done.update(batch.ends)
        self._idle.set()

    def abandon(self) -> None:
        """Note that the batch in hand was given up."""
        self._idle.set()

    def _clear(self) -> None:
        self._queue.clear()
        self._bytes = 0
        self._emptied.set()
