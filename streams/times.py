"""Stream time: the records' own timestamps decide, as far as the worker's clock bears them out."""

from __future__ import annotations

from datetime import datetime, timedelta

AHEAD = timedelta(seconds=5)
"""How far a timestamp may be ahead of the worker's clock."""


def stream_time(newest: datetime, *, now: datetime) -> datetime:
    """The time of a summary: its newest record's timestamp, at most 5 s ahead of the clock.

    The owner of a model goes by the largest time that it has read, and never back: one timestamp
    of next year would stop its days until then. This is called where a summary is written and
    nowhere else, so that whoever reads it again gets the same time.

    Examples
    --------
    >>> from datetime import UTC
    >>> noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    >>> stream_time(noon, now=noon - timedelta(days=9)).isoformat()
    '2025-12-24T12:00:05+00:00'
    """
    return min(newest, now + AHEAD)
