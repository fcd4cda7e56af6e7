"""Commands: signed, in time, once; anything else is a dead letter without effect."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nnsec.adapters.records import Out, Record
from nnsec.settings import Settings
from nnsec.trust import keys
from nnsec.trust.commands import sign_command
from tests.workers.stage import OPERATOR, RELEASE, Stage, command, configured, incident

BROKER = "127.0.0.1:1"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(configured(Settings(), tmp_path))


@pytest.mark.parametrize(
    ("changes", "key", "error", "field"),
    [
        ({}, keys.generate(), "BadSignature", "value"),
        ({}, RELEASE, "BadSignature", "value"),
        ({"expires": command("halt", "").issued}, OPERATOR, "Expired", "value"),
        ({"model": "other"}, OPERATOR, "SchemaError", "model"),
        ({"model": "*", "kind": "quarantine"}, OPERATOR, "SchemaError", "model"),
        ({"kind": "approve", "target": "nothing"}, OPERATOR, "SchemaError", "target"),
    ],
)
async def test_what_may_not_be_done_is_a_dead_letter(
    stage: Stage, changes: dict[str, Any], key: keys.PrivateKey, error: str, field: str
) -> None:
    """With the reason and the place; nothing is said on ``actions``."""
    ordered = command("halt", "").model_copy(update=changes)
    record = stage.record("commands", sign_command(ordered, key), b"digits")
    await stage.remediation.take(record)
    (letter,) = stage.buried()
    assert (letter["nnsec-error-class"], letter["nnsec-field"]) == (error, field)
    assert (letter["nnsec-topic"], letter["nnsec-offset"]) == ("commands", "0")
    assert stage.actions() == []


@pytest.mark.parametrize("value", [None, b"", b"{}", command("halt", "").encode()])
async def test_what_is_not_signed_is_a_dead_letter(stage: Stage, value: bytes | None) -> None:
    """A bare command too."""
    await stage.remediation.take(stage.record("commands", value))
    assert [one["nnsec-error-class"] for one in stage.buried()] == ["BadSignature"]
    assert stage.actions() == []


async def test_a_command_works_once(stage: Stage) -> None:
    """Delivered again it changes nothing, sent again it is a dead letter; so after a restart."""
    record = await stage.order("halt")
    assert stage.site.ledger.halted("digits")
    said = len(stage.tape)
    await stage.remediation.take(record)
    assert len(stage.tape) == said
    stage.start()
    await stage.remediation.take(record)
    assert len(stage.tape) == said
    await stage.remediation.take(stage.record("commands", record.value))
    assert [one["nnsec-error-class"] for one in stage.buried()] == ["RollbackRefused"]


async def test_a_command_delivered_again_after_its_time_is_no_dead_letter(stage: Stage) -> None:
    """It was carried out in time, and the worker was killed before it could commit."""
    record = await stage.order("halt")
    stage.now += timedelta(hours=1)
    stage.start()
    await stage.remediation.take(record)
    assert stage.buried() == []


async def test_one_model_may_resume_under_a_wide_halt(stage: Stage) -> None:
    """The newer word counts, and the receipts name the operator's key."""
    await stage.order("halt", model="*")
    stage.now += timedelta(seconds=1)
    await stage.order("resume")
    assert stage.site.ledger.halted("another")
    assert not stage.site.ledger.halted("digits")
    assert {one.by for one in stage.actions()} == {OPERATOR.id}


@pytest.mark.parametrize("resumed", ["*", "digits"])
@pytest.mark.parametrize("halted", ["*", "digits"])
async def test_a_clock_that_stepped_back_does_not_undo_a_halt(
    stage: Stage, resumed: str, halted: str
) -> None:
    """What its receipt says is done holds, also after a restart."""
    stage.now += timedelta(minutes=4)
    await stage.order("resume", model=resumed)
    stage.now -= timedelta(minutes=4)
    await stage.order("halt", model=halted)
    assert stage.site.ledger.halted("digits")
    stage.start()
    assert stage.site.ledger.halted("digits")


async def test_a_dismissal_is_only_noted(stage: Stage) -> None:
    """The correlator carries it out; here its use is made known, so that it works once."""
    await stage.order("dismiss", str(incident().id))
    assert [(a.action, a.outcome) for a in stage.actions()] == [("dismiss", "done")]


@pytest.mark.parametrize("target", ["", "anonymous"])
@pytest.mark.parametrize("kind", ["quarantine", "release", "drop"])
async def test_a_target_that_is_nobody_is_refused(stage: Stage, kind: str, target: str) -> None:
    """Whoever asks for it: the order fails, and nothing is said about any source."""
    await stage.order(kind, target)
    await stage.until(lambda: stage.outcomes() == ["proposed", "failed"])
    assert stage.actions()[-1].reason.startswith("target:")
    assert stage.said("sources") == []


