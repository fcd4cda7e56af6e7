"""From what the policy wants to what was done: guards, approval, dry run, kills."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from nnsec.adapters.records import Out, Record
from nnsec.errors import TransientError, Unsafe
from nnsec.incidents import ActionSeen, AlertSeen, stamped, step
from nnsec.settings import Settings
from nnsec.trust.statements import sign_statement
from schemas.action import Action
from schemas.incident import Incident
from tests.workers.stage import (
    OPERATOR,
    RELEASE,
    T0,
    Shelf,
    Stage,
    alert,
    configured,
    dismissed,
    incident,
    statement,
)
from workers import lanes, process, turns
from workers.actions.quarantine import Quarantine
from workers.actions.rollback import Rollback
from workers.site import Overtaken
from workers.vault import Stock

DONE = [(2, "prepare", 1), (2, "activate", 1)]


def made(folder: Path, actions: tuple[str, ...] = ("rollback",), **changes: Any) -> Stage:
    """A stage on which checkpoint 2 serves, and has learned from poison."""
    policy = {
        "severity": "high",
        "actions": list(actions),
        "approval": changes.pop("approval", "none"),
    }
    stage = Stage(configured(Settings(), folder, policy={"poisoning": policy}, **changes))
    stage.serve(2)
    stage.shelf.tainted = {2: "learned from 3 revoked samples"}
    return stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return made(tmp_path)


async def test_what_the_policy_wants_is_done(stage: Stage) -> None:
    """Said before it is done, with what exactly, and its outcome after."""
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes()[-1:] == ["done"])
    assert stage.outcomes() == ["proposed", "running", "done"]
    assert stage.said("models") == DONE
    last = stage.actions()[-1]
    assert (last.automatic, last.by, last.incident) == (True, "remediation", incident().id)
    assert last.figures["from"], last.figures["to"] == (2, 1)
    assert last.figures["monitor_only"]
    assert 0 <= last.figures["seconds"] < 5
    assert "policy of poisoning at severity high" in stage.actions()[0].reason


async def test_an_incident_delivered_again_is_acted_on_once(stage: Stage) -> None:
    """Whatever its version; an old record of it calls for nothing at all."""
    newer = stamped(incident())
    async with stage.crew():
        await stage.take(newer)
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes()[-1:] == ["done"])
        stage.start()
        await stage.take(newer)
        await stage.rest()
    assert stage.outcomes() == ["proposed", "running", "done"]


async def test_what_is_said_of_one_incident_takes_one_round_trip(tmp_path: Path) -> None:
    """However many it accuses: no proposal and no denial waits for the one before."""
    gate = asyncio.Barrier(1)

    async def pen(_: Out) -> None:
        await gate.wait()

    policy = {"severity": "high", "actions": ["quarantine", "rollback"], "approval": "required"}
    changes = {"policy": {"poisoning": policy}, "remediation": {"approval_timeout": 60.0}}
    stage = Stage(configured(Settings(), tmp_path, **changes), pen=pen)
    stage.remediation.lanes.hold(frozenset())
    crowd = incident(*(f"s{number}" for number in range(20)))
    gate = asyncio.Barrier(40)
    async with asyncio.timeout(5.0):
        await stage.take(crowd)
    assert stage.outcomes() == ["proposed"] * 40

    gate = asyncio.Barrier(1)
    for one in stage.actions("quarantine"):
        await stage.site.report(one, "awaiting_approval", "a test")
    stage.remediation.lanes.hold(frozenset({0}))
    stage.now += timedelta(seconds=61)
    gate = asyncio.Barrier(20)
    async with asyncio.timeout(5.0):
        await stage.remediation.lanes._expire()
        await stage.take(dismissed(crowd))
    assert stage.outcomes("quarantine")[-20:] == ["denied"] * 20
    assert stage.outcomes("rollback")[-20:] == ["denied"] * 20


async def test_one_that_was_overtaken_keeps_no_other_from_being_said(stage: Stage) -> None:
    """All of an incident are said before it is tried again."""
    crowd = incident("s1", "s2", "s3")
    real = stage.publish

    async def publish(*outs: Out) -> bool:
        for out in outs:
            said = Action.decode(out.value) if out.topic == "actions" else None
            if said and said.subject.id == "s1" and said.version == 1:
                other = said.model_copy(update={"reason": "another worker was first"})
                await real(Out("actions", other.encode(), b"digits"))
        return await real(*outs)

    stage.site.publish = publish
    stage.remediation.lanes.hold(frozenset())
    with pytest.raises(Overtaken):
        await stage.take(crowd)
    assert {one.subject.id for one in stage.site.actions.values()} == {"s1", "s2", "s3"}


async def test_an_old_record_of_a_finished_incident_calls_for_nothing(stage: Stage) -> None:
    """As at the first start of a worker beside a log of years."""
    stage.site.learn(stage.record("incidents", dismissed(incident()).encode()))
    await stage.take(incident())
    assert stage.actions() == []


async def test_with_approval_a_person_decides(tmp_path: Path) -> None:
    """It waits, runs when approved, and the record names whose key approved."""
    stage = made(tmp_path, approval="required")
    await stage.take(incident())
    await stage.until(lambda: stage.outcomes() == ["proposed", "awaiting_approval"])
    await stage.rest()
    assert stage.said("models") == []
    reason = stage.actions("rollback")[-1].reason
    assert reason.startswith("the policy wants a person's approval: ")
    async with stage.crew():
        await stage.order("approve", str(incident().id))
        await stage.until(lambda: stage.outcomes("rollback")[-1] == "done")
    assert stage.outcomes("rollback")[2:] == ["proposed", "running", "done"]
    approved, running = stage.actions("rollback")[2:4]
    assert (approved.by, approved.automatic) == (OPERATOR.id, False)
    assert reason.endswith(running.reason)


async def test_nobody_is_asked_to_approve_what_is_not_needed(tmp_path: Path) -> None:
    """What serves never learned from what was revoked: the rollback is done, and says so."""
    stage = made(tmp_path, approval="required")
    stage.shelf.tainted = {}
    await stage.take(incident())
    await stage.until(lambda: stage.outcomes() == ["proposed", "done"])
    assert stage.actions("rollback")[-1].figures["needed"] is False


async def test_what_nobody_approves_is_denied(tmp_path: Path) -> None:
    """After ``approval_timeout``, and not before."""
    stage = made(tmp_path, approval="required", remediation={"approval_timeout": 60.0})
    await stage.take(incident())
    await stage.until(lambda: stage.outcomes() == ["proposed", "awaiting_approval"])
    stage.now += timedelta(seconds=59)
    await stage.rest()
    assert stage.outcomes()[-1] == "awaiting_approval"
    stage.now += timedelta(seconds=2)
    await stage.rest()
    assert stage.outcomes()[-1] == "denied"
    assert stage.actions()[-1].reason == "nobody approved it within 60 s"
    assert stage.said("models") == []


@pytest.mark.parametrize("hours", [-1, 1])
@pytest.mark.parametrize("approval", ["none", "required"])
async def test_a_wrong_clock_begins_nothing_again_and_keeps_its_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, approval: str, hours: int
) -> None:
    """One quarantine contains the incident; cool-down and approval time-out are as long as ever."""
    changes: dict[str, Any] = {"approval": approval, "remediation": {"approval_timeout": 60.0}}
    stage = made(tmp_path, ("quarantine",), **changes)
    stage.now += timedelta(hours=hours)

    async def nothing(*_: object) -> AsyncIterator[Record]:
        for record in ():
            yield record

    monkeypatch.setattr(process, "since", nothing)
    asked = "awaiting_approval"

    async def told(one: Incident, outcome: str) -> Incident:
        """The incident with all that came of it, once that has come to an outcome."""
        await stage.take(one)
        await stage.until(lambda: stage.outcomes("quarantine")[-1] == outcome)
        for action in stage.actions("quarantine"):
            one = step(one, ActionSeen(action), log=UUID(int=1)).incident or one
        return one

    async with stage.crew():
        if approval == "required":
            await told(incident(), asked)
            stage.now += timedelta(seconds=50)
            await stage.rest()
            valid = {"issued": stage.now, "expires": stage.now + timedelta(minutes=5)}
            await stage.order("approve", str(incident().id), **valid)
        one = await told(incident(), "done")
        assert one.state == "contained"
        said = len(stage.actions())
        await stage.take(one)
        await stage.rest()
        assert len(stage.actions()) == said

        stage.now += timedelta(minutes=9)
        late = alert(9, time=T0 + timedelta(hours=2))
        again = step(one, AlertSeen(late), log=UUID(int=1)).incident
        assert again is not None
        assert again.state == "open"
        await told(again, asked)
        assert ("guard: cool-down" in stage.actions()[-1].reason) == (approval == "none")
        stage.now += timedelta(seconds=59)
        await stage.rest()
        assert stage.outcomes()[-1] == asked
        stage.now += timedelta(seconds=2)
        await stage.rest()
        assert stage.outcomes()[-1] == "denied"


async def test_what_is_denied_takes_what_follows_along(tmp_path: Path) -> None:
    """A rollback after a quarantine that a person denied would be for nothing."""
    stage = made(tmp_path, ("quarantine", "rollback"), approval="required")
    await stage.take(incident())
    await stage.until(lambda: stage.outcomes("quarantine")[-1] == "awaiting_approval")
    await stage.rest()
    assert stage.outcomes("rollback") == ["proposed"]
    await stage.order("deny", stage.actions("quarantine")[0].id)
    await stage.until(lambda: stage.outcomes("rollback")[-1] == "denied")
    assert stage.outcomes("quarantine")[-1] == "denied"
    assert "was denied" in stage.actions("rollback")[-1].reason
    assert stage.said("sources") == stage.said("models") == []


async def test_a_dry_run_says_what_it_would_do(tmp_path: Path) -> None:
    """And does nothing; without it, the same incident is acted on."""
    stage = made(tmp_path, remediation={"dry_run": True})
    async with stage.crew():
        await stage.take(incident())
        await stage.rest()
        (only,) = stage.actions()
        assert (only.outcome, only.figures["dry_run"]) == ("proposed", True)
        assert only.reason == "dry run: would rollback from 2 to 1"
        await stage.order("approve", str(incident().id))
        await stage.rest()
        assert stage.said("models") == []
        stage.settings = configured(Settings(), tmp_path, policy={"poisoning": {
            "severity": "high", "actions": ["rollback"], "approval": "none"}})  # fmt: skip
        stage.start()
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes("rollback")[-1] == "done")
    assert stage.said("models") == DONE


async def test_a_dry_run_says_what_would_fail(tmp_path: Path) -> None:
    """Also in words."""
    stage = made(tmp_path, remediation={"dry_run": True})
    stage.shelf.tainted[1] = "learned from 1 revoked sample"
    await stage.take(incident())
    assert stage.actions()[0].reason.startswith("dry run: would fail: no clean checkpoint")


async def test_the_kill_switch_stops_the_automation(stage: Stage) -> None:
    """What comes under `halt` waits for a person, who may still approve it."""
    await stage.order("halt")
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes("rollback")[-1:] == ["awaiting_approval"])
        assert "kill switch" in stage.actions("rollback")[-1].reason
        assert stage.said("models") == []
        await stage.order("approve", str(incident().id))
        await stage.until(lambda: stage.outcomes("rollback")[-1] == "done")
    assert stage.said("models") == DONE


async def test_after_resume_it_acts_again(stage: Stage) -> None:
    """The next incident needs nobody."""
    await stage.order("halt")
    stage.now += timedelta(seconds=1)
    await stage.order("resume")
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes("rollback")[-1:] == ["done"])


async def test_a_second_rollback_needs_a_person(stage: Stage) -> None:
    """Within the cool-down a guard says no, with its figures."""
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes()[-1:] == ["done"])
        stage.shelf.digests[3] = "3" * 64
        stage.shelf.tainted = {1: "poison"}
        again = incident("s2").model_copy(update={"id": incident().id, "version": 2})
        await stage.take(again)
        await stage.until(lambda: stage.outcomes()[-1:] == ["awaiting_approval"])
    assert stage.actions()[-1].reason.startswith("guard: cool-down")
    assert stage.actions()[-1].figures["to"] == 3


async def test_a_released_source_that_begins_again_is_brought_before_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a person reversed is proposed again, once however often it is told, and waits."""

    async def nothing(*_: object) -> AsyncIterator[Record]:
        for record in ():
            yield record

    monkeypatch.setattr(process, "since", nothing)
    stage = made(tmp_path, ("quarantine",))
    first = incident("s1")
    async with stage.crew():
        await stage.take(first)
        await stage.until(lambda: stage.outcomes("quarantine")[-1:] == ["done"])
        stage.now += timedelta(minutes=20)
        await stage.order("release", "s1", expires=stage.now + timedelta(minutes=5))
        await stage.until(lambda: stage.outcomes("release")[-1:] == ["done"])
        stage.now += timedelta(minutes=20)
        done = ActionSeen(stage.actions("quarantine")[-1])
        contained = step(first, done, log=UUID(int=1)).incident
        news = AlertSeen(alert(2, "s1", time=stage.now))
        again = step(contained, news, log=UUID(int=1)).incident
        assert again is not None
        assert again.state == "open"
        await stage.take(again)
        await stage.until(lambda: stage.outcomes("quarantine")[-1] == "awaiting_approval")
        await stage.kill()
        stage.start()
        await stage.take(stamped(again))
        await stage.rest()
        assert stage.outcomes("quarantine")[3:] == ["proposed", "awaiting_approval"]
        waits = stage.actions("quarantine")[-1]
        assert waits.reason.startswith("guard: flapping")
        assert waits.id != stage.actions("quarantine")[0].id
        await stage.order("approve", waits.id, expires=stage.now + timedelta(minutes=5))
        await stage.until(lambda: stage.outcomes("quarantine")[-1] == "done")
    states = [said.state for said in stage.said("sources")]
    assert states == ["quarantined", "trusted", "quarantined"]


