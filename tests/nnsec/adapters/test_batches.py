"""Batches are opened within bounds, and one record that breaks the rules hides no other."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import cramjam
import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecord, DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import encode_varint
from hypothesis import given, settings
from hypothesis import strategies as st

from nnsec.adapters import clients
from nnsec.adapters.batches import TAKEN_BYTES, Fetched, Records
from nnsec.adapters.compression import OPENED_BYTES
from schemas.headers import UNREADABLE

HEAD = 61
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
PACK: dict[int, Callable[[bytes], Any]] = {
    0: bytes, 1: cramjam.gzip.compress, 2: cramjam.snappy.compress_raw,
    3: cramjam.lz4.compress, 4: cramjam.zstd.compress,
}  # fmt: skip
Headers = Sequence[tuple[str, bytes | None]]
ONE: list[tuple[bytes | None, bytes | None, Headers]] = [
    (b"k", b"value", [("a", b"x"), ("b", None)]), (None, None, []), (b"", b"", [("", b"")]),
]  # fmt: skip


def built(records: Sequence[tuple[bytes | None, bytes | None, Headers]], codec: int = 0) -> bytes:
    batch = DefaultRecordBatchBuilder(
        2, codec, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=0,
        batch_size=1 << 30,
    )  # fmt: skip
    for number, (key, value, headers) in enumerate(records):
        batch.append(number, 1_000 + number, key=key, value=value, headers=list(headers))
    return bytes(batch.build())


def packed(body: bytes, many: int, codec: int = 0, base: int = 100) -> bytes:
    """A batch with any bytes as its records."""
    payload = bytes(PACK[codec](body))
    return struct.pack(
        ">qiibIhiqqqhii", base, HEAD - 12 + len(payload), 0, 2, 0, codec, many - 1,
        1_000, 2_000, -1, -1, -1, many,
    ) + payload  # fmt: skip


def record(body: bytes, delta: int, attributes: int = 0) -> bytes:
    """One record of a batch: its length, attributes, time, offset, and what follows."""
    out = bytearray([attributes])
    encode_varint(7, out.append)
    encode_varint(delta, out.append)
    length = bytearray()
    encode_varint(len(out) + len(body), length.append)
    return bytes(length + out) + body


PLAIN = b"\x02k\x02v\x00"
"""Key ``k``, value ``v``, no header."""


def read(data: bytes) -> list[DefaultRecord]:
    records, found = Records(data), []
    while records.has_next():
        found += list(records.next_batch())
    return found


def shown(found: Sequence[DefaultRecord]) -> list[tuple[Any, ...]]:
    return [(r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in found]


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_it_reads_what_aiokafka_reads(codec: int) -> None:
    """Of two batches and a third that is cut off, with checksums, in each compression."""
    data = built(ONE, codec) + built(ONE * 50, codec)
    theirs, expected = MemoryRecords(data), []
    while theirs.has_next():
        expected += list(theirs.next_batch() or ())
    records = Records(data + data[:70])
    found = []
    while records.has_next():
        batch = records.next_batch()
        assert batch.validate_crc()
        found += list(batch)
    assert shown(found) == shown(expected)
    assert records.next_batch() is None
    assert records.size_in_bytes() == len(data) + 70


def test_all_consumers_read_so() -> None:
    """As soon as there are clients; `_proc_fetch_request` of aiokafka looks this name up."""
    assert clients.outage is not None
    names = fetcher.Fetcher._proc_fetch_request.__code__.co_names
    assert "MemoryRecords" in names
    assert fetcher.MemoryRecords is Records


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_a_bomb_is_one_record(codec: int) -> None:
    """What opens to more than the bound is not opened: its last offset stands for all of it."""
    raw = packed(bytes(OPENED_BYTES + 1), 40, codec)
    (one,) = read(raw)
    assert (one.offset, one.key, one.value) == (139, None, raw[HEAD:])
    ((name, why),) = one.headers
    assert name == UNREADABLE
    assert b"offsets 100 to 139" in (why or b"")
    behind = built([(b"k", b"behind", [])])
    assert [r.value for r in read(raw + behind)][1:] == [b"behind"]


def test_a_bomb_of_many_blocks_is_one_record() -> None:
    """Java's snappy writes blocks; their sum counts."""
    block = bytes(cramjam.snappy.compress_raw(bytes(OPENED_BYTES // 4)))
    blocks = (struct.pack(">i", len(block)) + block) * 5
    raw = packed(b"", 1, 2)[:HEAD] + b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1) + blocks
    raw = raw[:8] + struct.pack(">i", len(raw) - 12) + raw[12:]
    (one,) = read(raw)
    assert b"more than" in (dict(one.headers)[UNREADABLE] or b"")


@pytest.mark.parametrize("codec", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("payload", [b"", b"no such thing", b"\x82SNAPPY\x00\0\0\0\1\0\0\0\1\0\0"])
def test_what_does_not_open_is_one_record(codec: int, payload: bytes) -> None:
    """Cut off, of another compression, or of none that there is; nothing behind it is lost."""
    raw = bytearray(packed(payload, 3))
    struct.pack_into(">h", raw, 21, codec)
    found = read(bytes(raw) + built([(b"k", b"behind", [])]))
    assert [r.offset for r in found] == [102, 0]
    assert found[0].headers[0][0] == UNREADABLE
    assert found[1].value == b"behind"


@pytest.mark.parametrize("codec", [0, 4])
def test_a_header_name_that_is_no_utf8_is_kept_in_words(codec: int) -> None:
    """As for Kafka's own client: the record counts, with the name as well as it can be said."""
    odd = b"\x02k\x02v\x02\x06a\xff\xfe\x02x"
    body = record(PLAIN, 0) + record(odd, 1) + record(PLAIN, 2)
    found = read(packed(body, 3, codec))
    assert shown(found) == [
        (100, 1_007, b"k", b"v", ()), (101, 1_007, b"k", b"v", (("a\\xff\\xfe", b"x"),)),
        (102, 1_007, b"k", b"v", ()),
    ]  # fmt: skip


def test_attributes_mean_nothing() -> None:
    """One byte, whatever it is; aiokafka reads on into the next for 128 and more."""
    found = read(packed(record(PLAIN, 0, 0x80) + record(PLAIN, 1, 0xFF), 2))
    assert shown(found) == [(100, 1_007, b"k", b"v", ()), (101, 1_007, b"k", b"v", ())]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"\x02k\x02", "1 bytes where 0 are left"),
        (b"\x02k\x02v\x00!", "1 bytes too many"),
        (b"\x02k\x02v\x01", "-1 headers"),
        (b"\x02k\x02v\x02\x01\x02x", "a header without a name"),
        (b"", "0 bytes where -1 are left"),
    ],
    ids=["short", "long", "negative", "nameless", "empty"],
)
def test_a_record_that_breaks_the_rules_hides_no_other(body: bytes, why: str) -> None:
    """It has its bytes as value, and says why."""
    raw = record(PLAIN, 0) + record(body, 1) + record(PLAIN, 2)
    first, odd, last = read(packed(raw, 3))
    assert (first.value, last.value) == (b"v", b"v")
    assert (odd.offset, odd.key, odd.timestamp) == (101, None, 2_000)
    assert (odd.value or b"").endswith(body)
    assert why in (dict(odd.headers)[UNREADABLE] or b"").decode()


