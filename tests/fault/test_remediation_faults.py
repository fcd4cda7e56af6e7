"""Promises 5 and 8: remediation is killed and paused wherever it hurts, and acts exactly once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from nnsec.adapters import kafka
from nnsec.adapters.records import Out, Record
from nnsec.checkpoints import revoked_positions
from nnsec.settings import Settings
from nnsec.trust import keys
from schemas.revocation import Revocation
from schemas.topics import TOPICS
from streams.control import Control
from tests.conftest import SPEC, MadeCheckpoint
from tests.fault.apache import BROKER, Apache
from tests.fault.checker import Rules, check
from tests.fault.history import Came, History
from tests.fault.plant import Plant
from tests.fault.remedies import crew, identity, order, samples
from tests.fault.traffic import feeder, until, witness
from tests.fault.traps import POINTS
from workers.site import Site

SEED = 0
"""Nothing is drawn: every point is met."""
SETTLE = 60.0
WRITTEN = ("actions", "sources", "training.revocations")
PARTITIONS = range(4)


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(1, id="short"),
        pytest.param(50, id="full", marks=[pytest.mark.full, pytest.mark.timeout(3000)]),
    ],
)
async def test_kill_9_of_the_remediation_worker(
    released: Any, checkpoint: MadeCheckpoint, tmp_path: Path, shown: Callable[..., None],
    rounds: int,
) -> None:  # fmt: skip
    """Promise 5. Mutation: the source statement is said again although it stands.

    Killed at each of six points of a command's way, each time with another command: every command
    has each of its effects once, with its intent and its result on the record.
    """
    history = History()
    settings = await released()
    log = await identity(settings)
    key = keys.load_private(checkpoint.operator_key)
    cases = [(point, f"{point}-{n}") for n in range(rounds) for point in POINTS]
    with Plant(settings, tmp_path / "plant", history) as plant:
        async with (
            feeder(settings, history) as feed, witness(settings, history, WRITTEN) as seen,
            crew(settings),
        ):  # fmt: skip
            await samples(settings, log, [source for _, source in cases])
            for point, source in cases:
                worker = plant.start(
                    "worker", "remediation", trap=f"tests.fault.traps:kill_at:{point}/{source}"
                )
                await order(feed, key, "quarantine", source)
                await until(lambda: not worker.alive, SETTLE, plant.logs)  # noqa: B023
                assert worker.died(1.0), plant.logs()
            last = plant.start("worker", "remediation")
            await feed.flush()
            await until(lambda: not seen.missing(), SETTLE, plant.logs)
            assert await asyncio.to_thread(last.end) == 0, plant.logs()
            await seen.rest()
    history.save(tmp_path / "history.jsonl")
    verdict = check(history, Rules(frozenset({"commands"}), once=frozenset(WRITTEN)))
    assert verdict.kept, str(verdict)
    found = Counter((e.place[0], e.id.split("/")[-1]) for e in history.of(Came))
    count = len(cases)
    steps = {step: found["actions", step] for step in ("proposed", "running", "done")}
    assert set(steps.values()) == {count}
    effects = Counter(topic for topic, _ in found.elements())
    assert effects["sources"] == effects["training.revocations"] == count
    shown(
        5, "Tansu (embedded)", SEED, points=len(POINTS), kills=verdict.kills, **verdict.figures,
        statements=effects["sources"], revocations=effects["training.revocations"],
        intents=steps["running"], results=steps["done"],
    )  # fmt: skip


STALE = {
    "intent": "actions/running",
    "result": "actions/done",
    "effect": "training.revocations/",
}


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("models", "rounds"),
    [
        pytest.param(4, 1, id="short"),
        pytest.param(17, 4, id="full", marks=[pytest.mark.full, pytest.mark.timeout(1800)]),
    ],
)
async def test_a_worker_paused_past_its_lease(
    released: Any, apache: Apache, checkpoint: MadeCheckpoint, tmp_path: Path,
    shown: Callable[..., None], models: int, rounds: int,
) -> None:  # fmt: skip
    """Promise 8. Mutation: actions are ordered by their time and not by their version.

    A worker stands still with writes in hand; another takes over, does all of it, and a person
    then takes it back. What the first publishes when it goes on changes nothing, for any reader.
    """
    history = History()
    names = [f"m{n}" for n in range(models)]
    settings = await released(apache.url, models=dict.fromkeys(names, SPEC))
    log = await identity(settings)
    key = keys.load_private(checkpoint.operator_key)
    stale = 0
    with Plant(settings, tmp_path / "plant", history) as plant:
        async with (
            feeder(settings, history) as feed, witness(settings, history, WRITTEN) as seen,
            crew(settings),
        ):  # fmt: skip
            for n, (point, where) in ((n, case) for n in range(rounds) for case in STALE.items()):
                mine = [f"{point}-{n}-{name}" for name in names]
                await samples(settings, log, mine)
                first = plant.start(
                    "worker", "remediation",
                    trap=f"tests.fault.traps:stand_still:{where}/{models}",
                )  # fmt: skip
                for name, source in zip(names, mine, strict=True):
                    await order(feed, key, "quarantine", source, name)
                await feed.flush()
                await until(first.stopped, SETTLE, plant.logs)
                history.fault("pause", first.name)
                second = plant.start("worker", "remediation")
                await until(lambda: not seen.missing(), SETTLE, plant.logs)
                for name, source in zip(names, mine, strict=True):
                    await order(feed, key, "release", source, name)
                await feed.flush()
                await until(lambda: not seen.missing(), SETTLE, plant.logs)
                before = seen.total
                first.resume()
                await until(lambda: seen.total >= before + models, SETTLE, plant.logs)  # noqa: B023
                await asyncio.sleep(1.5)  # whatever else it might do about them
                stale += seen.total - before
                for worker in (first, second):
                    assert await asyncio.to_thread(worker.end) == 0, plant.logs()
            await seen.rest()
    history.save(tmp_path / "history.jsonl")
    verdict = check(history, Rules(frozenset({"commands"})))
    assert "lost" not in verdict.faults, str(verdict)
    accepted_ones = await wrong(settings)
    assert accepted_ones == [], f"{len(accepted_ones)} of {stale}: {accepted_ones[:5]}"
    assert stale >= models * rounds * len(STALE)
    shown(
        8, BROKER, SEED, pauses=rounds * len(STALE), stale_writes=stale,
        accepted=len(accepted_ones), commands=verdict.acked,
    )  # fmt: skip


async def wrong(settings: Settings) -> list[str]:
    """What any reader, who reads all topics from the beginning, would hold other than it is.

    In the end every source is trusted, every action done in its three steps, nothing revoked.
    """
    logs = {name: UUID(int=1) for name in TOPICS}

    async def silent(*_: Out) -> bool:
        raise AssertionError("a reader writes nothing")

    site = Site(settings, logs, {"incidents": 1}, silent)
    control = Control(settings, uuid4())
    records: list[Record] = []
    async for record in kafka.read_to_end(settings, WRITTEN):
        site.learn(record)
        records.append(record)
        if record.topic == "sources":
            control.apply(record)
    found = [
        f"{action.id}: {action.outcome} in step {action.version}"
        for action in site.actions.values()
        if (action.outcome, action.version) != ("done", 3)
    ]
    found += [f"{name} is {one.state}" for name, one in site.sources.items()
              if one.state != "trusted" or control.quarantined(name)]  # fmt: skip
    said = [Revocation.decode(r.value) for r in records if r.topic == "training.revocations"]
    found += [f"{place} is revoked" for place in revoked_positions(said)]
    return found
