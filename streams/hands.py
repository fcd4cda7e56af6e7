"""Batches in process: a few at once, each behind the one that was taken before it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine

Turn = Callable[[], Coroutine[None, None, None]]
"""Waits until the batch that was taken before is through, whatever became of it."""


class Hands:
    """Runs one task a batch; used from the event loop only.

    Parameters
    ----------
    most:
        Batches in process at once.
    """

    def __init__(self, most: int = 1) -> None:
        self._most = most
        self._tasks: deque[asyncio.Task[None]] = deque()

    @property
    def count(self) -> int:
        """Batches in process."""
        return sum(not task.done() for task in self._tasks)

    def take(self, work: Callable[[Turn], Coroutine[None, None, None]]) -> None:
        """Begin with a batch; there must be `room`."""
        last = self._tasks[-1] if self._tasks else None

        async def turn() -> None:
            if last is not None:
                await asyncio.wait([last])

        self._tasks.append(asyncio.create_task(work(turn)))

    async def room(self) -> None:
        """Wait until one more batch may be taken.

        Raises
        ------
        Exception
            What a batch raised.
        """
        await self._until(self._most - 1)

    async def empty(self) -> None:
        """Wait until nothing is in process.

        Raises
        ------
        Exception
            What a batch raised.
        """
        await self._until(0)

    async def close(self) -> None:
        """Cancel what is in process."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _until(self, left: int) -> None:
        """Wait until no more than so many are left, the oldest first."""
        while self._tasks and (len(self._tasks) > left or self._tasks[0].done()):
            await asyncio.wait([self._tasks[0]])
            self._tasks.popleft().result()
