"""The work itself, and the clock; the same for all contestants."""

from __future__ import annotations

import json
import resource
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any

HEAD = struct.Struct("<4sIII")
MAGIC = b"nns1"
SCORE = struct.Struct("<qif")
HEADERS = [("content-type", b"application/octet-stream"), ("ce_type", b"nnsec.score.v1")]
MAX_BATCH = 512
COMMIT_SECONDS = 0.5


def encode(number: int, size: int) -> bytes:
    """Make an input: a head of 16 bytes, and pixels."""
    head = HEAD.pack(MAGIC, number & 0xFFFFFFFF, size - HEAD.size, 1)
    return head + bytes(size - HEAD.size)


def verdict(value: bytes, offset: int) -> bytes:
    """Check the head and give the trivial verdict.

    Raises
    ------
    ValueError
        If it is not what `encode` makes.
    """
    magic, number, size, rows = HEAD.unpack_from(value)
    if magic != MAGIC or size != len(value) - HEAD.size or rows != 1:
        raise ValueError("not an input")
    return SCORE.pack(offset, number & 1, 1.0)


@dataclass
class Run:
    """What a contestant is told, and its clock.

    Parameters
    ----------
    group:
        Consumer group.
    count:
        How many records there are to do.
    """

    servers: str
    source: str
    target: str
    group: str
    count: int
    done: int = 0
    began: float = 0.0
    _used: float = 0.0

    @classmethod
    def told(cls) -> Run:
        """Read the command line."""
        servers, source, target, group, count = sys.argv[1:]
        return cls(servers, source, target, group, int(count))

    def note(self, records: int) -> bool:
        """Count records that were read; the clock begins with the first. True with the last."""
        if not self.began:
            self.began, self._used = time.perf_counter(), _cpu()
        self.done += records
        return self.done >= self.count

    def say(self, **more: Any) -> None:
        """Stop the clock and print the result."""
        seconds, used = time.perf_counter() - self.began, _cpu() - self._used
        result = {"records": self.done, "seconds": seconds, "cpu_seconds": used}
        sys.stdout.write(json.dumps(result | more) + "\n")
        sys.stdout.flush()


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
