"""Declaration, reading to the end and publishing, on the embedded broker and on Apache Kafka."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete

from nnsec.adapters import kafka
from nnsec.adapters.declaration import config, partitions
from nnsec.adapters.positions import commit_start
from nnsec.adapters.records import Out, Record
from nnsec.errors import ConfigError
from nnsec.settings import Settings
from schemas.topics import TOPICS

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def change(settings: Settings, **values: object) -> Settings:
    """The same settings but for some values of [kafka]."""
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update=values)})


@pytest.fixture(params=["embedded", pytest.param("apache", marks=pytest.mark.kafka)])
def either(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """Settings for the embedded broker, then for Apache Kafka."""
    if request.param == "apache":
        settings = change(settings, bootstrap_servers=request.getfixturevalue("kafka"))
    return settings


async def read(settings: Settings, *topics: str) -> list[Record]:
    return [record async for record in kafka.read_to_end(settings, topics)]


async def test_declaring_twice_changes_nothing(either: Settings) -> None:
    """All topics are there after the first time; the second finds the same logs."""
    first = await kafka.declare(either, now=NOW)
    assert first.keys() == TOPICS.keys()
    assert len(set(first.values())) == len(TOPICS)
    assert await kafka.declare(either, now=NOW) == first
    assert await kafka.declare(change(either, declare=False), now=NOW) == first
    assert len(await read(either, "meta")) == len(TOPICS)


async def test_two_at_once_agree_on_the_logs(settings: Settings) -> None:
    """Processes that start together draw one identity for each log."""
    found = await asyncio.gather(*(kafka.declare(settings, now=NOW) for _ in range(3)))
    assert found[0] == found[1] == found[2]


async def test_missing_topics_are_named_when_not_declared(settings: Settings) -> None:
    """With declare = false nothing is created and the message names what is missing."""
    with pytest.raises(ConfigError, match=r"declare = false: .*inference\.inputs"):
        await kafka.declare(change(settings, declare=False), now=NOW)


@pytest.mark.parametrize(
    ("count", "configs", "words"),
    [
        (1, {}, "1 partitions, needs 4"),
        (4, {"cleanup.policy": "compact"}, "cleanup.policy is compact, needs delete"),
        (4, {"message.timestamp.type": "CreateTime"}, "message.timestamp.type is CreateTime"),
        (4, {"retention.ms": "1000"}, "retention.ms is 1000, needs at least 604800000"),
    ],
)
async def test_topic_that_does_not_fit_is_named(
    either: Settings, count: int, configs: dict[str, str], words: str
) -> None:
    """Fewer partitions, another policy or a shorter retention is a configuration error."""
    await create(either, "inference.inputs", count, configs)
    with pytest.raises(ConfigError, match=words):
        await kafka.declare(either, now=NOW)


async def test_topic_that_offers_more_is_used(either: Settings) -> None:
    """More partitions and longer retention are compatible."""
    await create(either, "scores", 6, {"retention.ms": "-1"})
    assert "scores" in await kafka.declare(either, now=NOW)


async def create(settings: Settings, name: str, count: int, configs: dict[str, str]) -> None:
    admin = AIOKafkaAdminClient(**kafka.client_options(settings.kafka))
    await admin.start()
    topic = NewTopic(kafka.topic_name(settings, name), count, 1, topic_configs=configs)
    await admin.create_topics([topic])
    await admin.close()


def test_table_becomes_broker_settings(settings: Settings) -> None:
    """The dead-letter topic takes what the largest user topic takes, and its headers."""
    small = change(settings, max_message_bytes=1000)
    assert config(settings, TOPICS["dead-letters"])["max.message.bytes"] == str(1048588 + 262144)
    assert config(small, TOPICS["dead-letters"])["max.message.bytes"] == str(1000 + 262144)
    assert config(small, TOPICS["labels"])["max.message.bytes"] == "1000"
    assert config(settings, TOPICS["sources"]) == {
        "cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1",
    }  # fmt: skip
    assert partitions(settings, TOPICS["alerts"]) == 1


async def test_published_records_come_back_as_they_were(either: Settings) -> None:
    """Key, value, repeated and null headers, partition and time survive; order is kept."""
    await kafka.declare(either, now=NOW)
    headers = (("a", b"1"), ("a", None), ("b", b""))
    outs = [Out("alerts", b"%d" % i, b"k", headers, timestamp=1000 + i) for i in range(100)]
    async with kafka.publisher(either) as publish:
        assert await publish(*outs)
        assert await publish(Out("alerts", None, b"k"))
    found = await read(either, "alerts")
    assert [record.value for record in found] == [*(out.value for out in outs), None]
    assert [record.offset for record in found] == list(range(101))
    assert (found[0].headers, found[0].timestamp) == (headers, 1000)
    assert found[0].topic == "alerts"


async def test_too_large_a_record_is_refused_alone(kafka_settings: Settings) -> None:
    """A record over the topic's limit raises; those beside it are published."""
    await kafka.declare(kafka_settings, now=NOW)
    async with kafka.publisher(kafka_settings) as publish:
        with pytest.raises(kafka.TooLarge):
            await publish(Out("alerts", b"a"), Out("alerts", b"x" * 2_000_000), Out("alerts", b"b"))
    assert [record.value for record in await read(kafka_settings, "alerts")] == [b"a", b"b"]