@pytest.mark.parametrize("by_policy", [True, False])
@pytest.mark.parametrize("name", ["*", "all", "Unknown", " ", "crowd*7"])
async def test_a_source_may_not_choose_a_name_that_shields_it(
    stage: Stage, name: str, *, by_policy: bool
) -> None:
    """Policy and person shut out exactly that source; no name is wide."""
    if by_policy:
        await stage.take(incident(name))
    else:
        await stage.order("quarantine", name)
    await stage.until(lambda: stage.said("sources"))
    assert [one.source for one in stage.said("sources")] == [name]


async def test_a_dry_run_carries_out_no_order(stage: Stage, tmp_path: Path) -> None:
    """It is noted, and marked as not done."""
    dry = Stage(configured(Settings(), tmp_path, remediation={"dry_run": True}))
    await dry.order("quarantine", "s1")
    await dry.rest()
    assert [(a.outcome, a.figures["dry_run"]) for a in dry.actions()] == [("proposed", True)]


async def test_none_is_no_incident(stage: Stage) -> None:
    """As of a script with an empty variable: actions that were ordered belong to no incident."""
    await stage.order("rollback", "9", id="old")
    await stage.until(lambda: stage.outcomes("rollback")[-1] == "failed")
    await stage.order("approve", "None")
    assert [one["nnsec-field"] for one in stage.buried()] == ["target"]
    assert stage.outcomes() == ["proposed", "failed"]
    await stage.order("approve", "command-old")
    assert stage.outcomes("rollback")[-1] == "proposed"


@pytest.mark.parametrize(
    ("kind", "outcome"), [("approve", ["proposed", "proposed"]), ("deny", ["denied", "denied"])]
)
@pytest.mark.parametrize("said", [1, 2])
async def test_a_decision_that_was_cut_off_is_carried_out_whole(
    tmp_path: Path, kind: str, outcome: list[str], said: int
) -> None:
    """Killed after any of its effects: the rest follows, though its time is over by then."""
    policy = {"severity": "high", "actions": ["quarantine"], "approval": "required"}
    stage = Stage(configured(Settings(), tmp_path, policy={"poisoning": policy}))
    one = incident("s1", "s2")
    await stage.take(one)
    await stage.until(lambda: stage.outcomes().count("awaiting_approval") == 2)
    await stage.kill()
    published, left = stage.site.publish, said

    async def killed(*outs: Out) -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            raise asyncio.CancelledError
        return await published(*outs)

    stage.site.publish = killed
    with pytest.raises(asyncio.CancelledError):
        await stage.order(kind, str(one.id))
    record = stage.record("commands", sign_command(command(kind, str(one.id)), OPERATOR))
    stage.now += timedelta(minutes=6)
    stage.start()
    stage.remediation.lanes.hold(frozenset())  # nothing runs, so that all is as it was decided
    again = Record("commands", 0, record.offset - 1, record.timestamp, None, record.value)
    for _ in range(2):
        await stage.remediation.take(again)
    assert stage.buried() == []
    assert [a.outcome for a in stage.actions("quarantine")[-2:]] == outcome
    assert len(stage.actions("quarantine")) == 6
    assert len(stage.actions(kind)) == 1
    await stage.remediation.take(record)
    assert [letter["nnsec-error-class"] for letter in stage.buried()] == ["RollbackRefused"]


async def test_what_failed_again_is_not_approved_twice_by_one_command(tmp_path: Path) -> None:
    """Delivered again before its receipt, it does what is missing, whatever came of the rest."""
    stage = Stage(configured(Settings(), tmp_path))
    await stage.order("rollback", "9", id="old")
    await stage.until(lambda: stage.outcomes("rollback")[-1] == "failed")
    published = stage.site.publish

    async def killed(*outs: Out) -> bool:
        if len(stage.outcomes("rollback")) > 2:
            raise asyncio.CancelledError
        return await published(*outs)

    stage.site.publish = killed
    record = stage.record("commands", sign_command(command("approve", "command-old"), OPERATOR))
    with pytest.raises(asyncio.CancelledError):
        await stage.remediation.take(record)
    await stage.kill()
    stage.start()
    await stage.until(lambda: stage.outcomes("rollback")[-1] == "failed")
    await stage.remediation.take(record)
    await stage.rest()
    assert stage.outcomes("rollback") == ["proposed", "failed", "proposed", "failed"]
    assert stage.outcomes("approve") == ["done"]
