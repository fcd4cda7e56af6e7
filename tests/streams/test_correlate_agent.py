"""The correlator: a thousand alerts of one attack are one incident, killed or not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid5

import pytest

from nnsec.adapters.records import Out, Record
from nnsec.errors import SchemaError
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
                    out.topic, out.partition, len(self.log), 0, out.key, out.value, out.headers
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
        self, target: str, key: keys.PrivateKey | None = None, kind: Any = "dismiss"
    ) -> bytes:
        command = Command(
            id=f"c-{target}", kind=kind, model="digits", target=target, reason="not\nan attack",
            issued=T0, expires=T0 + timedelta(hours=1),
        )  # fmt: skip
        return sign_command(command, key or self.key)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path, quiet_seconds=6.0)


async def started(kept: Kept) -> CorrelateAgent:
    agent = kept.agent()
    await agent.assigned(HELD)
    return agent


async def test_a_thousand_alerts_of_one_attack_are_one_incident(kept: Kept) -> None:
    """And at most one record a second that only adds evidence."""
    agent = await started(kept)
    written: list[Incident] = []
    for seq in range(1000):
        written += kept.write(await agent.process([kept.record(alert(f"s{seq % 5}", seq // 5))]))
        written += kept.write(await agent.tick(1000.0 + seq * 0.01))
    assert len({incident.id for incident in written}) == 1
    assert 8 <= len(written) <= 12
    written += kept.write(await agent.tick(1020.0))
    assert [i.version for i in written] == list(range(1, len(written) + 1))
    last = written[-1]
    assert (last.evidence["alerts"], last.evidence["subjects"], last.state) == (1000, 5, "open")
    assert kept.log[0].key == str(last.id).encode()


async def test_models_and_families_are_apart(kept: Kept) -> None:
    """One incident for each, on the partition from which the alert came."""
    agent = await started(kept)
    outs = await agent.process(
        [
            kept.record(alert()),
            kept.record(alert(threat="backdoor")),
            kept.record(alert(threat="evasion")),
            kept.record(alert(model="other"), partition=1),
        ]
    )
    written = kept.write(outs)
    assert sorted((i.model, i.family) for i in written) == [
        ("digits", "evasion"), ("digits", "poisoning"), ("other", "poisoning"),
    ]  # fmt: skip
    assert [record.partition for record in kept.log] == [0, 0, 1]
    (more,) = [i for i in kept.write(await agent.tick(1.5)) if i.family == "poisoning"]
    assert set(more.threats) == {"label_flip", "backdoor"}


@pytest.mark.parametrize("cut", range(1, 8))
async def test_a_kill_and_everything_again_gives_the_same(kept: Kept, cut: int) -> None:
    """Whatever was written before the kill, redelivery neither repeats nor loses a change."""
    agent = await started(kept)
    opened = kept.write(await agent.process([kept.record(alert())]))[0]
    proposed = action(opened, "proposed", "a1")
    steps = [
        proposed.model_copy(update={"outcome": outcome, "time": T0 + timedelta(seconds=second)})
        for second, outcome in enumerate(("proposed", "running", "failed", "running", "done"))
    ]
    records = [kept.record(event) for event in (alert(), *steps, alert("s2"))]
    kept.write(await agent.process(records[:cut]))
    del agent
    again = await started(kept)
    kept.write(await again.process(records))
    kept.write(await again.tick(100.0))
    written = [Incident.decode(record.value) for record in kept.log]
    assert [i.version for i in written] == list(range(1, len(written) + 1))
    states = [t.to for t in written[-1].history]
    assert states == ["open", "containing", "failed", "containing", "contained", "open"]
    assert kept.write(await again.process(records)) == []


async def test_another_worker_goes_on_with_the_partition(kept: Kept) -> None:
    """The incident is one, whoever holds its partition."""
    first, second = await started(kept), kept.agent()
    await second.assigned(frozenset({("alerts", 1)}))
    kept.write(await first.process([kept.record(alert())]))
    await first.assigned(frozenset())
    await second.assigned(frozenset({("alerts", 0), ("alerts", 1)}))
    kept.write(await second.process([kept.record(alert("s2"))]))
    kept.write(await second.tick(5.0))
    versions = [Incident.decode(record.value).version for record in kept.log]
    assert versions == [1, 2]
    assert await first.tick(5.0) == []


async def test_quiet_resolves_and_a_step_of_the_clock_does_not(kept: Kept) -> None:
    """Quiet is counted in ticks of at most 5 s, so that an hour's jump ends nothing."""
    agent = await started(kept)
    kept.write(await agent.process([kept.record(alert())]))
    await agent.tick(1000.0)
    assert await agent.tick(4600.0) == []
    assert await agent.tick(1000.0) == []
    (resolved,) = kept.write(await agent.tick(1001.5))
    assert resolved.state == "resolved"
    assert resolved.history[-1].reason == "quiet for 6 s"
    assert await agent.tick(1010.0) == []


