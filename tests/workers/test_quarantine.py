"""Quarantine in three steps, release and drop, against a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from nnsec.adapters import kafka
from nnsec.adapters.records import Out
from nnsec.settings import Settings
from schemas.base import to_millis
from schemas.outcome import MOST_ROWS, Figure, Outcome, decode_outcome, encode_outcome
from schemas.source import Source
from schemas.summary import Summary
from schemas.training import Sample
from tests.workers.stage import T0, Stage, alert, configured, incident
from workers.actions import quarantine

HELD = "source_quarantined"
POLICY = {"poisoning": {"severity": "high", "actions": ["quarantine"], "approval": "none"}}


@pytest.fixture
async def stage(settings: Settings, tmp_path: Path) -> AsyncIterator[Stage]:
    settings = configured(settings, tmp_path, policy=POLICY)
    logs = await kafka.declare(settings, now=datetime.now(UTC))
    async with kafka.publisher(settings) as publish:
        yield Stage(settings, pen=publish, logs=logs)


async def sample(
    stage: Stage, topic: str, offset: int, rows: str, source: str = "s1", *,
    age: timedelta = timedelta(0), **changes: str,
) -> None:  # fmt: skip
    """One outcome of the screen, by its headers."""
    headers = {
        "nnsec-log": str(stage.site.logs["training.samples"]), "nnsec-partition": "1",
        "nnsec-offset": str(offset), "nnsec-rows": rows,
    } | {name.replace("_", "-"): value for name, value in changes.items()}  # fmt: skip
    assert stage._pen is not None
    await stage._pen(
        Out(
            f"training.{topic}", b"a sample", source.encode(), tuple(encoded(headers)),
            timestamp=to_millis(T0 - age),
        )
    )  # fmt: skip


def encoded(headers: Mapping[str, str]) -> list[tuple[str, bytes]]:
    return [(name, value.encode()) for name, value in headers.items()]


def revoked(stage: Stage) -> list[Sequence[tuple[int, int, int]]]:
    return [one.positions for one in stage.said("training.revocations")]


async def test_a_source_is_quarantined_in_three_steps(stage: Stage) -> None:
    """Said; heard by whoever holds a partition; and only then what was accepted is revoked."""
    await sample(stage, "accepted", 5, "0,2")
    await sample(stage, "accepted", 6, "1", "another")
    await sample(stage, "accepted", 3, "0", age=timedelta(days=6))
    await sample(stage, "accepted", 1, "0", age=timedelta(days=8))
    await sample(stage, "accepted", 2, "0", nnsec_log=str(UUID(int=3)))
    await sample(stage, "accepted", 2, "zero")
    stage.status(worker=1, partitions=(0,))
    stage.status(worker=2, partitions=(1,))
    await stage.take(incident())
    await stage.until(lambda: stage.said("sources") != [])
    stage.status(worker=1, partitions=(0,), sources=1)
    await stage.rest(0.3)
    assert revoked(stage) == []
    await sample(stage, "accepted", 7, "0")  # by the worker that had not heard of it yet
    stage.status(worker=2, partitions=(1,), sources=1)
    await stage.until(lambda: stage.outcomes() == ["proposed", "running", "done"])
    (source,) = stage.said("sources")
    assert (source.source, source.state, source.version) == ("s1", "quarantined", 1)
    assert source.incident == str(incident().id)
    assert revoked(stage) == [((1, 3, 0), (1, 5, 0), (1, 5, 2), (1, 7, 0))]
    (revocation,) = stage.said("training.revocations")
    assert (revocation.source, revocation.log) == ("s1", stage.site.logs["training.samples"])
    assert stage.actions()[-1].figures["revoked"] == 4


@pytest.mark.parametrize("time", [datetime(1, 1, 1, tzinfo=UTC), datetime(1970, 1, 3, tzinfo=UTC)])
async def test_evidence_of_any_time_has_a_window(stage: Stage, time: datetime) -> None:
    """It begins at the beginning where seven days before are before all time of Kafka."""
    await sample(stage, "accepted", 5, "0")
    async with stage.crew():
        await stage.take(incident(time=time))
        await stage.until(lambda: stage.outcomes()[-1:] in (["done"], ["failed"]))
    assert stage.actions()[-1].figures["since_ms"] == 0
    assert revoked(stage) == [((1, 5, 0),)]


async def test_an_order_that_is_tried_again_revokes_no_less(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its window is counted from the order, not from the approval days after it failed."""
    monkeypatch.setattr(quarantine, "HEAR_SECONDS", 0.1)
    await sample(stage, "accepted", 5, "0", age=timedelta(days=6))
    await stage.order("quarantine", "s1")
    await stage.until(lambda: stage.outcomes()[-1] == "failed")
    stage.now += timedelta(days=3)
    async with stage.crew():
        await stage.order("approve", "command-c-quarantine-s1", expires=stage.now + timedelta(1))
        await stage.until(lambda: stage.outcomes("quarantine")[-1] == "done")
    assert revoked(stage) == [((1, 5, 0),)]


