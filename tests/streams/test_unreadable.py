"""What a producer writes against the rules costs nobody else; a damaged log stops a partition."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.util import calc_crc32c

from nnsec.adapters import kafka
from nnsec.adapters.compression import OPENED_BYTES
from nnsec.settings import Settings
from schemas.headers import UNREADABLE
from streams.runtime import Runtime
from tests.nnsec.adapters.test_batches import packed, record
from tests.streams.echo import TOPIC, WAIT, Echo, echoed, member, numbers, send, until


def line(value: bytes, offset: int, *, name: bytes = b"", attributes: int = 0) -> bytes:
    """One record with key ``k``, and a header of a name if there is one."""
    headers = b"\x02" + bytes([2 * len(name)]) + name + b"\x02x" if name else b"\x00"
    return record(b"\x02k" + bytes([2 * len(value)]) + value + headers, offset, attributes)


class Raw:
    """A batch of any records; the broker looks at little more than its checksum."""

    def __init__(self, lines: Sequence[bytes], codec: int = 0) -> None:
        raw = bytearray(packed(b"".join(lines), len(lines), codec, base=0))
        struct.pack_into(">I", raw, 17, calc_crc32c(bytes(raw[21:])))
        self._raw, self._count = bytes(raw), len(lines)

    def close(self) -> None: ...

    def closed(self) -> bool:
        return True

    def record_count(self) -> int:
        return self._count

    def size(self) -> int:
        return len(self._raw)

    def _build(self) -> bytes:
        return self._raw


async def produce(settings: Settings, partition: int, *batches: Raw) -> None:
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
async def test_odd_records_are_records(apache: Settings) -> None:
    """A header name that is no UTF-8, attributes, an offset of the producer's own: no stop."""
    async with member(apache, Echo()):
        await produce(
            apache, 2,
            Raw([line(b"one", 0), line(b"two", 1, name=b"\xff\xfe"), line(b"three", 2)]),
            Raw([line(b"four", 0, attributes=0x80), line(b"five", 1)]),
            Raw([line(b"six", 0), line(b"seven", 900), line(b"eight", 1)]),
        )  # fmt: skip
        sent = await send(apache, numbers(40))
        found = set(await echoed(apache, 48))
    words = {b"one", b"two", b"three", b"four", b"five", b"six"}
    assert words | set(sent) <= found
    odd = found - words - set(sent)
    assert sorted(word for one in odd for word in (b"seven", b"eight") if word in one) == [
        b"eight", b"seven",
    ]  # fmt: skip
    async with kafka.Positions(apache, "echo", (TOPIC,)) as positions:
        assert (await positions.read())[TOPIC, 2].committed == 18


@pytest.mark.kafka
@pytest.mark.parametrize("codec", [1, 4], ids=["gzip", "zstd"])
async def test_a_bomb_is_one_record(apache: Settings, codec: int) -> None:
    """A batch that would open to 36 MB, in less than 1 MiB: what is behind it is read."""
    large = OPENED_BYTES // 8
    length = bytes([large * 2 >> 7 * n & 127 | (128 if n < 3 else 0) for n in range(4)])
    lines = [record(b"\x02k" + length + bytes(large) + b"\x00", n) for n in range(9)]
    async with member(apache, Echo()):
        await produce(apache, 2, Raw(lines, codec))
        sent = await send(apache, numbers(40))
        found = set(await echoed(apache, 41)) - set(sent)
    assert [len(value) < 4 * 1024 * 1024 for value in found] == [True]
    ((name, _),) = [
        r.headers[0] async for r in kafka.read_to_end(apache, (TOPIC,)) if r.value in found
    ]
    assert name == UNREADABLE


@pytest.mark.kafka
async def test_damage_stops_its_partition(
    apache: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Behind all before it; the others lose nothing, readiness says why, and a person goes on."""
    async with kafka.Positions(apache, "echo", (TOPIC,)) as positions:
        await positions.commit({(TOPIC, 2): 0})
    stop, agent = asyncio.Event(), Echo()
    await produce(apache, 2, Raw([line(b"before-1", 0), line(b"before-2", 1)]))
    await produce(apache, 2, Raw([line(b"damaged", 0), line(b"with it", 1)]))
    damage(tmp_path_factory.getbasetemp(), kafka.topic_name(apache, TOPIC), b"damaged")
    runtime = Runtime(apache, (), [agent])
    task = asyncio.create_task(runtime.run(stop))
    try:
        await until(lambda: agent.held)
        sent = set()
        for number in range(30):
            sent |= set(await send(apache, numbers(4, f"n{number}-")))
        expected = {v for v in sent if not v.endswith(b"2")} | {b"before-1", b"before-2"}
        assert set(await echoed(apache, len(expected))) == expected
        await until(runtime.problems)
        (problem,) = runtime.problems()
        assert "offset 2 cannot be read: CorruptRecordException" in problem
    finally:
        stop.set()
        await asyncio.wait_for(task, WAIT)
    async with kafka.Positions(apache, "echo", (TOPIC,)) as positions:
        bounds = await positions.read()
        assert bounds[TOPIC, 2].committed == 2
        assert {b.lag for (_, number), b in bounds.items() if number != 2} == {0}
        await positions.commit({(TOPIC, 2): 4})
    async with member(apache, Echo()):
        assert sent <= set(await echoed(apache, len(sent) + 2))


def damage(folder: Path, topic: str, word: bytes) -> None:
    """Change a byte of a log on the broker's disk, as a disk does."""
    for path in folder.rglob(f"{topic}-2/*.log"):
        with path.open("r+b") as file:
            at = file.read().index(word)
            file.seek(at)
            file.write(b"D")
            return
    raise AssertionError(f"no log of {topic}")


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
