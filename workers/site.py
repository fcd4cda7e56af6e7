"""What remediation knows and says: folds of the control topics, and the only pen for them.

Everything is read from Kafka to the end at the start and followed from there, so that a worker
that was killed at any point goes on where it was. What it says of actions counts for itself, too,
only when it has come back from the log: so no worker acts on what another has overtaken.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID, uuid5

from aiokafka.partitioner import murmur2

from nnsec.adapters.records import Out, Record
from nnsec.errors import ConfigError, NNSecError, RollbackRefused, TransientError
from nnsec.guards import SWITCHES, Ledger
from nnsec.settings import Settings
from nnsec.trust import keys, statements
from nnsec.trust.statements import Standing
from schemas import headers
from schemas.action import Action
from schemas.alert import Subject
from schemas.base import Event, from_millis
from schemas.incident import FINISHED, ActionState, Incident
from schemas.model_statement import ModelStatement
from schemas.model_status import ModelStatus
from schemas.revocation import Revocation
from schemas.source import Source, SourceState
from workers.board import Board

TOPICS = ("models", "sources", "training.revocations", "models.status", "actions", "incidents")
ROLE = "remediation"
PREPARE_EXPIRY = timedelta(hours=1)
HEARD = 30.0
"""Seconds after which it is said that a statement of our own has not come back from the log."""
FINAL: frozenset[ActionState] = frozenset({"done", "denied", "failed"})

logger = logging.getLogger(__name__)


class Overtaken(TransientError):  # noqa: N818 - the name says what it is
    """Another worker was first: what is to be done is decided anew."""


class Publish(Protocol):
    """Publishes records and returns when they are acknowledged."""

    async def __call__(self, *outs: Out) -> bool:
        """Wait for ever if need be."""
        ...


class Site:
    """The state of all that remediation acts on.

    Parameters
    ----------
    settings:
        The configuration.
    logs:
        Topic to the identity of its log.
    partitions:
        Topic to its number of partitions, for ``inference.inputs``, ``training.samples`` and
        ``incidents``.
    publish:
        How to write.
    now, clock:
        The time of day, and seconds that never go back.
    """

    def __init__(
        self,
        settings: Settings,
        logs: Mapping[str, UUID],
        partitions: Mapping[str, int],
        publish: Publish,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.logs = logs
        self.partitions = partitions
        self.publish = publish
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
        self._unread: set[bytes | None] = set()
        self._live = False
        self._news = asyncio.Event()
        self._pen = asyncio.Lock()

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

    # --- reading ---

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
                self._learn_statement(record.value)
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

    def _learn_statement(self, envelope: bytes | None) -> None:
        statement = statements.open_statement(envelope, self._release)
        standing = self.standings.get(statement.model, Standing())
        try:
            self.standings[statement.model] = standing.accept(statement)
        except RollbackRefused:
            return  # overtaken, or said before
        if statement.phase == "activate" and envelope is not None:
            self.envelopes[statement.model, statement.epoch] = envelope
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
            try:
                await asyncio.wait_for(self._news.wait(), 0.1)
            except TimeoutError:
                continue  # workers go silent without news
        return True

    # --- writing ---

    async def report(
        self,
        action: Action,
        outcome: ActionState,
        reason: str,
        *,
        by: str = ROLE,
        automatic: bool | None = None,
        **figures: Any,
    ) -> Action:
        """Say on ``actions`` what became of an action; returns when it stands in the log.

        Parameters
        ----------
        action:
            The action as it was when this was decided.

        Raises
        ------
        Overtaken
            If another worker has said something else meanwhile: that counts, and not this.
        """
        known = self.actions.get(action.id)
        now = self.now()
        if known is not None:  # older readers tell old from new by the time: it never stands still
            now = max(now, known.time + timedelta(milliseconds=1))
        if action.action in SWITCHES and (last := self.ledger.switched) is not None:
            # Those of all models and of one lie on two partitions: their times alone order them.
            now = max(now, last + timedelta(milliseconds=1))
        said = action.model_copy(
            update={
                "outcome": outcome,
                "reason": " ".join(reason.split())[:500],
                "by": by,
                "time": now,
                "automatic": action.automatic if automatic is None else automatic,
                "figures": {**action.figures, **figures},
                "version": action.version + 1,
            }
        )
        name = uuid5(self.logs["actions"], f"{said.id}/{outcome}/{now.timestamp()}")
        await self._say("actions", said, key=said.model, name=name, time=now)
        if (await self._stands(said)).encode() != said.encode():
            raise Overtaken(f"another worker went on with {said.action} of {said.subject.id}")
        logger.info("%s of %s %s: %s; %s", said.action, said.subject.kind, said.subject.id,
                    outcome, said.reason)  # fmt: skip
        return self.actions[said.id]

    async def _stands(self, said: Action) -> Action:
        """The action as it stands once the log was read as far as this record of it."""

        def read() -> bool:
            known = self.actions.get(said.id)
            return known is not None and known.version >= said.version

        while not await self.until(read, HEARD):
            logger.warning("what became of %s did not come back from actions yet", said.id)
        return self.actions[said.id]

    async def say_model(self, statement: ModelStatement) -> None:
        """Sign and publish a model statement; returns when it was read back from the log.

        Whether it counts there, or another was first, is in ``standings`` then.

        Raises
        ------
        ConfigError
            If there is no release key.
        BadSignature
            If the release key is not among the trusted ones; nothing was said.
        """
        path = self.settings.remediation.release_key
        if not path:
            raise ConfigError("[remediation] release_key is not set; no statement can be signed")
        envelope = statements.sign_statement(statement, keys.load_private(path))
        statements.open_statement(envelope, self._release)
        name = uuid5(self.logs["models"], f"{statement.model}/{statement.epoch}/{statement.phase}")
        said = headers.event_headers("model", id=str(name), source_role=ROLE, time=statement.issued)
        self._unread.add(envelope)
        await self.publish(Out("models", envelope, statement.model.encode(), said))
        while not await self.until(lambda: envelope not in self._unread, HEARD):
            logger.warning(
                "epoch %d (%s) of %s did not come back from models yet",
                statement.epoch, statement.phase, statement.model,
            )  # fmt: skip

    async def say_source(
        self, source: str, state: SourceState, reason: str, incident: str, *, after: int
    ) -> Source:
        """Publish a source statement with the next version; returns when it stands in the log.

        Versions are counted over all sources, and workers report the highest that they have heard.
        So no two statements may share one, and of two with the same the first in the log counts.

        Parameters
        ----------
        after:
            The version of the statement about this source that it was decided on; 0 for none.

        Raises
        ------
        Overtaken
            If there is a newer statement about the source, and nothing was said; or if another
            process was faster with the version.
        """
        async with self._pen:
            known = self.sources.get(source)
            if known is not None and known.version > after:
                raise Overtaken(f"{source} is {known.state} since version {known.version}")
            said = Source(
                source=source, state=state, reason=reason, incident=incident,
                version=self.sources_version + 1, time=self.now(),
            )  # fmt: skip
            name = uuid5(self.logs["sources"], f"{said.version}/{source}")
            await self._say("sources", said, key=source, name=name, time=said.time)
            first = await self._first(said.version)
            if (first.source, first.state, first.incident) != (source, state, incident):
                raise Overtaken(f"version {said.version} of sources is of {first.source}")
            return first

    async def _first(self, version: int) -> Source:
        """The statement that has this version, once the log was read as far."""
        while not await self.until(lambda: version in self._versions, HEARD):
            logger.warning("version %d did not come back from sources yet", version)
        return self._versions[version]

    async def say_revocation(self, revocation: Revocation) -> None:
        """Publish a revocation, unless it is there already."""
        if revocation.id not in self._revoked:
            await self._say(
                "training.revocations", revocation, key=revocation.id,
                name=UUID(revocation.id), time=revocation.time,
            )  # fmt: skip
            self._learn_revocation(revocation)

    async def _say(self, topic: str, event: Event, *, key: str, name: UUID, time: datetime) -> None:
        said = headers.event_headers(event.event, id=str(name), source_role=ROLE, time=time)
        await self.publish(Out(topic, event.encode(), key.encode(), said))


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