async def test_many_positions_are_revoked_in_parts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None twice, none left out, though it is killed between two parts."""
    monkeypatch.setattr(quarantine, "MAX_POSITIONS", 100)
    for offset in range(25):
        await sample(stage, "accepted", offset, ",".join(map(str, range(20))))
    say, parts = stage.site.say_revocation, 0

    async def killed(one: Any) -> None:
        nonlocal parts
        parts += 1
        if parts == 3:
            raise asyncio.CancelledError
        await say(one)

    stage.site.say_revocation = killed  # type: ignore[method-assign]
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes()[-1] == "running" and parts == 3)
        await stage.kill()
        assert len(revoked(stage)) == 2
        stage.start()
        await stage.until(lambda: stage.outcomes()[-1] == "done")
    places = [place for part in revoked(stage) for place in part]
    assert len(places) == len(set(places)) == 500
    assert max(map(len, revoked(stage))) == 100
    assert stage.actions()[-1].figures["revoked"] == 500
    assert [one.version for one in stage.said("sources")] == [1]


def say(stage: Stage, state: Any, version: int, by: str = "command-r", source: str = "s1") -> None:
    """Let another worker say it of a source."""
    said = Source(
        source=source, state=state, reason="", incident=by, version=version, time=stage.now
    )
    stage.tape.append(stage.record("sources", said.encode(), source.encode()))
    stage.site.learn(stage.tape[-1])


async def test_a_quarantine_that_was_cut_off_does_not_undo_a_release(stage: Stage) -> None:
    """It fails in words; approved again it is a new decision, and is carried out."""
    await sample(stage, "accepted", 5, "0")
    await stage.take(incident())
    await stage.until(lambda: stage.said("sources") != [])
    await stage.kill()
    say(stage, "trusted", 2)
    stage.start()
    async with stage.crew():
        await stage.until(lambda: stage.outcomes()[-1] == "failed")
        assert stage.actions()[-1].reason.startswith(
            "overtaken: s1 is trusted since version 2 of sources, by command-r;"
        )
        assert [one.state for one in stage.said("sources")] == ["quarantined", "trusted"]
        assert revoked(stage) == []
        await stage.order("approve", str(incident().id))
        await stage.until(lambda: stage.outcomes("quarantine")[-1] == "done")
    assert [one.version for one in stage.said("sources")] == [1, 2, 3]
    assert revoked(stage) == [((1, 5, 0),)]


async def test_what_is_released_while_it_is_waited_for_is_not_called_quarantined(
    stage: Stage,
) -> None:
    """All have heard both statements by then, and the later one counts."""
    await sample(stage, "accepted", 5, "0")
    await stage.take(incident())
    await stage.until(lambda: stage.said("sources") != [])
    say(stage, "trusted", 2)
    stage.status(sources=2)
    await stage.until(lambda: stage.outcomes()[-1] in {"done", "failed"})
    assert "overtaken: s1 is trusted" in stage.actions()[-1].reason
    assert revoked(stage) == []


async def test_a_release_ends_what_is_being_revoked(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each part it is looked at again who was last."""
    monkeypatch.setattr(quarantine, "MAX_POSITIONS", 100)
    for offset in range(25):
        await sample(stage, "accepted", offset, ",".join(map(str, range(20))))
    told = stage.site.say_revocation

    async def released(one: Any) -> None:
        await told(one)
        say(stage, "trusted", 2)

    stage.site.say_revocation = released  # type: ignore[method-assign]
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes()[-1] in {"done", "failed"})
    assert "overtaken: s1 is trusted" in stage.actions()[-1].reason
    assert len(revoked(stage)) == 1


