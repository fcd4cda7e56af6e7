"""What remediation knows: folds of the control topics.

Everything is read from Kafka to the end at the start and followed from there, so that a worker
that was killed at any point goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from uuid import UUID

from aiokafka.partitioner import murmur2

from nnsec.adapters.records import Record
from nnsec.errors import NNSecError, RollbackRefused
from nnsec.guards import Ledger
from nnsec.settings import Settings
from nnsec.trust import keys, statements
from nnsec.trust.statements import Standing
from schemas.action import Action
from schemas.alert import Subject
from schemas.base import from_millis
from schemas.incident import FINISHED, Incident
from schemas.model_statement import ModelStatement
from schemas.model_status import ModelStatus
from schemas.revocation import Revocation
from schemas.source import Source
from workers.board import Board

logger = logging.getLogger(__name__)


class Folds:
    """What the control topics come to, as far as they were read.

    Parameters
    ----------
    settings:
        The configuration.
    partitions:
        Topic to its number of partitions, for ``inference.inputs``, ``training.samples`` and
        ``incidents``.
    now, clock:
        The time of day, and seconds that never go back.
    """

    def __init__(
        self,
        settings: Settings,
        partitions: Mapping[str, int],
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.partitions = partitions
        self.now = now
        self.clock = clock
        self.board = Board()
        self.ledger = Ledger()
        self.actions: dict[str, Action] = {}
        self.standings: dict[str, Standing] = {}
        self.envelopes: dict[tuple[str, int], bytes] = {}
        self.sources: dict[str, Source] = {}
        self.revocations: list[Revocation] = []
        self.seen: dict[str, str] = {}
        self._release = tuple(keys.load_public(p) for p in settings.trust.release_keys)
        self._revoked: set[str] = set()
        self._incidents: dict[UUID, tuple[int, bool]] = {}
        self._versions: dict[int, Source] = {}
        self._unread: set[bytes | None] = set()  # model statements of our own, until they come back
        self._live = False
        self._news = asyncio.Event()

    @property
    def sources_version(self) -> int:
        """The highest version on ``sources``; 0 for none."""
        return max(self._versions, default=0)

    def place(self, model: str) -> int:
        """The partition of the control topics that a model's records lie on, by murmur2.

        One worker alone holds it, so one worker alone runs the model's actions, wherever a command
        or an incident was put.
        """
        return int(murmur2(model.encode()) & 0x7FFFFFFF) % self.partitions["incidents"]

    def outdated(self, incident: Incident) -> bool:
        """Whether a newer record of the incident is known: that one will come by itself."""
        version, _ = self._incidents.get(incident.id, (0, False))
        return version > incident.version

    def finished(self, incident: UUID) -> bool:
        """Whether an incident is over, as far as is known."""
        return self._incidents.get(incident, (0, False))[1]

    def caught_up(self) -> None:
        """Note that everything was read to the end: what comes from here on is said now."""
        self._live = True

    def learn(self, record: Record) -> None:
        """Fold one record; what is not valid is left out with one line in the log."""
        try:
            if record.topic == "actions":
                self._learn_action(Action.decode(record.value))
            elif record.topic == "models":
                self._unread.discard(record.value)
                self._learn_statement(record)
            elif record.topic == "sources":
                self._learn_source(Source.decode(record.value))
            elif record.topic == "models.status":
                if record.value is not None:
                    self._learn_status(record)
            elif record.topic == "incidents":
                self._learn_incident(Incident.decode(record.value))
            else:
                self._learn_revocation(Revocation.decode(record.value))
        except NNSecError as error:
            logger.warning(
                "left out %s/%d/%d: %s", record.topic, record.partition, record.offset, error
            )
        self._news.set()

    def _learn_action(self, action: Action) -> None:
        known = self.actions.get(action.id)
        if known is not None:
            if not action.follows(known.version, known.time):
                return  # said by one who did not know yet: the first in the log counts
            if known.figures.get("command_at") != action.figures.get("command_at"):
                return  # the same command at a second place: the first one counts
        self.actions[action.id] = action
        self.ledger.learn_one(action)
        for word in ("command", "decision"):  # what was ordered; what was approved or denied
            command = action.figures.get(word)
            if isinstance(command, str):
                self.seen[command] = str(action.figures.get(f"{word}_at", ""))

    def _learn_statement(self, record: Record) -> None:
        statement = statements.read_statement(record, self._release)
        standing = self.standings.get(statement.model, Standing())
        try:
            self.standings[statement.model] = standing.accept(statement)
        except RollbackRefused:
            return  # overtaken, or said before
        if statement.phase == "activate" and record.value is not None:
            self.envelopes[statement.model, statement.epoch] = record.value
            self.ledger.learn_one(_activation(statement, standing.activated))

    def _learn_source(self, source: Source) -> None:
        self._versions.setdefault(source.version, source)
        known = self.sources.get(source.source)
        if known is None or source.version > known.version:
            self.sources[source.source] = source

    def _learn_status(self, record: Record) -> None:
        # At the start the log holds the reports of the dead, and only their age tells. What comes
        # afterwards is new, whatever a worker's clock says.
        age = 0.0 if self._live else (self.now() - from_millis(record.timestamp)).total_seconds()
        self.board.learn_one(ModelStatus.decode(record.value), self.clock() - max(age, 0.0))

    def _learn_revocation(self, revocation: Revocation) -> None:
        if revocation.id not in self._revoked:
            self._revoked.add(revocation.id)
            self.revocations.append(revocation)

    def _learn_incident(self, incident: Incident) -> None:
        if not self.outdated(incident):
            self._incidents[incident.id] = (incident.version, incident.state in FINISHED)

    async def until(self, met: Callable[[], bool], seconds: float) -> bool:
        """Wait until something is so; False if it is not after some seconds."""
        deadline = self.clock() + seconds
        while not met():
            if self.clock() >= deadline:
                return False
            self._news.clear()
            # Workers go silent without news. `wait_for` would swallow a cancellation that meets it.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._news.wait()
        return True


def _activation(statement: ModelStatement, before: ModelStatement | None) -> Action:
    """What a statement did, in the ledger's terms.

    A checkpoint may be released by hand, of which nothing is on ``actions``; that it takes back
    what was done by itself must count all the same. Of remediation's own it adds nothing. It came
    after what it replaced, whatever the clock of who released it says.
    """
    time = statement.issued
    if before is not None:
        time = max(time, before.issued + timedelta(milliseconds=1))
    return Action(
        id=f"{statement.model}/{statement.epoch}", action="promote", model=statement.model,
        incident=None, subject=Subject(kind="model", id=statement.model), outcome="done",
        automatic=False, by="", reason=statement.reason, time=time,
        figures={"from": before.version if before else None, "to": statement.version},
    )  # fmt: skip
