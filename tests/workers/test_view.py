"""The view in Redis, against a real broker and a real Valkey."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pytest
import redis.asyncio as redis
from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import KafkaConnectionError

from nnsec.adapters import kafka
from nnsec.adapters.records import Out, Record
from nnsec.errors import ConfigError, TransientError
from nnsec.incidents import AlertSeen, Dismissed, stamped, step
from nnsec.settings import Settings
from nnsec.trust import keys
from nnsec.trust.statements import fold, sign_statement
from schemas.alert import Alert, Subject
from schemas.base import to_millis
from schemas.incident import Incident
from schemas.meta import Meta
from schemas.model_statement import ModelStatement
from schemas.source import Source
from workers import changes, scripts, store, view
from workers import process as process_
from workers.embedded import Store, free_port
from workers.process import Process

T0 = datetime.now(UTC).replace(microsecond=0)
LOG = UUID(int=1)


def opened(number: int = 1, subject: str = "s\nx") -> Incident:
    alert = Alert(
        id=UUID(int=number), episode=uuid5(LOG, str(number)), seq=0, time=T0, model="digits",
        model_version="1", threat="backdoor", atlas=(), severity="high", evidence=2.0,
        subject=Subject(kind="source", id=subject), positions=(), counts={}, explanation="",
    )  # fmt: skip
    incident = step(None, AlertSeen(alert), log=LOG).incident
    assert incident is not None
    return incident


def dismissed(incident: Incident) -> Incident:
    event = Dismissed("c", "digits", "key", "a drill", T0 + timedelta(seconds=1))
    found = step(incident, event, log=LOG).incident
    assert found is not None
    return found


def out(incident: Incident) -> Out:
    return Out("incidents", incident.encode(), str(incident.id).encode(), partition=0)


class Bench:
    """A broker with topics, a store, and a view that can be started and stopped."""

    def __init__(self, settings: Settings, client: redis.Redis, publish: kafka.Publisher) -> None:
        self.settings, self.client, self.publish = settings, client, publish
        self.names = store.Keys(settings.redis.prefix)

    @asynccontextmanager
    async def view(self) -> AsyncIterator[Process]:
        process = Process("view", problems={"start": "starting"})
        task = asyncio.create_task(view.follow(self.settings, process))
        try:
            yield process
        finally:
            process.stop.set()
            await asyncio.wait_for(task, 10)

    async def until(self, met: Callable[[], Any], seconds: float = 8.0) -> None:
        async with asyncio.timeout(seconds):
            while not await met():  # noqa: ASYNC110 - a store has no event to wait for
                await asyncio.sleep(0.05)

    async def hash(self, key: str) -> dict[str, str]:
        found: dict[str, str] = await self.client.hgetall(key)  # type: ignore[assignment, misc]
        return found

    async def incident(self, incident: Incident) -> dict[str, str]:
        return await self.hash(self.names.incident(str(incident.id)))

    async def at(self, incident: Incident) -> bool:
        return (await self.incident(incident)).get("version") == str(incident.version)

    async def everything(self) -> dict[str, Any]:
        """All keys and values, but for the stream's own ids."""
        found: dict[str, Any] = {}
        async for key in self.client.scan_iter(match=f"{self.settings.redis.prefix}*"):
            kind = await self.client.type(key)
            if kind == "hash":
                found[key] = await self.hash(key)
            elif kind == "zset":
                found[key] = await self.client.zrange(key, 0, -1, withscores=True)
            else:
                found[key] = [entry for _, entry in await self.client.xrange(key)]
        return found


@pytest.fixture
async def bench(settings: Settings, valkey: str, tmp_path: Path) -> AsyncIterator[Bench]:
    keys.write_new(tmp_path / "release")
    trust = settings.trust.model_copy(update={"release_keys": (str(tmp_path / "release.pub"),)})
    settings = settings.model_copy(update={"trust": trust})
    await kafka.declare(settings, now=T0)
    async with (
        kafka.publisher(settings) as publish,
        redis.Redis.from_url(valkey, decode_responses=True) as client,
    ):
        yield Bench(settings, client, publish)


