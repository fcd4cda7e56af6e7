"""What drift watches, and what it says of a signal that left its interval."""

from __future__ import annotations

from dataclasses import dataclass

Place = tuple[str, str, int, int, int, int]
"""(log, topic, partition, offset, row, stream time in ms)."""
NOWHERE: Place = ("", "", 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Signal:
    """What is watched, and the interval that it may move in.

    Parameters
    ----------
    name:
        As a person reads it.
    low, high:
        The null interval for the mean vote, within [0, 1].
    weight:
        Its part of the allowance; all parts sum to at most 1.
    """

    name: str
    low: float
    high: float
    weight: float


@dataclass(frozen=True, slots=True)
class Shift:
    """A signal that left its interval.

    Parameters
    ----------
    pooled, rest:
        Mean vote of all clients, and without the fifth of them that stands out most.
    by:
        Who found it: ``interval`` (the e-detector), always if it is spread; ``adwin``,
        ``page_hinkley``.
    clients, moved:
        Voters, and how many of them are outside the interval by themselves.
    top_share:
        Share of the whole excess that the outlying fifth holds.
    since:
        First input of the window in which the evidence began to grow.
    """

    signal: Signal
    verdict: str
    evidence: float
    by: tuple[str, ...]
    pooled: float
    rest: float
    clients: int
    moved: int
    top_share: float
    since: Place
