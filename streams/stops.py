"""Partitions that are not read on, and how often that is said."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nnsec.adapters.records import Out

NOTICE_SECONDS = 60.0
"""What is to be written about a partition that stands still is written so often."""


@dataclass(slots=True)
class Stop:
    """A partition that is not read on.

    The log does not hold the offset to go on at, or what it holds there cannot be read.

    Parameters
    ----------
    topic:
        As Kafka names it.
    offset:
        Where the group would go on.
    first, end:
        First offset of the log when it stopped, and the one after its last.
    since:
        When it stopped (s since 1970).
    reason:
        Why what the log holds there cannot be read; empty if it holds nothing there.
    told:
        How often it was written about.
    due:
        When it is to be written about next, by a clock that never goes back.
    """

    topic: str
    partition: int
    offset: int
    first: int
    end: int
    since: float
    reason: str = ""
    told: int = 0
    due: float = -math.inf

    def __str__(self) -> str:
        """What is wrong, for people."""
        if self.reason:
            return f"what lies at offset {self.offset} cannot be read: {self.reason}"
        if self.offset < self.first:
            lost = self.first - self.offset
            return f"offset {self.offset} is gone: the log begins at {self.first}, {lost} later"
        return f"offset {self.offset} is past the log, which ends at {self.end}"


Notice = Callable[[Stop, float], Sequence[Out]]
"""What is to be written about a partition that stands still, at a time (s since 1970)."""
