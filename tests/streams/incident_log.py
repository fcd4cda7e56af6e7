"""A correlator without Kafka: the topics that it reads and writes are lists."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid5

from nnsec.adapters.records import Out, Record
from nnsec.settings import parse
from nnsec.trust import keys
from nnsec.trust.commands import sign_command
from schemas.action import Action
from schemas.alert import Alert, Subject
from schemas.base import to_millis
from schemas.command import Command
from schemas.incident import Incident
from schemas.threats import Threat, atlas
from streams.agent import Context
from streams.correlate import CorrelateAgent

LOG = UUID(int=9)
T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HELD = frozenset({(topic, p) for topic in ("alerts", "actions", "commands") for p in (0, 1)})


def alert(
    subject: str = "s1", seq: int = 0, *, threat: Threat = "label_flip", model: str = "digits",
    episode: int = 0,
) -> Alert:  # fmt: skip
    name = uuid5(LOG, f"{model}/{subject}/{threat}/{episode}")
    return Alert(
        id=uuid5(name, str(seq)), episode=name, seq=seq, time=T0 + timedelta(seconds=10 * seq),
        model=model, model_version="2", threat=threat, atlas=atlas(threat), severity="high",
        evidence=1.5, subject=Subject(kind="source", id=subject), positions=(),
        counts={"rows": float(seq)}, explanation="",
    )  # fmt: skip


def action(incident: Incident, outcome: Any, name: str = "a", *, after: float = 0) -> Action:
    return Action(
        id=name, action="quarantine", model="digits", incident=incident.id, outcome=outcome,
        subject=Subject(kind="source", id="s1"), automatic=True, by="remediation", reason="",
        time=T0 + timedelta(seconds=after),
    )  # fmt: skip


class Kept:
    """The topic ``incidents``, and the agents that write it."""

    def __init__(self, tmp_path: Path, **remediation: Any) -> None:
        self.key = keys.write_new(tmp_path / "operator")
        self.settings = parse(
            {
                "trust": {"operator_keys": [str(tmp_path / "operator.pub")]},
                "remediation": remediation,
            }
        )
        self.log: list[Record] = []
        self.sent: list[Record] = []
        self.offset = 0
        self.now = 0.0
        """Seconds since 1970 at which `write` writes."""

    def agent(self) -> CorrelateAgent:
        context = SimpleNamespace(settings=self.settings, logs={"alerts": LOG})
        return CorrelateAgent(cast("Context", context), self.read, self.reread)

    async def read(self, partitions: frozenset[int]) -> AsyncIterator[Record]:
        for record in self.log:
            if record.partition in partitions:
                yield record

    async def reread(self, start: Mapping[tuple[str, int], int]) -> AsyncIterator[Record]:
        for record in self.sent:
            if record.offset >= start.get((record.topic, record.partition), 10**9):
                yield record

    def write(self, outs: Sequence[Out]) -> list[Incident]:
        for out in outs:
            assert out.topic == "incidents"
            assert out.partition is not None
            self.log.append(
                Record(
                    out.topic, out.partition, len(self.log), int(self.now * 1000), out.key,
                    out.value, out.headers,
                )
            )  # fmt: skip
        return [Incident.decode(out.value) for out in outs]

    def record(self, event: Alert | Action | bytes, partition: int = 0, after: float = 0) -> Record:
        self.offset += 1
        topic = {Alert: "alerts", Action: "actions", bytes: "commands"}[type(event)]
        value = event if isinstance(event, bytes) else event.encode()
        time = to_millis(T0 + timedelta(seconds=after))
        self.sent.append(Record(topic, partition, self.offset, time, b"digits", value))
        return self.sent[-1]

    def dismiss(
        self, target: str, key: keys.PrivateKey | None = None, kind: Any = "dismiss",
        model: str = "digits",
    ) -> bytes:  # fmt: skip
        command = Command(
            id=f"c-{target}", kind=kind, model=model, target=target, reason="not\nan attack",
            issued=T0, expires=T0 + timedelta(hours=1),
        )  # fmt: skip
        return sign_command(command, key or self.key)


async def started(kept: Kept) -> CorrelateAgent:
    agent = kept.agent()
    await agent.assigned(HELD)
    return agent
