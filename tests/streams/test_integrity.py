"""Offsets that the log does not hold: the partition stops, an alert says so, a person goes on."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from uuid import uuid4

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from faust.types import TP

from nnsec.adapters import kafka
from nnsec.incidents import AlertSeen, step
from nnsec.settings import Settings, parse
from schemas.alert import Alert
from streams import integrity, transport
from streams.fetching import ConsumerThread
from streams.intake import Intake
from streams.runtime import Runtime
from streams.stops import NOTICE_SECONDS, Stop
from streams.transport import Consumer
from tests.conftest import SPEC
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


def with_models(settings: Settings, *names: str) -> Settings:
    return parse(settings.model_dump() | {"models": dict.fromkeys(names, SPEC)})


async def commit(settings: Settings, *offsets: int) -> None:
    async with kafka.Positions(settings, "echo", (TOPIC,)) as positions:
        await positions.commit({(TOPIC, n): offset for n, offset in enumerate(offsets)})


async def delete(settings: Settings, partition: int, before: int) -> None:
    """Delete records as a topic's retention does."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka.bootstrap_servers)
    await admin.start()
    try:
        place = TopicPartition(kafka.topic_name(settings, TOPIC), partition)
        await admin.delete_records({place: RecordsToDelete(before_offset=before)})
    finally:
        await admin.close()


async def alerts(settings: Settings, count: int) -> list[Alert]:
    async with asyncio.timeout(WAIT):
        while True:
            records = [r async for r in kafka.read_to_end(settings, ("alerts",))]
            if len(records) >= count:
                return [Alert.decode(record.value) for record in records]
            await asyncio.sleep(0.05)


@pytest.mark.kafka
async def test_an_offset_past_the_log_stops_its_partition(apache: Settings) -> None:
    """It is never reset silently: readiness and an alert say which and why, the others go on."""
    settings = with_models(apache, "digits", "faces")
    await commit(settings, 0, 0, 50, 0)
    stop, runtime = asyncio.Event(), Runtime(settings, (), [Echo()])
    task = asyncio.create_task(runtime.run(stop))
    try:
        sent = await send(settings, numbers(12))
        found = await echoed(settings, 9)
        assert sorted(found) == sorted(v for i, v in enumerate(sent) if i % PARTITIONS != 2)
        where = f"{kafka.topic_name(settings, TOPIC)}/2"
        await until(lambda: runtime.problems())
        (problem,) = runtime.problems()
        assert problem.startswith(f"echo: stopped {where}: offset 50 is past the log, which ends")
        first, second = await alerts(settings, 2)
        assert {first.model, second.model} == {"digits", "faces"}
        assert first.threat == second.threat == "integrity"
        assert first.positions == ((TOPIC, 2, 50, 0),)
        assert first.explanation.startswith(f"echo has stopped reading {where}: offset 50 is past")
        assert f"group {kafka.topic_name(settings, 'echo')}" in first.explanation
    finally:
        stop.set()
        await asyncio.wait_for(task, WAIT)
    assert await lag(settings) == 3 - 50


@pytest.mark.kafka
async def test_records_deleted_unread_stop_their_partition_until_a_person_decides(
    apache: Settings,
) -> None:
    """The group's offset is set on purpose, with any tool, while no worker runs."""
    settings = with_models(apache, "digits")
    await commit(settings, 0, 0, 1, 0)
    sent = await send(settings, numbers(40))
    await delete(settings, partition=2, before=4)
    agent = Echo()
    stop, runtime = asyncio.Event(), Runtime(settings, (), [agent])
    task = asyncio.create_task(runtime.run(stop))
    try:
        assert len(set(await echoed(settings, 30))) == 30
        (alert,) = await alerts(settings, 1)
        assert "offset 1 is gone: the log begins at 4, 3 later" in alert.explanation
        assert alert.counts == {"offset": 1, "first": 4, "end": 10}
    finally:
        stop.set()
        await asyncio.wait_for(task, WAIT)
    await commit(settings, 10, 10, 4, 10)
    async with member(settings, Echo()):
        there = set(await echoed(settings, 36))
    assert set(sent) - there == {b"v2", b"v6", b"v10", b"v14"}


