"""The evidence agent: summaries in, alerts out, and state that resumes as if nothing had been."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from nnsec.adapters import kafka
from nnsec.adapters.records import Out, Record
from nnsec.bets import Levels
from nnsec.drift import Reference
from nnsec.errors import ConfigError, SchemaError, TransientError
from nnsec.settings import Settings, parse
from schemas.alert import Alert
from schemas.base import from_millis
from schemas.summary import INPUT_ROW, Summary
from schemas.topics import DAY_MS, TOPICS
from streams import evidence as module
from streams import snapshots
from streams.agent import Context
from streams.evidence import EvidenceAgent

LOGS = {name: uuid.uuid5(uuid.NAMESPACE_DNS, name) for name in TOPICS}
HELD = frozenset({("summaries", 0), ("summaries", 1)})
REFERENCE = Reference((Levels.certified(400),), None, 0.01, 10, 400, (0.1,) * 10)


class Checkpoints:
    """Stands for the cache of checkpoints: what it knows of honest data, or an error."""

    def __init__(self) -> None:
        self.errors: dict[int, Exception] = {}
        self.asked = 0

    def calibration(self, model: str, version: int) -> Reference:
        self.asked += 1
        if version in self.errors:
            raise self.errors[version]
        return REFERENCE


class World:
    """The topics that the agent reads and writes, kept in memory."""

    def __init__(self) -> None:
        self.checkpoints = Checkpoints()
        self.topics: dict[str, list[Record]] = {"summaries": [], "alerts": [], "state": []}
        self.reads: list[str] = []

    async def read(self, topic: str, start: Mapping[int, int] | None) -> AsyncIterator[Record]:
        self.reads.append(topic)
        for record in self.topics[topic]:
            if start is None or record.offset >= start.get(record.partition, 1 << 60):
                yield record

    def agent(self) -> EvidenceAgent:
        context = SimpleNamespace(settings=parse({}), logs=LOGS, checkpoints=self.checkpoints)
        return EvidenceAgent(cast("Context", context), self.read)

    async def started(self) -> EvidenceAgent:
        agent = self.agent()
        await agent.assigned(HELD)
        return agent

    def summary(
        self, levels: Sequence[int], *, first: int, partition: int = 0, client: str = "mallory",
        model: str = "digits", version: str = "1", time: int = 0,
    ) -> Record:  # fmt: skip
        rows = np.zeros(len(levels), INPUT_ROW)
        rows["offset"] = first + np.arange(len(levels))
        rows["level"], rows["p_value"], rows["confidence"] = levels, 0.5, 0.9
        rows["fingerprint"] = 1000 + rows["offset"]
        rows["prediction"] = rows["offset"] % 10
        value = Summary.pack(
            rows, kind="input", log=LOGS["inference.inputs"], topic="inference.inputs", model=model,
            model_version=version, time=from_millis(time), subjects=(client,),
        ).encode()  # fmt: skip
        offset = sum(r.partition == partition for r in self.topics["summaries"])
        found = Record("summaries", partition, offset, time, model.encode(), value)
        self.topics["summaries"].append(found)
        return found

    def write(self, outs: Sequence[Out]) -> list[Alert]:
        for out in outs:
            log = self.topics[out.topic]
            log.append(Record(out.topic, 0, len(log), 0, out.key, out.value, out.headers))
        return [Alert.decode(out.value) for out in outs if out.topic == "alerts"]


def attack(world: World, count: int = 12) -> list[Record]:
    """Honest rows, then an attacker's, then more of it 11 s of stream time later."""
    found = [world.summary([0] * 20, first=0, client="honest")]
    later = (world.summary([5] * 4, first=20 + 4 * i, time=i * 2000) for i in range(count))
    return [*found, *later]


