"""What becomes of an order, read from what remediation and the correlator say of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from aiokafka.errors import KafkaError

from nnsec.adapters import kafka
from nnsec.adapters.records import Record
from nnsec.errors import NNSecError
from nnsec.settings import Settings
from schemas.action import Action
from schemas.command import Command
from schemas.dead_letter import decode_dead_letter
from schemas.incident import FINISHED, Incident
from workers import process

TOPICS = ("actions", "dead-letters", "incidents")
POLL_MS = 200
DECIDES = {"approve": "proposed", "deny": "denied"}
"""What an action becomes by a decision about it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of an order: `pending` before and `running` after a worker has taken it."""

    state: Literal["pending", "running", "done", "refused"]
    reason: str

    @property
    def final(self) -> bool:
        """Whether nothing else will be said of it."""
        return self.state in {"done", "refused"}


class Watch:
    """The outcome of one order, folded from records of `TOPICS` that come after it.

    Parameters
    ----------
    envelope:
        The order as it was published; its dead letter has the same value.
    key_id:
        Of the key that signed it.
    """

    def __init__(self, command: Command, envelope: bytes, key_id: str) -> None:
        self._command, self._envelope, self._key_id = command, envelope, key_id
        self._known: Action | None = None
        self._decided: set[str] = set()
        self.outcome = Outcome(
            "pending",
            f"no worker has taken it yet; it is valid until {command.expires:%Y-%m-%d %H:%M:%S}Z",
        )

    def learn(self, record: Record) -> None:
        """Fold one record; what cannot be read is not about this order."""
        try:
            if record.topic == "dead-letters":
                if record.value == self._envelope:
                    letter = decode_dead_letter(record.key, record.value, record.headers)
                    self.outcome = Outcome("refused", letter.error)
            elif record.topic == "incidents":
                if self._command.kind == "dismiss":
                    self._learn_incident(Incident.decode(record.value))
            else:
                self._learn_action(Action.decode(record.value))
        except NNSecError as error:
            logger.debug("%s/%d/%d: %s", record.topic, record.partition, record.offset, error)

    def _learn_incident(self, incident: Incident) -> None:
        if str(incident.id) == self._command.target and incident.state == "dismissed":
            self.outcome = Outcome("done", "the incident is dismissed")

    def _learn_action(self, action: Action) -> None:
        command, known = self._command, self._known
        if action.id != command.action_id:
            named = action.is_meant(command.target)
            if named and action.by == self._key_id and action.outcome == DECIDES.get(command.kind):
                self._decided.add(action.id)
        elif known is None or action.follows(known.version, known.time):
            self._known = action
            if not self.outcome.final:
                self.outcome = self._said(action)

    def _said(self, action: Action) -> Outcome:
        kind = self._command.kind
        if kind in DECIDES:  # what it decides stands before its receipt, on the same partition
            if self._decided:
                return Outcome("done", f"{kind} holds for actions: {len(self._decided)}")
            return Outcome("refused", "nothing of it waits for that")
        if kind == "dismiss":
            return Outcome("running", "no stream worker has dismissed it yet")
        if action.outcome == "done":
            return Outcome("done", action.reason)
        if action.outcome in {"failed", "denied"}:
            return Outcome("refused", action.reason)
        if action.figures.get("dry_run"):
            return Outcome("refused", "the remediation worker does nothing: it runs with dry_run")
        return Outcome("running", f"{action.outcome}: {action.reason}")


@asynccontextmanager
async def watching(settings: Settings) -> AsyncIterator[Any]:
    """Open a consumer that stands at the end of `TOPICS`: enter it before the order is given."""
    options = {
        "auto_offset_reset": "latest", "fetch_max_wait_ms": settings.kafka.fetch_max_wait_ms,
    }  # fmt: skip
    async with process.reader(settings, TOPICS, **options) as consumer:
        await consumer.seek_to_end()
        yield consumer


async def follow(settings: Settings, consumer: Any, watch: Watch, seconds: float) -> Outcome:
    """Read until an order has its outcome, or for so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            while not watch.outcome.final:
                try:
                    found = await consumer.getmany(timeout_ms=POLL_MS)
                except KafkaError as error:
                    kafka.outage.away(error)
                    await asyncio.sleep(process.RETRY)
                    continue
                for messages in found.values():
                    for message in messages:
                        watch.learn(kafka.record_of(settings, message))
    except TimeoutError:
        return watch.outcome
    return watch.outcome


async def not_dismissed(settings: Settings, target: str, outcome: Outcome) -> Outcome:
    """Why a dismissal did not come: the correlator says nothing of one that it has no use for."""
    state = ""
    async for record in kafka.read_to_end(settings, ("incidents",)):
        try:
            incident = Incident.decode(record.value)
        except NNSecError as error:
            logger.debug("incidents/%d/%d: %s", record.partition, record.offset, error)
            continue
        if str(incident.id) == target:
            state = incident.state
    if not state:
        return Outcome("refused", f"no incident {target} is known; see `nnsec incidents list`")
    if state in FINISHED:
        return Outcome("refused", f"the incident is over already: {state}")
    return outcome
