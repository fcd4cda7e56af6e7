"""Promises 6 and 7: Redis is killed and away; it is a view, and loses nothing for good."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis.asyncio as redis

from nnsec.adapters import kafka
from nnsec.adapters.records import Out
from nnsec.incidents import AlertSeen, Dismissed, stamped, step
from nnsec.settings import Settings
from nnsec.trust import keys
from schemas.incident import Incident
from schemas.source import Source
from tests.conftest import MadeCheckpoint
from tests.fault.checker import Rules, check
from tests.fault.history import History
from tests.fault.plant import Plant
from tests.fault.remedies import order
from tests.fault.traffic import INPUTS, OUTCOMES, Feeder, binary, feeder, finish, until, witness
from tests.workers import stage
from workers import store, view
from workers.embedded import Store

SEED = 20_260_106
SETTLE = 60.0
BACK, DRAIN = 5.0, 30.0
"""The promises: seconds until the view is written again, and until it shows all that it missed."""


class Server:
    """A Valkey server at one address, killed and started again there; it keeps nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = Store(folder).start()
        self.url = self._store.url

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self._store.pid, signal.SIGKILL)
        self._store.stop()

    def start(self) -> None:
        """Start it again, empty, where it was."""
        self._store = Store(self._folder, self._store.port).start()

    def stop(self) -> None:
        """At the end of the test."""
        self._store.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path / "redis")
    yield found
    found.stop()


@pytest.mark.parametrize(
    ("kills", "records"),
    [
        pytest.param(2, 150, id="short"),
        pytest.param(10, 1_000, id="full", marks=[pytest.mark.full, pytest.mark.timeout(900)]),
    ],
)
async def test_redis_is_killed(
    released: Any, server: Server, tmp_path: Path, shown: Callable[..., None],
    kills: int, records: int,
) -> None:  # fmt: skip
    """Promise 6. Mutation: where Redis has no places the view is not built anew.

    Killed while the view is written, and empty when it is back: each time Redis comes to hold what
    a replay of Kafka into another, empty server gives, soon after it is back.
    """
    rng, history, back = random.Random(SEED), History(), []
    settings = await released(redis={"url": server.url})
    with Plant(settings, tmp_path / "plant", history) as plant:
        worker = plant.start("worker", "view")
        async with kafka.publisher(settings) as publish:
            for turn in range(kills):
                telling = asyncio.create_task(tell(publish, rng, turn, records))
                await until_async(lambda: moved(settings), SETTLE, plant)
                await asyncio.sleep(rng.uniform(0.0, 0.3))
                server.kill()
                history.fault("kill", "redis")
                await asyncio.sleep(rng.uniform(0.0, 1.0))
                await telling
                server.start()
                began = time.monotonic()
                await until_async(lambda: moved(settings), SETTLE, plant)
                back.append(time.monotonic() - began)
                await until_async(lambda: complete(settings), SETTLE, plant)
                assert await contents(settings) == await replayed(settings, tmp_path)
        assert worker.alive
        assert await asyncio.to_thread(worker.end) == 0, plant.logs()
    assert max(back) <= BACK, back
    shown(
        6, "Tansu (embedded), Valkey 9.1", SEED, kills=kills, records=kills * records,
        equal_to_the_replay=len(back), longest_seconds_until_back=round(max(back), 1),
    )  # fmt: skip


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(6.0, id="short"),
        pytest.param(120.0, id="full", marks=[pytest.mark.full, pytest.mark.timeout(900)]),
    ],
)
async def test_redis_is_away(
    released: Any, server: Server, checkpoint: MadeCheckpoint, tmp_path: Path,
    shown: Callable[..., None], seconds: float,
) -> None:  # fmt: skip
    """Promise 7. Mutation: the view ends when Redis does not answer.

    Inputs are scored, an attack becomes an incident and commands are carried out while there is no
    Redis at all; soon after it is back it shows all that.
    """
    history = History()
    settings = await released(redis={"url": server.url})
    key = keys.load_private(checkpoint.operator_key)
    topics = (*OUTCOMES, "alerts", "incidents", "actions")
    with Plant(settings, tmp_path / "plant", history) as plant:
        async with feeder(settings, history) as feed, witness(settings, history, topics) as seen:
            workers = [
                plant.start("worker", "view"), plant.start("stream"),
                plant.start("worker", "remediation"),
            ]  # fmt: skip
            await attack(feed, checkpoint, 20, "app")
            await until(lambda: seen.count >= 20, SETTLE, plant.logs)
            await until_async(lambda: moved(settings), SETTLE, plant)
            server.kill()
            history.fault("kill", "redis")
            began, commands = time.monotonic(), 0
            while time.monotonic() - began < seconds:
                await attack(feed, checkpoint, 30, "mallory")
                await order(feed, key, "quarantine", f"source-{commands}")
                commands += 1
                await asyncio.sleep(seconds / 12)
            await feed.flush()
            await until(lambda: not seen.missing(), SETTLE, plant.logs)
            opened = {
                (incident.family, incident.id)
                async for record in kafka.read_to_end(settings, ("incidents",))
                for incident in (Incident.decode(record.value),)
            }
            assert {family for family, _ in opened} == {"evasion"}
            server.start()
            began = time.monotonic()
            await until_async(lambda: complete(settings), DRAIN, plant)
            drained = time.monotonic() - began
            await finish(feed, seen, plant, workers, SETTLE)
            held = await contents(settings)
    history.save(tmp_path / "history.jsonl")
    verdict = check(history, Rules(frozenset({INPUTS, "commands"}), once=frozenset({"actions"})))
    assert verdict.kept, str(verdict)
    assert held == await replayed(settings, tmp_path)
    shown(
        7, "Tansu (embedded), Valkey 9.1", SEED, seconds_away=seconds,
        **verdict.figures, commands_carried_out_meanwhile=commands,
        incidents_opened_meanwhile=len(opened), seconds_to_drain=round(drained, 1),
    )  # fmt: skip


