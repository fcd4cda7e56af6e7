"""What remediation says: the only pen for the topics that it writes.

What it says counts for itself, too, only when it has come back from the log: so no worker acts on
what another has overtaken.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID, uuid5

from nnsec.adapters.records import Out
from nnsec.errors import ConfigError, TransientError
from nnsec.guards import SWITCHES
from nnsec.settings import Settings
from nnsec.trust import keys, statements
from schemas import headers
from schemas.action import Action
from schemas.base import Event
from schemas.incident import ActionState
from schemas.model_statement import ModelStatement
from schemas.revocation import Revocation
from schemas.source import Source, SourceState
from workers.folds import Folds

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


class Site(Folds):
    """The state of all that remediation acts on, and how to change it.

    Parameters
    ----------
    settings:
        The configuration.
    logs:
        Topic to the identity of its log.
    partitions:
        As for `Folds`.
    publish:
        How to write.
    now, clock:
        As for `Folds`.
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
        super().__init__(settings, partitions, now, clock)
        self.logs = logs
        self.publish = publish
        self._pen = asyncio.Lock()

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

        Whether it counts there, came after its end, or another was first, is in ``standings`` then.

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
        statements.open_statement(envelope, self._release, statement.issued)
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