async def test_a_worker_paused_while_it_speaks_undoes_no_release(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version was taken meanwhile: it looks again before it says anything with a higher one."""
    monkeypatch.setattr("workers.lanes.RETRY", 0.05)
    published = stage.site.publish

    async def paused(*outs: Out) -> bool:
        if outs[0].topic == "sources":
            stage.site.publish = published
            say(stage, "quarantined", 1, "another", "s9")
            say(stage, "quarantined", 2, str(incident().id))
            say(stage, "trusted", 3)
        return await published(*outs)

    stage.site.publish = paused
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes()[-1:] in (["done"], ["failed"]))
    assert "overtaken: s1 is trusted since version 3" in stage.actions()[-1].reason
    assert stage.site.sources["s1"].state == "trusted"
    assert max(one.version for one in stage.said("sources")) == 3


async def test_what_another_action_quarantined_meanwhile_is_not_said_again(stage: Stage) -> None:
    """Two models may accuse one source at once: the samples are revoked all the same."""
    await sample(stage, "accepted", 5, "0")
    begun = stage.site.report

    async def meanwhile(*given: Any, **figures: Any) -> Any:
        found = await begun(*given, **figures)
        if found.outcome == "running":
            say(stage, "quarantined", 1, "another")
        return found

    stage.site.report = meanwhile  # type: ignore[method-assign]
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes()[-1:] == ["done"])
    assert [one.incident for one in stage.said("sources")] == ["another"]
    assert revoked(stage) == [((1, 5, 0),)]


async def test_a_release_that_was_overtaken_accepts_nothing(stage: Stage) -> None:
    """Quarantined anew before all have heard of the release: what was held back stays so."""
    await sample(stage, "quarantine", 8, "0", nnsec_reasons="source_quarantined")
    say(stage, "quarantined", 1, "before")
    await stage.order("release", "s1")
    await stage.until(lambda: len(stage.said("sources")) == 2)
    say(stage, "quarantined", 3, "after")
    stage.status(sources=3)
    await stage.until(lambda: stage.outcomes()[-1] in {"done", "failed"})
    assert "overtaken: s1 is quarantined since version 3" in stage.actions()[-1].reason
    assert [r for r in stage.tape if r.topic == "training.accepted"] == []


async def test_what_nobody_hears_fails(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition that no worker holds could go on accepting; it is named, nothing is revoked."""
    monkeypatch.setattr(quarantine, "HEAR_SECONDS", 0.2)
    await sample(stage, "accepted", 5, "0")
    stage.status(worker=1, partitions=(0,), sources=1)
    await stage.take(incident())
    await stage.until(lambda: stage.outcomes()[-1:] == ["failed"])
    assert "training.samples partitions 1 are held by no live worker" in stage.actions()[-1].reason
    assert revoked(stage) == []
    async with stage.crew():
        await stage.order("approve", str(incident().id))
        await stage.until(lambda: stage.outcomes("quarantine")[-1] == "done")
    assert revoked(stage) == [((1, 5, 0),)]
    assert len(stage.said("sources")) == 1


async def test_a_released_source_is_as_if_nothing_had_been(stage: Stage) -> None:
    """Revocations are withdrawn, and what was held back for it is accepted, once each."""
    await sample(stage, "accepted", 5, "0")
    async with stage.crew():
        await stage.take(incident())
        await stage.until(lambda: stage.outcomes()[-1:] == ["done"])
        await sample(stage, "quarantine", 8, "0,1", nnsec_reasons="source_quarantined")
        await sample(stage, "quarantine", 9, "0", nnsec_reasons="source_quarantined")
        await sample(stage, "quarantine", 4, "0", "another", nnsec_reasons="source_quarantined")
        await sample(stage, "quarantine", 3, "0", nnsec_reasons="outlier,trigger")
        await stage.order("release", "s1")
        await stage.until(lambda: stage.outcomes("release")[-1:] == ["done"])
        assert [one.state for one in stage.said("sources")] == ["quarantined", "trusted"]
        assert [one.withdrawn for one in stage.said("training.revocations")] == [False, True]
        assert revoked(stage) == [((1, 5, 0),)] * 2
        accepted = [r for r in stage.tape if r.topic == "training.accepted"]
        assert [dict(r.headers)["nnsec-offset"] for r in accepted] == [b"8", b"9"]
        assert not any("nnsec-reasons" in dict(r.headers) for r in accepted)
        assert stage.actions("release")[-1].figures["released"] == 2
        await stage.order("release", "s1", id="again")
        await stage.until(lambda: stage.outcomes("release")[-1] == "done")
        assert stage.actions("release")[-1].figures["needed"] is False
        # What was done and reversed is not done again without a person.
        await stage.take(incident("s1").model_copy(update={"id": UUID(int=77), "first_seen": T0}))
        await stage.until(lambda: stage.outcomes("quarantine")[-1] == "awaiting_approval")
        assert "flapping" in stage.actions("quarantine")[-1].reason


async def test_a_release_that_was_cut_off_accepts_nothing_twice(stage: Stage) -> None:
    """What lies in ``training.accepted`` already is known by its position."""
    await sample(stage, "quarantine", 8, "0", nnsec_reasons="source_quarantined")
    await sample(stage, "quarantine", 9, "0", nnsec_reasons="source_quarantined")
    await sample(stage, "accepted", 8, "0")
    async with stage.crew():
        await stage.order("quarantine", "s1")
        await stage.until(lambda: stage.outcomes("quarantine")[-1] == "done")
        await stage.order("release", "s1")
        await stage.until(lambda: stage.outcomes("release")[-1:] == ["done"])
    accepted = [r for r in stage.tape if r.topic == "training.accepted"]
    assert [dict(r.headers)["nnsec-offset"] for r in accepted] == [b"9"]


async def test_a_release_passes_over_what_a_screen_held_by_itself(stage: Stage) -> None:
    """Also where the record is held for its source too: it was screened again after a kill."""
    await sample(stage, "quarantine", 8, "1", nnsec_reasons="outlier,trigger")
    await sample(stage, "accepted", 8, "0,2")
    for offset, rows in ((8, "0,1,2"), (9, "0")):
        await sample(stage, "quarantine", offset, rows, nnsec_reasons="source_quarantined")
    await sample(stage, "quarantine", 9, "0", "another", nnsec_reasons="outlier")
    async with stage.crew():
        await stage.order("quarantine", "s1")
        await stage.until(lambda: stage.outcomes("quarantine")[-1] == "done")
        await stage.order("release", "s1")
        await stage.until(lambda: stage.outcomes("release")[-1:] == ["done"])
    accepted = [r for r in stage.tape if r.topic == "training.accepted"]
    assert [dict(r.headers)["nnsec-offset"] for r in accepted] == [b"9"]


async def test_a_release_accepts_the_good_rows_of_a_record(stage: Stage) -> None:
    """A row in which a screen found something keeps no other of its record back."""
    assert stage._pen is not None
    x = np.arange(4 * 64, dtype=np.uint8).reshape(4, 1, 8, 8) % 17
    outcome = Outcome(
        log=stage.site.logs["training.samples"], partition=1, offset=8, rows=(0, 2, 3, 70_000),
        sample=Sample("digits", "r8", "s1", x, np.arange(4), "binary"), verdict="quarantined",
        reasons=((HELD,), ("outlier", HELD), ("trigger", HELD), (HELD,)), version="1", time=T0,
        figures=({}, {"outlier": Figure(3, 2)}, {"trigger": Figure(9, 8)}, {}),
    )  # fmt: skip
    value, headers = encode_outcome(outcome)
    await stage._pen(Out("training.quarantine", value, b"s1", headers))
    await sample(stage, "quarantine", 9, "0", nnsec_reasons=f"outlier,{HELD}")  # no outcome at all
    async with stage.crew():
        await stage.order("quarantine", "s1")
        await stage.until(lambda: stage.outcomes("quarantine")[-1] == "done")
        for name in ("once", "again"):
            await stage.order("release", "s1", id=name)
            await stage.until(lambda: stage.outcomes("release")[-1] == "done")
    (released,) = (r for r in stage.tape if r.topic == "training.accepted")
    found = decode_outcome(released.value, released.headers, max_rows=MOST_ROWS)
    assert (found.verdict, found.rows, found.reasons) == ("accepted", (0, 70_000), ((), ()))
    assert released.key == b"s1"
    assert (found.log, found.partition, found.offset) == (outcome.log, 1, 8)
    assert np.array_equal(found.sample.x, x[[0, 3]])
    assert found.sample.labels.tolist() == [0, 3]


async def test_however_much_is_held_the_worker_goes_on_meanwhile(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held is looked through, and what is to be revoked, beside the event loop."""
    loop, looked = asyncio.get_running_loop(), []

    def slow(name: str, real: Any) -> None:
        def waits(*args: Any) -> Any:
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(5.0)
            looked.append(name)
            return real(*args)

        monkeypatch.setattr(quarantine, name, waits)

    slow("_for_source", quarantine._for_source)
    slow("positions", quarantine.positions)
    await sample(stage, "accepted", 7, "0")
    await sample(stage, "quarantine", 8, "0", nnsec_reasons=HELD)
    async with stage.crew():
        await stage.order("quarantine", "s1")
        await stage.until(lambda: stage.outcomes("quarantine")[-1] == "done")
        assert looked == ["positions"]
        await stage.order("release", "s1")
        await stage.until(lambda: stage.outcomes("release")[-1:] == ["done"])
    assert looked.count("_for_source") == 1
    assert stage.actions("release")[-1].figures["released"] == 1


async def test_a_release_that_failed_is_gone_on_with_when_it_is_approved(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is trusted by then, but nothing was withdrawn or accepted yet."""
    monkeypatch.setattr(quarantine, "HEAR_SECONDS", 0.1)
    await sample(stage, "quarantine", 8, "0", nnsec_reasons="source_quarantined")
    say(stage, "quarantined", 1, "before")
    await stage.order("release", "s1")
    await stage.until(lambda: stage.outcomes()[-1] == "failed")
    async with stage.crew():
        await stage.order("approve", "command-c-release-s1")
        await stage.until(lambda: stage.outcomes("release")[-1] == "done")
    assert stage.actions("release")[-1].figures.get("released") == 1
    assert [one.state for one in stage.said("sources")] == ["quarantined", "trusted"]


async def test_what_is_dropped_stays_out(stage: Stage) -> None:
    """A source that nobody quarantined is so from then on."""
    async with stage.crew():
        await stage.order("drop", "s1")
        await stage.until(lambda: stage.outcomes("drop")[-1:] == ["done"])
    assert [one.state for one in stage.said("sources")] == ["quarantined"]
    assert [r for r in stage.tape if r.topic == "training.accepted"] == []


async def test_a_client_is_no_source(stage: Stage) -> None:
    """The policy never asks for it; an old action that does fails in words."""
    assert stage.site.settings.policy["poisoning"].actions == ("quarantine",)
    client = alert().subject.model_copy(update={"kind": "client"})
    await stage.take(incident(subject=client))
    assert stage.actions() == []


@pytest.mark.parametrize(("sources", "second"), [(3, "awaiting_approval"), (20, "done")])
async def test_few_sources_are_quarantined_without_a_person(
    stage: Stage, sources: int, second: str
) -> None:
    """One, or a tenth of those that sent samples within the hour, as the summaries tell."""
    names = tuple(f"s{i}" for i in range(sources))
    said = Summary(
        kind="sample", log=UUID(int=1), topic="training.samples", model="digits",
        model_version="1", time=T0, subjects=names, rows="",
    )  # fmt: skip
    assert stage._pen is not None
    await stage._pen(Out("summaries", said.encode(), b"digits", timestamp=to_millis(T0)))
    async with stage.crew():
        await stage.take(incident("s1", "s2"))
        await stage.until(
            lambda: (
                stage.outcomes().count("done") == 1 + (second == "done")
                and stage.outcomes()[-1] == second
            )
        )
    if second != "done":
        assert "rate: 1 of 3 were acted on" in stage.actions()[-1].reason
