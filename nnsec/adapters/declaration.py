"""Declaring topics from the one table, and giving each log its identity."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from nnsec.adapters.clients import (
    RETRY_SECONDS,
    client_options,
    closed,
    connected,
    outage,
    topic_name,
)
from nnsec.adapters.publisher import publisher
from nnsec.adapters.records import Out
from nnsec.adapters.tail import read_to_end
from nnsec.errors import ConfigError
from nnsec.settings import Settings
from schemas.meta import Meta
from schemas.topics import TOPICS, UNLIMITED, Topic

REPLICAS = 3
BROKER_MAX_MESSAGE = 1_048_588
"""Kafka's own default of ``max.message.bytes``."""
ROOM = 256 * 1024
ROOMY = ("dead-letters", "training.accepted", "training.quarantine")
"""Topics that hold what users sent, and `ROOM` beside for what was found in it."""
SEGMENT_BYTES, SEGMENT_MS = 64 * 1024 * 1024, 10 * 60 * 1000
_PATIENCE = 5.0
"""Seconds in which whoever created a topic should have written its identity."""


def partitions(settings: Settings, topic: Topic) -> int:
    """How many partitions a topic is declared with.

    >>> partitions(Settings(), TOPICS["scores"]), partitions(Settings(), TOPICS["models"])
    (12, 1)
    """
    counts = settings.kafka.partitions
    return {"inputs": counts.inputs, "control": counts.control, "one": 1}[topic.scale]


def config(settings: Settings, topic: Topic) -> dict[str, str]:
    """Which broker settings a topic is declared with.

    >>> config(Settings(), TOPICS["meta"])
    {'cleanup.policy': 'compact', 'segment.bytes': '67108864', 'segment.ms': '600000'}
    """
    if topic.compact:
        # The open segment is never compacted, and every start reads these topics from the
        # beginning: Kafka's default of 1 GiB and a week would keep all of it.
        found = {
            "cleanup.policy": "compact",
            "segment.bytes": str(SEGMENT_BYTES),
            "segment.ms": str(SEGMENT_MS),
        }
    else:
        found = {"cleanup.policy": "delete", "retention.ms": str(topic.retention_ms)}
        if topic.retention_ms == UNLIMITED:
            found["retention.bytes"] = str(UNLIMITED)
    if topic.log_append_time:
        found["message.timestamp.type"] = "LogAppendTime"
    limit = settings.kafka.max_message_bytes
    if topic.name in ROOMY:
        found["max.message.bytes"] = str((limit or BROKER_MAX_MESSAGE) + ROOM)
    elif limit is not None:
        found["max.message.bytes"] = str(limit)
    return found


def limits(settings: Settings) -> dict[str, int]:
    """The largest batch (bytes) of each topic that is declared with one."""
    declared = {name: config(settings, topic) for name, topic in TOPICS.items()}
    key = "max.message.bytes"
    return {name: int(found[key]) for name, found in declared.items() if key in found}


async def declare(settings: Settings, *, now: datetime) -> dict[str, UUID]:
    """Create what topics are missing, check those that are there, and read their identities.

    Waits for a broker that is away. With ``declare = false`` nothing is created.

    Returns
    -------
    dict[str, UUID]
        Topic, without the prefix, to the identity of its log.

    Raises
    ------
    ConfigError
        Naming what differs, if a topic is missing or not compatible.
    """
    options = client_options(settings.kafka)
    admin = await connected(lambda: AIOKafkaAdminClient(**options))
    try:
        created = await _patiently(lambda: _create_missing(admin, settings))
        await _patiently(lambda: _check(admin, settings))
    finally:
        await closed(admin)
    return await _identities(settings, created, now)


async def inspect(settings: Settings) -> list[str]:
    """Names of the topics that are missing, with the prefix; nothing is changed.

    Raises
    ------
    ConfigError
        If none is missing, naming those that do not fit and why.
    """
    options = client_options(settings.kafka)
    admin = await connected(lambda: AIOKafkaAdminClient(**options))
    try:
        found = await _patiently(lambda: _counts(admin))
        names = (topic_name(settings, name) for name in TOPICS)
        if not (missing := [name for name in names if name not in found]):
            await _patiently(lambda: _check(admin, settings))
        return missing
    finally:
        await closed(admin)


async def _patiently(call: Any) -> Any:
    while True:
        try:
            return await call()
        except (KafkaError, TimeoutError) as error:
            outage.away(error)
            await asyncio.sleep(RETRY_SECONDS)