async def test_news_puts_quiet_off(kept: Kept) -> None:
    """Evidence starts the quiet time anew."""
    agent = await started(kept)
    kept.write(await agent.process([kept.record(alert())]))
    for second in range(0, 20, 2):
        await agent.process([kept.record(alert(seq=second + 1))])
        assert all(i.state == "open" for i in kept.write(await agent.tick(1000.0 + second)))


async def test_a_resolved_episode_that_goes_on_reopens_and_a_new_one_opens(kept: Kept) -> None:
    """An id is never given twice."""
    agent = await started(kept)
    kept.write(await agent.process([kept.record(alert())]))
    for now in (1000.0, 1004.0, 1008.0):
        kept.write(await agent.tick(now))
    again = await started(kept)
    (reopened,) = kept.write(await again.process([kept.record(alert(seq=1))]))
    assert (reopened.state, reopened.version) == ("open", 3)
    for now in (1000.0, 1004.0, 1008.0):
        kept.write(await again.tick(now))
    (fresh,) = kept.write(await again.process([kept.record(alert("s9"))]))
    assert fresh.id != reopened.id
    assert await again.process([kept.record(alert()), kept.record(alert(seq=1))]) == []


async def test_a_signed_dismissal_ends_it_for_good(kept: Kept) -> None:
    """The key that signed is in the history, and the episode stays dismissed."""
    agent = await started(kept)
    (opened,) = kept.write(await agent.process([kept.record(alert())]))
    command = kept.record(kept.dismiss(str(opened.id)))
    (dismissed,) = kept.write(await agent.process([command]))
    assert (dismissed.state, dismissed.history[-1].by) == ("dismissed", kept.key.id)
    assert dismissed.history[-1].reason == "not an attack"
    assert await agent.process([command, kept.record(alert(seq=5))]) == []
    (fresh,) = kept.write(await agent.process([kept.record(alert(episode=1))]))
    assert fresh.id != opened.id


async def test_a_dismissal_that_is_not_valid_does_nothing(kept: Kept) -> None:
    """Wrong key, expired, another command, unsigned, unknown target: the incident stays."""
    agent = await started(kept)
    (opened,) = kept.write(await agent.process([kept.record(alert())]))
    target = str(opened.id)
    assert (
        await agent.process(
            [
                kept.record(kept.dismiss(target, keys.generate())),
                kept.record(kept.dismiss(target), after=7200),
                kept.record(kept.dismiss(target, kind="approve")),
                kept.record(b"{}"),
                kept.record(kept.dismiss("no-uuid")),
                kept.record(kept.dismiss(str(UUID(int=3)))),
            ]
        )
        == []
    )


async def test_a_bad_record_leaves_no_trace_of_its_batch(kept: Kept) -> None:
    """The batch is split and comes again, so nothing of it may have been counted."""
    agent = await started(kept)
    good, bad = kept.record(alert()), Record("alerts", 0, 99, 0, None, b"{")
    with pytest.raises(SchemaError):
        await agent.process([good, bad])
    assert len(kept.write(await agent.process([good]))) == 1


async def test_actions_of_nobody_are_passed_over(kept: Kept) -> None:
    """An operator's own action, or one of an unknown incident, changes no incident."""
    agent = await started(kept)
    own = Action(
        id="a", action="rollback", model="digits", incident=None, outcome="done", automatic=False,
        subject=Subject(kind="model", id="digits"), by="k", reason="", time=T0,
    )  # fmt: skip
    unknown = own.model_copy(update={"incident": UUID(int=4)})
    assert await agent.process([kept.record(own), kept.record(unknown)]) == []


async def test_evidence_that_was_not_written_yet_survives_a_kill(kept: Kept) -> None:
    """An action and a subject that were read, committed and held back for a second are kept."""
    agent = await started(kept)
    await agent.tick(1000.0)
    (opened,) = kept.write(await agent.process([kept.record(alert())]))
    kept.write(await agent.process([kept.record(action(opened, "running"))]))
    assert kept.write(await agent.process([kept.record(action(opened, "running", "a2"))])) == []
    assert kept.write(await agent.process([kept.record(alert("s2"))])) == []
    other = await started(kept)  # the first one was killed after its commits
    kept.write(await other.tick(2000.0))
    last = kept.write(await other.process([kept.record(action(opened, "done", after=1))]))
    assert last == []
    (last_one,) = kept.write(await other.tick(2002.0))
    assert {a.action_id: a.state for a in last_one.actions} == {"a": "done", "a2": "running"}
    assert {s.subject.id for s in last_one.subjects} == {"s1", "s2"}
    third = await started(kept)
    assert kept.write(await third.tick(3000.0)) == []
