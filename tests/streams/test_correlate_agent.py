"""The correlator: a thousand alerts of one attack are one incident."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from nnsec.adapters.declaration import BROKER_MAX_MESSAGE
from nnsec.adapters.outbox import size
from nnsec.adapters.records import Record
from nnsec.errors import SchemaError
from nnsec.trust import keys
from schemas.action import Action
from schemas.alert import Subject
from schemas.incident import Incident
from tests.streams.incident_log import T0, Kept, action, alert, started


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
    """Wrong key or model, no time, expired, another kind, unsigned, unknown: the incident stays."""
    agent = await started(kept)
    (opened,) = kept.write(await agent.process([kept.record(alert())]))
    target = str(opened.id)
    assert (
        await agent.process(
            [
                kept.record(kept.dismiss(target, keys.generate())),
                kept.record(kept.dismiss(target), after=7200),
                kept.record(kept.dismiss(target, kind="approve")),
                kept.record(kept.dismiss(target, model="other")),
                replace(kept.record(kept.dismiss(target)), timestamp=2**61),
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


async def test_a_record_always_fits_its_topic(kept: Kept) -> None:
    """Whatever the names: 300 of the longest with two actions each are more than Kafka takes."""
    agent = await started(kept)
    names = ["\U0001f600" * 250 + f"{number:06}" for number in range(300)]
    (opened,) = await agent.process([kept.record(alert(name)) for name in names])
    incident = Incident.decode(opened.value)
    wanted = [
        action(incident, "proposed", f"{kind} {UUID(int=number)}").model_copy(
            update={"action": kind, "subject": Subject(kind="source", id=name)}
        )
        for number, name in enumerate(names)
        for kind in ("quarantine", "rollback")
    ]
    outs = [
        *(await agent.process([kept.record(one) for one in wanted])),
        *(await agent.tick(1000.0)),
    ]
    assert max(map(size, outs)) <= BROKER_MAX_MESSAGE
    last = Incident.decode(outs[-1].value)
    assert len(last.actions) == 600
    assert 100 <= len(last.subjects) < last.evidence["subjects"] == 300