@pytest.fixture
def kafka_settings(settings: Settings, kafka: str) -> Settings:
    """Settings for Apache Kafka."""
    return change(settings, bootstrap_servers=kafka)


async def test_tail_follows_after_the_end(settings: Settings) -> None:
    """A tail yields what was there, says so, and goes on with what comes."""
    await kafka.declare(settings, now=NOW)
    tail = kafka.Tail(settings, ("models", "sources"), {("models", 0): 1})
    async with kafka.publisher(settings) as publish:
        await publish(*(Out("models", b"%d" % i) for i in range(5)), Out("sources", b"s"))
        await tail.start()
        found = [record.value async for record in tail.to_end()]
        assert sorted(found) == [b"1", b"2", b"3", b"4", b"s"]
        await publish(Out("models", b"5"))
        following = aiter(tail)
        assert (await anext(following)).value == b"5"
        assert await tail.starts("models") == {0: 0}
        await following.aclose()
    await tail.stop()


async def test_a_tail_knows_where_its_topics_begin(kafka_settings: Settings) -> None:
    """What retention has deleted is told by the first offset of each partition."""
    await kafka.declare(kafka_settings, now=NOW)
    tail = kafka.Tail(kafka_settings, ("models", "scores"))
    async with kafka.publisher(kafka_settings) as publish:
        await publish(*(Out("models", b"old", partition=0) for _ in range(5)))
    await tail.start()
    assert await tail.starts("models") == {0: 0}
    admin = AIOKafkaAdminClient(**kafka.client_options(kafka_settings.kafka))
    await admin.start()
    place = TopicPartition(kafka.topic_name(kafka_settings, "models"), 0)
    await admin.delete_records({place: RecordsToDelete(before_offset=3)})
    await admin.close()
    assert await tail.starts("models") == {0: 3}
    assert await tail.starts("scores") == dict.fromkeys(range(4), 0)
    await tail.stop()


async def test_a_tail_gives_each_record_once_when_its_topic_grows(
    kafka_settings: Settings,
) -> None:
    """The client library reads all partitions again then, from their beginning."""
    await kafka.declare(kafka_settings, now=NOW)
    tail, seen = kafka.Tail(kafka_settings, ("models",), {("models", 0): 1}), []

    async def follow() -> None:
        async for record in tail:
            seen.append((record.partition, record.offset))  # noqa: PERF401 - seen while it follows

    async with kafka.publisher(kafka_settings) as publish:
        await publish(*(Out("models", b"old", partition=0) for _ in range(5)))
    await tail.start()
    following = asyncio.create_task(follow())
    admin = AIOKafkaAdminClient(**kafka.client_options(kafka_settings.kafka))
    await admin.start()
    name = kafka.topic_name(kafka_settings, "models")
    await admin.create_partitions({name: NewPartitions(2)})
    await admin.close()
    async with kafka.publisher(kafka_settings) as publish, asyncio.timeout(30):
        while len(tail._consumer.assignment()) < 2:
            await tail._consumer._client.force_metadata_update()
            await asyncio.sleep(0.1)
        await publish(Out("models", b"new", partition=0))
        while (0, 5) not in seen:  # noqa: ASYNC110 - it follows
            await asyncio.sleep(0.05)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await tail.stop()
    assert seen == [(0, number) for number in range(1, 6)]


@pytest.mark.parametrize(
    ("start_at", "expected"), [("latest", 3), ("earliest", 0), ("2000-01-01T00:00:00Z", 0)]
)
async def test_new_group_begins_where_told(either: Settings, start_at: str, expected: int) -> None:
    """The beginning is committed once; it stays when more has come."""
    await kafka.declare(either, now=NOW)
    async with kafka.publisher(either) as publish:
        await publish(*(Out("labels", b"v", partition=0) for _ in range(3)))
        await commit_start(change(either, start_at=start_at), "join", ("labels",))
        await publish(*(Out("labels", b"v", partition=0) for _ in range(2)))
    await commit_start(either, "join", ("labels",))
    async with kafka.Positions(either, "join", ("labels",)) as positions:
        found = await positions.read()
    assert found["labels", 0] == kafka.Bounds(0, 5, expected)
    assert found["labels", 0].lag == 5 - expected
    assert found["labels", 1].committed == 0


async def test_a_group_reads_partitions_that_were_added_while_it_was_away(either: Settings) -> None:
    """From their beginning, whatever a new group does: a partition younger than it is all new."""
    await kafka.declare(either, now=NOW)
    async with kafka.Positions(either, "join", ("labels",)) as positions:
        await positions.commit({("labels", number): 0 for number in range(3)})
    async with kafka.publisher(either) as publish:
        await publish(*(Out("labels", b"v", partition=3) for _ in range(2)))
        await publish(*(Out("scores", b"v", partition=0) for _ in range(2)))
    await commit_start(either, "join", ("labels", "scores"))
    async with kafka.Positions(either, "join", ("labels", "scores")) as positions:
        found = await positions.read()
    assert found["labels", 3].committed == 0
    assert found["scores", 0].committed == 2


@pytest.mark.parametrize("start_at", ["soon", "2000-01-01T00:00:00"])
async def test_unknown_start_says_what_to_write(settings: Settings, start_at: str) -> None:
    """A start that is no time, or has no zone, is a configuration error."""
    with pytest.raises(ConfigError, match="RFC 3339"):
        await commit_start(change(settings, start_at=start_at), "join", ("labels",))
