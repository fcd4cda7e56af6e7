"""The correlator: alerts, actions and dismissals become incidents. Their only writer.

State is per model and lies in the records themselves: whoever gets a partition reads its incidents
to the end and goes on. A record that is delivered again changes nothing, by (episode, seq) and by
(action id, outcome). Evidence that was read and not written yet is not lost with the worker: each
record says in its headers up to where everything is written, and what lies behind is read again.
An alert is written to the partition from which it came, so that all of a model stays together.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from uuid import UUID, uuid5

from nnsec.adapters import kafka
from nnsec.adapters.declaration import BROKER_MAX_MESSAGE
from nnsec.adapters.records import Out, Record
from nnsec.errors import NNSecError, SchemaError
from nnsec.fit import fit
from nnsec.incidents import (
    ActionSeen,
    AlertSeen,
    Dismissed,
    Event,
    Quiet,
    Step,
    incident_id,
    stamped,
    step,
)
from nnsec.trust import commands, keys
from schemas import headers
from schemas.action import Action
from schemas.alert import Alert
from schemas.base import from_millis
from schemas.incident import FINISHED, Incident
from streams.agent import Context
from streams.cases import Book, Case, Where

EVIDENCE_EVERY = 1.0
"""Seconds between two records that only add evidence."""
LONGEST_TICK = 5.0
"""Seconds that one tick can add to the quiet, so that a step of the clock ends nothing."""
AROUND = 2048
"""Bytes that a record has beside the incident: key, headers and what a batch adds."""
logger = logging.getLogger(__name__)
BEHIND = ("alerts", "actions")
"""Topics of which something read may wait to be written."""
Reader = Callable[[frozenset[int]], AsyncIterator[Record]]
Rereader = Callable[[Mapping[Where, int]], AsyncIterator[Record]]


class CorrelateAgent:
    """Turns alerts, actions and signed dismissals into incidents.

    Parameters
    ----------
    context:
        Settings (``remediation.quiet_seconds``, ``trust.operator_keys``) and log identities.
    read:
        Reads ``incidents`` of some partitions from the beginning to the end; for tests.
    reread:
        Reads (topic, partition) from an offset each to the end; for tests.
    """

    role = "correlate"
    topics = ("alerts", "actions", "commands")

    def __init__(
        self, context: Context, read: Reader | None = None, reread: Rereader | None = None
    ) -> None:
        self._settings = context.settings
        self._log = context.logs["alerts"]
        self._read = read or self._read_incidents
        self._reread = reread or self._read_behind
        self._keys = tuple(keys.load_public(p) for p in context.settings.trust.operator_keys)
        largest = context.settings.kafka.max_message_bytes or BROKER_MAX_MESSAGE
        self._limit = min(largest, BROKER_MAX_MESSAGE) - AROUND
        self._book = Book()
        self._held: frozenset[int] = frozenset()
        self._handed: Sequence[Out] = ()
        self._again: list[Out] = []
        self._ticked: float | None = None
        self._next: dict[Where, int] = {}
        self._clean: dict[Where, int] = {}

    async def assigned(self, partitions: frozenset[tuple[str, int]]) -> None:
        """Rebuild the incidents of partitions that are new from what was written of them."""
        held = frozenset(partition for topic, partition in partitions if topic == "alerts")
        kept = self._held = held & self._held
        self._book.keep(kept)
        # What was handed out last may have been given up unpublished, though it was counted.
        self._again = [out for out in (*self._again, *self._handed) if out.partition in kept]
        self._handed = ()
        self._next = {where: o for where, o in self._next.items() if where[1] in kept}
        self._clean = {where: o for where, o in self._clean.items() if where[1] in kept}
        if fresh := held - kept:
            await self._restore(fresh)
        self._held = held  # only now, so that after a failed read it is tried again as a whole

    async def _restore(self, partitions: frozenset[int]) -> None:
        newest: dict[UUID, Case] = {}
        clean: dict[Where, int] = {}
        async for record in self._read(partitions):
            if record.partition not in partitions:
                continue
            try:
                incident = Incident.decode(record.value)
            except SchemaError as error:  # it is not ours; the role must start all the same
                _passed_over(record, error)
                continue
            known = newest.get(incident.id)
            # What a paused worker says late does not count: of one version the first does.
            if known is None or incident.version > known.incident.version:
                told = record.timestamp / 1000
                newest[incident.id] = Case(incident, record.partition, told=told)
                clean = {("actions", record.partition): 0} | clean | _behind(record)
        for case in newest.values():
            self._book.put(case)
        async for record in self._reread(clean):
            try:
                self._again += self._fold([record])
            except SchemaError as error:  # a dead letter, or one when it is delivered
                _passed_over(record, error)
        self._clean = {**clean, **self._clean}

    async def process(self, records: Sequence[Record]) -> Sequence[Out]:
        """Fold a batch; all of it is decoded first, so that a bad record leaves no trace."""
        outs = self._fold(records)
        self._clean |= self._book.clean(self._next)
        return self._hand(outs)

    def _fold(self, records: Sequence[Record]) -> list[Out]:
        events = [(record, named) for record in records for named in self._decode(record)]
        for record in records:
            # The first record that comes: all before it was written by whoever committed it.
            if record.topic in BEHIND:
                self._clean.setdefault((record.topic, record.partition), record.offset)
        applied = [self._apply(record, target, event) for record, (target, event) in events]
        for record in records:
            if record.topic in BEHIND:
                self._next[record.topic, record.partition] = record.offset + 1
        return [out for out in applied if out is not None]

    async def tick(self, now: float) -> Sequence[Out]:
        """Write held-back evidence, and end what has been quiet for long enough."""
        passed = 0.0 if self._ticked is None else now - self._ticked
        passed = min(max(passed, 0.0), LONGEST_TICK)
        self._ticked = now
        outs: list[Out] = []
        limit = self._settings.remediation.quiet_seconds
        for case in list(self._book.cases.values()):
            case.written = min(case.written, now)  # a clock that stepped back delays nothing
            if case.since and now - case.written >= EVIDENCE_EVERY:
                case.incident = stamped(case.incident)
                outs.append(self._write(case, now))
            if case.rest(now, passed, limit) and case.incident.state not in FINISHED:
                taken = step(
                    case.incident, Quiet(limit, datetime.fromtimestamp(now, UTC)), log=self._log
                )
                if (out := self._take(case, taken, now)) is not None:
                    outs.append(out)
        self._clean |= self._book.clean(self._next)
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
        event = Dismissed(command.id, command.model, key_id, command.reason, time)
        return ((target, event),)

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
        taken = step(case.incident, event, log=self._log)
        if taken.change == "evidence" and taken.incident is not None:
            if record.topic not in BEHIND:  # nobody reads it again, so it cannot wait
                taken = Step(stamped(taken.incident), "transition")
            else:
                case.wait(record)
        return self._take(case, taken, now)

    def _open(self, record: Record, event: AlertSeen, now: float) -> Out | None:
        if incident_id(self._log, event.alert) in self._book.cases:
            return None  # opened once, finished, and now delivered again
        opened = step(None, event, log=self._log).incident
        assert opened is not None  # noqa: S101 - an alert always opens
        case = Case(opened, record.partition)
        self._book.put(case)
        return self._write(case, now)

    def _take(self, case: Case, taken: Step, now: float) -> Out | None:
        if taken.change == "none" or taken.incident is None:
            return None
        case.news(taken.incident)
        if taken.change == "evidence":
            return None
        self._book.put(case)
        return self._write(case, now)

    def _write(self, case: Case, now: float) -> Out:
        case.since = {}
        case.written = now
        case.incident = incident = fit(case.incident, self._limit)
        return Out(
            topic="incidents",
            value=incident.encode(),
            key=str(incident.id).encode(),
            headers=headers.event_headers(
                "incident",
                id=str(uuid5(incident.id, str(incident.version))),
                source_role=self.role,
                time=incident.last_seen,
                extra=tuple(
                    (f"nnsec-{topic}-next", str(self._clean[topic, case.partition]).encode())
                    for topic in BEHIND
                    if (topic, case.partition) in self._clean
                ),
            ),
            partition=case.partition,
        )

    async def _read_incidents(self, partitions: frozenset[int]) -> AsyncIterator[Record]:
        async for record in kafka.read_to_end(self._settings, ("incidents",)):
            if record.partition in partitions:
                yield record

    async def _read_behind(self, start: Mapping[Where, int]) -> AsyncIterator[Record]:
        async for record in kafka.read_to_end(
            self._settings, tuple({topic for topic, _ in start}), start, only=True
        ):
            yield record


def _passed_over(record: Record, error: SchemaError) -> None:
    where = f"{record.topic}/{record.partition}/{record.offset}"
    logger.warning("passed over %s: %s", where, error)


def _behind(record: Record) -> dict[Where, int]:
    """Up to where everything was written when this record of ``incidents`` was."""
    known = dict(record.headers)
    found = {topic: known.get(f"nnsec-{topic}-next") for topic in BEHIND}
    return {
        (topic, record.partition): int(offset)
        for topic, offset in found.items()
        if offset is not None and offset.isdigit()
    }
