"""The incidents that a correlator holds: by id, and by the model and family that they are of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from nnsec.adapters.records import Record
from nnsec.subjects import heard, knows
from schemas.alert import Alert
from schemas.incident import FINISHED, Incident
from schemas.threats import family

REMEMBERED = 8
"""Finished incidents kept per model and family, for what is delivered late or again."""

LEFT = 60.0
"""Seconds of quiet that a restart leaves to be waited for."""
Where = tuple[str, int]


@dataclass(slots=True)
class Case:
    """One incident, where it is written, and what is not written yet."""

    incident: Incident
    partition: int
    since: dict[Where, int] = field(default_factory=dict)
    """Offset of the first record that is not written yet, by topic and partition."""
    written: float = 0.0
    quiet: float = 0.0
    """Seconds in which nothing was heard of it."""
    told: float | None = None
    """When another worker wrote it last (seconds since 1970), until that counts as quiet."""

    def rest(self, now: float, passed: float, limit: float) -> bool:
        """Add to the quiet what passed since the last tick; whether the limit is reached.

        What passed before a restart counts up to the last minute, or half of the limit: nothing
        was read in that time, and the clock may have been wrong.
        """
        if self.told is not None:
            self.quiet = min(max(now - self.told, 0.0), max(limit / 2, limit - LEFT))
            self.told = None
        self.quiet += passed
        return self.quiet >= limit

    def news(self, incident: Incident) -> None:
        """Something was heard of it."""
        self.incident, self.quiet, self.told = incident, 0.0, None

    def wait(self, record: Record) -> None:
        """Note that what a record said is held back."""
        self.since.setdefault((record.topic, record.partition), record.offset)


@dataclass(slots=True)
class Book:
    """All incidents of the partitions held."""

    cases: dict[UUID, Case] = field(default_factory=dict)
    recent: dict[tuple[str, str], list[UUID]] = field(default_factory=dict)

    def put(self, case: Case) -> None:
        """Add a case, or note that it changed; the oldest finished ones are forgotten."""
        known = self.recent.setdefault((case.incident.model, case.incident.family), [])
        self.cases[case.incident.id] = case
        if case.incident.id not in known:
            known.append(case.incident.id)
        finished = [i for i in known if self.cases[i].incident.state in FINISHED]
        for old in finished[:-REMEMBERED]:
            known.remove(old)
            del self.cases[old]

    def clean(self, read: Mapping[Where, int]) -> dict[Where, int]:
        """Up to where everything is written, of what was read so far, by topic and partition.

        That is the first record of which something is held back, and not where nothing waits: of
        several busy incidents one always waits.
        """
        clean = dict(read)
        for case in self.cases.values():
            for where, offset in case.since.items():
                clean[where] = min(offset, clean.get(where, offset))
        return clean

    def of(self, alert: Alert) -> Case | None:
        """The case that an alert belongs to; None if it opens one.

        What was counted or dismissed stays where it was, so that it changes nothing when it comes
        again; the rest goes to the open incident, or else reopens the one that knows its episode.
        """
        found = [self.cases[i] for i in self.recent.get((alert.model, family(alert.threat)), [])]
        knowing = [case for case in found if knows(case.incident, alert)]
        for case in knowing:
            if case.incident.state == "dismissed" or heard(case.incident, alert):
                return case
        unfinished = [case for case in found if case.incident.state not in FINISHED]
        wanted = unfinished or knowing
        return wanted[-1] if wanted else None

    def keep(self, partitions: frozenset[int]) -> None:
        """Forget what other workers hold now."""
        self.cases = {i: c for i, c in self.cases.items() if c.partition in partitions}
        self.recent = {
            name: kept
            for name, ids in self.recent.items()
            if (kept := [i for i in ids if i in self.cases])
        }
