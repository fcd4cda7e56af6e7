"""Opening what the broker sends: bounded, and each record by itself.

aiokafka decompresses a batch whole, however large it becomes (8 KB of zstd can hold 256 MB), and
reads no record of a batch in which one breaks its rules; a broker takes both from any producer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import cramjam
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecord, DefaultRecordBatch
from aiokafka.record.util import decode_varint

from nnsec.adapters.compression import (
    BEFORE_LENGTH,
    HEAD,
    LENGTH_AT,
    OPENED_BYTES,
    decompressed,
)
from schemas.headers import UNREADABLE

TAKEN_BYTES = 8 * 1024 * 1024
"""Bytes of keys and values from which on no more records are taken of a partition at a time."""

_MAGIC = 2
_MAGIC_AT = 16
_BY_BROKER = 0x08


class Records:
    """The batches in one answer of the broker; takes the place of aiokafka's `MemoryRecords`.

    Parameters
    ----------
    data:
        Batches one after the other; the last may be cut off.
    """

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    def size_in_bytes(self) -> int:
        """All, with what is cut off."""
        return len(self._data)

    def has_next(self) -> bool:
        """Whether there is another whole batch."""
        return self._end() is not None

    def next_batch(self) -> Any:
        """Take the next batch; None if there is none.

        Raises
        ------
        CorruptRecordException
            If it is none: the broker takes none such, its log is damaged.
        """
        end = self._end()
        if end is None:
            return None
        raw, self._at = self._data[self._at : end], end
        if len(raw) < HEAD.size or raw[_MAGIC_AT] != _MAGIC:
            raise CorruptRecordException(
                f"{len(raw)} bytes that are no batch of Kafka 0.11 or later"
            )
        whole = DefaultRecordBatch(raw)
        return whole if whole.is_control_batch else Batch(raw, whole)

    def _end(self) -> int | None:
        if self._at + BEFORE_LENGTH > len(self._data):
            return None
        (length,) = struct.unpack_from(">i", self._data, self._at + LENGTH_AT)
        end = self._at + BEFORE_LENGTH + max(int(length), 0)
        return end if end <= len(self._data) else None


class Batch:
    """A batch as `aiokafka.consumer.fetcher.PartitionRecords` takes it.

    What cannot be read of it comes as a record all the same, with `UNREADABLE` among its headers:
    a record has its bytes as value; where it is not clear what the records are, one takes the last
    offset for all of them.

    Parameters
    ----------
    raw:
        The batch as it came.
    whole:
        The same, for aiokafka.
    """

    def __init__(self, raw: memoryview, whole: DefaultRecordBatch) -> None:
        self._raw = raw
        self._whole = whole
        self.base_offset: int = whole.base_offset
        self.next_offset: int = whole.next_offset
        self.producer_id: int = whole.producer_id
        self.is_transactional: bool = whole.is_transactional
        self.is_control_batch = False
        self.validate_crc: Callable[[], bool] = whole.validate_crc

    def __iter__(self) -> Iterator[DefaultRecord]:
        try:
            plain = decompressed(self._raw)
        except (ValueError, cramjam.DecompressionError) as error:
            why = f"a batch that does not open within {OPENED_BYTES} bytes: {error}"
            yield self._rest(bytes(self._raw[HEAD.size :]), why)
            return
        count = 0
        try:
            for record in self._quickly(plain):
                yield record
                count += 1
        except Exception:  # noqa: BLE001 - aiokafka raises many kinds, SystemError among them
            yield from self._one_by_one(plain or bytes(self._raw), count)

    def _fits(self, offset: int, last: int, behind: int) -> bool:
        """Whether an offset is above the last one, and leaves a place for each record behind it."""
        return last < offset < self.next_offset - behind

    def _quickly(self, plain: bytes) -> Iterator[DefaultRecord]:
        """Let aiokafka read them; raises where it would not read what Kafka's own client does."""
        behind = _check_attributes(plain or self._raw)
        last = self.base_offset - 1
        for record in DefaultRecordBatch(plain) if plain else self._whole:
            behind -= 1
            if not self._fits(record.offset, last, behind):
                raise ValueError(f"offset {record.offset}")
            last = record.offset
            yield record

    def _one_by_one(self, plain: bytes, done: int) -> Iterator[DefaultRecord]:
        """Read on as Kafka's own client does; by their lengths, so that each is judged alone."""
        many, at, offset = HEAD.unpack_from(plain)[-1], HEAD.size, self.base_offset - 1
        if many > self.next_offset - self.base_offset:
            yield self._rest(plain[at:], f"{many} records in fewer offsets")
            return
        for number in range(many):
            try:
                length, start = decode_varint(plain, at)
            except (ValueError, IndexError):
                length, start = -1, at
            if not 0 <= length <= len(plain) - start:
                yield self._rest(plain[at:], "records without an end")
                return
            at = start + length
            body = plain[start:at]
            try:
                record = self._record(body)
                if not self._fits(record.offset, offset, many - number - 1):
                    raise ValueError(f"offset {record.offset}")  # noqa: TRY301
            except (ValueError, IndexError) as error:
                record = self._unread(offset + 1, body, f"a record that breaks the rules: {error}")
            offset = record.offset
            if number >= done:
                yield record

    def _record(self, body: bytes) -> DefaultRecord:
        """Read one record; its first byte means nothing yet, and says nothing of what follows."""
        since, at = decode_varint(body, 1)
        delta, at = decode_varint(body, at)
        key, at = _bytes(body, at)
        value, at = _bytes(body, at)
        many, at = decode_varint(body, at)
        if many < 0:
            raise ValueError(f"{many} headers")
        headers: list[tuple[str, bytes | None]] = []
        for _ in range(many):
            name, at = _bytes(body, at)
            if name is None:
                raise ValueError("a header without a name")
            content, at = _bytes(body, at)
            headers.append((name.decode("utf-8", "backslashreplace"), content))
        if at != len(body):
            raise ValueError(f"{len(body) - at} bytes too many")
        first, largest = self._whole.first_timestamp, self._whole.max_timestamp
        by_broker = bool(self._whole.attributes & _BY_BROKER)
        return DefaultRecord(
            self.base_offset + delta, largest if by_broker else first + since, int(by_broker),
            key, value, headers,
        )  # fmt: skip

    def _rest(self, body: bytes, why: str) -> DefaultRecord:
        """Make one record of a whole batch, or of all that is left of it."""
        last = self.next_offset - 1
        return self._unread(last, body, f"{why} (in offsets {self.base_offset} to {last})")

    def _unread(self, offset: int, body: bytes, why: str) -> DefaultRecord:
        by_broker = bool(self._whole.attributes & _BY_BROKER)
        said = [(UNREADABLE, why.encode())]
        return DefaultRecord(offset, self._whole.max_timestamp, int(by_broker), None, body, said)