def test_records_without_an_end_are_one() -> None:
    """A length that reaches past the batch says nothing about where the next would begin."""
    raw = record(PLAIN, 0) + b"\xfe\xff\x03rest"
    first, rest = read(packed(raw, 5))
    assert (first.offset, rest.offset) == (100, 104)
    assert rest.value == b"\xfe\xff\x03rest"
    assert b"records without an end" in (dict(rest.headers)[UNREADABLE] or b"")


@pytest.mark.parametrize(
    "deltas", [(0, 2, 2), (3, 0, 0, 0), (2, 1, 0), (9, 9), (0, -1, 5)], ids=str
)
def test_no_record_takes_a_place_behind_its_batch(deltas: tuple[int, ...]) -> None:
    """Else what others wrote there would count as read."""
    raw = b"".join(record(PLAIN, delta) for delta in deltas)
    found = [r.offset for r in read(packed(raw, len(deltas)))]
    assert len(found) == len(deltas)
    assert found == sorted(set(found))
    assert found[-1] < 100 + len(deltas)


def test_records_without_a_place_each_are_one() -> None:
    """More records than offsets: no reader could tell them apart."""
    raw = bytearray(packed(record(PLAIN, 0) * 9, 9))
    struct.pack_into(">i", raw, 23, 3)
    (one,) = read(bytes(raw))
    assert one.offset == 103
    assert b"9 records in fewer offsets" in (dict(one.headers)[UNREADABLE] or b"")


