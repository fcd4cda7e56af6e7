"""The history of one run, as JSON lines: what was asked, acknowledged and done, and what came out.

Every fault and load test writes one and gives it to the one checker (`tests.fault.checker`). Times
are seconds since 1970; those of records are the timestamps that stand in the log, in which they are
in the order of the log.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

Place = tuple[str, int, int]
"""Topic without the prefix, partition, offset."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The producer was asked to send a record; until `Acked` nobody knows whether it is there.

    Parameters
    ----------
    name:
        Of this sending, unique in the run.
    """

    kind: ClassVar[str] = "asked"
    at: float
    name: str
    topic: str


@dataclass(frozen=True, slots=True)
class Acked:
    """The broker said where the record lies: from here on it must not be lost."""

    kind: ClassVar[str] = "acked"
    at: float
    name: str
    place: Place


@dataclass(frozen=True, slots=True)
class Came:
    """A record that lies in the log in the end.

    Parameters
    ----------
    place:
        Where it lies.
    about:
        The acknowledged place that led to it; None for what has no single one.
    id:
        Its logical identity: two records with one id must be the same.
    content:
        Digest of all that a reader gets.
    """

    kind: ClassVar[str] = "came"
    at: float
    place: Place
    about: Place | None
    id: str
    content: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Something was done to a process, or to a service."""

    kind: ClassVar[str] = "fault"
    at: float
    what: Literal["start", "kill", "pause", "resume", "end"]
    who: str


@dataclass(frozen=True, slots=True)
class Committed:
    """What a group had committed at a moment: it will never read what is before the offset."""

    kind: ClassVar[str] = "committed"
    at: float
    group: str
    topic: str
    partition: int
    offset: int


Event = Asked | Acked | Came | Fault | Committed
KINDS: dict[str, type[Event]] = {one.kind: one for one in (Asked, Acked, Came, Fault, Committed)}


@dataclass(slots=True)
class History:
    """Events in the order in which they were noted.

    Examples
    --------
    >>> history = History()
    >>> history.note(Fault(1.0, "kill", "stream"))
    >>> history == History.loads(history.dumps())
    True
    """

    events: list[Event] = field(default_factory=list)

    def note(self, event: Event) -> None:
        """Add one event."""
        self.events.append(event)

    def fault(self, what: Literal["start", "kill", "pause", "resume", "end"], who: str) -> None:
        """Note what is being done to a process now."""
        self.note(Fault(time.time(), what, who))

    def of(self, kind: type[Any]) -> Iterator[Any]:
        """All events of one kind, in order."""
        return (event for event in self.events if isinstance(event, kind))

    def lines(self) -> Iterator[str]:
        """Each event as a line of JSON; millions of them must not cost a copy each."""
        names = {kind: [one.name for one in fields(kind)] for kind in KINDS.values()}
        for event in self.events:
            values = {name: getattr(event, name) for name in names[type(event)]}
            yield json.dumps({"kind": event.kind, **values}) + "\n"

    def dumps(self) -> str:
        """Write as JSON lines."""
        return "".join(self.lines())

    @classmethod
    def loads(cls, text: str) -> History:
        """Read what `dumps` wrote."""
        return cls([_event(json.loads(line)) for line in text.splitlines()])

    def save(self, path: Path) -> None:
        """Keep it, so that a failed run can be looked at and checked again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            file.writelines(self.lines())


def _event(values: dict[str, Any]) -> Event:
    kind = KINDS[values.pop("kind")]
    for name in ("place", "about"):
        if values.get(name) is not None:
            values[name] = _place(values[name])
    return kind(**values)


def _place(value: Iterable[Any]) -> Place:
    topic, partition, offset = value
    return str(topic), int(partition), int(offset)