async def test_an_incident_is_shown_from_its_opening_to_its_end(bench: Bench) -> None:
    """Hash, sorted set, log and expiry are as the contract says, within a second."""
    first = opened()
    more, last = stamped(first), dismissed(stamped(first))
    async with bench.view() as process:
        await bench.publish(out(first))
        await bench.until(lambda: bench.at(first))
        await bench.until(lambda: _ready(process))
        shown = await bench.incident(first)
        assert set(shown) == {
            "id", "state", "version", "model", "family", "threats", "severity", "first_seen",
            "last_seen", "subjects", "actions", "evidence",
        }  # fmt: skip
        assert (shown["state"], json.loads(shown["threats"])) == ("open", ["backdoor"])
        assert shown["first_seen"] == str(int(T0.timestamp() * 1000))
        assert json.loads(shown["subjects"])[0]["subject"] == {"kind": "source", "id": "s\nx"}
        active = await bench.client.zrange(bench.names.active, 0, -1)
        assert active == [str(first.id)]
        assert await bench.client.ttl(bench.names.incident(str(first.id))) == -1
        await bench.publish(out(more), out(last))
        await bench.until(lambda: bench.at(last))
        assert await bench.client.zcard(bench.names.active) == 0
        ttl = await bench.client.ttl(bench.names.incident(str(first.id)))
        assert 29 * 86400 < ttl <= 30 * 86400
        log = [entry for _, entry in await bench.client.xrange(bench.names.log)]
        assert log == [
            {"incident": str(first.id), "from": "", "to": "open", "version": "1",
             "by": "correlate", "reason": "backdoor: source s x"},
            {"incident": str(first.id), "from": "open", "to": "dismissed", "version": "3",
             "by": "key", "reason": "a drill"},
        ]  # fmt: skip
        assert (await bench.hash(bench.names.positions))["incidents/0"] == "2"


async def test_models_and_sources_are_shown(bench: Bench, tmp_path: Path) -> None:
    """A prepared epoch shows as such, a forged one not at all, and counts add up."""
    key = keys.load_private(tmp_path / "release")

    def statement(epoch: int, phase: Any, version: int) -> ModelStatement:
        return ModelStatement(
            model="digits", epoch=epoch, phase=phase, version=version, digest="d" * 64,
            reason="", issued=T0, expires=T0 + timedelta(hours=1),
        )  # fmt: skip

    def model(said: ModelStatement, signer: keys.PrivateKey = key) -> Out:
        return Out("models", sign_statement(said, signer), b"digits")

    def samples(topic: str, rows: bytes, source: str = "a b/c") -> Out:
        return Out(topic, b"x", source.encode(), (("nnsec-rows", rows),), partition=0)

    quarantined = Source(source="a b/c", state="quarantined", reason="r", version=1, time=T0)
    async with bench.view():
        await bench.publish(
            model(statement(1, "activate", 2)),
            model(statement(9, "activate", 9), keys.generate()),
            model(statement(2, "prepare", 1)),
            Out("models", b"nonsense", b"digits"),
            samples("training.accepted", b"0,1,4"), samples("training.accepted", b"7"),
            samples("training.accepted", b"0", "other"),
            samples("training.quarantine", b"2,3"),
            Out("sources", quarantined.encode(), b"a b/c"),
        )  # fmt: skip
        places = {"models/0": "3", "sources/0": "0", "training.accepted/0": "2",
                  "training.quarantine/0": "0"}  # fmt: skip

        async def applied() -> bool:
            return places.items() <= (await bench.hash(bench.names.positions)).items()

        await bench.until(applied)
        shown = await bench.hash(bench.names.model("digits"))
        assert shown.pop("since")
        assert shown == {
            "version": "2", "digest": "d" * 64, "epoch": "1", "state": "preparing",
            "prepared": f"2 1 {'d' * 64}",
        }  # fmt: skip
        source = f"{bench.settings.redis.prefix}source:a%20b%2Fc"
        assert await bench.hash(source) == {
            "state": "quarantined", "reason": "r", "incident": "", "version": "1",
            "accepted": "4", "quarantined": "2",
        }  # fmt: skip
        assert (await bench.hash(bench.names.source("other")))["state"] == "trusted"
        await bench.publish(model(statement(2, "activate", 1)))
        places["models/0"] = "4"
        await bench.until(applied)
        shown = await bench.hash(bench.names.model("digits"))
        assert (shown["state"], shown["version"], shown["epoch"]) == ("active", "1", "2")