async def test_an_attack_is_one_episode(world: World) -> None:
    """One alert when it crosses, then one each 10 s of stream time with totals and a seq."""
    agent = await world.started()
    alerts = world.write(await agent.process(attack(world)))
    assert [alert.seq for alert in alerts] == list(range(len(alerts)))
    assert 2 <= len(alerts) <= 4
    assert len({alert.episode for alert in alerts}) == 1
    assert {(a.subject.kind, a.subject.id, a.threat) for a in alerts} == {
        ("client", "mallory", "evasion")
    }
    assert world.topics["alerts"][0].key == b"digits"
    assert dict(world.topics["alerts"][0].headers)["ce_id"].decode() == str(alerts[0].id)  # type: ignore[union-attr]
    assert world.checkpoints.asked == 1


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("cut", range(14))
@pytest.mark.parametrize("written", [True, False])
async def test_a_kill_loses_and_repeats_nothing(world: World, cut: int, written: bool) -> None:
    """Whether the newest snapshot and alerts were written or not, the alerts are those of one life.

    A new worker reads the summaries behind the snapshot again, and what is delivered again after
    that changes nothing.
    """
    whole = World()
    one = await whole.started()
    expected = [a for r in attack(whole) for a in whole.write(await one.process([r]))]
    agent = await world.started()
    records = attack(world)
    world.topics["summaries"] = records[:cut]
    for i, record in enumerate(records[:cut]):
        outs = await agent.process([record])
        if written or i < cut - 1:
            world.write(outs)
            world.write([*await agent.tick(2.0 * i), *await agent.tick(2.0 * i + 1.5)])
    world.topics["summaries"] = list(records)
    again = await world.started()
    world.write(await again.tick(100.0))
    world.write(await again.process(records))
    found = [Alert.decode(record.value) for record in world.topics["alerts"]]
    assert sorted(found, key=lambda a: a.seq) == expected
    assert len({a.id for a in found}) == len(found)


async def test_a_summary_that_comes_again_changes_nothing(world: World) -> None:
    """At any place: state and alerts are those of one life, with nothing sent in between."""
    whole = World()
    one, agent = await whole.started(), await world.started()
    for record, same in zip(attack(world), attack(whole), strict=True):
        assert await agent.process([record]) == await one.process([same])
        assert await agent.process([record]) == []
    assert agent._watches[0, "digits"].snapshot() == one._watches[0, "digits"].snapshot()
    assert agent._offsets == one._offsets


async def test_what_was_given_up_unpublished_is_handed_out_again(world: World) -> None:
    """After a rebalance that voids the batch in hand, its alerts still go out."""
    agent = await world.started()
    lost = await agent.process(attack(world))
    assert lost
    await agent.assigned(HELD)
    assert world.reads == ["state", "alerts", "summaries"]
    assert await agent.process(world.topics["summaries"]) == lost
    assert await agent.process(world.topics["summaries"]) == []


async def test_a_read_that_failed_is_done_again(world: World) -> None:
    """A registry that is away in the middle of the start leaves nothing half rebuilt."""
    attack(world)
    world.checkpoints.errors[1] = TransientError("away")
    agent = world.agent()
    with pytest.raises(TransientError):
        await agent.assigned(HELD)
    world.checkpoints.errors.clear()
    await agent.assigned(HELD)
    assert any(out.topic == "alerts" for out in await agent.tick(1.0))


async def test_partitions_that_others_hold_are_forgotten(world: World) -> None:
    """Each model has one owner: the state of a partition goes and comes with it."""
    agent = await world.started()
    world.write(await agent.process([world.summary([0] * 4, first=0, partition=1)]))
    assert len(world.write(await agent.process(attack(world)))) > 0
    await agent.assigned(frozenset({("summaries", 1)}))
    assert {key[0] for key in agent._watches} == {1}
    await agent.assigned(HELD)
    assert {key[0] for key in agent._watches} == {0, 1}
    await agent.tick(1.0)  # hands out what may not have been written before
    assert await agent.process(attack(world)) == []


@pytest.mark.parametrize("error", [ConfigError("not configured"), SchemaError("odd")])
async def test_without_a_checkpoint_nothing_is_judged(world: World, error: Exception) -> None:
    """It is counted and said; the rest of the batch is judged."""
    world.checkpoints.errors[2] = error
    agent = await world.started()
    before = module.UNJUDGED.labels("digits")._value.get()
    records = [world.summary([5] * 20, first=500, client="x", version="2"), *attack(world)]
    assert {a.subject.id for a in world.write(await agent.process(records))} == {"mallory"}
    assert module.UNJUDGED.labels("digits")._value.get() == before + 1


async def test_a_bad_summary_leaves_no_trace_of_its_batch(world: World) -> None:
    """The batch is split and comes again, so nothing of it may have counted."""
    agent = await world.started()
    records = attack(world)
    bad = Record("summaries", 0, 99, 0, None, b"{}")
    with pytest.raises(SchemaError):
        await agent.process([*records, bad])
    assert await agent.process(records) != []
    world.topics["summaries"].append(bad)
    assert (await world.started())._offsets[0] == len(records) - 1


async def test_snapshots_come_at_most_once_a_second(world: World) -> None:
    """And only where something changed."""
    agent = await world.started()
    await agent.process([world.summary([0], first=0)])
    assert await agent.tick(10.0) == []
    assert await agent.tick(10.5) == []
    (out,) = await agent.tick(11.0)
    assert (out.topic, out.key) == ("state", b"evidence/0/1/0")
    assert await agent.tick(20.0) == []


