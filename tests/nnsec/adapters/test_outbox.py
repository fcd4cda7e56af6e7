"""The outbox: batches in order until acknowledged, whatever the broker answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    RequestTimedOutError,
)
from aiokafka.partitioner import murmur2
from aiokafka.producer.message_accumulator import BatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from nnsec.adapters import outbox, partition
from nnsec.adapters.clients import outage
from nnsec.adapters.outbox import size
from nnsec.adapters.publisher import Publisher, TooLarge
from nnsec.adapters.records import Out
from nnsec.settings import Kafka, Settings

ELSEWHERE = Settings(kafka=Kafka(bootstrap_servers="127.0.0.1:1"))
PARTITIONS = 4


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a moment where real waiting is a quarter of a second."""
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(outage, "since", None)


class Builder:
    """Collects what one batch holds."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.values: list[bytes] = []

    def append(self, *, value: bytes, headers: list[Any], **_: Any) -> object | None:
        assert isinstance(headers, list)
        if len(self.values) >= self.room:
            return None
        self.values.append(value)
        return object()


class Broker:
    """Takes batches, and answers as told: each batch gets the next answer, None for yes."""

    def __init__(self, answers: Sequence[Any] = (), room: int = 100, largest: int = 10**9) -> None:
        self.answers = list(answers)
        self.room = room
        self.largest = largest
        self.log: dict[tuple[str, int], list[bytes]] = {}
        self.batches: list[list[bytes]] = []
        self.held: list[asyncio.Future[None]] | None = None
        self.missing = 0
        self.flying: set[tuple[str, int]] = set()

    async def partitions_for(self, topic: str) -> set[int]:
        if self.missing:
            self.missing -= 1
            raise KafkaConnectionError
        return set(range(PARTITIONS))

    def create_batch(self) -> Builder:
        return Builder(self.room)

    async def send_batch(self, batch: Builder, topic: str, *, partition: int) -> Any:
        assert batch.values
        place = topic, partition
        assert place not in self.flying, "one batch of a partition at a time"
        self.batches.append(batch.values)
        answer = self.answers.pop(0) if self.answers else None
        if answer == "at once":
            raise RequestTimedOutError
        self.flying.add(place)
        return asyncio.ensure_future(self._answer(place, batch.values, answer))

    async def _answer(self, place: tuple[str, int], values: list[bytes], answer: Any) -> None:
        try:
            if self.held is not None:
                self.held.append(asyncio.get_running_loop().create_future())
                await self.held[-1]
            if answer == "written, but not said":
                self.log.setdefault(place, []).extend(values)
                raise RequestTimedOutError
            if answer is not None:
                raise answer
            if sum(map(len, values)) > self.largest:
                raise MessageSizeTooLargeError
            self.log.setdefault(place, []).extend(values)
        finally:
            self.flying.discard(place)


def publishing(broker: Broker, **limits: int) -> Publisher:
    found = Publisher(ELSEWHERE, limits)
    found._use(broker)
    found._producer = None  # nothing to disconnect
    return found


def lines(*values: bytes, topic: str = "a", partition: int | None = 0) -> list[Out]:
    return [Out(topic, value, b"k", partition=partition) for value in values]


# --- order ---


@pytest.mark.parametrize("failure", ["at once", RequestTimedOutError(), "written, but not said"])
async def test_what_failed_is_sent_again_before_what_follows(failure: Any) -> None:
    """In a call, and from call to call; other partitions do not wait for it."""
    broker = Broker([failure])
    publish = publishing(broker)
    first = await publish.submit(lines(b"1", b"2"))
    second = await publish.submit([*lines(b"3"), *lines(b"x", topic="b")])
    assert await first
    assert await second
    found = broker.log["nnsec.a", 0]
    assert list(dict.fromkeys(found)) == [b"1", b"2", b"3"]
    assert found[-1] == b"3"
    assert broker.log["nnsec.b", 0] == [b"x"]
    assert outage.since is None


async def test_what_comes_while_a_batch_is_on_its_way_goes_together() -> None:
    """So batches grow when the broker is slow, up to their size."""
    broker = Broker(room=4)
    broker.held = []
    publish = publishing(broker)
    waiting = [await publish.submit(lines(b"0"))]
    await until(lambda: broker.held)
    waiting += [await publish.submit(lines(b"%d" % i)) for i in range(1, 8)]
    first, broker.held = broker.held, None
    first[0].set_result(None)
    assert await asyncio.gather(*waiting) == [True] * 8
    assert [len(batch) for batch in broker.batches] == [1, 4, 3]
    assert broker.log["nnsec.a", 0] == [b"%d" % i for i in range(8)]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the condition is the code under test
            await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_or_overtaken_whatever_fails(seed: int) -> None:
    """Failures at random: first copies come in order in every partition, and none is missing."""
    draw = random.Random(seed)
    kinds = [None, "at once", RequestTimedOutError(), "written, but not said", KafkaError()]
    broker = Broker([draw.choice(kinds) for _ in range(100)], room=draw.randint(1, 9))
    publish, sent = publishing(broker), dict[int, list[bytes]]()
    futures = []
    for call in range(20):
        outs = []
        for i in range(draw.randint(0, 12)):
            number = draw.randrange(PARTITIONS)
            outs += lines(b"%d/%d" % (call, i), partition=number)
            sent.setdefault(number, []).append(outs[-1].value or b"")
        futures.append(await publish.submit(outs))
        if draw.random() < 0.5:
            await asyncio.sleep(0.001)
    assert all(await asyncio.gather(*futures))
    for number, values in sent.items():
        assert list(dict.fromkeys(broker.log["nnsec.a", number])) == values


# --- giving up ---


async def test_a_publication_that_no_longer_counts_is_given_up() -> None:
    """As after a rebalance; what others wait for in the same partition goes on."""
    broker = Broker([RequestTimedOutError()] * 3)
    publish, gone = publishing(broker), [False]
    old = await publish.submit(lines(b"old"), lambda: gone[0])
    new = await publish.submit(lines(b"new"))
    await until(lambda: broker.batches)
    gone[0] = True
    assert not await old
    assert await new
    assert broker.log == {("nnsec.a", 0): [b"new"]}


async def test_without_metadata_it_waits_until_it_is_given_up() -> None:
    """A topic's partitions must be known before anything can be sent there."""
    broker = Broker()
    broker.missing = 2
    publish = publishing(broker)
    assert await publish(*lines(b"1"))
    broker.missing = 99
    asked = iter([False, True])
    assert not await publish(*lines(b"2"), stale=lambda: next(asked))


