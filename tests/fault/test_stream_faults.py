"""Promises 1 and 4: stream processes are killed, added and removed, and nothing is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MadeCheckpoint
from tests.fault.checker import Rules, check
from tests.fault.history import History
from tests.fault.plant import Plant, Worker
from tests.fault.traffic import (
    INPUTS,
    Feeder,
    Witness,
    binary,
    feeder,
    note_commits,
    until,
    witness,
)

SEED = 20_260_101
SETTLE = 90.0
"""Seconds within which what was sent must have its outcome, on a machine that does other work."""
SLACK = 1.5
"""Seconds beside the commit interval: a commit on its way, and a machine that does other work."""


@pytest.mark.parametrize(
    ("inputs", "kills"),
    [
        pytest.param(6_000, 3, id="short"),
        pytest.param(300_000, 20, id="full", marks=[pytest.mark.full, pytest.mark.timeout(3000)]),
    ],
)
async def test_kill_9_of_the_stream_process(
    released: Any, checkpoint: MadeCheckpoint, tmp_path: Path, shown: Callable[..., None],
    inputs: int, kills: int,
) -> None:  # fmt: skip
    """Promise 1. Mutation: `Delivery` notes a batch as finished before its outputs are published.

    Killed at random points of its work: no input is without an outcome, none has two, and what
    comes again is at most what one commit interval scored.
    """
    rng, history = random.Random(SEED), History()
    settings = await released()
    with Plant(settings, tmp_path / "plant", history) as plant:
        async with feeder(settings, history) as feed, witness(settings, history) as seen:
            worker = plant.start("stream", "--role", "score")
            await send(feed, checkpoint, 20)
            await until(lambda: seen.count, SETTLE, plant.logs)
            part = inputs // (kills + 1)
            for _ in range(kills):
                mark = seen.count + rng.randrange(1, part)
                sending = asyncio.create_task(send(feed, checkpoint, part))
                await until(lambda: seen.count >= mark, SETTLE, plant.logs, 0.005)  # noqa: B023
                worker.kill()
                await note_commits(settings, history, "score", (INPUTS,))
                worker = plant.start("stream", "--role", "score")
                await sending
            await send(feed, checkpoint, part)
            await finish(feed, seen, plant, [worker])
        await note_commits(settings, history, "score", (INPUTS,))
    window = settings.kafka.commit_interval + SLACK
    rules = Rules(frozenset({INPUTS}), ordered=frozenset({"scores"}), window=window)
    history.save(tmp_path / "history.jsonl")
    verdict = check(history, rules)
    assert verdict.kept, f"seed {SEED}: {verdict}"
    shown(
        1, "Tansu (embedded)", SEED, kills=kills, inputs=verdict.acked, lost=0,
        logical_duplicates=0, scored_twice=verdict.replays,
        oldest_seconds_before_the_kill=round(verdict.oldest_replay, 2),
    )  # fmt: skip


async def send(feed: Feeder, checkpoint: MadeCheckpoint, count: int) -> None:
    """Send inputs as fast as they are taken; one in a hundred is no input."""
    for _ in range(count):
        n = feed.sent
        if n % 100 == 7:
            await feed.send(b"not an input")
        else:
            value, headers = binary(checkpoint.x[n % len(checkpoint.x)], f"i{n}", f"c{n % 7}")
            await feed.send(value, headers, key=b"%d" % (n % 7))
        if n % 200 == 0:
            await asyncio.sleep(0)


async def finish(feed: Feeder, seen: Witness, plant: Plant, workers: list[Worker]) -> None:
    """Let all that was acknowledged come out, end in good order, and look at what is there."""
    await feed.flush()
    await until(lambda: not seen.missing(), SETTLE, plant.logs, 0.2)
    for worker in workers:
        assert await asyncio.to_thread(worker.end) == 0, plant.logs()
    await seen.rest()