async def test_more_than_the_budget_expects_is_told_once_a_day(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A gauge shows the part handed out, another by how much to raise what is expected."""
    settings = parse({"budget": {"expected_inputs_per_day": 100}})
    context = SimpleNamespace(settings=settings, logs=LOGS, checkpoints=world.checkpoints)
    agent = EvidenceAgent(cast("Context", context), world.read)
    await agent.assigned(HELD)

    async def told(first: int, count: int, time: int = 0) -> list[str]:
        caplog.clear()
        await agent.process([world.summary([0] * count, first=first, client="plain", time=time)])
        return [record.message for record in caplog.records if record.levelname == "WARNING"]

    assert await told(0, 50) == []
    shown = module.ALLOWANCE.labels("digits", "inputs")._value.get()
    assert 0.45 < shown < 0.5
    assert await told(50, 50) == []
    (said,) = await told(100, 20)
    assert "more inputs came" in said
    assert "expected_inputs_per_day" in said
    assert module.TRAFFIC.labels("digits", "inputs")._value.get() == 1.2
    assert await told(120, 80) == [said.replace("more inputs", "more windows")]
    assert await told(200, 300) == []
    assert await told(500, 50, time=DAY_MS) == []
    assert await told(550, 60, time=DAY_MS) == [said, said.replace("more inputs", "more windows")]


async def test_what_an_earlier_day_handed_out_is_not_shown_as_todays(world: World) -> None:
    """Also of a kind of which nothing has come today yet."""
    agent = await world.started()

    def shown() -> list[float]:
        gauges = (module.ALLOWANCE, module.TRAFFIC)
        return [gauge.labels("digits", "windows")._value.get() for gauge in gauges]

    await agent.process([world.summary([0] * 64, first=0)])
    assert all(value > 0 for value in shown())
    await agent.process([world.summary([0], first=64, time=DAY_MS)])
    assert module.TRAFFIC.labels("digits", "inputs")._value.get() > 0
    assert shown() == [0, 0]


async def test_rows_without_a_name_are_counted(world: World) -> None:
    """They accuse nobody, so an operator must see how many there are; each counts once."""
    agent = await world.started()
    before = [module.UNNAMED.labels("digits", kind)._value.get() for kind in ("inputs", "samples")]
    records = [
        world.summary([5] * 30, first=0, client="anonymous"),
        world.summary([0] * 7, first=30, client="app-7"),
        world.summary([5] * 30, first=0, client="anonymous"),
    ]
    assert await agent.process(records) == []
    found = [module.UNNAMED.labels("digits", kind)._value.get() for kind in ("inputs", "samples")]
    assert [now - then for now, then in zip(found, before, strict=True)] == [30, 0]


async def test_a_large_state_is_written_in_parts_and_less_often(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two generations take turns, so that one that is torn leaves the other whole."""
    monkeypatch.setattr(snapshots, "PART_BYTES", 500)
    monkeypatch.setattr(module, "SECONDS_PER_BYTE", 0.002)
    agent = await world.started()
    for i in range(2):
        await agent.process([world.summary([0], first=i)])
        await agent.tick(100.0 + 100.0 * i)
        world.write(await agent.tick(120.0 + 100.0 * i))
    records = world.topics["state"]
    keys = [(record.key or b"").decode() for record in records]
    count = len(keys) // 2
    assert count > 2
    assert keys == [f"evidence/0/{turn}/{n}" for turn in (1, 0) for n in range(count)]
    await agent.process([world.summary([0], first=2)])
    await agent.tick(300.0)
    assert await agent.tick(301.0) == []
    again = await world.started()
    assert again._offsets == {0: 2}
    world.topics["summaries"] = world.topics["summaries"][:2]
    world.topics["state"] = records[:-1]
    again = await world.started()
    assert again._offsets == {0: 1}
    assert again._generations == {0: 1}
    world.topics["state"] = records
    assert (await world.started())._generations == {0: 0}


@pytest.mark.parametrize("how", ["value", "inside", "header", "missing", "log"])
async def test_a_damaged_or_foreign_snapshot_is_not_used(world: World, how: str) -> None:
    """What it held is rebuilt from the summaries instead."""
    agent = await world.started()
    records = attack(world)
    alerts = world.write(await agent.process(records))
    await agent.tick(10.0)
    (out,) = await agent.tick(11.0)
    whole = snapshots.Snapshot(LOGS["summaries"], 10**6, 0, {"digits": b"no state"})
    if how == "inside":
        (out,) = snapshots.write("evidence", 0, whole)
    elif how == "log":
        foreign = snapshots.Snapshot(uuid.UUID(int=0), 10**6, 0, {})
        (out,) = snapshots.write("evidence", 0, foreign)
    headers = {
        "header": (*out.headers[:1], ("nnsec-snapshot-offset", b"many"), *out.headers[2:]),
        "missing": (),
    }.get(how, out.headers)
    value = (out.value or b"")[:-1] + b"?" if how == "value" else out.value
    world.topics["state"] = [Record("state", 0, 0, 0, out.key, value, headers)]
    again = await world.started()
    assert again._offsets == {0: len(records) - 1}
    assert again._generations == {}
    assert again._watches[0, "digits"].snapshot() == agent._watches[0, "digits"].snapshot()
    assert alerts
    assert await again.tick(1.0) == []


def sealed(body: bytes) -> bytes:
    return hashlib.sha256(body).digest() + body


def part(key: str, body: bytes, **more: str) -> Record:
    """A record of `state` with a right digest, whatever it holds."""
    fields = {
        "log": str(LOGS["summaries"]), "offset": "3", "generation": "0", "part": "0", "parts": "1",
        "sha256": hashlib.sha256(body).hexdigest(),
    } | more  # fmt: skip
    headers = tuple((f"nnsec-snapshot-{name}", text.encode()) for name, text in fields.items())
    return Record("state", 0, 0, 0, key.encode(), body, headers)


@pytest.mark.parametrize(
    "hostile",
    [
        part("evidence/0/\u00b2/0", b"{}\n"),
        part("evidence/0/0/" + "9" * 5000, b"{}\n"),
        part("evidence/0/ 1/0", b"{}\n"),
        part("evidence/0/0/0", b"[1]\n"),
        part("evidence/0/0/0", b"[" * 100_000),
        part("evidence/0/0/0", b'{"digits": "x"}\n'),
        part("evidence/0/0/0", b'{"digits": -1}\nxx'),
        part("evidence/0/0/0", b"{}\n", offset="-5"),
        part("evidence/0/0/0", b"{}\n", offset="9" * 19),
        part("evidence/0/0/0", b"{}\n", parts="\u00b2"),
        part("evidence/0/0/0", b'{"digits": 32}\n' + sealed(b"")),
        part("evidence/0/0/0", b'{"digits": 34}\n' + sealed(b"PK")),
    ],
)
async def test_no_record_on_state_keeps_the_agent_from_starting(
    world: World, hostile: Record, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever its key, head and body are: it is said, and the state is as if it were not there."""
    agent = await world.started()
    records = attack(world)
    world.write(await agent.process(records))
    world.topics["state"] = [hostile]
    with caplog.at_level("INFO"):
        again = await world.started()
    assert "not used" in caplog.text
    assert again._offsets == {0: len(records) - 1}
    assert again._generations == {}
    assert again._watches[0, "digits"].snapshot() == agent._watches[0, "digits"].snapshot()


async def test_summaries_deleted_behind_a_snapshot_are_spoken_of(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What is there counts; what is gone is never passed over in silence."""
    agent = await world.started()
    await agent.process(attack(world)[:4])
    await agent.tick(10.0)
    world.write(await agent.tick(11.0))
    assert (await world.started())._offsets == {0: 12}
    assert not caplog.text
    world.topics["summaries"] = world.topics["summaries"][6:]
    assert (await world.started())._offsets == {0: 12}
    assert "summaries/0 begins at 6 now, after the 4 that the evidence is of" in caplog.text


async def test_over_a_broker(settings: Settings) -> None:
    """Snapshot and alerts are read from the topics, summaries only behind the snapshot."""
    logs = await kafka.declare(settings, now=datetime.now(UTC))
    world = World()
    context = SimpleNamespace(settings=settings, logs=logs, checkpoints=world.checkpoints)
    records = attack(world)
    async with kafka.publisher(settings) as publish:
        await publish(*(Out("summaries", r.value, r.key, partition=0) for r in records))
        agent = EvidenceAgent(cast("Context", context))
        await agent.assigned(frozenset({("summaries", 0)}))
        alerts = await agent.tick(1.0)
        assert {out.topic for out in alerts} == {"alerts"}
        await publish(*alerts, *await agent.tick(2.5))
    again = EvidenceAgent(cast("Context", context))
    await again.assigned(frozenset({("summaries", 0)}))
    assert await again.process(records) == []
    assert again._offsets == {0: len(records) - 1}