@pytest.mark.kafka
async def test_state_older_than_the_log_does_not_hold_up_what_is_committed(
    apache: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """What its state lacks was read and published; what follows is read, and the log says so.

    Else a partition whose group was set on by a person would stop again at the state's offset.
    """
    await commit(apache, 0, 0, 6, 0)
    sent = await send(apache, numbers(40))
    await delete(apache, partition=2, before=5)
    async with member(apache, Echo(begin={(TOPIC, 2): 3, (TOPIC, 1): 2})):
        there = set(await echoed(apache, 32))
    unread = {v for i, v in enumerate(sent) if (i % 4, i // 4 < 6) == (2, True)}
    assert there == set(sent) - unread - {b"v1", b"v5"}
    assert "goes on at 6, as committed: the log begins at 5 now" in caplog.text


@pytest.mark.kafka
async def test_a_partition_goes_on_where_state_is_that_the_log_holds(apache: Settings) -> None:
    """An agent's own offset counts, though the committed one is outside the log."""
    sent = await send(apache, numbers(8))
    await commit(apache, 0, 0, 50, 0)
    agent = Echo(begin={(TOPIC, 2): 0})
    assigned = agent.assigned

    async def slow(partitions: frozenset[tuple[str, int]]) -> object:
        await asyncio.sleep(1.0)  # so that the partition has stopped before
        return await assigned(partitions)

    agent.assigned = slow  # type: ignore[assignment, method-assign]
    async with member(apache, agent):
        assert set(await echoed(apache, 8)) == set(sent)


def test_a_partition_that_stands_still_is_written_about_once_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock that never goes back: steps of the time of day neither hide nor repeat it."""
    written: list[tuple[int, float]] = []
    consumer = Consumer.__new__(Consumer)
    consumer.stops = {("labels", 2): Stop("labels", 2, 3, 10, 20, since=1000.0)}
    consumer.transport = type("", (), {"notice": lambda self, stop, now: [(stop.told, now)]})()
    for second in range(200):
        monkeypatch.setattr(transport.time, "monotonic", lambda second=second: float(second))
        stepped = 1000.0 + second + (86_400 if second > 30 else 0) - (172_800 if second > 90 else 0)
        written += consumer.notices(stepped)  # type: ignore[arg-type]
    assert [told for told, _ in written] == [0, 1, 2, 3]
    assert NOTICE_SECONDS == 60


async def test_a_stop_that_is_found_while_positions_are_set_anew_does_not_count() -> None:
    """What was read before says nothing of where the partition is read now."""
    consumer = Consumer.__new__(Consumer)
    consumer.intake, consumer.stops, place = Intake(10), {}, TP("labels", 2)
    consumer.role = "echo"

    class Thread:
        def __init__(self, position: int, epochs: int) -> None:
            self.position, self.epochs = position, epochs

        async def edges(self, tp: TP) -> tuple[int, int, int]:
            for _ in range(self.epochs):
                consumer.intake.void()
            return self.position, 0, 20

    for position, epochs in ((50, 1), (7, 0)):
        consumer._thread = Thread(position, epochs)  # type: ignore[assignment]
        await consumer._stop(place, 50)
        assert not consumer.stops
    consumer._thread = Thread(50, 0)  # type: ignore[assignment]
    consumer.app = SimpleNamespace(conf=SimpleNamespace(id="echo"))
    await consumer._stop(place, 50)
    assert str(consumer.stops["labels", 2]) == "offset 50 is past the log, which ends at 20"


def test_a_partition_that_is_not_held_has_no_position() -> None:
    """It may be taken away while somebody asks the broker about it; that is no reason to end."""
    place = TP("labels", 2)
    states: list[object] = [None, SimpleNamespace(has_valid_position=False)]
    subscriptions: list[object] = [None, SimpleNamespace(assignment=None)]
    for state in states:
        assignment = SimpleNamespace(state_value=lambda tp, state=state: state)
        subscriptions.append(SimpleNamespace(assignment=assignment))
    for subscription in subscriptions:
        thread = ConsumerThread.__new__(ConsumerThread)
        thread._consumer = SimpleNamespace(_subscription=SimpleNamespace(subscription=subscription))
        assert thread._position(place) == -1


def test_its_alerts_are_one_episode_and_one_incident(settings: Settings) -> None:
    """Of the model that may have records there; the same episode is told with the same ids."""
    settings = with_models(settings, "digits")
    prefix = settings.kafka.prefix
    logs = {"labels": uuid4()}
    incident, log = None, uuid4()
    for told in range(3):
        stop = Stop(f"{prefix}labels", 2, 3, 10, 20, since=1000.0, told=told)
        (out,) = integrity.alerts(settings, logs, "join", stop, 1000.0 + told * 60)
        (again,) = integrity.alerts(settings, logs, "join", stop, 1000.0 + told * 60)
        assert out == again
        alert = Alert.decode(out.value)
        assert (out.topic, out.key, alert.seq) == ("alerts", b"digits", told)
        incident = step(incident, AlertSeen(alert), log=log).incident
    assert incident is not None
    assert (incident.family, incident.severity, len(incident.subjects)) == ("trust", "high", 1)
    (subject,) = incident.subjects
    assert (subject.alerts, len(subject.episodes)) == (3, 1)
