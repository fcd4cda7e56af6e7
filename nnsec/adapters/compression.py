"""Decompressing a producer's batch into a bounded buffer."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import cramjam
import numpy as np

OPENED_BYTES = 32 * 1024 * 1024
"""Bytes that the records of a batch may have, decompressed."""
HEAD = struct.Struct(">qiibIhiqqqhii")
"""Base offset, length, leader epoch, magic, CRC, attributes, last offset delta, first and largest
timestamp, producer's id and epoch, base sequence, number of records."""
LENGTH_AT = 8
BEFORE_LENGTH = 12
"""Bytes of a batch that its length does not count."""

_ATTRIBUTES_AT = 21
_CODEC = 0x07
_OTHER_CODECS: Mapping[int, Any] = {1: cramjam.gzip, 3: cramjam.lz4, 4: cramjam.zstd}
_SNAPPY = 2
_XERIAL = b"\x82SNAPPY\x00"
_XERIAL_HEAD = 16


def decompressed(raw: memoryview) -> bytes:
    """Decompress a batch; its checksum is not right any more. Empty if it is not compressed.

    Raises
    ------
    ValueError, cramjam.DecompressionError
        If it cannot be decompressed, or to more than `OPENED_BYTES`.
    """
    (attributes,) = struct.unpack_from(">h", raw, _ATTRIBUTES_AT)
    codec, payload = attributes & _CODEC, raw[HEAD.size :]
    if not codec:
        return b""
    if codec == _SNAPPY:
        body = b"".join(_snappy(bytes(payload)))
    elif codec in _OTHER_CODECS:
        room = np.empty(OPENED_BYTES, np.uint8)  # takes memory only where it is written to
        body = room[: _OTHER_CODECS[codec].decompress_into(payload, room)].tobytes()
    else:
        raise ValueError(f"codec {codec}")
    head = bytearray(raw[: HEAD.size])
    struct.pack_into(">i", head, LENGTH_AT, HEAD.size - BEFORE_LENGTH + len(body))
    struct.pack_into(">h", head, _ATTRIBUTES_AT, attributes & ~_CODEC)
    return bytes(head) + body


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
