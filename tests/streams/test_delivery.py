"""Delivery on a real broker: nothing is lost, whatever an agent, a member or a clock does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import cast

import pytest

from nnsec.adapters import kafka
from nnsec.adapters.publisher import MAX_REQUEST
from nnsec.adapters.records import Out, Record
from nnsec.errors import ConfigError, TransientError
from nnsec.settings import Settings
from schemas.dead_letter import decode_dead_letter
from streams.runtime import Runtime, _until_drained, run
from tests.streams.echo import (
    PARTITIONS,
    TOPIC,
    WAIT,
    Echo,
    echoed,
    lag,
    member,
    numbers,
    send,
    until,
)


async def test_what_raises_for_a_while_loses_nothing(quick: Settings) -> None:
    """An agent that raises on every second call still has every record come out once."""
    calls = iter(range(10_000))

    def stumble(records: Sequence[Record]) -> None:
        if next(calls) % 2 == 0:
            raise RuntimeError("stumbled")

    async with member(quick, Echo(before=stumble)):
        sent = await send(quick, numbers(100))
        assert sorted(await echoed(quick, 100)) == sorted(sent)
    assert await lag(quick) == 0


async def test_poison_is_isolated(quick: Settings) -> None:
    """One record in ten raises: its neighbours pass once, it is a dead letter after three tries."""
    tries: dict[bytes, int] = {}

    def choke(records: Sequence[Record]) -> None:
        for record in records:
            if record.value and record.value.endswith(b"7"):
                if len(records) == 1:
                    tries[record.value] = tries.get(record.value, 0) + 1
                raise ValueError("cannot swallow this")

    async with member(quick, Echo(before=choke)):
        sent = await send(quick, numbers(60))
        poison = {value for value in sent if value.endswith(b"7")}
        assert sorted(await echoed(quick, 54)) == sorted(set(sent) - poison)
        await until_letters(quick, 6)
    letters = await until_letters(quick, 6)
    assert {letter.value for letter in letters} == poison == tries.keys()
    assert set(tries.values()) == {3}
    assert {(one.error_class, one.attempts, one.error) for one in letters} == {
        ("ModelFailed", 3, "ValueError: cannot swallow this")
    }
    assert await lag(quick) == 0


async def until_letters(settings: Settings, count: int):  # type: ignore[no-untyped-def]
    async with asyncio.timeout(WAIT):
        while True:
            records = [r async for r in kafka.read_to_end(settings, ("dead-letters",))]
            if len(records) >= count:
                return [decode_dead_letter(r.key, r.value, r.headers) for r in records]
            await asyncio.sleep(0.05)


async def test_a_transient_error_waits_without_losing_the_place(quick: Settings) -> None:
    """However long it lasts, nothing is split, skipped or buried, and the order is kept."""
    away = [True]

    def wait(records: Sequence[Record]) -> None:
        if away[0]:
            raise TransientError("the registry is away")

    agent = Echo(before=wait)
    async with member(quick, agent):
        sent = await send(quick, numbers(12))
        await until(lambda: len(agent.batches) >= 4)
        assert await lag(quick) == 12
        assert all(batch == agent.batches[0] for batch in agent.batches[1:4])
        away[0] = False
        assert sorted(await echoed(quick, 12)) == sorted(sent)


async def test_a_second_member_takes_its_share(quick: Settings) -> None:
    """Both work on halves that do not meet, and nothing sent meanwhile is lost."""
    first, second = Echo(), Echo()
    async with member(quick, first):
        sent = await send(quick, numbers(40, "a"))
        async with member(quick, second):
            await until(lambda: len(first.held[-1]) == PARTITIONS // 2)
            assert first.held[-1].isdisjoint(second.held[-1])
            sent += await send(quick, numbers(40, "b"))
            assert set(await echoed(quick, 80)) == set(sent)
            assert any(value.startswith(b"b") for batch in second.batches for value in batch)
        await until(lambda: len(first.held[-1]) == PARTITIONS)
        sent += await send(quick, numbers(40, "c"))
        assert set(await echoed(quick, 120)) == set(sent)
        await caught_up(quick)


async def test_a_batch_that_outlives_its_assignment_is_given_up(quick: Settings) -> None:
    """Revoked in the middle of a batch: it is not published then, and comes again somewhere."""
    first, second = Echo(), Echo()
    async with member(quick, first):
        first.gate.clear()
        sent = await send(quick, numbers(16))
        await until(lambda: first.batches)
        joining = asyncio.create_task(work(quick, second, first.gate))
        assert set(await echoed(quick, 16)) == set(sent)
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)
        await caught_up(quick)


async def caught_up(settings: Settings) -> None:
    """Wait until all is committed; what a leaving member could not commit comes once more."""
    async with asyncio.timeout(WAIT):
        while await lag(settings):  # noqa: ASYNC110 - the broker tells only when asked
            await asyncio.sleep(0.1)


async def work(settings: Settings, agent: Echo, gate: asyncio.Event) -> None:
    """Join as a second member, and let the first go on once it was told to give up."""
    async with member(settings, agent):
        gate.set()
        await asyncio.sleep(WAIT)


async def test_draining_finishes_the_batch_in_hand(quick: Settings) -> None:
    """What was taken is published and committed, what was not is left, and the status is 0."""
    agent, stop = Echo(), asyncio.Event()
    task = asyncio.create_task(run(quick, agents=[agent], stop=stop))
    await until(lambda: agent.held)
    agent.gate.clear()
    sent = await send(quick, numbers(12))
    await until(lambda: agent.batches)
    stop.set()
    await asyncio.sleep(0.1)
    assert not task.done()
    agent.gate.set()
    assert await asyncio.wait_for(task, WAIT) == 0
    out = [r.value async for r in kafka.read_to_end(quick, ("scores",))]
    assert sorted(agent.batches[0]) == sorted(value or b"" for value in out)
    assert await lag(quick) == len(sent) - len(out)


async def test_what_cannot_drain_in_time_is_status_1(caplog: pytest.LogCaptureFixture) -> None:
    """The process is then ended by force, and the records come again at the next start."""

    class Stuck:
        async def run(self, stop: asyncio.Event) -> None:
            await asyncio.sleep(WAIT)

    stop = asyncio.Event()
    stop.set()
    assert await _until_drained(cast("Runtime", Stuck()), stop, 0.05) == 1
    assert "not drained within 0.05 s" in caplog.text


async def test_the_first_start_begins_at_the_end_and_stays_there(quick: Settings) -> None:
    """What came before is no input; what comes after is one, though the process was away."""
    await send(quick, numbers(8, "old"))
    async with member(quick, Echo()):
        assert await lag(quick) == 0
    sent = await send(quick, numbers(8, "new"))
    async with member(quick, Echo()):
        assert sorted(await echoed(quick, 8)) == sorted(sent)


async def test_an_agent_names_where_it_begins(quick: Settings) -> None:
    """Offsets that its state needs come before the committed ones."""
    await send(quick, numbers(8))
    agent = Echo(begin={(TOPIC, 1): 0, (TOPIC, 2): 1})
    async with member(quick, agent):
        assert sorted(await echoed(quick, 3)) == [b"v1", b"v5", b"v6"]


async def test_what_an_agent_reads_again_does_not_take_its_group_back(quick: Settings) -> None:
    """Else it could not know, after a kill on the way, what had been finished once."""
    await send(quick, numbers(40 * PARTITIONS))
    async with kafka.Positions(quick, "echo", (TOPIC,)) as positions:
        await positions.commit({(TOPIC, n): 40 for n in range(PARTITIONS)})

    def stuck(records: Sequence[Record]) -> None:
        if any(record.offset >= 20 for record in records):
            raise TransientError("not yet")

    async with member(quick, Echo(begin={(TOPIC, 0): 0}, before=stuck)) as process:
        assert len(await echoed(quick, 16)) == 16
        await asyncio.sleep(1.0)  # two commits
        assert await lag(quick) == 0
        assert not process.problems()


async def test_partitions_that_an_agent_does_not_name_begin_where_they_did(quick: Settings) -> None:
    """What was read of them before it named others comes to it all the same."""
    async with kafka.Positions(quick, "echo", (TOPIC,)) as positions:
        await positions.commit({(TOPIC, n): 1 for n in range(PARTITIONS)})
    sent = await send(quick, numbers(40))
    agent = Echo(begin={(TOPIC, 1): 0})
    assigned = agent.assigned

    async def slow(partitions: frozenset[tuple[str, int]]) -> Mapping[tuple[str, int], int] | None:
        await asyncio.sleep(1.0)  # state takes its time to be read, and records are fetched
        return await assigned(partitions)

    agent.assigned = slow  # type: ignore[method-assign]
    async with member(quick, agent):
        assert set(await echoed(quick, 37)) == set(sent) - {b"v0", b"v2", b"v3"}


async def test_ticks_are_published(quick: Settings) -> None:
    """Time alone leads to records too."""
    agent = Echo(ticks=[Out("scores", b"tick")])
    async with member(quick, agent):
        assert await echoed(quick, 1) == [b"tick"]


async def test_what_fails_before_the_first_batch_is_tried_again(
    quick: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """State that cannot be rebuilt yet, or a tick that raises, lets nothing be read or lost."""
    agent = Echo(refusals=[RuntimeError("odd"), TransientError("the registry is away")])
    async with member(quick, agent):
        assert "echo: assigned waits and tries again: the registry is away" in caplog.text
        agent.refusals.append(RuntimeError("in a tick"))
        sent = await send(quick, numbers(4))
        assert sorted(await echoed(quick, 4)) == sorted(sent)
        await until(lambda: not agent.refusals)


async def test_an_output_that_its_topic_never_takes_buries_its_record(quick: Settings) -> None:
    """Otherwise it would stand in the way for ever."""
    agent = Echo()
    process = agent.process

    async def swell(records: Sequence[Record]) -> Sequence[Out]:
        outs = await process(records)
        large = bytes(MAX_REQUEST + 1)
        return [o if o.value != b"v1" else Out("scores", large) for o in outs]

    agent.process = swell  # type: ignore[method-assign]
    async with member(quick, agent):
        await send(quick, numbers(3))
        (letter,) = await until_letters(quick, 1)
        assert (letter.value, letter.error_class, letter.attempts) == (b"v1", "TooLarge", 1)
        assert set(await echoed(quick, 2)) == {b"v0", b"v2"}
    assert await lag(quick) == 0


async def test_there_is_no_such_role(quick: Settings) -> None:
    """It is said before anything is started."""
    with pytest.raises(ConfigError, match="no role 'scor'"):
        await run(quick, ["scor"])
