"""What the screen remembers: snapshots, and that a kill or a restart changes nothing."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nnsec.adapters import kafka
from nnsec.adapters.declaration import declare
from nnsec.adapters.records import Out, Record
from nnsec.errors import DigestMismatch
from nnsec.poisoning import SourceWindow
from nnsec.settings import Settings, parse
from nnsec.trust import keys
from nnsec.trust.statements import sign_statement
from schemas.model_statement import ModelStatement
from streams import screen_memory, screen_state
from streams.agent import Context
from streams.runtime import run
from streams.screen import ScreenAgent
from tests.conftest import MadeCheckpoint
from tests.streams.screening import (
    HELD,
    LOGS,
    NOW,
    SAMPLES,
    Topic,
    by_topic,
    dumped,
    found,
    verdicts,
)


@pytest.mark.parametrize(("ticked", "killed"), [(0, 1), (0, 40), (30, 31), (30, 80), (88, 90)])
async def test_a_killed_screen_resumes_as_if_it_had_not_been(
    context: Context, traffic: list[Record], ticked: int, killed: int
) -> None:
    """Its successor begins where the snapshot ends, and what comes twice is equal."""
    topic = Topic()
    steady = Topic().agent(context)
    expected = await steady.process(traffic)
    first = topic.agent(context)
    assert await first.assigned(HELD) == {}
    outs = []
    for number, one in enumerate(traffic[:killed]):
        if number == ticked and number:
            topic.write(await first.tick(1.0))
        outs += topic.write(await first.process([one]))
    second = topic.agent(context)
    starts = await second.assigned(HELD)
    rest = [
        one for one in traffic
        if one.offset >= starts.get((SAMPLES, one.partition), 0)
    ]  # fmt: skip
    if ticked:
        assert rest == traffic[ticked:]
    outs += await second.process(rest)
    assert verdicts(outs) == verdicts(expected)
    assert dumped(second) == dumped(steady)


async def test_the_first_snapshot_comes_with_the_first_records(
    context: Context, traffic: list[Record]
) -> None:
    """So that no commit ever lies past records that no snapshot leads to."""
    agent = Topic().agent(context)
    outs = await agent.process(traffic[4:6])
    heads = {out.key: json.loads((out.value or b"").split(b"\n")[0]) for out in outs[:2]}
    assert {key: head["offset"] for key, head in heads.items()} == {
        b"screen/0": traffic[4].offset, b"screen/1": traffic[5].offset
    }  # fmt: skip
    again = await agent.process(traffic[4:6])
    assert [out.key for out in again[:2]] == [out.key for out in outs[:2]]
    assert by_topic(await agent.tick(0.0), "state")
    assert not by_topic(await agent.process(traffic[6:8]), "state")


async def test_the_first_snapshot_is_not_ahead_of_what_is_published(
    context: Context, traffic: list[Record]
) -> None:
    """Where batches overlap before the first tick, and all but `state` is lost in a kill."""
    topic = Topic()
    agent = topic.agent(context)
    await agent.assigned(HELD)
    for start in (0, 10, 20):
        topic.write(await agent.process(traffic[start : start + 10]))
    heir = topic.agent(context)
    assert await heir.assigned(HELD) == {}  # as committed
    assert all(len(state) == 0 for state in heir._memory.states.values())


async def test_snapshots_are_written_at_most_once_a_second(
    agent: ScreenAgent, traffic: list[Record]
) -> None:
    """And only of what has changed."""
    assert await agent.tick(9.0) == []
    await agent.process(traffic[:2])
    assert len(await agent.tick(10.0)) == 2
    await agent.process(traffic[2:3])
    assert await agent.tick(10.5) == []
    assert [out.key for out in await agent.tick(11.0)] == [
        f"screen/{traffic[2].partition}".encode()
    ]
    assert await agent.tick(20.0) == []


async def test_a_large_state_is_written_less_often(
    agent: ScreenAgent, traffic: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that snapshots do not become the most of what is written."""
    await agent.process(traffic[:2])
    size = max(len(out.value or b"") for out in await agent.tick(0.0))
    monkeypatch.setattr(screen_memory, "SNAPSHOT_RATE", size / 10)
    await agent.process(traffic[2:4])
    assert await agent.tick(1.0)
    await agent.process(traffic[4:6])
    assert await agent.tick(10.0) == []
    assert len(await agent.tick(30.0)) == 2


