"""Opening what the broker sends: bounded, and each record by itself.

aiokafka decompresses a batch whole, however large it becomes (8 KB of zstd can hold 256 MB), and
reads no record of a batch in which one breaks its rules; a broker takes both from any producer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cramjam
import numpy as np
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecord, DefaultRecordBatch
from aiokafka.record.util import decode_varint

OPENED_BYTES = 32 * 1024 * 1024
"""Bytes that the records of a batch may have, decompressed."""
UNREADABLE = "nnsec-unreadable"
"""Header of a record that stands for what could not be read; it says why."""

_HEAD = struct.Struct(">qiibIhiqqqhii")
"""Base offset, length, leader epoch, magic, CRC, attributes, last offset delta, first and largest
timestamp, producer's id and epoch, base sequence, number of records."""
_MAGIC = 2
_LENGTH_AT, _MAGIC_AT, _ATTRIBUTES_AT = 8, 16, 21
_BEFORE_LENGTH = 12
_CODEC, _BY_BROKER = 0x07, 0x08
_OTHER_CODECS: Mapping[int, Any] = {1: cramjam.gzip, 3: cramjam.lz4, 4: cramjam.zstd}
_SNAPPY = 2
_XERIAL = b"\x82SNAPPY\x00"
_XERIAL_HEAD = 16


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
        if len(raw) < _HEAD.size or raw[_MAGIC_AT] != _MAGIC:
            raise CorruptRecordException(
                f"{len(raw)} bytes that are no batch of Kafka 0.11 or later"
            )
        whole = DefaultRecordBatch(raw)
        return whole if whole.is_control_batch else Batch(raw, whole)

    def _end(self) -> int | None:
        if self._at + _BEFORE_LENGTH > len(self._data):
            return None
        (length,) = struct.unpack_from(">i", self._data, self._at + _LENGTH_AT)
        end = self._at + _BEFORE_LENGTH + max(int(length), 0)
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
            plain = _plain(self._raw)
        except (ValueError, cramjam.DecompressionError) as error:
            why = f"a batch that does not open within {OPENED_BYTES} bytes: {error}"
            yield self._rest(bytes(self._raw[_HEAD.size :]), why)
            return
        count = 0
        try:
            for record in self._quickly(plain):
                yield record
                count += 1
        except Exception:  # noqa: BLE001 - aiokafka raises many kinds, SystemError among them
            yield from self._one_by_one(plain or bytes(self._raw), count)

    def _quickly(self, plain: bytes) -> Iterator[DefaultRecord]:
        """Let aiokafka read them; raises where it would not read what Kafka's own client does."""
        _check_attributes(plain or self._raw)
        last = self.base_offset - 1
        for record in DefaultRecordBatch(plain) if plain else self._whole:
            if not last < record.offset < self.next_offset:
                raise ValueError(f"offset {record.offset}")
            last = record.offset
            yield record

    def _one_by_one(self, plain: bytes, done: int) -> Iterator[DefaultRecord]:
        """Read on as Kafka's own client does; by their lengths, so that each is judged alone."""
        many, at, offset = _HEAD.unpack_from(plain)[-1], _HEAD.size, self.base_offset - 1
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
                if not offset < record.offset < self.next_offset:
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


def _plain(raw: memoryview) -> bytes:
    """Decompress a batch; its checksum is not right any more. Empty if it is not compressed.

    Raises
    ------
    ValueError, cramjam.DecompressionError
        If it cannot be decompressed, or to more than `OPENED_BYTES`.
    """
    (attributes,) = struct.unpack_from(">h", raw, _ATTRIBUTES_AT)
    codec, payload = attributes & _CODEC, raw[_HEAD.size :]
    if not codec:
        return b""
    if codec == _SNAPPY:
        body = b"".join(_snappy(bytes(payload)))
    elif codec in _OTHER_CODECS:
        room = np.empty(OPENED_BYTES, np.uint8)  # takes memory only where it is written to
        body = room[: _OTHER_CODECS[codec].decompress_into(payload, room)].tobytes()
    else:
        raise ValueError(f"codec {codec}")
    head = bytearray(raw[: _HEAD.size])
    struct.pack_into(">i", head, _LENGTH_AT, _HEAD.size - _BEFORE_LENGTH + len(body))
    struct.pack_into(">h", head, _ATTRIBUTES_AT, attributes & ~_CODEC)
    return bytes(head) + body


def _check_attributes(plain: bytes | memoryview) -> None:
    """Raise ValueError if aiokafka would take a record's attributes for more than one byte.

    Then it would see other records than everybody else does.
    """
    many, at = _HEAD.unpack_from(plain)[-1], _HEAD.size
    for _ in range(many):
        length = plain[at]
        if length < 0x80:
            length, at = length >> 1, at + 1
        else:
            length, at = decode_varint(plain, at)
        if plain[at] >= 0x80:
            raise ValueError(f"attributes {plain[at]}")
        at += length


def _snappy(payload: bytes) -> Iterator[bytes]:
    """Decompress blocks, each behind its length, as Java writes them; or a single one without."""
    room = OPENED_BYTES
    for block in _blocks(payload):
        size = cramjam.snappy.decompress_raw_len(block)
        if size > room:
            raise ValueError(f"more than {OPENED_BYTES} bytes")
        room -= size
        yield bytes(cramjam.snappy.decompress_raw(block))


def _blocks(payload: bytes) -> Iterator[bytes]:
    if not payload.startswith(_XERIAL):
        yield payload
        return
    at = _XERIAL_HEAD
    while at < len(payload):
        try:
            (size,) = struct.unpack_from(">i", payload, at)
        except struct.error as error:
            raise ValueError("a block without a length") from error
        at += 4
        if not 0 <= size <= len(payload) - at:
            raise ValueError(f"a block of {size} bytes")
        yield payload[at : at + size]
        at += size


def _bytes(body: bytes, at: int) -> tuple[bytes | None, int]:
    """Read a length and as many bytes; a negative length means null."""
    length, at = decode_varint(body, at)
    if length < 0:
        return None, at
    if at + length > len(body):
        raise ValueError(f"{length} bytes where {len(body) - at} are left")
    return body[at : at + length], at + length


def install() -> None:
    """Have all consumers of this process read so."""
    fetcher.MemoryRecords = Records