async def test_models_that_are_judged_at_once_are_counted_together(tmp_path: Path) -> None:
    """Of six models one is rolled back in an hour, however near the others follow."""
    names = [f"m{number}" for number in range(5)]
    spec = configured(Settings(), tmp_path).models["digits"].model_dump()

    async def pen(_: Out) -> None:
        await asyncio.sleep(0.02)

    rollbacks = {"severity": "high", "actions": ["rollback"], "approval": "none"}
    stage = Stage(
        configured(
            Settings(), tmp_path, models=dict.fromkeys(names, spec), policy={"poisoning": rollbacks}
        ),
        pen=pen,
    )
    for name in names:
        said = sign_statement(statement(2, 1, model=name), RELEASE)
        stage.site.learn(stage.record("models", said, name.encode()))
    stage.shelf.tainted = {2: "poison"}
    stage.remediation.lanes.hold(frozenset())
    for name in names:
        await stage.take(incident(f"s-{name}", model=name))
    stage.remediation.lanes.hold(frozenset({0}))
    stage.remediation.lanes.wake()
    await stage.until(lambda: stage.outcomes().count("awaiting_approval") == 4)
    assert stage.outcomes().count("running") == 1


@pytest.mark.parametrize(
    ("apart", "slow", "last"), [(-1, False, "awaiting_approval"), (1, False, "running"),
                                (1, True, "awaiting_approval")],
)  # fmt: skip
async def test_what_another_worker_began_at_the_same_moment_counts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, apart: int, *, slow: bool, last: str
) -> None:
    """The later one gives way before anything is done; so does one whose word was slow to come."""
    monkeypatch.setattr(lanes, "SETTLE", 0.1)
    stage.site.partitions = {**stage.site.partitions, "incidents": 2}
    stage.remediation.lanes.hold(frozenset({stage.site.place("digits")}))
    real = stage.publish

    async def publish(*outs: Out) -> bool:
        for out in outs:
            said = Action.decode(out.value) if out.topic == "actions" else None
            if said and said.outcome == "running":
                other = said.model_copy(
                    update={"id": "other", "model": "other",
                            "time": said.time + timedelta(seconds=apart)}
                )  # fmt: skip
                await asyncio.sleep(0.2 * slow)
                await real(Out("actions", other.encode(), b"other"))
        return await real(*outs)

    stage.site.publish = publish
    await stage.take(incident())
    await stage.until(lambda: "running" in stage.outcomes()[2:])
    await stage.rest(0.3)
    mine = [one for one in stage.actions() if one.model == "digits"]
    assert mine[-1].outcome == last
    assert bool(stage.said("models")) is (last == "running")
    if last == "awaiting_approval":
        assert mine[-1].reason.startswith("guard: rate")