def _check_attributes(plain: bytes | memoryview) -> int:
    """Count the records of a batch.

    Raises
    ------
    ValueError
        If aiokafka would take a record's attributes for more than one byte: then it would see other
        records than everybody else does.
    """
    many, at = HEAD.unpack_from(plain)[-1], HEAD.size
    for _ in range(many):
        length = plain[at]
        if length < 0x80:
            length, at = (length >> 1) ^ -(length & 1), at + 1
        else:
            length, at = decode_varint(plain, at)
        if length < 0 or plain[at] >= 0x80:
            raise ValueError(f"a record of {length} bytes, attributes {plain[at]}")
        at += length
    return int(many)


def _bytes(body: bytes, at: int) -> tuple[bytes | None, int]:
    """Read a length and as many bytes; a negative length means null."""
    length, at = decode_varint(body, at)
    if length < 0:
        return None, at
    if at + length > len(body):
        raise ValueError(f"{length} bytes where {len(body) - at} are left")
    return body[at : at + length], at + length


class Fetched(fetcher.FetchResult):  # type: ignore[misc] # aiokafka has no types here
    """What was fetched of a partition; it may hold a thousand batches that open to 32 MiB each."""

    _partition_records: Any

    def getall(self, max_records: int | None = None) -> list[Any]:
        """Take records, as aiokafka does, but only until they have `TAKEN_BYTES`."""
        found: list[Any] = []
        if not self.check_assignment(self._topic_partition) or not self.has_more():
            return found
        size = 0
        for record in self._partition_records:
            found.append(record)
            size += len(record.key or b"") + len(record.value or b"")
            if len(found) == max_records or size >= TAKEN_BYTES:
                self._update_position()
                return found
        self._update_position()
        self._partition_records = None
        return found


def install() -> None:
    """Have all consumers of this process read so."""
    fetcher.MemoryRecords = Records
    fetcher.FetchResult = Fetched
