"""Steady load, a burst, and a second worker: nothing is lost, and what waits is bounded."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnsec.settings import Settings
from nnsec.trust import keys
from nnsec.trust.commands import sign_command
from schemas.command import Command
from schemas.inference import encode_request
from tests.conftest import MadeCheckpoint
from tests.fault.apache import BROKER
from tests.fault.checker import Rules, check
from tests.fault.history import Acked, Asked, Came, History
from tests.fault.plant import Plant, Worker
from tests.fault.traffic import INPUTS, OUTCOMES, Feeder, Witness, feeder, until, witness

SETTLE = 120.0
BACKLOG = 300.0
"""Seconds in which what a burst left behind must be gone."""
STEP = 0.02
MB = 2**20
SEED = 12


class Sender:
    """Sends inputs of seven honest clients, at a rate or as fast as they are taken."""

    def __init__(self, feed: Feeder, checkpoint: MadeCheckpoint, rows: int = 1) -> None:
        self._feed = feed
        rng = np.random.default_rng(SEED)
        picks = rng.integers(0, len(checkpoint.x), (256, rows))
        self._ready = [
            encode_request(model="digits", x=checkpoint.x[pick], id=f"i{n}", client=f"c{n % 7}")
            for n, pick in enumerate(picks)
        ]

    async def all(self, count: int) -> None:
        """So many at once."""
        for _ in range(count):
            value, headers = self._ready[self._feed.sent % len(self._ready)]
            await self._feed.send(value, headers, key=b"%d" % self._feed.sent)

    async def at(self, rate: float, seconds: float) -> None:
        """So many a second, in small steps; what a busy machine delays is caught up."""
        began, sent = time.monotonic(), 0
        while (passed := time.monotonic() - began) < seconds:
            due = int(rate * passed) - sent
            await self.all(due)
            sent += due
            await asyncio.sleep(STEP)


async def drained(sender: Sender, seen: Witness, plant: Plant, count: int) -> float:
    """Inputs a second, from a backlog that waits when the first outcome comes."""
    before = seen.count
    await sender.all(count)
    await until(lambda: seen.count > before, SETTLE, plant.logs, 0.01)
    began, first = time.monotonic(), seen.count
    await until(lambda: seen.count >= before + count, SETTLE, plant.logs, 0.01)
    return (before + count - first) / max(time.monotonic() - began, 1e-3)


def latencies(history: History, since: float, until: float) -> list[float]:
    """Seconds from asking the producer to the broker's stamp on the score, sorted."""
    asked = {e.name: e.at for e in history.of(Asked)}
    places = {e.place: asked[e.name] for e in history.of(Acked)}
    return sorted(
        e.at - places[e.about]
        for e in history.of(Came)
        if e.about in places and since <= places[e.about] < until
    )


def cpu(worker: Worker) -> float:
    """Seconds that a process and its children have computed for."""
    children = Path(f"/proc/{worker.pid}/task").glob("*/children")
    pids = [worker.pid, *(pid for path in children for pid in path.read_text().split())]
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(words[11]) + int(words[12]) for words in stats) / os.sysconf("SC_CLK_TCK")


def quantile(values: Sequence[float], q: float) -> float:
    return round(1000 * values[min(len(values) - 1, int(q * len(values)))], 1)


async def order(feed: Feeder, checkpoint: MadeCheckpoint, source: str) -> None:
    """A signed command: quarantine a source."""
    now = datetime.now(UTC)
    command = Command(
        id=f"q-{source}", kind="quarantine", model="digits", target=source, reason="a test",
        issued=now, expires=now + timedelta(hours=1),
    )  # fmt: skip
    key = keys.load_private(checkpoint.operator_key)
    await feed.send(sign_command(command, key), topic="commands", key=source.encode())


