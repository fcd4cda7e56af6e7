"""The correlator: alerts, actions and dismissals become incidents. Their only writer.

State is per model and lies in the records themselves: whoever gets a partition reads its incidents
to the end and goes on. A record that is delivered again changes nothing, by (episode, seq) and by
(action id, outcome). An alert is written to the partition from which it came, so that all of a
model stays together.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID, uuid5

from nnsec.adapters import kafka
from nnsec.adapters.records import Out, Record
from nnsec.errors import NNSecError
from nnsec.incidents import (
    ActionSeen,
    AlertSeen,
    Dismissed,
    Event,
    Quiet,
    Step,
    heard,
    incident_id,
    knows,
    stamped,
    step,
)
from nnsec.trust import commands, keys
from schemas import headers
from schemas.action import Action
from schemas.alert import Alert
from schemas.base import from_millis
from schemas.incident import FINISHED, Incident
from schemas.threats import family
from streams.agent import Context

EVIDENCE_EVERY = 1.0
"""Seconds between two records that only add evidence."""
LONGEST_TICK = 5.0
"""Seconds that one tick can add to the quiet, so that a step of the clock ends nothing."""
REMEMBERED = 8
"""Finished incidents kept per model and family, for what is delivered late or again."""

logger = logging.getLogger(__name__)
Reader = Callable[[frozenset[int]], AsyncIterator[Record]]


@dataclass(slots=True)
class _Case:
    """One incident, where it is written, and what is not written yet."""

    incident: Incident
    partition: int
    dirty: bool = False
    written: float = 0.0
    quiet: float = 0.0


@dataclass(slots=True)
class _Book:
    """All incidents of the partitions held."""

    cases: dict[UUID, _Case] = field(default_factory=dict)
    recent: dict[tuple[str, str], list[UUID]] = field(default_factory=dict)

    def put(self, case: _Case) -> None:
        known = self.recent.setdefault((case.incident.model, case.incident.family), [])
        self.cases[case.incident.id] = case
        if case.incident.id not in known:
            known.append(case.incident.id)
        finished = [i for i in known if self.cases[i].incident.state in FINISHED]
        for old in finished[:-REMEMBERED]:
            known.remove(old)
            del self.cases[old]

    def of(self, alert: Alert) -> _Case | None:
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


class CorrelateAgent:
    """Turns alerts, actions and signed dismissals into incidents.

    Parameters
    ----------
    context:
        Settings (``remediation.quiet_seconds``, ``trust.operator_keys``) and log identities.
    read:
        Reads ``incidents`` of some partitions from the beginning to the end; for tests.
    """

    role = "correlate"
    topics = ("alerts", "actions", "commands")

    def __init__(self, context: Context, read: Reader | None = None) -> None:
        self._settings = context.settings
        self._log = context.logs["alerts"]
        self._read = read or self._read_incidents
        self._keys = tuple(keys.load_public(p) for p in context.settings.trust.operator_keys)
        self._book = _Book()
        self._held: frozenset[int] = frozenset()
        self._handed: Sequence[Out] = ()
        self._again: list[Out] = []
        self._ticked: float | None = None

    async def assigned(self, partitions: frozenset[tuple[str, int]]) -> None:
        """Rebuild the incidents of partitions that are new from what was written of them."""
        held = frozenset(partition for topic, partition in partitions if topic == "alerts")
        kept = self._held = held & self._held
        self._book.keep(kept)
        # What was handed out last may have been given up unpublished, though it was counted.
        self._again = [out for out in (*self._again, *self._handed) if out.partition in kept]
        self._handed = ()
        if fresh := held - kept:
            newest: dict[UUID, tuple[int, Incident]] = {}
            async for record in self._read(fresh):
                if record.partition in fresh:
                    incident = Incident.decode(record.value)
                    newest[incident.id] = (record.partition, incident)
            for partition, incident in newest.values():
                self._book.put(_Case(incident, partition))
        self._held = held  # only now, so that after a failed read it is tried again as a whole

    async def process(self, records: Sequence[Record]) -> Sequence[Out]:
        """Fold a batch; all of it is decoded first, so that a bad record leaves no trace."""
        events = [(record, named) for record in records for named in self._decode(record)]
        applied = [self._apply(record, target, event) for record, (target, event) in events]
        return self._hand([out for out in applied if out is not None])

    async def tick(self, now: float) -> Sequence[Out]:
        """Write held-back evidence, and end what has been quiet for long enough."""
        passed = 0.0 if self._ticked is None else now - self._ticked
        passed = min(max(passed, 0.0), LONGEST_TICK)
        self._ticked = now
        outs: list[Out] = []
        limit = self._settings.remediation.quiet_seconds
        for case in list(self._book.cases.values()):
            case.written = min(case.written, now)  # a clock that stepped back delays nothing
            if case.dirty and now - case.written >= EVIDENCE_EVERY:
                case.incident = stamped(case.incident)
                outs.append(self._write(case, now))
            case.quiet += passed
            if case.quiet >= limit and case.incident.state not in FINISHED:
                taken = step(
                    case.incident, Quiet(limit, datetime.fromtimestamp(now, UTC)), log=self._log
                )
                if (out := self._take(case, taken, now)) is not None:
                    outs.append(out)
        return self._hand(outs)

    def _hand(self, outs: Sequence[Out]) -> Sequence[Out]:
        self._handed, self._again = [*self._again, *outs], []
        return self._handed

    def _decode(self, record: Record) -> Iterable[tuple[UUID | None, Event]]:
        """The event of a record and the incident that it names; an alert names none."""
        if record.topic == "alerts":
            return ((None, AlertSeen(Alert.decode(record.value))),)
        if record.topic == "actions":
            action = Action.decode(record.value)
            return () if action.incident is None else ((action.incident, ActionSeen(action)),)
        return self._dismissal(record)

    def _dismissal(self, record: Record) -> Iterable[tuple[UUID | None, Event]]:
        """A signed `dismiss`; remediation writes the dead letter of a command that is not valid."""
        time = from_millis(record.timestamp)
        try:
            command, key_id = commands.open_command(record.value, self._keys, now=time)
            if command.kind != "dismiss":
                return ()
            target = UUID(command.target)
        except (NNSecError, ValueError) as error:
            logger.debug("command at %d/%d: %s", record.partition, record.offset, error)
            return ()
        return ((target, Dismissed(key_id, command.reason, time)),)

    def _apply(self, record: Record, target: UUID | None, event: Event) -> Out | None:
        now = self._ticked or 0.0
        if isinstance(event, AlertSeen):
            case = self._book.of(event.alert)
            if case is None:
                return self._open(record, event, now)
        else:
            case = self._book.cases.get(target) if target else None
            if case is None:
                return None
        return self._take(case, step(case.incident, event, log=self._log), now)

    def _open(self, record: Record, event: AlertSeen, now: float) -> Out | None:
        if incident_id(self._log, event.alert) in self._book.cases:
            return None  # opened once, finished, and now delivered again
        opened = step(None, event, log=self._log).incident
        assert opened is not None  # noqa: S101 - an alert always opens
        case = _Case(opened, record.partition)
        self._book.put(case)
        return self._write(case, now)

    def _take(self, case: _Case, taken: Step, now: float) -> Out | None:
        if taken.change == "none" or taken.incident is None:
            return None
        case.incident = taken.incident
        case.quiet = 0.0
        if taken.change == "evidence":
            case.dirty = True
            return None
        self._book.put(case)
        return self._write(case, now)

    def _write(self, case: _Case, now: float) -> Out:
        case.dirty = False
        case.written = now
        incident = case.incident
        return Out(
            topic="incidents",
            value=incident.encode(),
            key=str(incident.id).encode(),
            headers=headers.event_headers(
                "incident",
                id=str(uuid5(incident.id, str(incident.version))),
                source_role=self.role,
                time=incident.last_seen,
            ),
            partition=case.partition,
        )

    async def _read_incidents(self, partitions: frozenset[int]) -> AsyncIterator[Record]:
        async for record in kafka.read_to_end(self._settings, ("incidents",)):
            if record.partition in partitions:
                yield record