def test_a_record_of_less_than_nothing_is_not_walked_back_over() -> None:
    """65 bytes that claim two thousand million records cost next to nothing."""
    raw = bytearray(packed(b"\x03\x00\x00\x00", 1))
    struct.pack_into(">i", raw, 23, 2**31 - 2)
    struct.pack_into(">i", raw, 57, 2**31 - 1)
    began = time.process_time()
    (one,) = read(bytes(raw))
    assert b"records without an end" in (dict(one.headers)[UNREADABLE] or b"")
    assert time.process_time() - began < 1.0


def test_no_more_is_opened_than_is_taken() -> None:
    """A fetch may hold a thousand batches that open to 32 MiB each: they come one by one."""
    large = built([(None, bytes(TAKEN_BYTES), [])], 4)
    assignment = SimpleNamespace(active=True, state_value=lambda _: state)
    state = SimpleNamespace(paused=False, position=0)
    state.consumed_to = lambda offset: setattr(state, "position", offset)
    batches = b"".join(struct.pack(">q", n) + large[8:] for n in range(40))
    tp = TopicPartition("t", 0)
    part = fetcher.PartitionRecords(tp, Records(batches), None, 0, None, None, True, 0)
    fetched = Fetched(tp, assignment=assignment, partition_records=part, backoff=0)
    for number in range(40):
        (one,) = fetched.getall(512)
        assert one.offset == number
        assert fetched.has_more()
    assert fetched.getall(512) == []
    assert not fetched.has_more()


def test_small_records_are_taken_as_many_as_asked_for() -> None:
    """As aiokafka does."""
    assignment = SimpleNamespace(active=True, state_value=lambda _: state)
    state = SimpleNamespace(paused=False, position=0, consumed_to=lambda offset: None)
    tp = TopicPartition("t", 0)
    records = Records(built(ONE * 50))
    part = fetcher.PartitionRecords(tp, records, None, 0, None, None, False, 0)
    fetched = Fetched(tp, assignment=assignment, partition_records=part, backoff=0)
    assert len(fetched.getall(100)) == 100
    state.position = 100
    assert len(fetched.getall()) == 50
    assert not fetched.has_more()


def test_a_time_by_the_broker_is_of_all_records() -> None:
    """Also of those that are read one by one."""
    raw = bytearray(packed(record(PLAIN, 0, 0x80), 1))
    struct.pack_into(">h", raw, 21, 0x08)
    (one,) = read(bytes(raw))
    assert (one.timestamp, one.timestamp_type) == (2_000, 1)


@pytest.mark.parametrize(
    "data",
    [bytes(12), packed(b"", 0)[:16] + b"\x01" + packed(b"", 0)[17:], b"\0" * 8 + b"\xff" * 80],
    ids=["short", "old", "negative"],
)
def test_what_is_no_batch_is_damage(data: bytes) -> None:
    """No broker takes it from a producer, so nothing is guessed from it."""
    records = Records(data)
    assert records.has_next()
    with pytest.raises(CorruptRecordException, match="no batch"):
        records.next_batch()


@settings(max_examples=300, deadline=None)
@given(
    codec=st.sampled_from([0, 1, 2, 3, 4]),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    inside=st.booleans(),
)
def test_whatever_a_producer_writes_is_read_to_its_end(
    codec: int, changes: list[tuple[int, int]], inside: bool
) -> None:
    """Bytes changed before or after compression: no error, no offset twice, and what follows."""
    plain = bytearray(built(ONE)[HEAD:])
    for at, value in changes if inside else ():
        plain[at % len(plain)] = value
    raw = bytearray(packed(bytes(plain), len(ONE), codec))
    for at, value in changes if not inside else ():
        raw[HEAD + at % (len(raw) - HEAD)] = value
    found = read(bytes(raw) + built([(b"k", b"behind", [])]))
    assert found[-1].value == b"behind"
    offsets = [r.offset for r in found[:-1]]
    assert offsets == sorted(set(offsets))
    assert all(100 <= offset < 100 + len(ONE) for offset in offsets)
    if all(UNREADABLE not in dict(r.headers) for r in found):
        assert len(found) == len(ONE) + 1