async def test_an_incident_has_the_sources_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many it accuses; a minute later they are counted anew."""
    counted = 0

    async def summaries(*_: object) -> AsyncIterator[Record]:
        nonlocal counted
        counted += 1
        for record in ():
            yield record

    monkeypatch.setattr(process, "since", summaries)
    stage = made(tmp_path, ("quarantine",))
    clock = 0.0
    stage.site.clock = lambda: clock
    async with stage.crew():
        await stage.take(incident(*(f"s{number}" for number in range(9))))
        await stage.until(lambda: stage.outcomes().count("awaiting_approval") == 8)
        once = counted
        clock += lanes.COUNT_SECONDS
        await stage.take(incident("s9", episode=UUID(int=9)))
        await stage.until(lambda: stage.outcomes().count("awaiting_approval") == 9)
    # The first quarantine reads what was accepted by the same means.
    assert (once, counted) == (2, 3)


async def test_a_clean_model_is_left_alone(stage: Stage) -> None:
    """Done, but not needed: neither a statement nor a count in the guards."""
    stage.shelf.tainted = {1: "poison"}
    await stage.take(incident())
    await stage.until(lambda: stage.outcomes() == ["proposed", "done"])
    assert stage.actions()[-1].figures["needed"] is False
    assert stage.said("models") == []


async def test_what_waits_is_given_up_when_the_incident_ends(tmp_path: Path) -> None:
    """And stays so: a late approval does not act on an incident that is over."""
    stage = made(tmp_path, approval="required")
    await stage.take(incident())
    await stage.until(lambda: stage.outcomes() == ["proposed", "awaiting_approval"])
    await stage.take(dismissed(incident()))
    assert stage.actions()[-1].reason == "the incident is dismissed"
    await stage.order("approve", str(incident().id))
    await stage.rest()
    assert stage.outcomes("rollback")[-1] == "denied"


async def test_an_approval_that_meets_the_end_of_the_incident_does_nothing(tmp_path: Path) -> None:
    """The end was read, but not taken yet."""
    stage = made(tmp_path, approval="required")
    await stage.take(incident())
    await stage.until(lambda: stage.outcomes() == ["proposed", "awaiting_approval"])
    stage.site.learn(stage.record("incidents", dismissed(incident()).encode()))
    await stage.order("approve", str(incident().id))
    await stage.until(lambda: stage.outcomes("rollback")[-1] == "denied")
    assert stage.actions("rollback")[-1].reason == "the incident is over"


async def test_an_absent_registry_is_waited_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may pass is tried again, not failed."""
    monkeypatch.setattr(lanes, "RETRY", 0.05)
    stage.shelf.away = [TransientError("away"), TransientError("away")]
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes()[-1:] == ["done"])
    assert stage.outcomes() == ["proposed", "running", "done"]


