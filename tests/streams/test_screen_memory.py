"""What the screen does with what is committed already, and with a change of what serves."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta

import pytest

from nnsec.adapters.records import Out, Record
from nnsec.trust import keys
from nnsec.trust.statements import sign_statement
from schemas.model_statement import ModelStatement
from schemas.source import Source
from schemas.summary import Summary
from streams import screen_memory, screen_state
from streams.agent import Context
from streams.control import Control
from tests.conftest import MadeCheckpoint
from tests.streams.screening import (
    HELD,
    LOGS,
    NOW,
    SAMPLES,
    STAMP,
    Topic,
    by_topic,
    dumped,
    found,
    packed,
    verdicts,
)


@pytest.fixture
def own(context: Context) -> Context:
    """With a control of its own, for what is said in one test."""
    control = Control(context.settings, uuid.UUID(int=2), context.checkpoints)
    control._swaps = dict(context.control._swaps)
    return Context(context.settings, LOGS, control, context.checkpoints, control.worker)


def shut(context: Context, source: str) -> None:
    said = Source(source=source, state="quarantined", reason="r", incident="i", version=1, time=NOW)
    context.control.apply(Record("sources", 0, 0, STAMP, source.encode(), said.encode()))


def ends(records: Sequence[Record]) -> dict[int, int]:
    """What is committed when these are finished."""
    return {one.partition: one.offset + 1 for one in records}


def behind(topic: Topic, records: Sequence[Record]) -> list[Record]:
    """Those that are not committed."""
    return [one for one in records if one.offset >= topic.committed[one.partition]]


@pytest.mark.parametrize("done", [30, 31, 60, 89])
async def test_what_is_committed_only_advances_the_windows(
    context: Context, traffic: list[Record], done: int
) -> None:
    """A successor writes what lies behind, once; the state is as if there had been no kill."""
    steady, topic = Topic().agent(context), Topic()
    expected = await steady.process(traffic)
    bad = Record(SAMPLES, 0, 0, STAMP, b"k", b"{", ())
    first = topic.agent(context)
    outs = [*topic.write(await first.process([bad, *traffic[:1]]))]
    assert by_topic(outs, "dead-letters")
    outs += topic.write(await first.process(traffic[1:30]))
    if done > 31:
        topic.write(await first.tick(1.0))
    outs += topic.write(await first.process(traffic[30:done]))
    topic.committed = ends(traffic[:done])
    heir = topic.agent(context)
    starts = await heir.assigned(HELD)
    begins = {n: starts.get((SAMPLES, n), end) for n, end in topic.committed.items()}
    again = [one for one in (bad, *traffic) if one.offset >= begins[one.partition]]
    assert len(again) > len(traffic) - done
    new: list[Out] = []
    for start in range(0, len(again), 7):
        new += await heir.process(again[start : start + 7])
    assert not by_topic(new, "dead-letters")
    assert {place[:2] for place in found(new)} == {
        (one.partition, one.offset) for one in behind(topic, traffic)
    }
    assert verdicts(outs) | verdicts(new) == verdicts(expected)
    assert packed([*outs, *new]) == packed(expected)
    assert dumped(heir) == dumped(steady)


async def test_a_quarantine_changes_no_outcome_that_is_committed(
    own: Context, traffic: list[Record]
) -> None:
    """A row that was accepted, or held for reasons of its own, is not held for its source too."""
    topic = Topic()
    first = topic.agent(own)
    outs = [*topic.write(await first.process(traffic[:60]))]
    topic.committed = ends(traffic[:60])
    shut(own, "s3")
    heir = topic.agent(own)
    await heir.assigned(HELD)
    outs += await heir.process(traffic)
    rows = found(outs)  # each is in one outcome
    reasons = {place: rows[place].reasons for place in rows if rows[place].sample.source == "s3"}
    late = {(one.partition, one.offset) for one in traffic[60:]}
    for place, said in reasons.items():
        assert ("source_quarantined" in said[0]) == (place[:2] in late)


async def test_what_a_quarantined_source_sends_is_screened_as_anyones(
    context: Context, own: Context, traffic: list[Record]
) -> None:
    """It is held for its source alone only where it would have been accepted; windows are equal."""
    trusting, agent = Topic().agent(context), Topic().agent(own)
    for source in ("s2", "s3"):
        shut(own, source)
    outs = await agent.process(traffic)
    expected, rows = found(await trusting.process(traffic)), found(outs)
    assert rows.keys() == expected.keys()
    alone = {"s2": 0, "s3": 0}
    for place, outcome in rows.items():
        free, source = expected[place], outcome.sample.source
        said = outcome.reasons[outcome.rows.index(place[2])]
        own_reasons = free.reasons[free.rows.index(place[2])]
        if source not in alone:
            assert (outcome.verdict, said) == (free.verdict, own_reasons)
            continue
        accepted = free.verdict == "accepted"
        assert outcome.verdict == "quarantined"
        assert set(said) == {"source_quarantined", *(() if accepted else own_reasons)}
        alone[source] += accepted
        if outcome.figures and not accepted:
            figures = outcome.figures[outcome.rows.index(place[2])]
            assert all(figures[name].value > figures[name].threshold for name in own_reasons)
    of = {name: sum(one.sample.source == name for one in rows.values()) for name in alone}
    assert alone["s2"] >= 0.88 * of["s2"]
    assert alone["s3"] < 0.1 * of["s3"]
    told = {s for out in by_topic(outs, "summaries") for s in Summary.decode(out.value).subjects}
    assert told == {"s0", "s1"}
    assert dumped(agent) == dumped(trusting)


async def test_a_rebalance_alone_has_nothing_screened_again(
    context: Context, traffic: list[Record]
) -> None:
    """What a worker remembers is certain when all of it is committed, whatever its snapshot."""
    topic = Topic()
    agent = topic.agent(context)
    await agent.assigned(HELD)
    topic.write(await agent.process(traffic[:30]))
    topic.write(await agent.tick(0.0))
    topic.write(await agent.process(traffic[30:60]))
    before = dumped(agent)
    topic.committed = ends(traffic[:60])
    assert await agent.assigned(HELD) == {}
    assert dumped(agent) == before
    assert len(topic.write(await agent.tick(2.0))) == 2  # still to be written
    await agent.process(traffic[60:70])  # given up: it is not committed
    assert await agent.assigned(HELD) == {}
    assert dumped(agent) == before


async def test_what_others_did_meanwhile_counts_for_more(
    context: Context, traffic: list[Record]
) -> None:
    """A snapshot at or past the committed offset is of what is published, wherever that was."""
    topic = Topic()
    agent, other = topic.agent(context), topic.agent(context)
    for one in (agent, other):
        await one.assigned(HELD)
        topic.write(await one.process(traffic[:30]))
    topic.committed = ends(traffic[:30])
    topic.write(await other.process(traffic[30:40]))
    topic.write(await other.tick(0.0))
    starts = await agent.assigned(HELD)
    assert starts == {(SAMPLES, number): end for number, end in ends(traffic[:40]).items()}
    assert dumped(agent) == dumped(other)


async def test_the_first_snapshot_begins_where_the_group_does(
    context: Context, traffic: list[Record]
) -> None:
    """Not at the first record that passes: what could not may still have no dead letter."""
    topic = Topic()
    topic.committed = {0: 1, 1: 1}
    agent = topic.agent(context)
    await agent.assigned(HELD)
    topic.write(await agent.process(traffic[10:20]))
    heir = topic.agent(context)
    assert await heir.assigned(HELD) == {}
    assert dumped(heir) == {0: (1, b"[]\n[]"), 1: (1, b"[]\n[]")}


async def test_parts_wait_for_the_head_before_them(
    context: Context, traffic: list[Record], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A late tick writes no parts over those of the older head, which holds until it is there."""
    monkeypatch.setattr(screen_state, "PART_BYTES", 500)
    topic = Topic()
    agent = topic.agent(context)
    for number, now in enumerate((0.0, 1.0, 2.0, 3.0)):  # parts, heads, parts, heads
        topic.write(await agent.process(traffic[20 * number : 20 * number + 20]))
        outs = await agent.tick(now)
        heads = {out.key for out in outs if (out.key or b"").count(b"/") == 1}
        assert heads == ({b"screen/0", b"screen/1"} if number % 2 else set())
        topic.write([out for out in outs if out.key not in heads])
        await topic.agent(context).assigned(HELD)
        assert not caplog.records
        topic.write(outs)
    assert len(await agent.tick(4.0)) > 4  # what came with the heads


async def test_a_swap_is_followed_by_a_snapshot(
    own: Context, traffic: list[Record], checkpoint: MadeCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """However large: what is read again after a kill was screened by what serves then."""
    monkeypatch.setattr(screen_memory, "SNAPSHOT_RATE", 1)
    agent = Topic().agent(own)
    await agent.process(traffic[:10])
    assert len(await agent.tick(0.0)) == 2
    await agent.process(traffic[10:20])
    assert await agent.tick(5.0) == []
    statement = ModelStatement(
        model="digits", epoch=2, phase="activate", version=1, digest=checkpoint.digest,
        reason="test", issued=NOW, expires=NOW + timedelta(hours=1),
    )  # fmt: skip
    signed = sign_statement(statement, keys.load_private(checkpoint.release_key))
    own.control.apply(Record("models", 0, 1, STAMP, b"digits", signed))
    assert len(await agent.tick(5.25)) == 2
    await agent.process(traffic[20:30])
    assert await agent.tick(7.0) == []
