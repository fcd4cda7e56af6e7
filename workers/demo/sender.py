"""What sends the demo's records, as any producer would, and notes where each one lies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from aiokafka import AIOKafkaProducer
from numpy.typing import NDArray

from nnsec.adapters import kafka
from nnsec.settings import Settings
from schemas.inference import encode_request
from schemas.training import encode_sample
from workers.demo.ledger import INPUTS, SAMPLES, Ledger, SentInput, SentSample
from workers.demo.malformed import Malformed

Headers = tuple[tuple[str, bytes], ...]


class Sender:
    """Sends single rows and enters what the broker acknowledged into the ledger.

    Parameters
    ----------
    producer:
        Started.
    model:
        Whose inputs and samples they are.
    clock:
        Seconds that never go back.
    """

    def __init__(
        self,
        producer: AIOKafkaProducer,
        settings: Settings,
        model: str,
        ledger: Ledger,
        clock: Callable[[], float],
    ) -> None:
        self._producer = producer
        self._settings = settings
        self._model = model
        self._ledger = ledger
        self._clock = clock
        self._pending: set[asyncio.Task[None]] = set()
        self.number = 0
        """Inputs sent so far."""

    async def input(
        self,
        kind: Any,
        client: str,
        x: NDArray[Any],
        label: int,
        *,
        epsilon: float = 0.0,
        original: NDArray[Any] | None = None,
    ) -> None:
        r"""Send one input, (\*shape) in the wire dtype."""
        value, headers = encode_request(
            model=self._model, x=x[None], client=client, id=f"{kind}-{self.number}"
        )
        sent = SentInput(kind, self._next(), client, int(label), self._clock(), epsilon, original)
        await self._send(INPUTS, value, client.encode(), headers, sent, self._ledger.inputs)

    async def bad(self, one: Malformed) -> None:
        """Send one malformed input."""
        sent = SentInput("malformed", self._next(), "careless", -1, self._clock())
        await self._send(INPUTS, one.value, b"careless", one.headers, sent, self._ledger.inputs)

    async def sample(self, kind: Any, source: str, x: NDArray[Any], label: int) -> None:
        r"""Send one training sample, (\*shape) in the wire dtype."""
        value, headers = encode_sample(
            model=self._model, x=x[None], y=np.array([label], np.int64), source=source
        )
        sent = SentSample(kind, source, self._clock())
        await self._send(SAMPLES, value, source.encode(), headers, sent, self._ledger.samples)

    async def bad_sample(self, source: str, x: NDArray[Any]) -> None:
        """Send one training sample without its label."""
        value, headers = encode_request(model=self._model, x=x[None])
        sent = SentSample("malformed", source, self._clock())
        await self._send(SAMPLES, value, source.encode(), headers, sent, self._ledger.samples)

    async def flush(self) -> None:
        """Wait until all that was sent is acknowledged."""
        while self._pending:
            await asyncio.gather(*self._pending)

    def _next(self) -> int:
        self.number += 1
        return self.number - 1

    async def _send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes,
        headers: Headers,
        sent: Any,
        book: dict[Any, Any],
    ) -> None:
        name = kafka.topic_name(self._settings, topic)
        future = await self._producer.send(name, value, key=key, headers=list(headers))

        async def enter() -> None:
            found = await future
            book[topic, found.partition, found.offset] = sent

        task = asyncio.create_task(enter())
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