async def test_statements_count_by_the_rule_of_the_workers(bench: Bench, tmp_path: Path) -> None:
    """Whatever two processes say of an epoch: what the view shows as active is what serves."""
    key = keys.load_private(tmp_path / "release")
    draw = random.Random(4)
    said: list[tuple[str, int, Any, int]] = [
        ("two", 5, "prepare", 2), ("two", 5, "prepare", 3),
        ("two", 5, "activate", 3), ("two", 5, "activate", 2),
    ]  # fmt: skip
    said += [
        (f"m{n}", draw.randint(1, 3), draw.choice(["prepare", "activate"]), draw.randint(1, 2))
        for n in range(60)
        for _ in range(6)
    ]
    outs = []
    for model, epoch, phase, version in said:
        one = ModelStatement(
            model=model, epoch=epoch, phase=phase, version=version, digest=f"{version}" * 64,
            reason="", issued=T0, expires=T0 + timedelta(hours=1),
        )  # fmt: skip
        outs.append(Out("models", sign_statement(one, key), model.encode()))
    async with bench.view():
        await bench.publish(*outs)

        async def applied() -> bool:
            positions = await bench.hash(bench.names.positions)
            return positions.get("models/0") == str(len(outs) - 1)

        await bench.until(applied)
    folded = fold(
        [Record("models", 0, n, to_millis(T0), b"", one.value) for n, one in enumerate(outs)],
        (key.public,),
    ).models
    assert len(folded) == 61
    for model, standing in folded.items():
        shown = await bench.hash(bench.names.model(model))
        active = standing.activated
        serves = (str(active.epoch), str(active.version), active.digest) if active else ("",) * 3
        assert (shown["epoch"], shown["version"], shown["digest"]) == serves
        assert shown["state"] == ("preparing" if standing.prepared else "active")


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cr3t/word@host:6379/0", "redis://user:s3cr3t#x@host", "redis://u:s3cr3t[@host",
        "redis://user:s3cr3t@host:63x9/0", "redis://:1234/s3cr3t@host", "redis://1234?s3cr3t@host",
        "redis://:s3cr3t@x/word@host", "redis://u:s3cr3t@x#y@host", "redis://:s3@s3cr3t?x@host",
        "http://user:s3cr3t@host",
    ],
)  # fmt: skip
async def test_an_address_that_is_none_shows_no_password(url: str) -> None:
    """Neither a part of it that stands where a port is wanted; digits would pass as one."""
    given = Settings.model_validate({"redis": {"url": url}})
    with pytest.raises(ConfigError, match="percent-encoded") as caught:
        async with store.connect(given):
            pass
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))


async def test_an_encoded_password_is_read(settings: Settings) -> None:
    """As the message advises."""
    given = Settings.model_validate({"redis": {"url": "redis://u:a%2Fb%40c@host:1/2"}})
    async with store.connect(given) as client:
        kwargs = client.connection_pool.connection_kwargs
    assert (kwargs["password"], kwargs["host"], kwargs["port"], kwargs["db"]) == (
        "a/b@c", "host", 1, 2,
    )  # fmt: skip


async def test_the_log_of_transitions_is_cut(bench: Bench) -> None:
    """At about 100,000 entries, whole nodes of the stream at a time; the newest stay."""
    fill = "for i = 1, 100500 do redis.call('XADD', KEYS[1], '*', 'incident', 'old') end"
    one = opened()
    async with bench.view() as process:
        await bench.until(lambda: _ready(process))
        await bench.client.eval(fill, 1, bench.names.log)  # type: ignore[misc]
        await bench.publish(out(one))
        await bench.until(lambda: bench.at(one))
    assert 100_000 <= await bench.client.xlen(bench.names.log) < 100_400
    (newest,) = await bench.client.xrevrange(bench.names.log, count=1)
    assert newest[1]["incident"] == str(one.id)


async def test_an_emptied_store_is_built_anew(bench: Bench) -> None:
    """Within 5 s, though nothing new comes in, and to the same content."""
    one, two = opened(1), opened(2)
    async with bench.view():
        await bench.publish(out(one), out(two), out(dismissed(two)))
        await bench.until(lambda: bench.at(dismissed(two)))
        before = await bench.everything()
        await bench.client.delete(*before)
        await bench.until(lambda: bench.at(dismissed(two)), 5.0)
        await bench.until(lambda: bench.at(one))
        assert await bench.everything() == before


