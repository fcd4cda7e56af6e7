"""What aiokafka cannot read stops its own partition only, behind all that could be read."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from nnsec.adapters import kafka
from nnsec.settings import Settings
from streams.runtime import Runtime
from tests.streams.echo import TOPIC, WAIT, Echo, echoed, member, numbers, send, until

MARK = b"ZZZZ"


class Odd:
    """A batch in which the header name `MARK` is no UTF-8; the broker does not look."""

    def __init__(self, values: Sequence[bytes], odd: int) -> None:
        batch = DefaultRecordBatchBuilder(
            2, 0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=0,
            batch_size=99_999,
        )  # fmt: skip
        for number, value in enumerate(values):
            headers = [(MARK.decode(), b"x")] if number == odd else []
            batch.append(number, None, key=b"k", value=value, headers=headers)
        raw = bytearray(batch.build())
        raw[:] = raw.replace(MARK, b"\xff\xfe\xff\xfe")
        struct.pack_into(">I", raw, 17, calc_crc32c(bytes(raw[21:])))
        self._raw, self._count = bytes(raw), len(values)

    def close(self) -> None: ...

    def closed(self) -> bool:
        return True

    def record_count(self) -> int:
        return self._count

    def size(self) -> int:
        return len(self._raw)

    def _build(self) -> bytes:
        return self._raw


async def produce(settings: Settings, partition: int, *batches: Odd) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers)
    await producer.start()
    try:
        for batch in batches:
            sent = await producer.send_batch(
                batch, kafka.topic_name(settings, TOPIC), partition=partition
            )
            await sent
    finally:
        await producer.stop()


@pytest.mark.kafka
async def test_one_stops_and_the_others_lose_nothing(apache: Settings) -> None:
    """Not even what was fetched of them together with it; readiness says which and why."""
    stop, agent = asyncio.Event(), Echo()
    runtime = Runtime(apache, (), [agent])
    task = asyncio.create_task(runtime.run(stop))
    try:
        await until(lambda: agent.held)
        await send(apache, numbers(4, "warm"))
        await produce(apache, 2, Odd([b"before-1", b"before-2", b"odd", b"behind"], odd=2))
        sent = set()
        for number in range(30):
            sent |= set(await send(apache, numbers(4, f"n{number}-")))
        expected = {v for v in sent if not v.endswith(b"2")} | {b"before-1", b"before-2"}
        expected |= set(numbers(4, "warm"))
        assert set(await echoed(apache, len(expected))) == expected
        await until(runtime.problems)
        (problem,) = runtime.problems()
        assert "offset 3 cannot be read: UnicodeDecodeError" in problem
    finally:
        stop.set()
        await asyncio.wait_for(task, WAIT)
    async with kafka.Positions(apache, "echo", (TOPIC,)) as positions:
        bounds = await positions.read()
    assert bounds[TOPIC, 2].committed == 3
    assert {b.lag for (_, number), b in bounds.items() if number != 2} == {0}


@pytest.mark.kafka
async def test_it_goes_on_behind_when_a_person_says_so(apache: Settings) -> None:
    """Past the whole batch, as the library reads no part of it behind what is odd."""
    async with kafka.Positions(apache, "echo", (TOPIC,)) as positions:
        await positions.commit({(TOPIC, 2): 2})
    await produce(apache, 2, Odd([b"odd", b"behind"], odd=0))
    sent = await send(apache, numbers(40))
    async with member(apache, Echo()):
        assert set(await echoed(apache, 40)) == set(sent)


@pytest.mark.kafka
@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_records_are_read(apache: Settings, codec: str) -> None:
    """Whatever producers choose to compress with."""
    async with member(apache, Echo()):
        producer = AIOKafkaProducer(
            bootstrap_servers=apache.kafka.bootstrap_servers, compression_type=codec
        )
        await producer.start()
        try:
            await producer.send_and_wait(kafka.topic_name(apache, TOPIC), b"squeezed" * 50)
        finally:
            await producer.stop()
        assert await echoed(apache, 1) == [b"squeezed" * 50]