async def _create_missing(admin: Any, settings: Settings) -> set[str]:
    """Return the names of those that this very call created."""
    found = await _counts(admin)
    missing = [t for t in TOPICS.values() if topic_name(settings, t.name) not in found]
    if not missing:
        return set()
    if not settings.kafka.declare:
        names = ", ".join(topic_name(settings, topic.name) for topic in missing)
        raise ConfigError(f"missing topics, and [kafka] declare = false: {names}")
    brokers = len((await admin.describe_cluster())["brokers"])
    answer = await admin.create_topics(
        [
            NewTopic(
                topic_name(settings, topic.name), partitions(settings, topic),
                min(REPLICAS, brokers), topic_configs=config(settings, topic),
            )
            for topic in missing
        ]
    )  # fmt: skip
    created = {name for name, code, message in answer.topic_errors if _created(name, code, message)}
    while any(topic_name(settings, t.name) not in found for t in missing):
        await asyncio.sleep(0.05)
        found = await _counts(admin)
    return {topic.name for topic in missing if topic_name(settings, topic.name) in created}


def _created(name: str, code: int, message: str | None) -> bool:
    if code == 0:
        return True
    error = for_code(code)
    if error is TopicAlreadyExistsError:
        return False
    if getattr(error, "retriable", False):
        raise error(message)
    raise ConfigError(f"topic {name} cannot be created: {message or error.description}")


async def _counts(admin: Any) -> Mapping[str, int]:
    """Partition count of every topic of the cluster that has a leader for each partition."""
    topics = await admin.describe_topics()
    return {
        topic["topic"]: len(topic["partitions"])
        for topic in topics
        if topic["partitions"] and all(part["leader"] >= 0 for part in topic["partitions"])
    }


async def _check(admin: Any, settings: Settings) -> None:
    counts = await _counts(admin)
    resources = [
        ConfigResource(ConfigResourceType.TOPIC, topic_name(settings, name)) for name in TOPICS
    ]
    answers = await admin.describe_configs(resources)
    configs = {
        name: {entry[0]: entry[1] for entry in entries}
        for answer in answers
        for _code, _message, _type, name, entries in answer.resources
    }
    problems = [
        f"{topic_name(settings, topic.name)}: {problem}"
        for topic in TOPICS.values()
        for problem in _differences(
            settings, topic, counts.get(topic_name(settings, topic.name), 0),
            configs.get(topic_name(settings, topic.name), {}),
        )
    ]  # fmt: skip
    if problems:
        raise ConfigError(
            "topics that are there do not fit; change them, or [kafka] prefix: "
            + "; ".join(problems)
        )


def _differences(
    settings: Settings, topic: Topic, count: int, found: Mapping[str, str]
) -> Iterable[str]:
    """What does not fit; a broker that does not keep a setting says nothing of it."""
    if count < (wanted := partitions(settings, topic)):
        yield f"{count} partitions, needs {wanted}"
    for key, value in config(settings, topic).items():
        actual = found.get(key, value)
        if key in ("cleanup.policy", "message.timestamp.type"):
            if actual != value:
                yield f"{key} is {actual}, needs {value}"
        elif _shorter(actual, value):
            yield f"{key} is {actual}, needs at least {value}"


def _shorter(actual: str, wanted: str) -> bool:
    if actual == str(UNLIMITED):
        return False
    return wanted == str(UNLIMITED) or int(actual) < int(wanted)


async def _identities(settings: Settings, created: set[str], now: datetime) -> dict[str, UUID]:
    """Read `meta`, and write what is missing: our own at once, others' after some patience."""
    known: dict[str, UUID] = {}
    if "meta" not in created:
        known = await identities(settings)
    await _write(settings, created, now)
    waited = 0.0
    while not known.keys() | created >= TOPICS.keys() and waited < _PATIENCE:
        await asyncio.sleep(RETRY_SECONDS)
        waited += RETRY_SECONDS
        known = await identities(settings)
    await _write(settings, TOPICS.keys() - known.keys() - created, now)
    return await identities(settings)


async def _write(settings: Settings, names: Iterable[str], now: datetime) -> None:
    outs = [
        Out("meta", Meta(log=uuid4(), declared=now).encode(), name.encode())
        for name in sorted(names)
    ]
    if outs:
        async with publisher(settings) as publish:
            await publish(*outs)


async def identities(settings: Settings) -> dict[str, UUID]:
    """Topic, without the prefix, to the identity of its log: the newest that `meta` holds of it."""
    found: dict[str, UUID] = {}
    async for record in read_to_end(settings, ("meta",)):
        name = (record.key or b"").decode("utf-8", "replace")
        if name in TOPICS and record.value is not None:
            found[name] = Meta.decode(record.value).log
    return found
