"""Publishing so that nothing is lost: each record is acknowledged by the broker, or retried."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaProducer

from nnsec.adapters.clients import client_options, closed, connected, topic_name
from nnsec.adapters.outbox import Outbox, TooLarge
from nnsec.adapters.records import Out
from nnsec.settings import Settings

__all__ = ["MAX_REQUEST", "Publisher", "TooLarge", "producer", "publisher"]

MAX_REQUEST = 16 * 1024 * 1024
"""Bytes that a producer allows; the topic's own limit is the one that counts."""
_REQUEST_TIMEOUT_MS = 30_000
_BATCH_BYTES = 256 * 1024


def producer(settings: Settings, *, linger_ms: int = 0) -> AIOKafkaProducer:
    """Build a producer that is acknowledged by all replicas in sync; it is not started."""
    largest = settings.kafka.max_message_bytes or _BATCH_BYTES
    return AIOKafkaProducer(
        **client_options(settings.kafka), acks="all", linger_ms=linger_ms,
        max_batch_size=min(_BATCH_BYTES, largest), max_request_size=MAX_REQUEST,
        request_timeout_ms=_REQUEST_TIMEOUT_MS,
    )  # fmt: skip


class Publisher:
    """Publishes records and waits for their acknowledgement, for ever if need be.

    Records of one partition keep their order, within a call and from call to call, whatever fails
    on the way; calls may overlap. A record may come twice after a failure; none is lost.

    Parameters
    ----------
    limits:
        The largest batch that a topic takes (bytes), by its name without the prefix, where that is
        known; else it is learnt when the broker refuses one.
    """

    def __init__(self, settings: Settings, limits: Mapping[str, int] | None = None) -> None:
        self._settings = settings
        self._limits = dict(limits or {})
        self._producer: Any = None
        self._outbox: Outbox | None = None

    async def start(self) -> None:
        """Connect, waiting for a broker that is away."""
        self._use(await connected(lambda: producer(self._settings)))

    def _use(self, producer: Any) -> None:
        self._producer = producer
        self._outbox = Outbox(
            producer, lambda name: topic_name(self._settings, name), self._limits, MAX_REQUEST
        )

    async def stop(self) -> None:
        """Disconnect, giving up what is not acknowledged; twice is once."""
        found, self._producer = self._producer, None
        outbox, self._outbox = self._outbox, None
        if outbox is not None:
            await outbox.close()
        if found is not None:
            await closed(found)

    async def submit(
        self, outs: Sequence[Out], stale: Callable[[], bool] = bool
    ) -> asyncio.Future[bool]:
        """Put records on their way and return at once; only metadata of topics is waited for.

        Parameters
        ----------
        stale:
            Asked before each try; true gives up.

        Returns
        -------
        Future
            Of what a call of the publisher returns or raises.

        Raises
        ------
        TooLarge
            If a record is larger than its topic is known to take; then none was sent.
        """
        if self._outbox is None:
            raise RuntimeError("start the publisher first")
        return await self._outbox.submit(outs, stale)

    async def __call__(self, *outs: Out, stale: Callable[[], bool] = bool) -> bool:
        """Publish and wait until all are acknowledged.

        Parameters
        ----------
        stale:
            Asked before each try; true gives up.

        Returns
        -------
        bool
            Whether all were acknowledged; false only if given up.

        Raises
        ------
        TooLarge
            If a record is larger than its topic takes: either none was sent, or, where the broker
            had to say so, all others were.
        """
        return await (await self.submit(outs, stale))


@asynccontextmanager
async def publisher(settings: Settings) -> AsyncIterator[Publisher]:
    """Start a publisher, and stop it at the end of the block."""
    found = Publisher(settings)
    await found.start()
    try:
        yield found
    finally:
        await found.stop()
