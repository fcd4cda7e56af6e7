"""The last samples of one source, as compact rows; it advances sample by sample, in log order."""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nnsec.errors import DigestMismatch
from nnsec.poisoning.samples import SIGNATURE

ROWS = 128
"""Samples of a source that the screens look back on."""
SPARE = 128
"""Older ones, kept so that as many redelivered samples are judged as they were at first."""
SLACK = 64
PATTERNS = 32
"""Triggers of a source that are remembered; the oldest goes."""
MAGIC = b"nnsec-window-1\0\0"
HEADER = struct.Struct("<16sIIqI")

PATTERN = np.dtype(
    [("since", "<i8"), ("label", "<u2"), ("place", "<u2"), ("code", "<u2"),
     ("surprise", "<f4")]
)  # fmt: skip


def row_dtype(places: int) -> np.dtype[Any]:
    """What is remembered of one sample: 48 bytes and one per place."""
    return np.dtype(
        [
            ("offset", "<i8"), ("row", "<u4"), ("label", "<u2"), ("level", "u1"),
            ("repeated", "?"), ("fingerprint", "<u8"), ("signature", "i1", (SIGNATURE,)),
            ("codes", "u1", (places,)),
        ]
    )  # fmt: skip


class SourceWindow:
    """The last samples of one source in one partition, and the triggers that it was caught with.

    At most 128 rows count, and as many older ones are kept: if the log is read again from a
    position among them, `rewind` makes the window what it was there. A window takes at most
    ``320 · (48 + places)`` bytes: 31 KB for 8×8 images, 78 KB for 28×28.

    Parameters
    ----------
    places:
        Codes per sample.
    """

    __slots__ = ("_buffer", "_end", "patterns", "places", "seen")

    def __init__(self, places: int) -> None:
        self.places = places
        self.seen = 0
        """Samples taken in since the beginning."""
        self.patterns = np.zeros(0, PATTERN)
        self._buffer: NDArray[np.void] = np.zeros(16, row_dtype(places))
        self._end = 0

    def __len__(self) -> int:
        return min(self._end, ROWS)

    @property
    def rows(self) -> NDArray[np.void]:
        """The last samples, oldest first; a view that the next change makes invalid."""
        return self._buffer[max(0, self._end - ROWS) : self._end]

    @property
    def nbytes(self) -> int:
        """Memory in use."""
        return int(self._buffer.nbytes + self.patterns.nbytes)

    @property
    def worth(self) -> int:
        """What is lost with it: one for each sample looked back on, and 128 for known triggers."""
        return len(self) + ROWS * bool(len(self.patterns))

    def push(self, **fields: Any) -> None:
        """Take in the next sample; the fields are those of `row_dtype`."""
        if self._end == len(self._buffer):
            self._make_room()
        row = self._buffer[self._end]
        for name, value in fields.items():
            row[name] = value
        self._end += 1
        self.seen += 1

    def establish(self, label: int, place: int, code: int, surprise: float) -> None:
        """Remember a trigger, with the figure that it was found by; once remembered, it stays."""
        known = self.patterns
        same = (known["label"] == label) & (known["place"] == place) & (known["code"] == code)
        if not same.any():
            new = np.array([(self.seen, label, place, code, surprise)], PATTERN)
            self.patterns = np.concatenate([known, new])[-PATTERNS:]

    def rewind(self, offset: int) -> None:
        """Forget the samples of all records at and after an offset, for they come again.

        What a source did more than `ROWS` + `SPARE` samples ago is not brought back: then fewer
        samples are looked back on for a while.
        """
        offsets = self._buffer["offset"][: self._end]
        if not len(offsets) or offsets[-1] < offset:
            return
        count = int((offsets < offset).sum())  # rows are in log order
        self.seen -= self._end - count
        self._end = count
        self.patterns = self.patterns[self.patterns["since"] < self.seen]

    def copy(self) -> SourceWindow:
        """Make one that changes by itself."""
        twin = SourceWindow(self.places)
        twin.seen, twin._end = self.seen, self._end
        twin.patterns, twin._buffer = self.patterns, self._buffer.copy()
        return twin

    def snapshot(self) -> bytes:
        """Write all of it down, with a digest in front; see `restore`."""
        body = HEADER.pack(MAGIC, self.places, self._end, self.seen, len(self.patterns))
        body += self.patterns.tobytes() + self._buffer[: self._end].tobytes()
        packed = zlib.compress(body, 1)
        return hashlib.sha256(packed).digest() + packed

    @classmethod
    def restore(cls, snapshot: bytes) -> Self:
        """Read what `snapshot` wrote.

        Raises
        ------
        DigestMismatch
            If it is not, byte for byte, what was written.
        """
        digest, packed = snapshot[:32], snapshot[32:]
        if hashlib.sha256(packed).digest() != digest:
            raise DigestMismatch("the snapshot of a source's window differs from its digest")
        try:
            return cls._read(_inflate(packed))
        except (ValueError, struct.error, zlib.error) as error:
            raise DigestMismatch(f"no snapshot of a source's window: {error}") from error

    @classmethod
    def _read(cls, body: bytes) -> Self:
        magic, places, count, seen, patterns = HEADER.unpack_from(body)
        if magic != MAGIC or places > 256 or patterns > PATTERNS:
            msg = "its header is of another version"
            raise ValueError(msg)
        window = cls(places)
        rows = HEADER.size + patterns * PATTERN.itemsize
        window.patterns = np.frombuffer(body[HEADER.size : rows], PATTERN).copy()
        buffer = np.frombuffer(body[rows:], row_dtype(places))
        if len(buffer) != count or count > seen:
            msg = f"it holds {len(buffer)} rows of {count}"
            raise ValueError(msg)
        window._buffer, window._end, window.seen = buffer.copy(), count, seen
        return window

    def _make_room(self) -> None:
        if self._end < ROWS + SPARE + SLACK:
            grown = min(max(2 * self._end, 16), ROWS + SPARE + SLACK)
            buffer = np.zeros(grown, self._buffer.dtype)
            buffer[: self._end] = self._buffer[: self._end]
            self._buffer = buffer
        else:
            keep = ROWS + SPARE
            self._buffer[:keep] = self._buffer[self._end - keep : self._end].copy()
            self._end = keep


def _inflate(packed: bytes) -> bytes:
    """Decompress what can be no larger than a full window."""
    limit = HEADER.size + PATTERNS * PATTERN.itemsize + (ROWS + SPARE + SLACK) * 400
    engine = zlib.decompressobj()
    body = engine.decompress(packed, limit)
    if not engine.eof:
        msg = "it is longer than any window"
        raise ValueError(msg)
    return body