async def attack(feed: Feeder, checkpoint: MadeCheckpoint, count: int, client: str) -> None:
    """Send inputs: of an honest client, or noise."""
    rng = random.Random(f"{SEED}{feed.sent}")
    for n in range(count):
        x = checkpoint.x[n].copy()
        if client == "mallory":
            x.flat[:] = [rng.randrange(17) for _ in range(x.size)]
        value, headers = binary(x, f"i{feed.sent}", client)
        await feed.send(value, headers, key=client.encode())


async def tell(publish: kafka.Publisher, rng: random.Random, turn: int, count: int) -> None:
    """Write what the view shows: incidents that grow and end, sources, counts of samples."""
    incident: Incident | None = None
    for n in range(count):
        number = turn * count + n
        choice = rng.randrange(4)
        if choice == 0 or incident is None:
            said = AlertSeen(stage.alert(number + 1, f"s{number % 5}"))
            incident = step(None, said, log=UUID(int=1)).incident
        elif choice == 1:
            over = Dismissed("c", "digits", "key", "a drill", datetime.now(UTC))
            incident = step(incident, over, log=UUID(int=1)).incident
        else:
            incident = stamped(incident)
        assert incident is not None
        source = Source(source=f"s{number % 5}", state="watched", reason="r", version=number + 1,
                        time=datetime.now(UTC))  # fmt: skip
        await publish(
            Out("incidents", incident.encode(), str(incident.id).encode(), partition=0),
            Out("sources", source.encode(), source.source.encode()),
            Out("training.accepted", b"x", source.source.encode(), (("nnsec-rows", b"0,1"),)),
        )
        if choice == 1:
            incident = None


@asynccontextmanager
async def client(url: str) -> AsyncIterator[redis.Redis]:
    """A client of its own for each look: one that outlives a server meets its end."""
    async with redis.Redis.from_url(url, decode_responses=True) as found:
        yield found


async def positions(settings: Settings) -> dict[str, int]:
    """What the view has applied of each partition."""
    async with client(settings.redis.url) as found:
        stored = await store.read_hash(found, store.Keys(settings.redis.prefix).positions)
    return {place: int(at) for place, at in stored.items() if not place.endswith("/log")}


async def moved(settings: Settings) -> bool:
    """Whether the view was begun and something was applied."""
    return max((await positions(settings)).values(), default=-1) >= 0


async def complete(settings: Settings) -> bool:
    """Whether all that lies in the log now was applied."""
    found = await positions(settings)
    ends: dict[str, int] = {}
    async for record in kafka.read_to_end(settings, view.TOPICS):
        ends[f"{record.topic}/{record.partition}"] = record.offset
    return ends.items() <= found.items()


async def contents(settings: Settings) -> dict[str, Any]:
    """All keys and values of the view, but for the stream's own ids."""
    found: dict[str, Any] = {}
    async with client(settings.redis.url) as one:
        async for key in one.scan_iter(match=f"{settings.redis.prefix}*"):
            kind = await one.type(key)
            if kind == "hash":
                found[key] = await store.read_hash(one, key)
            elif kind == "zset":
                found[key] = await one.zrange(key, 0, -1, withscores=True)
            else:
                found[key] = [entry for _, entry in await one.xrange(key)]
    return found


async def replayed(settings: Settings, folder: Path) -> dict[str, Any]:
    """The same, out of a replay of Kafka into an empty server."""
    with Store(folder / "replay") as empty:
        other = settings.model_copy(
            update={"redis": settings.redis.model_copy(update={"url": empty.url})}
        )
        await view.rebuild(other)
        return await contents(other)


async def until_async(met: Callable[[], Any], seconds: float, plant: Plant) -> None:
    """Wait until a question that is asked of a server has a true answer."""
    deadline = time.monotonic() + seconds
    while not await met():
        assert time.monotonic() < deadline, plant.logs()
        await asyncio.sleep(0.05)
