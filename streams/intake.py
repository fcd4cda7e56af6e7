"""Between fetching and processing: a queue bounded in records and bytes, and the ledger.

Several batches may be in hand at once, the first with its outputs on the way to the broker and the
last in process. Whatever order they end in, only what lies before the oldest one that is not
finished can be committed. What belongs to an earlier assignment is dropped by its epoch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nnsec.adapters.records import Out, Record

Where = tuple[str, int]
"""Topic as Kafka names it, and partition."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the group gave this member; a new serial for each rebalance."""

    serial: int
    partitions: frozenset[Where]


@dataclass(slots=True, eq=False)
class Batch:
    """Messages as the client library read them, in log order per partition.

    Parameters
    ----------
    ends:
        Offset after the last message of each partition in it.
    """

    epoch: int
    messages: Sequence[Any]
    ends: Mapping[Where, int]
    finished: bool = False


NOBODY = Assignment(0, frozenset())
_EACH = 128
"""Bytes that a message costs beside what it carries."""


def weight(message: Any) -> int:
    """Bytes that a message, as aiokafka read it, holds in memory."""
    size = _EACH + len(message.key or b"") + len(message.value or b"")
    for name, content in message.headers:
        size += len(name) + len(content or b"")
    return size


def record(message: Any, prefix: str) -> Record:
    """Convert a message; its topic is without the prefix then."""
    return Record(
        message.topic.removeprefix(prefix), message.partition, message.offset, message.timestamp,
        message.key, message.value, tuple(message.headers),
    )  # fmt: skip


class Intake:
    """The queue of one role; used from the event loop only.

    Parameters
    ----------
    room:
        Messages that it holds at most.
    room_bytes:
        Bytes of messages that it holds; one fetch may go over it.
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
        self._waits = False
        self._idle.set()
        self._hand: deque[Batch] = deque()
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
        self.abandon()
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
        """Whether fetching should pause: until half of the room is free.

        Each fetch is a way to another thread and back, which costs the more the busier this one
        is; so it should bring many records.
        """
        return 2 * len(self._queue) > self._room or 2 * self._bytes > self._room_bytes

    @property
    def busy(self) -> bool:
        """Whether nobody waits for records."""
        return not self._waits

    @property
    def room(self) -> int:
        """How many more messages may be queued."""
        return max(0, self._room - len(self._queue))

    def plenty(self, limit: int) -> bool:
        """Whether the next batch, of so many messages at most, would be as large as it may be."""
        return len(self._queue) >= limit or self._bytes >= self._batch_bytes

    async def wait_for_room(self, seconds: float) -> None:
        """Wait until something was taken, or for a time (s)."""
        self._emptied.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._emptied.wait()

    async def wait_idle(self, seconds: float) -> bool:
        """Wait until nothing is in hand, or for a time (s); tell which."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        return self.idle

    @property
    def idle(self) -> bool:
        """Whether nothing is in hand."""
        return self._idle.is_set()

    def committable(self) -> dict[Where, int]:
        """Offsets that are finished, with all before them, and not committed yet."""
        return {w: o for w, o in self._done.items() if o > self._committed.get(w, -1)}

    def committed(self, epoch: int, offsets: Mapping[Where, int]) -> None:
        """Note that a commit came through."""
        if epoch == self.epoch:
            self._committed.update(offsets)

    # --- the side that processes ---

    async def take(self, limit: int, seconds: float, serial: int) -> Batch | None:
        """Take what is queued, up to a limit; None if nothing came in time (s).

        None too if the assignment is another than the one named, which may change while this
        waits: what comes under a new one is for those who know of it.

        Each batch that is taken must be told to `finish`, in any order, or else all that is in
        hand must be told to `abandon`.
        """
        if not (self.open and self._queue):
            self._filled.clear()
            self._waits = True
            try:
                # `wait_for` would swallow a cancellation that meets the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._filled.wait()
            finally:
                self._waits = False
        if not (self.open and self._queue) or serial != self.assignment.serial:
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
        batch = Batch(self.epoch, messages, ends)
        self._hand.append(batch)
        return batch

    def stale(self, batch: Batch) -> bool:
        """Whether a batch no longer counts and will be delivered anew, here or elsewhere."""
        return batch.epoch != self.epoch

    def finish(self, batch: Batch) -> None:
        """Note that all that a batch led to is acknowledged."""
        batch.finished = True
        if self.stale(batch):
            return
        while self._hand and self._hand[0].finished:
            self._done.update(self._hand.popleft().ends)
        if not self._hand:
            self._idle.set()

    def abandon(self) -> None:
        """Give up all that is in hand or queued, and hand out no more until positions are set.

        Otherwise what comes behind would be committed over what was given up.
        """
        self.epoch += 1
        self._hand.clear()
        self._idle.set()
        self.close()

    def _clear(self) -> None:
        self._queue.clear()
        self._bytes = 0
        self._emptied.set()


class Source(Protocol):
    """What fills an intake: `streams.transport.Consumer`."""

    intake: Intake

    async def rewind(self, offsets: Mapping[Where, int]) -> None:
        """Read again from other offsets."""
        ...

    async def restart(self) -> None:
        """Read again from what is committed, under a new assignment."""
        ...

    def notices(self, now: float) -> Sequence[Out]:
        """What is to be written about partitions that cannot be read, at a time (s since 1970)."""
        ...
