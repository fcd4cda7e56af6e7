"""Publishing so that nothing is lost: each record is acknowledged by the broker, or retried."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from nnsec.adapters.clients import (
    RETRY_SECONDS,
    client_options,
    closed,
    connected,
    outage,
    topic_name,
)
from nnsec.adapters.records import Out
from nnsec.errors import NNSecError
from nnsec.settings import Settings

MAX_REQUEST = 16 * 1024 * 1024
"""Bytes that a producer allows; the topic's own limit is the one that counts."""
_REQUEST_TIMEOUT_MS = 30_000
_BATCH_BYTES = 256 * 1024


class TooLarge(NNSecError):  # noqa: N818 - a published dead-letter class
    """A record that its topic does not take, however often it is tried."""


def producer(settings: Settings, *, linger_ms: int = 0) -> AIOKafkaProducer:
    """Build a producer that is acknowledged by all replicas in sync; it is not started."""
    return AIOKafkaProducer(
        **client_options(settings.kafka), acks="all", linger_ms=linger_ms,
        max_batch_size=_BATCH_BYTES, max_request_size=MAX_REQUEST,
        request_timeout_ms=_REQUEST_TIMEOUT_MS,
    )  # fmt: skip


class Publisher:
    """Publishes records and waits for their acknowledgement, for ever if need be.

    Of one call, records of one partition keep their order, whatever fails on the way. A record
    may come twice after a failure; none is lost.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: Any = None

    async def start(self) -> None:
        """Connect, waiting for a broker that is away."""
        self._producer = await connected(lambda: producer(self._settings))

    async def stop(self) -> None:
        """Disconnect; twice is once."""
        found, self._producer = self._producer, None
        if found is not None:
            await closed(found)

    async def __call__(self, *outs: Out, stale: Callable[[], bool] = bool) -> bool:
        """Publish and wait until all are acknowledged.

        Parameters
        ----------
        stale:
            Asked before each new try; true gives up.

        Returns
        -------
        bool
            Whether all were acknowledged; false only if given up.

        Raises
        ------
        TooLarge
            If the broker refuses a record for its size; what can be published then was.
        """
        refused: list[KafkaError] = []
        waiting: Sequence[Out] = outs
        while waiting := await self._once(waiting, refused):
            if stale():
                return False
            await asyncio.sleep(RETRY_SECONDS)
        if refused:
            raise TooLarge(f"the broker refused a record: {refused[0]}")
        return True

    async def _once(self, outs: Sequence[Out], refused: list[KafkaError]) -> list[Out]:
        """Send each once; return what must be sent again, in order."""
        futures = [await self._send(out) for out in outs]
        answers = await asyncio.gather(*futures, return_exceptions=True)
        again: list[Out] = []
        broken: defaultdict[str, bool] = defaultdict(bool)
        for out, answer in zip(outs, answers, strict=True):
            # After one failure all that follows in the topic is sent again: order before thrift.
            if isinstance(answer, MessageSizeTooLargeError):
                refused.append(answer)
            elif isinstance(answer, KafkaError):
                outage.away(answer)
                broken[out.topic] = True
                again.append(out)
            elif isinstance(answer, BaseException):
                raise answer
            elif broken[out.topic]:
                again.append(out)
        if not again and outs:
            outage.back()
        return again

    async def _send(self, out: Out) -> asyncio.Future[Any]:
        try:
            found: asyncio.Future[Any] = await self._producer.send(
                topic_name(self._settings, out.topic), out.value, key=out.key,
                partition=out.partition, timestamp_ms=out.timestamp, headers=list(out.headers),
            )  # fmt: skip
        except KafkaError as error:
            found = asyncio.get_running_loop().create_future()
            found.set_exception(error)
        return found


@asynccontextmanager
async def publisher(settings: Settings) -> AsyncIterator[Publisher]:
    """Start a publisher, and stop it at the end of the block."""
    found = Publisher(settings)
    await found.start()
    try:
        yield found
    finally:
        await found.stop()