async def test_quarantines_do_not_wait_for_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback that waits is passed, and done when the registry is back."""
    monkeypatch.setattr(lanes, "RETRY", 0.05)
    stage = made(tmp_path, ("quarantine", "rollback"))

    async def none(*_: object) -> list[Record]:
        return []

    def away(*_: object) -> Stock:
        raise TransientError("away")

    monkeypatch.setattr(Quarantine, "_records", none)
    real = stage.shelf.survey
    stage.shelf.survey = away
    async with stage.crew():
        await stage.take(incident("s1"))
        await stage.until(lambda: stage.outcomes("quarantine")[-1] == "done")
        await stage.order("quarantine", "s2")
        await stage.until(lambda: stage.outcomes("quarantine").count("done") == 2)
        assert stage.outcomes("rollback") == ["proposed"]
        stage.shelf.survey = real
        await stage.until(lambda: stage.outcomes("rollback")[-1] == "done")


async def test_a_checkpoint_that_fails_is_passed_over(tmp_path: Path) -> None:
    """Refused, tainted, and failing its golden set: never rolled back to; the next older one is."""
    stage = Stage(configured(Settings(), tmp_path, policy={"poisoning": {
        "severity": "high", "actions": ["rollback"], "approval": "none"}}), Shelf(5))  # fmt: skip
    stage.serve(5)
    stage.shelf.tainted = {5: "poison", 4: "its parent"}
    stage.shelf.refused = {6: "weights.safetensors differs"}
    stage.shelf.failing = {3: Unsafe("of 64 golden inputs 3 agree")}
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes()[-1:] == ["done"])
    assert stage.said("models") == [(2, "prepare", 2), (2, "activate", 2)]
    assert stage.shelf.examined == [3, 2]


async def test_without_a_clean_checkpoint_it_fails(stage: Stage) -> None:
    """With a reason for each; nothing is said to serve."""
    stage.shelf.failing = {1: Unsafe("does not do what it did")}
    await stage.take(incident())
    await stage.until(lambda: stage.outcomes() == ["proposed", "failed"])
    assert stage.actions()[-1].reason == (
        "no clean checkpoint of digits to serve (1: does not do what it did)"
    )
    assert stage.said("models") == []


async def test_what_another_worker_holds_is_not_run(stage: Stage) -> None:
    """Until its partition comes here; then it goes on."""
    stage.remediation.lanes.hold(frozenset({7}))
    async with stage.crew():
        await stage.take(incident())
        await stage.rest()
        assert stage.outcomes() == ["proposed"]
        stage.remediation.lanes.hold(frozenset({0}))
        await stage.rest(0.0)
        stage.remediation.lanes.wake()
        await stage.until(lambda: stage.outcomes()[-1] == "done")


@pytest.mark.parametrize("cut", range(1, 6))
async def test_a_kill_at_any_point_changes_nothing(stage: Stage, cut: int) -> None:
    """Cut after each record in turn, and begun again: every effect is there exactly once."""
    start = len(stage.tape)

    class Killed(Exception):  # noqa: N818 - no error
        pass

    real = stage.publish

    async def publish(*outs: Any) -> bool:
        if len(stage.tape) - start >= cut:
            raise Killed
        await real(*outs)
        if len(stage.tape) - start >= cut:
            raise Killed
        return True

    stage.site.publish = publish
    try:
        async with stage.crew():
            await stage.take(incident())
            await stage.rest(5.0)
    except Killed:
        await stage.kill()
    stage.start()
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes()[-1:] == ["done"])
        await stage.rest(0.05)
    assert stage.said("models") == DONE
    assert stage.outcomes() == ["proposed", "running", "done"]


@pytest.mark.parametrize("step", ["plan", "apply"])
async def test_an_unexpected_error_fails_the_action_and_no_more(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    """With its class, and where it was raised in the log; a person may have it tried again."""

    async def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    async with stage.crew():
        with monkeypatch.context() as patch:
            patch.setattr(Rollback, step, broken)
            await stage.take(incident())
            await stage.until(lambda: stage.outcomes()[-1] == "failed")
            await stage.rest()
        assert stage.actions()[-1].reason == "ZeroDivisionError: by zero"
        assert "Traceback" in caplog.text
        await stage.order("approve", str(incident().id))
        await stage.until(lambda: stage.outcomes("rollback")[-1] == "done")


async def test_a_dry_run_survives_an_unexpected_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it would fail of it."""

    async def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(Rollback, "plan", broken)
    stage = made(tmp_path, remediation={"dry_run": True})
    await stage.take(incident())
    assert stage.actions()[0].reason == "dry run: would fail: ZeroDivisionError: by zero"


async def test_an_error_in_a_lane_ends_the_worker(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault outside of any action is not passed over in silence."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(turns, "ready", broken)
    await stage.take(incident())
    with pytest.raises(ZeroDivisionError):
        await stage.rest(1.0)
