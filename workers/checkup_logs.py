"""What the logs tell a check-up: whether the automation is halted, and what became dead letters."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from nnsec.adapters.tail import read_to_end
from nnsec.errors import NNSecError
from nnsec.guards import EVERYTHING, Ledger
from nnsec.settings import Settings
from schemas.action import Action
from schemas.base import to_millis
from workers import process
from workers.findings import Finding

PERIOD = timedelta(hours=1)
"""From when on dead letters are counted."""
COUNTING = 4.0
"""Seconds in which they are; there may be very many."""


async def automation(settings: Settings) -> Sequence[Finding]:
    """Whether the kill switch is on, for all models or for some."""
    ledger, halts = Ledger(), dict[str, Action]()
    async for record in read_to_end(settings, ("actions",)):
        try:
            action = Action.decode(record.value)
        except NNSecError:
            continue  # remediation leaves it out too, and says so
        ledger.learn_one(action)
        if action.action == "halt" and action.outcome == "done":
            halts[action.model or EVERYTHING] = action
    running = [model for model in settings.models if not ledger.halted(model)]
    if ledger.halted(EVERYTHING):
        halted = {EVERYTHING: f"* except {', '.join(running)}" if running else "*"}
    else:
        halted = {model: model for model in settings.models if ledger.halted(model)}
    return [_halt(halts[name], words) for name, words in halted.items()] or [
        Finding("automation", "ok", "not halted")
    ]


def _halt(action: Action, words: str) -> Finding:
    text = (
        f"halted for {words} since {action.time:%Y-%m-%d %H:%M:%S}Z by {action.by[:16]}…: "
        f"{action.reason}"
    )
    return Finding("automation", "warn", text, "`nnsec incidents resume` lets it go on")


async def dead_letters(settings: Settings) -> Sequence[Finding]:
    """How many records of the last hour could not pass, by error class."""
    counts, begin = Counter[str](), to_millis(datetime.now(UTC) - PERIOD)
    least = ""
    try:
        async with asyncio.timeout(COUNTING):
            async for record in process.since(settings, "dead-letters", begin):
                name = dict(record.headers).get("nnsec-error-class") or b"?"
                counts[name.decode("utf-8", "replace")] += 1
    except TimeoutError:
        least = "at least "
    if not counts:
        return [Finding("dead letters", "ok", "none in the last hour")]
    classes = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(5))
    text = f"{least}{counts.total():,} in the last hour: {classes}"
    advice = f"{settings.kafka.prefix}dead-letters holds them, with reason and field in headers"
    return [Finding("dead letters", "warn", text, advice)]
