"""The correlator after a kill: what it wrote is all that it knows, and that is enough."""

from __future__ import annotations

from datetime import timedelta

import pytest

from nnsec.adapters.records import Record
from schemas.incident import Incident
from tests.streams.incident_log import T0, Kept, action, alert, started


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


async def test_a_dismissal_that_came_too_late_is_used_up(kept: Kept) -> None:
    """Sent again after the incident went on, it does nothing, though the worker was killed."""
    agent = await started(kept)
    (opened,) = kept.write(await agent.process([kept.record(alert())]))
    for now in (1000.0, 1004.0, 1008.0):
        kept.write(await agent.tick(now))
    (noted,) = kept.write(await agent.process([kept.record(kept.dismiss(str(opened.id)))]))
    assert (noted.state, noted.version) == ("resolved", 3)
    again = await started(kept)
    (reopened,) = kept.write(await again.process([kept.record(alert(seq=1))]))
    assert (reopened.state, reopened.version) == ("open", 4)
    assert await again.process([kept.record(kept.dismiss(str(opened.id)))]) == []


async def test_what_a_paused_worker_writes_late_does_not_count(kept: Kept) -> None:
    """An incident goes on from its highest version; of two with one version the first counts."""
    paused = await started(kept)
    await paused.tick(1000.0)
    kept.write(await paused.process([kept.record(alert())]))
    await paused.process([kept.record(alert("s2"))])
    late = await paused.tick(1002.0)
    other = await started(kept)
    for number in range(3, 6):
        kept.write(await other.process([kept.record(alert(f"s{number}"))]))
        kept.write(await other.tick(2000.0 + 2 * number))
        kept.write(late)  # with version 2, as the other's first
        (case,) = (await started(kept))._book.cases.values()
        assert (case.incident.version, len(case.incident.subjects)) == (number - 1, number)
        assert not case.since


@pytest.mark.parametrize("down", [2.0, 1e6])
async def test_quiet_goes_on_after_a_restart(kept: Kept, down: float) -> None:
    """It does not begin anew, but neither does a step of the clock end an incident by itself."""
    kept.now = 1000.0
    kept.write(await (await started(kept)).process([kept.record(alert())]))
    now = kept.now
    for _ in range(3):  # none of them lives for the 6 s that it takes
        now += down
        agent = await started(kept)
        assert await agent.tick(now) == []
        now += 0.5
        assert await agent.tick(now) == []
    (resolved,) = kept.write(await agent.tick(now + 3.0))
    assert resolved.state == "resolved"


async def test_a_bad_record_is_passed_over_when_it_is_read_again(kept: Kept) -> None:
    """It is a dead letter, or becomes one when it is delivered: no reason not to start."""
    agent = await started(kept)
    kept.write(await agent.process([kept.record(alert())]))
    kept.sent.append(Record("alerts", 0, kept.offset + 1, 0, None, b"{"))
    kept.log.append(Record("incidents", 0, len(kept.log), 0, None, b"{"))
    again = await started(kept)
    assert await again.process([kept.record(alert())]) == []


async def busy(kept: Kept, seconds: float) -> None:
    """Two models with an alert each every 0.25 s, whose writes do not fall together.

    Every subject has more episodes in that time than are remembered; a third model is resolved.
    """
    agent = await started(kept)
    now = 1000.0
    for turn in range(int(seconds / 0.25)):
        now += 0.25
        models = ["first", "second"] if turn else ["first"]
        if 0 < turn < seconds:
            models.append("third")
        for model in models:
            new = alert(f"s{turn % 4}", threat="evasion", model=model, episode=turn // 4)
            kept.write(await agent.process([kept.record(new)]))
        kept.write(await agent.tick(now))


async def test_what_is_written_moves_on_though_something_always_waits(kept: Kept) -> None:
    """With incidents that are never written together, what is read again stays within 2 s."""
    await busy(kept, 60.0)
    said = dict(kept.log[-1].headers)["nnsec-alerts-next"]
    assert said is not None
    assert len(kept.sent) - int(said) <= 2 * 2 * 4


async def test_a_restart_counts_nothing_again(kept: Kept) -> None:
    """Nor does an old episode of an incident that was resolved open another."""
    await busy(kept, 60.0)
    alerts = {"first": 240.0, "second": 239.0, "third": 59.0}
    again = await started(kept)
    for second in range(3):
        kept.write(await again.tick(2000.0 + second))
    found = {i.id: i for i in map(Incident.decode, [record.value for record in kept.log])}
    assert sorted((i.model, i.state, i.evidence["alerts"]) for i in found.values()) == [
        ("first", "open", alerts["first"]),
        ("second", "open", alerts["second"]),
        ("third", "resolved", alerts["third"]),
    ]
