"""The log of transitions in the view, followed as any program would follow it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from nnsec.errors import TransientError
from nnsec.settings import Settings
from schemas.base import format_time, from_millis
from workers import store

BLOCK_MS = 2000
"""Shorter than the time in which the store must answer."""
RETRY = 0.5
PAGE = 1000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One transition as it stands in the log of the view."""

    time: str
    incident: str
    from_: str
    to: str
    version: int
    by: str
    reason: str

    @classmethod
    def of(cls, name: str, fields: dict[str, str]) -> Entry:
        """Read an entry; ``name`` is its id, which begins with the time."""
        return cls(
            format_time(from_millis(int(name.partition("-")[0]))), fields["incident"],
            fields["from"], fields["to"], int(fields["version"]), fields["by"], fields["reason"],
        )  # fmt: skip

    def json(self) -> str:
        """As one line, by the names of the log."""
        return json.dumps(
            {
                "time": self.time, "incident": self.incident, "from": self.from_, "to": self.to,
                "version": self.version, "by": self.by, "reason": self.reason,
            }
        )  # fmt: skip


async def follow(settings: Settings, *, beginning: bool) -> AsyncIterator[Entry]:
    """Yield transitions, for ever, each (incident, version) once, waiting for an absent store.

    Parameters
    ----------
    beginning:
        Whether to yield those that are in the log already.
    """
    names = store.Keys(settings.redis.prefix)
    seen: set[tuple[str, int]] = set()
    last, silent, away = "0", not beginning, False
    async with store.connect(settings) as client:
        while True:
            block = None if silent else BLOCK_MS
            try:
                with store.converted():
                    answer: Any = await client.xread({names.log: last}, count=PAGE, block=block)
            except TransientError as error:
                if not away:
                    logger.warning("%s; waiting for it", error)
                away = True
                await asyncio.sleep(RETRY)
                continue
            away = False
            entries = [entry for _, found in answer for entry in found]
            silent = silent and bool(entries)
            for last, fields in entries:
                entry = Entry.of(last, fields)
                known = (entry.incident, entry.version) in seen
                seen.add((entry.incident, entry.version))
                if not (known or silent):
                    yield entry