async def test_it_is_ready_when_all_of_the_log_is_shown(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when it has begun, neither at its start nor when it builds anew what was lost."""
    monkeypatch.setattr(view, "BATCH", 7)
    poll, clear, open_ = view.View.poll, scripts.Scripts.clear, asyncio.Event()

    async def polled(self: view.View) -> int:
        await open_.wait()
        return await poll(self)

    async def cleared(self: scripts.Scripts, fields: Any) -> None:
        open_.clear()
        await clear(self, fields)

    async def shown(process: Process) -> int:
        open_.set()
        await bench.until(lambda: _ready(process))
        return int(await bench.client.zcard(bench.names.active))

    async def behind(process: Process) -> bool:
        return not open_.is_set() and process.ready() == (view.BEHIND,)

    monkeypatch.setattr(view.View, "poll", polled)
    monkeypatch.setattr(scripts.Scripts, "clear", cleared)
    await bench.publish(*(out(opened(n)) for n in range(1, 61)))
    async with bench.view() as process:
        await bench.until(lambda: behind(process))
        assert await shown(process) == 60
        await bench.client.delete(*await bench.everything())
        await bench.until(lambda: behind(process))
        assert await shown(process) == 60


async def test_a_store_set_back_is_caught_up(bench: Bench) -> None:
    """A server that came back from an old snapshot gets what it lacks, without repetition."""
    one, two = opened(1), opened(2)
    async with bench.view():
        await bench.publish(out(one))
        await bench.until(lambda: bench.at(one))
        await bench.publish(out(two))
        await bench.until(lambda: bench.at(two))
        before = await bench.everything()
        entries = await bench.client.xrange(bench.names.log)
        await bench.client.delete(bench.names.incident(str(two.id)))
        await bench.client.zrem(bench.names.active, str(two.id))
        await bench.client.xdel(bench.names.log, entries[-1][0])
        await bench.client.hset(bench.names.positions, "incidents/0", "0")  # type: ignore[misc]
        await bench.until(lambda: bench.at(two), 5.0)
        assert await bench.everything() == before


@pytest.mark.parametrize("value", ["abc", "1e3", "007", " 0", "\u0663", b"\xff", "9" * 5000, ""])
async def test_a_place_that_is_no_offset_is_missing(bench: Bench, value: Any) -> None:
    """The view is built anew, in the running worker and after a restart."""
    one, two = opened(1), opened(2)
    place = bench.names.positions, "incidents/0", value
    async with bench.view():
        await bench.publish(out(one))
        await bench.until(lambda: bench.at(one))
        await bench.client.hset(*place)  # type: ignore[misc]
        await bench.publish(out(two))
        await bench.until(lambda: bench.at(two))
    before = await bench.everything()
    await bench.client.hset(*place)  # type: ignore[misc]
    await bench.client.delete(bench.names.incident(str(one.id)))
    async with bench.view():
        await bench.until(lambda: bench.at(one))
        await bench.until(lambda: bench.at(two))
    assert await bench.everything() == before


@pytest.mark.parametrize("kind", ["positions", "active", "log", "incident", "count"])
async def test_a_key_of_another_type_is_replaced(bench: Bench, kind: str) -> None:
    """Whoever wrote it: the view is built anew, and does not wait for another Redis."""
    one, two = opened(1), opened(2)
    accepted = Out("training.accepted", b"x", b"s", (("nnsec-rows", b"0"),), partition=0)
    async with bench.view() as process:
        await bench.publish(out(one), accepted)
        await bench.until(lambda: bench.at(one))
        if kind == "count":
            await bench.client.hset(bench.names.source("s"), "accepted", "many")  # type: ignore[misc]
        else:
            key = getattr(bench.names, kind)
            key = key(str(two.id)) if kind == "incident" else key
            await bench.client.set(key, "x")
        await bench.publish(out(two), accepted)

        async def replaced() -> bool:
            return kind == "count" or await bench.client.type(key) != "string"

        async def counted() -> bool:
            return (await bench.hash(bench.names.source("s"))).get("accepted") == "2"

        await bench.until(replaced)
        await bench.until(lambda: bench.at(two))
        await bench.until(lambda: bench.at(one))
        await bench.until(counted)
        await bench.until(lambda: _ready(process))
        assert await bench.client.zcard(bench.names.active) == 2
        assert await bench.client.xlen(bench.names.log) == 2


async def test_a_partition_that_is_added_makes_nothing_count_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The consumer begins anew with all partitions then; what was counted stays counted once."""
    monkeypatch.setattr(view, "LOOK_EVERY", 3600.0)
    known = ClusterMetadata.partitions_for_topic
    shown = {kafka.topic_name(bench.settings, "training.accepted"): {0}}
    consumers = []
    monkeypatch.setattr(
        ClusterMetadata, "partitions_for_topic",
        lambda self, topic: shown.get(topic) or known(self, topic),
    )  # fmt: skip

    @asynccontextmanager
    async def reader(*args: Any) -> AsyncIterator[Any]:
        async with open_reader(*args) as consumer:
            consumers.append(consumer)
            yield consumer

    open_reader = process_.reader
    monkeypatch.setattr(process_, "reader", reader)

    def accepted(partition: int) -> Out:
        return Out("training.accepted", b"x", b"s", (("nnsec-rows", b"0,1"),), partition=partition)

    async def counted(number: str) -> bool:
        return (await bench.hash(bench.names.source("s"))).get("accepted") == number

    async with bench.view():
        await bench.publish(*(accepted(0) for _ in range(5)))
        await bench.until(lambda: counted("10"))
        shown.clear()
        consumers[0]._coordinator.assign_all_partitions()  # what new metadata lead to
        await bench.publish(accepted(0))
        await bench.until(lambda: counted("12"))
        await bench.publish(accepted(1))
        await bench.until(lambda: counted("14"))


async def test_only_so_many_sources_are_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest, for as long as the log keeps their samples; those with a statement for ever.

    However the log is cut for a replay, the same ones are left, with the same counts.
    """
    monkeypatch.setattr(view, "COUNTED", 12)  # 3 in each of 4 partitions
    start, rows = bench.names.source(""), (("nnsec-rows", b"0,1"),)
    before = scripts.FORGOTTEN._value.get()

    def samples(topic: str, *sources: str) -> list[Out]:
        return [Out(topic, b"x", name.encode(), rows, partition=0) for name in sources]

    def statement(name: str) -> Out:
        said = Source(source=name, state="watched", reason="r", version=1, time=T0)
        return Out("sources", said.encode(), name.encode())

    async def ttl(name: str) -> int:
        return int(await bench.client.ttl(bench.names.source(name)))

    async def applied(place: str, offset: int) -> bool:
        return (await bench.hash(bench.names.positions)).get(place) == str(offset)

    async with bench.view():
        await bench.publish(statement("told"), *samples("training.quarantine", "both"))
        await bench.until(lambda: applied("sources/0", 0))
        await bench.until(lambda: applied("training.quarantine/0", 0))
        sources = ("told", "both", "a", "b", "a", "c", "d", "b")
        await bench.publish(*samples("training.accepted", *sources))
        await bench.until(lambda: applied("training.accepted/0", 7))
        assert scripts.FORGOTTEN._value.get() - before == 3
        assert 7 * 86400 - 60 < await ttl("d") <= 7 * 86400
        await bench.publish(statement("d"))
        await bench.until(lambda: applied("sources/0", 1))
        assert (await ttl("d"), await ttl("told")) == (-1, -1)
    shown = await bench.everything()
    counts = {
        key.removeprefix(start): (one["accepted"], one["quarantined"])
        for key, one in shown.items()
        if key.startswith(start)
    }
    assert counts == {
        "told": ("2", "0"), "both": ("0", "2"),
        "b": ("2", "0"), "c": ("2", "0"), "d": ("2", "0"),
    }  # fmt: skip
    for batch in (1, 3, 500):
        monkeypatch.setattr(view, "BATCH", batch)
        await view.rebuild(bench.settings)
        assert await bench.everything() == shown


async def test_old_records_add_up(bench: Bench) -> None:
    """A log may hold what is older than a week; a replay reads all of it within a second."""
    now, rows = int(time.time() * 1000), (("nnsec-rows", b"0"),)
    kept = scripts.Scripts(bench.client, bench.names)
    await kept.clear({"training.accepted/0": -1})
    for offset in range(11):
        stamp = now - (20 - offset) * 86_400_000
        one = Record("training.accepted", 0, offset, stamp, b"s", b"x", rows)
        change = changes.counts([one], bench.names, 100)
        await kept.apply([change], {"training.accepted/0": offset - 1})
    key = bench.names.source("s")
    assert (await bench.hash(key))["accepted"] == "11"
    assert 86_400 - 60 < await bench.client.ttl(key) <= 86_400


async def test_what_redis_refuses_is_not_taken_for_applied(bench: Bench) -> None:
    """Also where nobody can empty the view then, as without Kafka."""
    kept = scripts.Scripts(bench.client, bench.names)
    await kept.clear({"sources/0": -1})
    await bench.client.set(bench.names.source("s"), "x")
    said = Source(source="s", state="quarantined", reason="r", version=1, time=T0)
    change = changes.of(Record("sources", 0, 0, 0, b"s", said.encode()), bench.names, ())
    with pytest.raises(scripts.Refused):
        await kept.apply([change], {"sources/0": -1})
    assert scripts.offsets(await kept.stored()) == {"sources/0": -1}


async def test_what_was_applied_is_not_applied_again(bench: Bench) -> None:
    """Not by the worker, and not by the script, whoever calls it."""
    accepted = Record(
        topic="training.accepted", partition=0, offset=0, timestamp=to_millis(T0), key=b"s",
        value=b"x", headers=(("nnsec-rows", b"0,1"),),
    )  # fmt: skip
    async with process_.reader(bench.settings, view.TOPICS) as consumer:
        one = view.View(bench.settings, consumer, bench.client)
        await one.resume()
        for _ in range(2):
            await one.apply([accepted])
        (change,) = one._changes([accepted])
        keys, args = [bench.names.positions, *change.keys], [change.place, 0, 0, *change.values]
        assert await one._scripts._change(keys=keys, args=[change.operation, *args]) == 0
        assert (await bench.hash(bench.names.source("s")))["accepted"] == "2"


async def test_a_record_that_redis_refuses_is_left_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When a view built anew refuses it too; what is around it is shown, and it is named."""
    monkeypatch.setattr(changes, "EXPIRY_MS", 2**63)
    one, two, three = opened(1), dismissed(opened(2)), opened(3)
    await bench.publish(out(one), out(two), out(three))
    async with bench.view() as process:
        await bench.until(lambda: _ready(process))
        assert await bench.at(one)
        assert await bench.at(three)
        assert (await bench.hash(bench.names.positions))["incidents/0"] == "2"
    said = [line.getMessage() for line in caplog.records]
    assert said.count("left out incidents/0/1: Redis refuses it") == 1


async def test_a_restart_goes_on_where_it_was(bench: Bench) -> None:
    """Nothing is repeated in the log, nothing left out."""
    one, two = opened(1), opened(2)
    async with bench.view():
        await bench.publish(out(one))
        await bench.until(lambda: bench.at(one))
    await bench.publish(out(two))
    async with bench.view():
        await bench.until(lambda: bench.at(two))
    assert await bench.client.xlen(bench.names.log) == 2


async def test_a_log_made_anew_empties_the_view(bench: Bench) -> None:
    """Positions beyond the end are of topics that are no more, and so is what was shown."""
    await bench.client.hset(bench.names.incident("ghost"), "state", "open")  # type: ignore[misc]
    await bench.client.hset(bench.names.positions, "incidents/0", "99")  # type: ignore[misc]
    one = opened(1)
    await bench.publish(out(one))
    async with bench.view():
        await bench.until(lambda: bench.at(one))
    assert await bench.hash(bench.names.incident("ghost")) == {}


async def test_a_log_made_anew_that_is_long_enough_is_noticed(bench: Bench) -> None:
    """By its identity, where the place would fit into it; but once."""
    one, ghost = opened(1), bench.names.incident("ghost")
    await bench.publish(out(one))
    async with bench.view():
        await bench.until(lambda: bench.at(one))
    await bench.client.hset(ghost, "state", "open")  # type: ignore[misc]
    anew = Meta(log=UUID(int=7), declared=T0)
    await bench.publish(Out("meta", anew.encode(), b"incidents"))
    async with bench.view():
        await bench.until(lambda: _gone(bench, ghost))
        await bench.until(lambda: bench.at(one))
        positions = await bench.hash(bench.names.positions)
        assert (positions["incidents/log"], positions["incidents/0"]) == (str(anew.log), "0")
    await bench.client.hset(ghost, "state", "open")  # type: ignore[misc]
    async with bench.view() as process:
        await bench.until(lambda: _ready(process))
    assert not await _gone(bench, ghost)


async def test_rebuild_replays_by_the_same_rules(bench: Bench) -> None:
    """And leaves keys of others alone."""
    one = opened(1)
    await bench.publish(out(one), out(dismissed(one)))
    async with bench.view():
        await bench.until(lambda: bench.at(dismissed(one)))
    before = await bench.everything()
    lock = f"{bench.settings.redis.prefix}lock:x"
    await bench.client.set(lock, "mine")
    assert await view.rebuild(bench.settings) == 2
    assert await bench.client.get(lock) == "mine"
    await bench.client.delete(lock)
    assert await bench.everything() == before


async def test_rebuild_beside_a_running_view(bench: Bench) -> None:
    """Whoever comes first writes; nothing is lost, nothing is twice in the log."""
    incidents = [opened(n) for n in range(1, 60)]
    await bench.publish(*(out(one) for one in incidents))
    async with bench.view() as process:
        await bench.until(lambda: bench.at(incidents[-1]))
        before = await bench.everything()
        for _ in range(3):
            await view.rebuild(bench.settings)
        await bench.until(lambda: bench.at(incidents[-1]))
        await bench.until(lambda: _ready(process))
        assert await bench.everything() == before


async def test_a_store_that_is_away_is_waited_for(bench: Bench, tmp_path: Path) -> None:
    """The worker says so, goes on when it is back, and builds anew what it lost."""
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    bench.settings = bench.settings.model_copy(
        update={"redis": bench.settings.redis.model_copy(update={"url": url})}
    )
    one = opened(1)
    async with bench.view() as process:
        await bench.publish(out(one))
        await bench.until(lambda: _said(process, "Redis"))
        for version in (one, dismissed(one)):
            # A client of its own for each server: one that outlives a server meets its end.
            with Store(tmp_path, port):
                async with redis.Redis.from_url(url, decode_responses=True) as bench.client:
                    await bench.publish(out(version))
                    await bench.until(lambda: bench.at(version))  # noqa: B023 - awaited here
                await bench.until(lambda: _ready(process))
            await bench.until(lambda: _said(process, "Redis"))


async def test_a_broker_that_does_not_answer_is_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it fails when asked for the end of the log or for records, the worker goes on."""
    resume, poll, failures = view.View.resume, view.View.poll, [0, 0]

    async def resumed(self: view.View) -> None:
        failures[0] += 1
        if failures[0] < 3:
            raise KafkaConnectionError
        await resume(self)

    async def polled(self: view.View) -> int:
        failures[1] += 1
        if failures[1] == 2:
            raise KafkaConnectionError
        return await poll(self)

    monkeypatch.setattr(view.View, "resume", resumed)
    monkeypatch.setattr(view.View, "poll", polled)
    one = opened(1)
    async with bench.view() as process:
        await bench.until(lambda: _ready(process))
        await bench.publish(out(one))
        await bench.until(lambda: bench.at(one))
        await bench.until(_answers)
    # Whoever is back may have other logs: the places are looked at again.
    assert failures[0] == 4
    failures[0] = 0
    with pytest.raises(TransientError, match="not complete"):
        await view.rebuild(bench.settings)


async def _gone(bench: Bench, key: str) -> bool:
    return not await bench.client.exists(key)


async def _answers() -> bool:
    return kafka.outage.since is None


async def _ready(process: Process) -> bool:
    return process.ready() == ()


async def _said(process: Process, text: str) -> bool:
    return any(text in problem for problem in process.ready())


@pytest.mark.parametrize(
    ("script", "commands"),
    [
        ("view.lua", {"HGET", "HSET", "HSETNX", "HINCRBY", "ZADD", "ZREM", "ZCARD", "ZPOPMIN",
                      "XADD", "DEL", "TIME", "PTTL", "PERSIST", "PEXPIREAT"}),
        ("clear.lua", {"SCAN", "DEL", "HSET"}),
    ],
)  # fmt: skip
def test_scripts_use_what_every_server_has(script: str, commands: set[str]) -> None:
    """Plain Lua, hashes, streams and sorted sets: Redis 6.2 and Valkey both run it."""
    text = Path(view.__file__).with_name(script).read_text("utf-8")
    assert set(re.findall(r"redis\.call\('(\w+)'", text)) == commands