@pytest.mark.parametrize(
    ("kind", "seconds", "burst", "backlog"),
    [
        pytest.param("embedded", 4.0, 2.0, 2000, id="short"),
        pytest.param(
            # The embedded broker takes the longer to answer a fetch the more it holds.
            "apache", 1800.0, 60.0, 20_000, id="full",
            marks=[pytest.mark.full, pytest.mark.timeout(4000)],
        ),
    ],
)  # fmt: skip
async def test_steady_load_and_a_burst(
    released: Any, checkpoint: MadeCheckpoint, tmp_path: Path, shown: Callable[..., None],
    request: pytest.FixtureRequest, kind: str, seconds: float, burst: float, backlog: int,
) -> None:  # fmt: skip
    """Promises 12 and 13. Mutation: the intake has no bound on its queue, or drops when full.

    Half of saturation, measured first, then twice saturation upon it: every input has its outcome
    once, memory does not grow with what waits, and a command is served before the backlog is.
    """
    history = History()
    apache = request.getfixturevalue("apache") if kind == "apache" else None
    settings: Settings = await released(apache.url if apache else "")
    topics = (*OUTCOMES, "sources")
    with Plant(settings, tmp_path / "plant", history) as plant:
        async with feeder(settings, history) as feed, witness(settings, history, topics) as seen:
            worker = plant.start("stream")
            plant.start("worker", "remediation")
            sender = Sender(feed, checkpoint)
            await drained(sender, seen, plant, 300)
            rate = await drained(sender, seen, plant, backlog)
            began = time.time()
            await sender.at(rate / 2, seconds / 2)
            middle = worker.memory()
            await sender.at(rate / 2, seconds / 2)
            steady, end = worker.memory(), time.time()
            storm = asyncio.create_task(sender.at(2.5 * rate, burst))
            await asyncio.sleep(burst / 2)
            await order(feed, checkpoint, "lab-7")
            most = await _peak(worker, storm)
            await feed.flush()
            # All but the command; the exact look goes through the whole history, so it comes last.
            await until(lambda: seen.count >= feed.sent - 1, BACKLOG, plant.logs)
            await until(lambda: not _unserved(seen), SETTLE, plant.logs, 1.0)
            await seen.rest()
        history.save(tmp_path / "history.jsonl")
    verdict = check(history, Rules(frozenset({INPUTS}), ordered=frozenset({"scores"})))
    assert verdict.kept, str(verdict)
    assert steady - middle < 20 * MB + MB * seconds / 60
    assert most - steady < 150 * MB
    waited = latencies(history, began, end)
    last = max(e.at for e in history.of(Came) if e.place[0] == "scores")
    served = min(e.at for e in history.of(Came) if e.place[0] == "sources")
    assert served < last, "a command waited for the whole backlog"
    shown(
        12, BROKER if apache else "Tansu (embedded)", SEED, inputs=verdict.acked, lost=0,
        saturation=round(rate),
        score_ms={q: quantile(waited, q) for q in (0.5, 0.99, 0.999)},
        memory_grew_mb=round((steady - middle) / MB, 1),
        burst_grew_mb=round((most - steady) / MB, 1),
    )  # fmt: skip


async def _peak(worker: Worker, storm: asyncio.Task[None]) -> int:
    """The most memory of a process until a task is done."""
    most = worker.memory()
    while not storm.done():
        most = max(most, worker.memory())
        await asyncio.sleep(0.1)
    await storm
    return max(most, worker.memory())


def _unserved(seen: Witness) -> int:
    """Inputs without an outcome; commands are told elsewhere."""
    acked = (e.place for e in seen._history.of(Acked) if e.place[0] == INPUTS)
    return sum(place not in seen.about for place in acked)


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.full
@pytest.mark.timeout(600)
async def test_two_workers_share_the_work(
    released: Any, checkpoint: MadeCheckpoint, tmp_path: Path, shown: Callable[..., None], rows: int
) -> None:
    """One process, then two, drain the same backlog: each input once; the rates are reported."""
    history, rates, costs, started = History(), {}, {}, []
    settings: Settings = await released()
    count = 8000 if rows == 1 else 1500
    with Plant(settings, tmp_path / "plant", history) as plant:
        async with feeder(settings, history) as feed, witness(settings, history) as seen:
            sender = Sender(feed, checkpoint, rows)
            for workers in (1, 2):
                started.append(plant.start("stream", "--role", "score"))
                await drained(sender, seen, plant, 300)
                await asyncio.sleep(6.0)  # the group settles
                before = sum(map(cpu, started))
                found = [await drained(sender, seen, plant, count) for _ in range(3)]
                rates[workers] = round(sorted(found)[1] * rows)
                spent = sum(map(cpu, started)) - before
                costs[workers] = round(spent / (3 * count * rows) * 1e6, 1)
            await feed.flush()
            await until(lambda: not seen.missing(), SETTLE, plant.logs)
            await seen.rest()
    verdict = check(history, Rules(frozenset({INPUTS}), ordered=frozenset({"scores"})))
    assert verdict.kept, str(verdict)
    shown(
        13, "Tansu (embedded)", SEED, rows_a_record=rows, inputs_a_second_by_workers=rates,
        cpu_us_an_input_by_workers=costs,
    )  # fmt: skip
