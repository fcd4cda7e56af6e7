"""The intake: bounded, in order, and a ledger that never lets an unfinished record be passed."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

from streams.intake import Batch, Intake, weight

A, B = TopicPartition("t", 0), TopicPartition("t", 1)


def messages(count: int, start: int = 0, size: int = 10, where: Any = A) -> list[Any]:
    return [
        SimpleNamespace(where=tuple(where), offset=i, key=b"", value=bytes(size), headers=())
        for i in range(start, start + count)
    ]


def filled(count: int, room: int = 100, **more: int) -> Intake:
    found = Intake(room, **more)
    found.admit(frozenset({("t", 0), ("t", 1)}))
    found.put(found.epoch, {A: messages(count), B: messages(count, where=B)})
    return found


async def taken(intake: Intake, limit: int = 3) -> Batch:
    batch = await intake.take(limit, 0.0, intake.assignment.serial)
    assert batch is not None
    return batch


@pytest.mark.parametrize("seed", range(30))
async def test_only_what_lies_before_the_oldest_unfinished_is_committed(seed: int) -> None:
    """Whatever order batches end in, however many are in hand."""
    draw, intake = random.Random(seed), filled(40)
    hand: list[Batch] = []
    finished: set[tuple[tuple[str, int], int]] = set()
    seen: dict[tuple[str, int], int] = {}
    for _ in range(200):
        if draw.random() < 0.5 and (batch := await intake.take(draw.randint(1, 5), 0.0, 1)):
            hand.append(batch)
            for where, end in batch.ends.items():
                assert end > seen.get(where, 0)
                seen[where] = end
        elif hand:
            batch = hand.pop(draw.randrange(len(hand)))
            intake.finish(batch)
            for message in batch.messages:
                finished.add((message.where, message.offset))
        for where, end in intake.committable().items():
            assert all((where, offset) in finished for offset in range(end))
            if draw.random() < 0.2:
                intake.committed(intake.epoch, {where: end})
                assert where not in intake.committable()
    for batch in hand:
        intake.finish(batch)
    assert await intake.wait_idle(0.0)


async def test_what_is_abandoned_is_never_committed_over() -> None:
    """Nothing more is handed out until positions are set anew; what was finished stays so."""
    intake = filled(9)
    first, second = await taken(intake), await taken(intake)
    third = await taken(intake)
    intake.finish(first)
    intake.finish(third)
    intake.abandon()
    assert await intake.wait_idle(0.0)
    intake.finish(second)
    assert intake.stale(second)
    assert intake.committable() == {("t", 0): 3}
    assert await intake.take(3, 0.0, 1) is None
    epoch = intake.void()
    assert intake.committable() == {}
    intake.admit(frozenset({("t", 0)}))
    intake.put(epoch - 1, {A: messages(3)})
    assert await intake.take(3, 0.0, 2) is None
    intake.put(epoch, {A: messages(3, start=3)})
    assert (await taken(intake)).ends == {("t", 0): 6}


async def test_a_new_assignment_is_not_read_before_it_is_known() -> None:
    """Though it came while somebody waited for records of the old one."""
    intake = filled(0)
    waiting = asyncio.create_task(intake.take(3, 5.0, 1))
    await asyncio.sleep(0)
    intake.put(intake.void(), {})
    intake.admit(frozenset({("t", 0)}))
    intake.put(intake.epoch, {A: messages(3)})
    assert await waiting is None
    assert await intake.take(3, 5.0, 2) is not None


async def test_it_waits_for_what_is_in_hand() -> None:
    """As when partitions are revoked, or the process is told to end."""
    intake = filled(4)
    batch = await taken(intake)
    intake.close()
    assert not await intake.wait_idle(0.01)
    waiting = asyncio.create_task(intake.wait_idle(5.0))
    await asyncio.sleep(0)
    intake.finish(batch)
    assert await waiting
    assert intake.committable() == {("t", 0): 3}


async def test_it_is_bounded_in_records_and_in_bytes() -> None:
    """Fetching pauses while more than half is taken, and a batch stops at its bytes."""
    intake = filled(30)
    assert intake.full
    assert intake.room == 40
    waiting = asyncio.create_task(intake.wait_for_room(5.0))
    await asyncio.sleep(0)
    await taken(intake, 10)
    await waiting
    assert not intake.full
    each = weight(messages(1, size=1000)[0])
    heavy = Intake(100, room_bytes=10 * each, batch_bytes=2 * each)
    heavy.admit(frozenset({("t", 0)}))
    heavy.put(0, {A: messages(6, size=1000)})
    assert heavy.full
    assert len((await taken(heavy, 50)).messages) == 2
    assert not heavy.full


def test_headers_weigh_too() -> None:
    """They can be the large part of a record."""
    plain, headed = messages(2)
    headed.headers = (("name", b"12345"), ("null", None))
    assert weight(headed) - weight(plain) == len("name") + 5 + len("null")


async def test_it_tells_whether_somebody_waits_for_records() -> None:
    """Fetches only gather while nobody does, so that a lone input is not held up."""
    intake = filled(0)
    assert intake.busy
    waiting = asyncio.create_task(intake.take(3, 10.0, intake.assignment.serial))
    await asyncio.sleep(0)
    assert not intake.busy
    intake.put(intake.epoch, {A: messages(1)})
    assert await waiting is not None
    assert intake.busy


async def test_it_tells_whether_the_next_batch_would_be_full() -> None:
    """In messages or in bytes."""
    intake = filled(3)
    assert (intake.plenty(6), intake.plenty(7)) == (True, False)
    heavy = Intake(100, room_bytes=20_000, batch_bytes=2000)
    heavy.admit(frozenset({("t", 0)}))
    heavy.put(0, {A: messages(2, size=1000)})
    assert heavy.plenty(50)


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancellation_that_meets_records_is_not_lost(turns: int) -> None:
    """A role that is told to stop just when something comes must stop."""
    intake = filled(0)
    taking = asyncio.create_task(intake.take(3, 10.0, 1))
    await asyncio.sleep(0.01)
    intake.put(intake.epoch, {A: messages(1)})
    for _ in range(turns):
        await asyncio.sleep(0)
    if taking.cancel():
        await asyncio.gather(taking, return_exceptions=True)
        assert taking.cancelled()
