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


@dataclass
class Clock:
    """Counts rows and bytes between the first tenth of all rows and the last.

    Parameters
    ----------
    rows:
        How many there are.
    """

    rows: int
    done: int = 0
    _size: int = 0
    _began: float = 0.0
    _skipped: int = 0
    _took: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether all are done."""
        return self.done >= self.rows

    def note(self, rows: int, size: int) -> None:
        """Count what was done just now."""
        self.done += rows
        if self._began:
            self._size += size
            self._took = time.perf_counter() - self._began
        elif self.done >= self.rows / 10:
            self._began, self._skipped = time.perf_counter(), self.done

    def rates(self) -> dict[str, float]:
        """Rows and megabytes a second.

        Raises
        ------
        ValueError
            If all came at once.
        """
        if not self._took:
            raise ValueError(f"{self.rows} inputs came at once; measure with more")
        return {
            "rows_per_second": (self.done - self._skipped) / self._took,
            "megabytes_per_second": self._size / self._took / 1e6,
        }

    def say(self) -> None:
        """Print the rates."""
        sys.stdout.write(json.dumps(self.rates()) + "\n")
        sys.stdout.flush()


@dataclass(frozen=True)
class Task:
    """What a contestant with a model is told.

    Parameters
    ----------
    config:
        Configuration file.
    rows, each:
        Inputs in all, and in a record.
    how:
        More words.
    """

    config: str
    model: str
    servers: str
    topic: str
    rows: int
    each: int
    how: tuple[str, ...]

    @classmethod
    def told(cls) -> Task:
        """Read the command line."""
        config, model, servers, topic, rows, each, *how = sys.argv[1:]
        return cls(config, model, servers, topic, int(rows), int(each), tuple(how))

    @property
    def records(self) -> int:
        """Records that make a batch of 512 inputs."""
        return max(1, MAX_BATCH // self.each)
