"""Promises 2 and 3: the broker is killed and stopped under work, and nothing is lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MadeCheckpoint
from tests.fault.apache import BROKER, Apache
from tests.fault.checker import Rules, Verdict, check
from tests.fault.history import History
from tests.fault.plant import Plant, Worker
from tests.fault.traffic import INPUTS, commits, feeder, finish, send, until, witness

SEED = 20_260_102
SETTLE = 90.0
RESUME, DRAIN, GROWTH = 20.0, 60.0, 100 * 1024 * 1024
"""The promises: seconds until work resumes, seconds until the backlog is gone, bytes."""
IMPATIENT = "tests.fault.traps:impatient:{}"


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("inputs", "kills"),
    [
        pytest.param(4_000, 1, id="short"),
        pytest.param(100_000, 10, id="full", marks=[pytest.mark.full, pytest.mark.timeout(3000)]),
    ],
)
async def test_kill_9_of_the_broker(
    released: Any, apache: Apache, checkpoint: MadeCheckpoint, tmp_path: Path,
    shown: Callable[..., None], inputs: int, kills: int,
) -> None:  # fmt: skip
    """Promise 2. Mutation: a lane counts a batch as acknowledged that failed.

    Killed at random points and started again on its folder: nothing that it acknowledged is lost,
    and the same process of ours goes on within 20 s.
    """
    rng, history = random.Random(SEED), History()
    settings = await released(apache.url)
    resumed: list[float] = []
    with Plant(settings, tmp_path / "plant", history) as plant:
        worker = plant.start("stream", "--role", "score", trap=IMPATIENT.format(2000))
        async with (
            feeder(settings, history, idempotent=True) as feed,
            witness(settings, history) as seen,
            commits(settings, history, ("score", INPUTS)),
        ):
            await send(feed, checkpoint, 20)
            await until(lambda: seen.count, SETTLE, plant.logs)
            part = inputs // (kills + 1)
            for _ in range(kills):
                mark = seen.count + rng.randrange(1, part // 2)
                sending = asyncio.create_task(send(feed, checkpoint, part))
                await until(lambda: seen.count >= mark, SETTLE, plant.logs, 0.005)  # noqa: B023
                apache.kill()
                history.fault("kill", "broker")
                await asyncio.sleep(rng.uniform(0.0, 2.0))
                await asyncio.to_thread(apache.start)
                back = time.time()
                history.fault("start", "broker")
                # What was sent before may have been scored already when the broker died.
                more = asyncio.create_task(send(feed, checkpoint, 20))
                await until(lambda: seen.latest > back, RESUME, plant.logs)  # noqa: B023
                resumed.append(seen.latest - back)
                await asyncio.gather(sending, more)
            await send(feed, checkpoint, part)
            await finish(feed, seen, plant, [], SETTLE)
            assert worker.alive
            await finish(feed, seen, plant, [worker], SETTLE)
    verdict = judged(history, tmp_path)
    shown(
        2, BROKER, SEED, kills=kills, **verdict.figures,
        longest_seconds_to_resume=round(max(resumed), 1),
    )  # fmt: skip


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("inputs", "seconds"),
    [
        pytest.param(6_000, 12.0, id="short"),
        pytest.param(60_000, 60.0, id="full", marks=[pytest.mark.full, pytest.mark.timeout(900)]),
    ],
)
async def test_a_broker_that_stands_still(
    released: Any, apache: Apache, checkpoint: MadeCheckpoint, tmp_path: Path,
    shown: Callable[..., None], inputs: int, seconds: float,
) -> None:  # fmt: skip
    """Promise 3. Mutation: a lane stops at a batch that timed out.

    Connections stay open and nothing is answered, for longer than any session: nothing is lost,
    memory stays bounded, and the backlog is gone soon after.
    """
    history = History()
    settings = await released(apache.url)
    with Plant(settings, tmp_path / "plant", history) as plant:
        worker = plant.start("stream", "--role", "score", trap=IMPATIENT.format(int(seconds * 400)))
        async with (
            feeder(settings, history, idempotent=True) as feed,
            witness(settings, history) as seen,
            commits(settings, history, ("score", INPUTS)),
        ):
            await send(feed, checkpoint, inputs // 3)
            await until(lambda: seen.count > inputs // 6, SETTLE, plant.logs)
            before, sending = worker.memory(), asyncio.create_task(send(feed, checkpoint, inputs))
            await asyncio.sleep(0.2)
            apache.pause()
            history.fault("pause", "broker")
            peak = await highest(worker, seconds)
            apache.resume()
            history.fault("resume", "broker")
            back = time.monotonic()
            await sending
            await finish(feed, seen, plant, [], DRAIN)
            drained = time.monotonic() - back
            peak = max(peak, worker.memory())
            assert worker.alive
            await finish(feed, seen, plant, [worker], SETTLE)
    verdict = judged(history, tmp_path)
    assert peak - before <= GROWTH, f"{(peak - before) / 1e6:.0f} MB"
    assert drained <= DRAIN
    shown(
        3, BROKER, SEED, seconds_stopped=seconds, **verdict.figures,
        growth_MB=round((peak - before) / 1e6, 1), seconds_to_drain=round(drained, 1),
    )  # fmt: skip


async def highest(worker: Worker, seconds: float) -> int:
    """The largest resident size (bytes) within a time."""
    deadline, found = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        found = max(found, worker.memory())
        await asyncio.sleep(0.2)
    return found


def judged(history: History, folder: Path) -> Verdict:
    """What the checker says, which must be that all was kept."""
    history.save(folder / "history.jsonl")
    verdict = check(history, Rules(frozenset({INPUTS})))
    assert verdict.kept, f"seed {SEED}: {verdict}"
    return verdict
