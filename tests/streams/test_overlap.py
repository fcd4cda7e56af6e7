"""Delivery without a broker: what is processed while earlier outputs are on their way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

from nnsec.adapters import outbox
from nnsec.adapters.outbox import TooLarge
from nnsec.adapters.records import Out, Record
from nnsec.errors import TransientError
from streams import delivery
from streams.delivery import Delivery
from streams.intake import Intake, Where
from streams.sluice import Stateless, letter
from streams.window import Window

PLACE = TopicPartition("in", 0)
LOG = 40


@dataclass
class Source:
    """A consumer of a log of `LOG` records, which remembers what was committed."""

    intake: Intake = field(default_factory=lambda: Intake(1000))
    committed: int = 0
    restarts: int = 0

    def assign(self) -> None:
        epoch = self.intake.void()
        self.intake.admit(frozenset({("in", 0)}))
        self.intake.put(epoch, {PLACE: [_message(i) for i in range(self.committed, LOG)]})

    def commit(self) -> None:
        for end in self.intake.committable().values():
            self.committed = max(self.committed, end)

    async def rewind(self, offsets: Mapping[Where, int]) -> None:
        raise AssertionError(offsets)

    def notices(self, now: float) -> Sequence[Out]:
        return ()

    async def restart(self) -> None:
        self.restarts += 1
        self.commit()
        self.assign()


def _message(i: int) -> Any:
    return SimpleNamespace(
        topic="in", partition=0, offset=i, timestamp=0, key=None, value=b"%d" % i, headers=()
    )


@dataclass
class Broker:
    """Acknowledges when told to."""

    waiting: list[tuple[Sequence[Out], asyncio.Future[bool]]] = field(default_factory=list)
    log: list[bytes] = field(default_factory=list)
    largest: int = 100
    at_once: bool = False

    async def submit(self, outs: Sequence[Out], stale: Callable[[], bool]) -> asyncio.Future[bool]:
        if any(len(out.value or b"") > self.largest for out in outs):
            raise TooLarge("too large")
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.waiting.append((outs, future))
        if self.at_once:
            self.answer(-1)
        return future

    def answer(self, index: int = 0, error: Exception | None = None, given: bool = True) -> None:
        outs, future = self.waiting.pop(index)
        if error is not None:
            future.set_exception(error)
            return
        if given:
            self.log += [out.value or b"" for out in outs]
        future.set_result(given)


@asynccontextmanager
async def delivering(
    source: Source,
    broker: Broker,
    function: Any = None,
    window: Window | None = None,
    clock: Callable[[], float] = lambda: -1.0,
    **more: Any,
) -> AsyncIterator[Delivery]:
    """Run a delivery in batches of ten; unless there is a clock, no tick is ever due."""

    async def copy(records: Sequence[Record]) -> Sequence[Out]:
        return [Out("out", record.value) for record in records]

    agent = Stateless("overlap", ("in",), function or copy)
    for name, value in more.items():
        setattr(agent, name, value)
    found = Delivery(agent, source, broker.submit, letter, max_batch=10, window=window, clock=clock)
    task = asyncio.create_task(found.run())
    source.assign()
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the condition is the code under test
            await asyncio.sleep(0.001)


def numbers(start: int, end: int) -> list[bytes]:
    return [b"%d" % i for i in range(start, end)]


async def test_the_next_batch_is_processed_before_the_last_is_acknowledged() -> None:
    """And what is acknowledged first, out of order, is not committed over what is not."""
    source, broker = Source(), Broker()
    async with delivering(source, broker):
        await until(lambda: len(broker.waiting) == 4)
        broker.answer(2)
        broker.answer(1)
        await asyncio.sleep(0.01)
        assert source.intake.committable() == {}
        broker.answer(0)
        await until(lambda: source.intake.committable() == {("in", 0): 30})
        broker.answer()
        await until(lambda: source.intake.committable() == {("in", 0): 40})


async def test_an_agent_that_does_not_ask_for_it_never_overlaps() -> None:
    """Its state may depend on what is acknowledged."""
    source, broker = Source(), Broker()
    async with delivering(source, broker, overlaps=False):
        for number in range(4):
            await until(lambda: broker.waiting)
            await asyncio.sleep(0.01)
            assert len(broker.waiting) == 1
            broker.answer()
            end = 10 * (number + 1)
            await until(lambda end=end: source.intake.committable() == {("in", 0): end})


@pytest.mark.parametrize("window", [Window(batches=2), Window(size=2000)])
async def test_what_is_on_its_way_is_bounded(window: Window) -> None:
    """In batches and in bytes; the broker's pace becomes the agent's."""
    source, broker = Source(), Broker()

    async def swell(records: Sequence[Record]) -> Sequence[Out]:
        return [Out("out", (record.value or b"").rjust(100)) for record in records[:4]]

    async with delivering(source, broker, swell, window):
        await until(lambda: len(broker.waiting) == 2)
        await asyncio.sleep(0.02)
        assert len(broker.waiting) == 2
        broker.answer()
        await until(lambda: len(broker.waiting) == 2)
        assert source.intake.committable() == {("in", 0): 10}


async def test_what_the_broker_refuses_late_comes_again_from_what_is_committed() -> None:
    """Nothing behind it is committed, and nothing of it is lost."""
    source, broker = Source(), Broker()
    async with delivering(source, broker):
        await until(lambda: len(broker.waiting) == 4)
        broker.answer(0)
        broker.answer(0, error=TooLarge("the broker refused a record"))
        broker.answer(0)
        broker.answer(0)
        await until(lambda: source.restarts == 1)
        assert source.committed == 10
        broker.at_once = True
        await until(lambda: source.intake.committable() == {("in", 0): 40} or broker.waiting)
        while broker.waiting:
            broker.answer()
        await until(lambda: source.intake.committable() == {("in", 0): 40})
    assert set(broker.log) == set(numbers(0, 40))


@pytest.mark.parametrize("late", [False, True])
async def test_an_agent_with_state_loses_nothing_beside_what_is_too_large(
    late: bool,
) -> None:
    """It knows what it was given, and would say nothing of it if it were given it again.

    Whether the size is known before it is sent, or learnt from the broker.
    """
    source, broker, known = Source(), Broker(at_once=True), set()
    submit = broker.submit

    async def learn(outs: Sequence[Out], stale: Callable[[], bool]) -> asyncio.Future[bool]:
        large = [out for out in outs if len(out.value or b"") > 50]
        future = await submit([out for out in outs if out not in large], stale)
        if not large:
            return future
        await future
        refused: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        refused.set_exception(TooLarge("the broker refused a record"))
        return refused

    async def assigned(partitions: frozenset[Where]) -> None:
        known.clear()

    async def once(records: Sequence[Record]) -> Sequence[Out]:
        new = [record for record in records if record.offset not in known]
        known.update(record.offset for record in new)
        return [Out("out", r.value if r.offset != 17 else bytes(101)) for r in new]

    if late:
        broker.submit, broker.largest = learn, 1000  # type: ignore[method-assign]
    async with delivering(source, broker, once, overlaps=False, assigned=assigned):
        await until(lambda: source.intake.committable() == {("in", 0): 40})
    assert set(broker.log) == set(numbers(0, 40))  # the dead letter is the record as it was
    assert source.restarts == 1


async def test_what_cannot_be_published_has_an_agent_take_up_its_state_anew() -> None:
    """Whatever the error: it was given the batch, and would say nothing of it the second time."""
    source, broker, known, errors = Source(), Broker(at_once=True), set(), [ValueError("odd")]
    submit = broker.submit

    async def stumble(outs: Sequence[Out], stale: Callable[[], bool]) -> asyncio.Future[bool]:
        if errors:
            raise errors.pop()
        return await submit(outs, stale)

    async def assigned(partitions: frozenset[Where]) -> None:
        known.clear()

    async def once(records: Sequence[Record]) -> Sequence[Out]:
        new = [record for record in records if record.offset not in known]
        known.update(record.offset for record in new)
        return [Out("out", record.value) for record in new]

    broker.submit = stumble  # type: ignore[method-assign]
    async with delivering(source, broker, once, overlaps=False, assigned=assigned):
        await until(lambda: source.intake.committable() == {("in", 0): 40})
    assert broker.log == numbers(0, 40)


async def test_what_is_given_up_without_a_rebalance_is_not_committed() -> None:
    """As when the writer is closed because the time to drain is over."""
    source, broker = Source(), Broker()
    async with delivering(source, broker, overlaps=False):
        await until(lambda: broker.waiting)
        broker.answer(given=False)
        await asyncio.sleep(0.02)
        assert source.intake.committable() == {}
        assert not source.intake.idle


async def test_a_dead_letter_always_fits() -> None:
    """Of a record as large as its topic takes, whatever makes it large."""
    headers = tuple((f"name-{i}", bytes(100_000)) for i in range(9))
    for record in (
        Record("in", 0, 7, 0, b"k", bytes(10**6), ()), Record("in", 0, 7, 0, b"k", b"v", headers),
        Record("in", 0, 7, 0, bytes(10**6), b"v", ()),
    ):  # fmt: skip
        found = letter(record, ValueError("odd"), 3)
        assert outbox.size(found) < 200_000
        assert dict(found.headers)["dead-letter-offset"] == b"7"
    small = Record("in", 0, 7, 0, b"k", b"v", headers[:2])
    assert letter(small, ValueError("odd"), 3).headers[:2] == headers[:2]


async def test_ticks_do_not_follow_the_time_of_day() -> None:
    """A clock that steps back an hour holds no snapshot up."""
    times, ticks = [3600.0, 3600.0], []

    async def tick(now: float) -> Sequence[Out]:
        ticks.append(now)
        return ()

    def now() -> float:
        return times.pop() if times else 0.0

    agent = Stateless("overlap", ("in",), lambda records: None)  # type: ignore[arg-type, return-value]
    agent.tick = tick  # type: ignore[method-assign]
    source = Source()
    found = Delivery(agent, source, Broker().submit, letter, now=now)
    task = asyncio.create_task(found.run())
    source.intake.admit(frozenset())
    try:
        await until(lambda: len(ticks) >= 4)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert ticks[0] == 3600.0
    assert ticks[-1] == 0.0


async def test_what_is_given_up_is_not_committed() -> None:
    """As after a rebalance: whoever holds the partition now gets it."""
    source, broker = Source(), Broker()
    async with delivering(source, broker):
        await until(lambda: len(broker.waiting) == 4)
        source.intake.close()
        source.intake.void()
        for _ in range(4):
            broker.answer(given=False)
        await asyncio.sleep(0.01)
        assert source.intake.committable() == {}
        source.assign()
        await until(lambda: len(broker.waiting) == 4)


async def test_an_assignment_waits_for_what_is_on_its_way() -> None:
    """State is not read while more of it is being written."""
    source, broker = Source(), Broker()
    held: list[frozenset[tuple[str, int]]] = []

    async def assigned(partitions: frozenset[tuple[str, int]]) -> None:
        held.append(partitions)

    async with delivering(source, broker, assigned=assigned):
        await until(lambda: len(broker.waiting) == 4)
        source.assign()
        await asyncio.sleep(0.02)
        assert len(held) == 1
        while broker.waiting:
            broker.answer()
        await until(lambda: len(held) == 2)


async def test_a_tick_comes_when_nothing_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a snapshot is never ahead of what is written."""
    monkeypatch.setattr(delivery, "TICK_SECONDS", 0.01)
    source, broker = Source(), Broker(at_once=True)
    ticks: list[int] = []

    async def tick(now: float) -> Sequence[Out]:
        ticks.append(len(broker.waiting))
        broker.at_once = False
        return [Out("out", b"tick")] if len(ticks) == 1 else []

    async with delivering(source, broker, clock=time.monotonic, tick=tick):
        await until(lambda: broker.waiting)
        while len(ticks) < 3:
            if broker.waiting:
                broker.answer()
            await asyncio.sleep(0.001)
    assert set(ticks) == {0}
    assert broker.log.count(b"tick") == 1