async def test_stopping_gives_up_what_is_not_acknowledged() -> None:
    """Whoever waits for it is told so, and nothing hangs."""
    broker = Broker()
    broker.held = []
    publish = publishing(broker)
    futures = [await publish.submit(lines(b"%d" % i)) for i in range(3)]
    await until(lambda: broker.held)
    await publish.stop()
    assert await asyncio.gather(*futures) == [False] * 3
    with pytest.raises(RuntimeError, match="start the publisher"):
        await publish(*lines(b"4"))


async def test_a_caller_that_is_cancelled_does_no_harm() -> None:
    """What it submitted goes on, and what follows is not touched."""
    broker = Broker([RequestTimedOutError()])
    publish = publishing(broker)
    task = asyncio.create_task(publish(*lines(b"1")))
    await until(lambda: broker.batches)
    task.cancel()
    assert await publish(*lines(b"2"))
    assert broker.log["nnsec.a", 0] == [b"1", b"2"]


# --- too large ---


async def test_a_record_known_to_be_too_large_is_found_before_any_is_sent() -> None:
    """So that its neighbours need not be sent twice."""
    broker = Broker()
    with pytest.raises(TooLarge, match="a takes 500 bytes, a record for it has"):
        await publishing(broker, a=500)(*lines(b"1", bytes(600)))
    assert not broker.batches
    many = Out("a", b"", b"k", tuple(("name", b"value") for _ in range(100)))
    with pytest.raises(TooLarge):
        await publishing(broker, a=500)(many)


async def test_what_the_broker_refuses_is_found_alone_and_learnt() -> None:
    """All others are published in order; the next of its size is not sent any more."""
    broker = Broker(largest=20)
    publish = publishing(broker)
    values = [b"1", b"2", b"x" * 30, b"3"]
    with pytest.raises(TooLarge, match="refused a record"):
        await publish(*lines(*values))
    assert broker.log["nnsec.a", 0] == [b"1", b"2", b"3"]
    broker.batches.clear()
    with pytest.raises(TooLarge, match="a takes"):
        await publish(*lines(*[b"x" * 3000]))
    assert not broker.batches


async def test_what_a_topic_has_refused_is_counted_with_all_its_headers() -> None:
    """Else a record that is large by few headers would be refused anew each time it comes."""
    broker = Broker(largest=20)
    publish = publishing(broker)
    large = Out("a", b"x" * 30, b"k", (("name", b"v" * 200),))
    with pytest.raises(TooLarge, match="refused a record"):
        await publish(large)
    broker.batches.clear()
    with pytest.raises(TooLarge, match="a takes"):
        await publish(large)
    assert not broker.batches


@given(st.binary(max_size=300), st.binary(max_size=2000), st.integers(0, 3))
def test_the_size_of_a_record_is_that_of_its_batch(key: bytes, value: bytes, more: int) -> None:
    """Otherwise it would be refused, or sent in vain."""
    out = Out("a", value, key, (("name", b"x"), ("none", None)) * more)
    built = BatchBuilder(16, 0)
    built.append(timestamp=1, key=out.key, value=out.value, headers=list(out.headers))
    assert len(built._build()) == size(out)


# --- partitions ---


@given(st.lists(st.binary(max_size=40)), st.integers(1, 50))
def test_keys_go_where_java_and_aiokafka_send_them(keys: list[bytes], count: int) -> None:
    """Labels and scores meet only because all producers agree."""
    expected = [(murmur2(key) & 0x7FFFFFFF) % count for key in keys]
    assert partition.partitions(keys, count) == expected


async def test_records_without_a_key_go_together() -> None:
    """In one batch, to any partition; a partition that is named is used."""
    broker = Broker()
    outs = [Out("a", b"%d" % i) for i in range(9)]
    assert await publishing(broker)(*outs, Out("b", b"x", b"k", partition=3))
    assert len(broker.batches) == 2
    assert broker.log["nnsec.b", 3] == [b"x"]


async def test_an_error_of_our_own_is_not_swallowed() -> None:
    """Only what Kafka says is retried."""
    with pytest.raises(ValueError, match="a bug"):
        await publishing(Broker([ValueError("a bug")]))(*lines(b"1"))