async def test_a_large_state_is_written_in_parts(
    context: Context, traffic: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head follows when the parts are there; until then the older snapshot holds."""
    topic = Topic()
    agent = topic.agent(context)
    topic.write(await agent.process(traffic[:40]))
    topic.write(await agent.tick(0.0))
    monkeypatch.setattr(screen_state, "PART_BYTES", 500)
    topic.write(await agent.process(traffic[40:80]))
    parts = topic.write(await agent.tick(100.0))
    assert len(parts) > 8
    assert all(len(out.value or b"") <= 500 for out in parts)
    heir = topic.agent(context)
    older = await heir.assigned(HELD)
    topic.write(await agent.process(traffic[80:]))
    topic.write(await agent.tick(100.1))  # the heads
    newer = await heir.assigned(HELD)
    assert all(newer[place] > older[place] for place in newer)
    rest = [one for one in traffic if one.offset >= newer[SAMPLES, one.partition]]
    assert len(rest) == 10
    await heir.process(rest)
    assert dumped(heir) == dumped(agent)
    topic.write(await agent.tick(200.0))
    assert len({key.split(b"/")[2] for key in topic.values if key.count(b"/") == 3}) == 2
    assert await heir.assigned(HELD) == newer


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value[:-1],
        lambda value: value[:-20] + bytes([value[-20] ^ 1]) + value[-19:],
        lambda value: b"[]" + value,
        lambda value: value.replace(b'"parts": 0', b'"parts": 2'),
        lambda value: value.replace(b'"offset": ', b'"offset": "x'),
        lambda value: value.replace(b'"offset": ', b'"offset": -'),
        lambda value: value.replace(b'"offset": ', b'"offset": Infinity, "was": '),
        lambda value: value.replace(b'"slot": ', b'"slot": 7'),
        lambda _: b"[" * 100_000,
        lambda _: b"",
    ],
)
async def test_a_damaged_snapshot_is_not_used(
    context: Context, traffic: list[Record], spoil: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and the sources of that partition alone begin anew."""
    topic = Topic()
    agent = topic.agent(context)
    await agent.process(traffic)
    topic.write(await agent.tick(0.0))
    out = topic.values[b"screen/1"]
    topic.write([Out("state", spoil(out.value), out.key)])
    assert set(await agent.assigned(HELD)) == {(SAMPLES, 0)}
    assert "begin anew" in caplog.text
    assert [len(agent._memory.states[number]) for number in (0, 1)] == [2, 0]


async def test_a_snapshot_of_another_log_is_passed_over(
    context: Context, traffic: list[Record]
) -> None:
    """Offsets of a topic that was made anew mean something else."""
    topic = Topic()
    agent = topic.agent(context)
    await agent.process(traffic)
    topic.write(await agent.tick(0.0))
    other = LOGS | {SAMPLES: uuid.UUID(int=7)}
    heir = ScreenAgent(
        Context(context.settings, other, context.control, context.checkpoints, context.worker),
        topic.read, topic.bounds,
    )  # fmt: skip
    assert await heir.assigned(HELD) == {}
    assert await heir.assigned(frozenset()) == {}


def test_of_equal_sources_the_least_recently_used_goes() -> None:
    """A bounded number is kept, the same however batches are cut; snapshots keep the order."""
    state = screen_state.Windows(0, capacity=2)
    for name in ("a", "b", "a", "c"):
        state.open(("m", name), 4)
    assert [("m", name) in state for name in "abc"] == [True, False, True]
    again = screen_state.Windows.load(0, state.dump(), capacity=2)
    for one in (state, again):
        one.open(("m", "d"), 4)
        assert [("m", name) in one for name in "acd"] == [False, True, True]


def fill(state: screen_state.Windows, name: str, samples: int, *, trigger: bool = False) -> None:
    window = state.open(("m", name), 4)
    for offset in range(samples):
        window.push(offset=offset, label=1)
    if trigger:
        window.establish(1, 0, 7, 9.0)


def outlasted(state: screen_state.Windows, name: str) -> int:
    """New names, of one sample each, until a window goes."""
    count = 0
    while ("m", name) in state:
        fill(state, f"new {count}", 1)
        count += 1
    return count


def test_new_names_do_not_push_a_known_source_out() -> None:
    """One of n samples outlasts n rounds, one with a known trigger 128 more; then it goes."""
    state = screen_state.Windows(0, capacity=11)
    fill(state, "short", 3)
    fill(state, "long", 30)
    fill(state, "caught", 5, trigger=True)
    again = screen_state.Windows.load(0, state.branch().dump(), capacity=11)
    counts = []
    for one in (state, again):
        assert 3 * 8 < outlasted(one, "short") <= 4 * 9
        one = screen_state.Windows.load(0, one.dump(), capacity=11)
        assert ("m", "long") in one
        counts.append((outlasted(one, "long"), outlasted(one, "caught")))
        assert counts[-1][0] > 26 * 9
        assert counts[-1][1] > 100 * 10
    assert counts[0] == counts[1]


def test_snapshots_that_tell_no_age_are_read() -> None:
    """As older versions wrote them."""
    state = screen_state.Windows(0)
    fill(state, "a", 3)
    older = state.dump().removesuffix(b"[0]")
    assert older != state.dump()
    again = screen_state.Windows.load(0, older)
    assert again.dump() == state.dump()


def test_older_versions_read_a_snapshot() -> None:
    """As they do: three words for each window, whose bytes follow, and nothing behind them."""
    state = screen_state.Windows(0, capacity=2)
    for name, samples in (("a", 3), ("b", 5), ("c", 4)):
        fill(state, name, samples)
    line, _, body = state.dump().partition(b"\n")
    found, start = [], 0
    for model, source, size in json.loads(line):
        window = SourceWindow.restore(body[start : start + size])
        assert window.snapshot() == state.open((model, source), 4).snapshot()
        found.append((model, source, window.worth))
        start += size
    assert found == [("m", "b", 5), ("m", "c", 4)]
    assert json.loads(body[start:]) == [-3, 0]


@pytest.mark.parametrize(
    "ages", [b"[Infinity]", b"[]", b"[0, 0]", b"0", b"[", b"\xff", b'["x"]', b"[" * 100_000]
)
def test_what_are_no_ages_is_refused(ages: bytes) -> None:
    """One for each window, and each a number; JSON as Python reads it has an infinity."""
    state = screen_state.Windows(0)
    fill(state, "a", 3)
    spoiled = state.dump().removesuffix(b"[0]") + ages
    with pytest.raises(DigestMismatch, match="no list of windows"):
        screen_state.Windows.load(0, spoiled)


@pytest.mark.parametrize(
    "spoiled",
    [
        b"", b"[[1]]\n", b"[1]\n", b"[" * 100_000, b'[["m", "s", "x"]]\n', b"7\n",
    ],
)  # fmt: skip
def test_what_lists_no_windows_is_refused(spoiled: bytes) -> None:
    """With an error of ours, whatever it is."""
    with pytest.raises(DigestMismatch, match="no list of windows"):
        screen_state.Windows.load(0, spoiled)


def test_a_window_of_other_inputs_begins_anew() -> None:
    """A model whose input shape was changed in the configuration has other places."""
    state = screen_state.Windows(0)
    window = state.open(("m", "a"), 4)
    assert state.open(("m", "a"), 4) is window
    assert state.open(("m", "a"), 5).places == 5


async def test_on_a_broker_a_restarted_screen_goes_on_as_if_it_had_not_stopped(
    settings: Settings, checkpoint: MadeCheckpoint, traffic: list[Record], context: Context,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Two runs, one after the other, accept and quarantine what one run would have."""
    monkeypatch.chdir(tmp_path)
    mine = checkpoint.configure(settings, tmp_path)
    mine = parse(
        mine.model_dump()
        | {"kafka": mine.kafka.model_dump() | {"start_at": "earliest", "session_timeout": 2.0}}
    )
    logs = await declare(mine, now=NOW)
    statement = ModelStatement(
        model="digits", epoch=1, phase="activate", version=1, digest=checkpoint.digest,
        reason="test", issued=datetime.now(UTC), expires=datetime.now(UTC) + timedelta(hours=1),
    )  # fmt: skip
    signed = sign_statement(statement, keys.load_private(checkpoint.release_key))
    outs: list[Out] = []
    async with kafka.publisher(mine) as publish:
        await publish(Out("models", signed, b"digits"))
        for part in (traffic[:50], traffic[50:]):
            await publish(
                *(Out(SAMPLES, r.value, r.key, r.headers, partition=r.partition) for r in part)
            )
            outs = await _run_until(mine, traffic[: traffic.index(part[-1]) + 1])
    steady = ScreenAgent(
        Context(mine, logs, context.control, context.checkpoints, context.worker), Topic().read
    )
    sent = [record async for record in kafka.read_to_end(mine, (SAMPLES,))]
    assert verdicts(outs) == verdicts(await steady.process(sent))


async def _run_until(settings: Settings, sent: Sequence[Record]) -> list[Out]:
    """Run the screen until all that was sent has a verdict, and stop it; what it wrote."""
    stop = asyncio.Event()
    running = asyncio.create_task(run(settings, ["screen"], stop=stop))
    wanted = sum(_rows(record) for record in sent)
    outs: list[Out] = []
    tail = kafka.Tail(settings, ("training.accepted", "training.quarantine"))
    await tail.start()
    async for record in tail:
        outs.append(Out(record.topic, record.value, record.key, record.headers))
        if len(found(verdicts(outs).values())) == wanted:
            break
    await tail.stop()
    stop.set()
    assert await running == 0
    return outs


def _rows(record: Record) -> int:
    length = int(dict(record.headers)["inference-header-content-length"] or 0)
    shape: list[int] = json.loads((record.value or b"")[:length])["inputs"][1]["shape"]
    return shape[0]