async def test_an_agent_is_told_when_all_is_acknowledged() -> None:
    """Before a batch, and between two tries of one, but never with something on its way."""
    source, broker = Source(), Broker()
    told: list[int] = []
    away = [3]

    async def stumble(records: Sequence[Record]) -> Sequence[Out]:
        if records[0].value == b"20" and away[0]:
            away[0] -= 1
            raise TransientError("away")
        return [Out("out", record.value) for record in records]

    async with delivering(source, broker, stumble, settle=lambda: told.append(len(broker.log))):
        await until(lambda: len(broker.waiting) == 2)
        assert told == [0]
        broker.answer()
        broker.answer()
        await until(lambda: broker.waiting)
        assert told[1:]
        assert set(told[1:]) == {20}


async def test_an_error_of_the_layer_itself_begins_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was in hand then is not committed over; it comes again."""
    monkeypatch.setattr(delivery, "_LONGEST_WAIT", 0.01)
    source, broker = Source(), Broker(at_once=True)
    real, calls = delivery.record, [0]

    def failing(message: Any, prefix: str) -> Record:
        calls[0] += 1
        if calls[0] == 15:
            raise ZeroDivisionError
        return real(message, prefix)

    monkeypatch.setattr(delivery, "record", failing)
    async with delivering(source, broker):
        await until(lambda: source.intake.committable() == {("in", 0): 40})
    assert source.restarts == 1
    assert set(broker.log) == set(numbers(0, 40))
    assert "unexpected, beginning again" in caplog.text


async def test_a_delivery_that_follows_another_begins_at_what_is_committed() -> None:
    """The one before it was cancelled with a batch in hand."""
    source, broker = Source(), Broker()

    async def hang(records: Sequence[Record]) -> Sequence[Out]:
        await asyncio.sleep(60)
        return []

    async with delivering(source, broker, hang):
        await asyncio.sleep(0.02)
    assert await source.intake.wait_idle(0.0)
    broker.at_once = True

    async def copy(records: Sequence[Record]) -> Sequence[Out]:
        return [Out("out", record.value) for record in records]

    agent = Stateless("overlap", ("in",), copy)
    task = asyncio.create_task(Delivery(agent, source, broker.submit, letter).run())
    await until(lambda: source.intake.committable() == {("in", 0): 40})
    task.cancel()
    assert source.restarts == 1
    assert broker.log == numbers(0, 40)


async def test_a_record_whose_output_is_too_large_is_found_alone() -> None:
    """Its neighbours pass, in order, and a letter takes its place."""
    source, broker = Source(), Broker(at_once=True, largest=50)

    async def swell(records: Sequence[Record]) -> Sequence[Out]:
        return [Out("out", bytes(60) if r.value == b"13" else r.value) for r in records]

    async with delivering(source, broker, swell):
        await until(lambda: source.intake.committable() == {("in", 0): 40})
    assert broker.log == numbers(0, 40)  # the letter holds the original value


@dataclass
class Doors:
    """An agent that is let through batch by batch, by the first value of each."""

    inside: list[bytes] = field(default_factory=list)
    open: set[bytes] = field(default_factory=set)
    fail: set[bytes] = field(default_factory=set)
    change: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, records: Sequence[Record]) -> Sequence[Out]:
        first = records[0].value or b""
        self.inside.append(first)
        try:
            while first not in self.open:
                self.change.clear()
                await self.change.wait()
            if self.fail & {record.value for record in records}:
                raise ValueError("cannot pass")
        finally:
            self.inside.remove(first)
        return [Out("out", record.value) for record in records]

    def let(self, *firsts: int) -> None:
        self.open |= {b"%d" % first for first in firsts}
        self.change.set()


async def test_two_batches_are_in_process_at_once_and_leave_in_their_order() -> None:
    """One decodes while another waits for a model; what is ready first waits for its turn."""
    source, broker, doors = Source(), Broker(at_once=True), Doors()
    async with delivering(source, broker, doors, at_once=2):
        await until(lambda: doors.inside == [b"0", b"10"])
        await asyncio.sleep(0.02)
        assert doors.inside == [b"0", b"10"]
        doors.let(10)
        await until(lambda: doors.inside == [b"0"])
        await asyncio.sleep(0.02)
        assert (doors.inside, broker.log) == ([b"0"], [])
        doors.let(0)
        await until(lambda: doors.inside == [b"20", b"30"])
        assert broker.log == numbers(0, 20)
        doors.let(20, 30)
        await until(lambda: source.intake.committable() == {("in", 0): 40})
    assert broker.log == numbers(0, 40)


async def test_only_a_full_batch_is_begun_beside_another() -> None:
    """What comes meanwhile joins the next batch, instead of waiting in a small one."""
    source, broker, doors = Source(), Broker(at_once=True), Doors()
    doors.let(0, 10, 20)
    async with delivering(source, broker, doors, at_once=2):
        await until(lambda: doors.inside == [b"30"])
        for start in (40, 44):
            source.intake.put(source.intake.epoch, {PLACE: [_message(start + i) for i in range(4)]})
            await asyncio.sleep(0.02)
            assert doors.inside == [b"30"]
        doors.let(30)
        await until(lambda: doors.inside == [b"40"])
        doors.let(40)
        await until(lambda: source.intake.committable() == {("in", 0): 48})
    assert broker.log == numbers(0, 48)


@pytest.mark.parametrize("bad", [3, 13])
async def test_a_batch_that_is_split_holds_up_the_one_behind_it(bad: int) -> None:
    """Whichever of the two it is: each record comes out once, in order."""
    source, broker, doors = Source(), Broker(at_once=True), Doors(fail={b"%d" % bad})
    doors.let(*range(40))
    async with delivering(source, broker, doors, at_once=2):
        await until(lambda: source.intake.committable() == {("in", 0): 40})
    assert broker.log == numbers(0, 40)  # the letter holds the original value


async def test_neither_ticks_nor_assignments_come_while_batches_are_in_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor is an agent told that all is acknowledged while another batch is in process."""
    monkeypatch.setattr(delivery, "TICK_SECONDS", 0.01)
    source, broker, doors = Source(), Broker(at_once=True), Doors()
    seen: list[tuple[str, int]] = []

    async def tick(now: float) -> Sequence[Out]:
        seen.append(("tick", len(doors.inside)))
        return []

    async def assigned(partitions: frozenset[tuple[str, int]]) -> None:
        seen.append(("assigned", len(doors.inside)))

    def settle() -> None:
        seen.append(("settle", len(doors.inside)))

    more = {"tick": tick, "assigned": assigned, "settle": settle}
    async with delivering(source, broker, doors, clock=time.monotonic, at_once=2, **more):
        await until(lambda: len(doors.inside) == 2)
        before = list(seen)
        await asyncio.sleep(0.05)
        assert seen == before
        source.assign()
        await asyncio.sleep(0.02)
        assert seen == before
        doors.let(*range(40))
        await until(lambda: source.intake.committable() == {("in", 0): 40})
        await until(lambda: seen.count(("assigned", 0)) == 2)
    assert {inside for _, inside in seen} == {0}
    assert ("tick", 0) in seen


async def test_what_is_in_process_when_a_batch_is_given_up_comes_again() -> None:
    """The second was processed already, and must not be sent over the gap."""
    source, broker, doors = Source(), Broker(), Doors()
    async with delivering(source, broker, doors, at_once=2):
        doors.let(0)
        await until(lambda: broker.waiting and doors.inside == [b"10", b"20"])
        broker.answer(error=TooLarge("the broker refused a record"))
        broker.at_once = True
        doors.let(*range(40))
        await until(lambda: source.restarts == 1)
        await until(lambda: source.intake.committable() == {("in", 0): 40})
    assert broker.log == numbers(0, 40)


async def test_both_batches_in_process_come_again_after_a_cancellation() -> None:
    source, broker, doors = Source(), Broker(), Doors()
    async with delivering(source, broker, doors, at_once=2):
        await until(lambda: len(doors.inside) == 2)
    assert doors.inside == []
    assert await source.intake.wait_idle(0.0)
    assert source.intake.committable() == {}
