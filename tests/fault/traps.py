"""What is set inside a process of ours, so that it ends or stands still at a point of its work.

Called in the child before the command runs (`tests.fault.plant.Plant.start`). The functions of the
product are wrapped and not changed: up to the point everything happens as it does without the trap.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from nnsec.adapters import publisher
from workers import remediation
from workers.lanes import Lanes
from workers.remediation import Remediation
from workers.site import Site

POINTS = ("read", "guard", "intent", "apply", "result", "commit")
"""Of a command's way through remediation, in order."""


def kill_at(argument: str) -> None:
    """SIGKILL to this very process at ``point/source``, when that source's command gets there."""
    point, source = argument.split("/")
    {
        "read": _at_read, "guard": _at_guard, "intent": _at_intent,
        "apply": _at_apply, "result": _at_result, "commit": _at_commit,
    }[point](source.encode())  # fmt: skip


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _wrap(owner: Any, name: str, around: Callable[..., Awaitable[Any]]) -> None:
    real = getattr(owner, name)

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        return await around(real, *args, **kwargs)

    setattr(owner, name, wrapped)


def _at_read(source: bytes) -> None:
    """Once the record is read, and before anything is made of it."""

    async def take(real: Any, self: Any, record: Any) -> None:
        if _names(record, source):
            _die()
        await real(self, record)

    _wrap(Remediation, "take", take)


def _at_guard(source: bytes) -> None:
    """Once the guards let it pass."""

    async def guard(real: Any, self: Any, remedy: Any, action: Any, *rest: Any) -> None:
        await real(self, remedy, action, *rest)
        if action.subject.id.encode() == source:
            _die()

    _wrap(Lanes, "_guard", guard)


def _at_intent(source: bytes) -> None:
    """Once it is durable that the action runs, and before it does anything."""

    async def report(real: Any, self: Any, action: Any, outcome: str, *a: Any, **k: Any) -> Any:
        said = await real(self, action, outcome, *a, **k)
        if outcome == "running" and action.subject.id.encode() == source:
            _die()
        return said

    _wrap(Site, "report", report)


def _at_apply(source: bytes) -> None:
    """Once the first effect is durable, and before the second."""

    async def say(real: Any, self: Any, topic: str, event: Any, **k: Any) -> None:
        await real(self, topic, event, **k)
        if topic == "sources" and event.source.encode() == source:
            _die()

    _wrap(Site, "_say", say)


def _at_result(source: bytes) -> None:
    """Once all effects are durable, and before anybody is told."""

    async def report(real: Any, self: Any, action: Any, outcome: str, *a: Any, **k: Any) -> Any:
        if outcome == "done" and action.subject.id.encode() == source:
            _die()
        return await real(self, action, outcome, *a, **k)

    _wrap(Site, "report", report)


def _at_commit(source: bytes) -> None:
    """Once what follows from the record is durable, and before its offset is committed."""
    armed = [False]

    async def take(real: Any, self: Any, record: Any) -> None:
        await real(self, record)
        armed[0] = _names(record, source)

    async def commit(real: Any, *args: Any) -> None:
        if armed[0]:
            _die()
        await real(*args)

    _wrap(Remediation, "take", take)
    _wrap(remediation, "_commit", commit)


def _names(record: Any, source: bytes) -> bool:
    """Whether a record is the command about a source; its key says so, as the test wrote it."""
    return bool(record.topic == "commands" and record.key == source)


def impatient(argument: str) -> None:
    """Let a publisher wait for an answer so many milliseconds only, and not half a minute.

    So that also a short outage is one in which sends fail, and are not only late.
    """
    assert int(argument) < publisher._REQUEST_TIMEOUT_MS
    publisher._REQUEST_TIMEOUT_MS = int(argument)


def stand_still(argument: str) -> None:
    """SIGSTOP at ``topic/outcome/count``: when so many writes have been decided on.

    Each is written as soon as the process goes on again, with the time of day that it is then,
    whatever has happened meanwhile: that is what makes it stale.
    """
    topic, outcome, count = argument.split("/")
    waiting: list[object] = []
    gate = asyncio.Event()

    async def wait(what: object) -> None:
        waiting.append(what)
        if len(waiting) == int(count):
            os.kill(os.getpid(), signal.SIGSTOP)
            gate.set()
        await gate.wait()

    async def report(real: Any, self: Any, action: Any, what: str, *a: Any, **k: Any) -> Any:
        if topic == "actions" and what == outcome:
            await wait(action)
        return await real(self, action, what, *a, **k)

    async def say(real: Any, self: Any, where: str, event: Any, **k: Any) -> None:
        if topic == where != "actions":
            await wait(event)
        write = real(self, where, event, **k)
        # The rebalance that meets the process when it goes on cancels its lanes, maybe before the
        # producer has learnt where the topic lies: what was decided on is written all the same.
        await (asyncio.shield(write) if topic == where else write)

    _wrap(Site, "report", report)
    _wrap(Site, "_say", say)
