"""What sends inputs and notes when their scores, and the alerts about them, can be read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from nnsec.adapters import kafka
from nnsec.settings import Settings
from schemas.alert import Alert
from workers.bench.traffic import Sent


class Probe:
    """Sends inputs and notes when their scores, and the alerts about them, can be read."""

    def __init__(
        self, settings: Settings, producer: AIOKafkaProducer, consumer: AIOKafkaConsumer
    ) -> None:
        self._topic = kafka.topic_name(settings, "inference.inputs")
        self._producer = producer
        self._consumer = consumer
        self._places: dict[tuple[int, int], float] = {}
        self.sent: dict[bytes, float] = {}
        self.scored: dict[bytes, float] = {}
        self.alerted: list[float] = []
        self._accused: set[str] = set()

    def clear(self) -> None:
        """Forget everything."""
        for book in (self.sent, self.scored, self._places, self.alerted, self._accused):
            book.clear()

    async def send(self, one: Sent) -> None:
        """Send one input."""
        now = time.perf_counter()
        future = await self._producer.send(
            self._topic, one.value, key=one.client.encode(), headers=list(one.headers)
        )
        self.sent[one.id] = now

        def note(answer: asyncio.Future[Any]) -> None:
            if not answer.cancelled() and answer.exception() is None:
                found = answer.result()
                self._places[found.partition, found.offset] = now

        future.add_done_callback(note)

    async def read(self) -> None:
        """Note what can be read, until cancelled."""
        while True:
            found = await self._consumer.getmany(timeout_ms=1000)
            now = time.perf_counter()
            for tp, messages in found.items():
                if tp.topic.endswith("scores"):
                    for message in messages:
                        self.scored.setdefault(message.key, now)
                else:
                    for message in messages:
                        self._alert(Alert.decode(message.value), now)

    def _alert(self, alert: Alert, now: float) -> None:
        """Only the first about each client, from the row that crossed the bound."""
        if alert.subject.kind != "client" or alert.subject.id in self._accused:
            return
        self._accused.add(alert.subject.id)
        known = [self._places.get((place[1], place[2])) for place in alert.positions]
        times = [at for at in known if at is not None]
        if times:
            self.alerted.append(now - max(times))

    async def until(self, count: int, seconds: float) -> bool:
        """Wait until so many scores were read, or for a time (s); tell which."""
        deadline = time.perf_counter() + seconds
        while len(self.scored) < count and time.perf_counter() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return len(self.scored) >= count

    def latencies(self) -> list[float]:
        """From sending to reading the score, of each input that has one (s)."""
        return [self.scored[name] - at for name, at in self.sent.items() if name in self.scored]


@asynccontextmanager
async def probing(settings: Settings) -> AsyncIterator[Probe]:
    """Connect, and read in the background until the end of the block."""
    topics = [kafka.topic_name(settings, name) for name in ("scores", "alerts")]
    options = kafka.client_options(settings.kafka)
    consumer = AIOKafkaConsumer(
        *topics, **options, auto_offset_reset="latest", fetch_max_wait_ms=10, group_id=None
    )
    producer = AIOKafkaProducer(**options, acks="all", linger_ms=0)
    await producer.start()
    await consumer.start()
    probe = Probe(settings, producer, consumer)
    reading = asyncio.create_task(probe.read())
    try:
        yield probe
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await consumer.stop()
        await producer.stop()
