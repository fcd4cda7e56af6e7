"""Promises 1 and 4: stream processes are killed, added and removed, and nothing is lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnsec.adapters import kafka
from schemas.incident import Incident
from schemas.training import encode_sample
from tests.conftest import MadeCheckpoint
from tests.fault.checker import Rules, check
from tests.fault.history import History
from tests.fault.plant import Plant, Worker
from tests.fault.traffic import (
    INPUTS,
    OUTCOMES,
    SAMPLES,
    Feeder,
    binary,
    commits,
    feeder,
    finish,
    send,
    until,
    witness,
)

SEED = 20_260_101
SETTLE = 90.0
"""Seconds within which what was sent must have its outcome, on a machine that does other work."""
FOREVER = 10**9
CYCLE = 4.0
"""Seconds from kill to kill, about: half of them until the group gives up the dead."""
SLOWEST = 400.0
"""Inputs a second that a slow machine scores at least."""
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
    """Promise 1. Mutation: a batch counts as finished before its outputs are published.

    Killed at random points of its work: no input is without an outcome, none has two, and what
    comes again is at most what one commit interval scored.
    """
    rng, history = random.Random(SEED), History()
    settings = await released()
    with Plant(settings, tmp_path / "plant", history) as plant:
        async with (
            feeder(settings, history) as feed, witness(settings, history) as seen,
            commits(settings, history, ("score", INPUTS)),
        ):  # fmt: skip
            worker = plant.start("stream", "--role", "score")
            sending = asyncio.create_task(send(feed, checkpoint, FOREVER, inputs / kills / CYCLE))
            for _ in range(kills):
                begun = time.time()
                await until(lambda: seen.latest > begun, SETTLE, plant.logs, 0.01)  # noqa: B023
                await asyncio.sleep(rng.uniform(0.0, 3 * settings.kafka.commit_interval))
                worker.kill()
                worker = plant.start("stream", "--role", "score")
            await until(lambda: feed.sent >= inputs, SETTLE, plant.logs)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            # The backlog of a group that was away for half of the time takes as long as its size.
            await finish(feed, seen, plant, [worker], SETTLE + feed.sent / SLOWEST)
    window = {"scores": settings.kafka.commit_interval + SLACK}
    rules = Rules(frozenset({INPUTS}), ordered=frozenset({"scores"}), window=window)
    history.save(tmp_path / "history.jsonl")
    verdict = check(history, rules)
    assert verdict.kept, f"seed {SEED}: {verdict}"
    shown(
        1, "Tansu (embedded)", SEED, kills=kills, **verdict.figures,
        oldest_seconds_before_the_kill=round(verdict.oldest_replay, 2),
    )  # fmt: skip


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(2, id="short"),
        pytest.param(10, id="full", marks=[pytest.mark.full, pytest.mark.timeout(900)]),
    ],
)
async def test_a_second_process_is_added_and_removed(
    released: Any, checkpoint: MadeCheckpoint, tmp_path: Path, shown: Callable[..., None],
    times: int,
) -> None:  # fmt: skip
    """Promise 4. Mutation: the correlator does not read the incidents of its new partitions.

    With all roles, inputs of honest and of hostile clients, and training samples: nothing is lost,
    one attack stays one incident, and each source partition is followed in its order.
    """
    rng, history = random.Random(SEED), History()
    settings = await released(budget={"expected_inputs_per_day": 10_000})
    accepted = ("training.accepted", "training.quarantine")
    topics = (*OUTCOMES, *accepted, "alerts", "incidents")
    with Plant(settings, tmp_path / "plant", history) as plant:
        async with (
            feeder(settings, history) as feed, witness(settings, history, topics) as seen,
            commits(settings, history, ("score", INPUTS), ("screen", SAMPLES)),
        ):  # fmt: skip
            first = plant.start("stream")
            traffic = asyncio.create_task(mixed(feed, checkpoint))
            await until(lambda: seen.count > 100, SETTLE, plant.logs)
            for _ in range(times):
                second = plant.start("stream")
                await until(lambda: holds(second), SETTLE, plant.logs)  # noqa: B023
                await asyncio.sleep(rng.uniform(0.5, 2.0))
                assert await asyncio.to_thread(second.end) == 0, plant.logs()
                mark = seen.count
                await until(lambda: seen.count > mark + 100, SETTLE, plant.logs)  # noqa: B023
            traffic.cancel()
            await asyncio.gather(traffic, return_exceptions=True)
            await finish(feed, seen, plant, [first], SETTLE)
        incidents = {
            (found.model, found.family, found.id)
            async for record in kafka.read_to_end(settings, ("incidents",))
            for found in (Incident.decode(record.value),)
        }
    ordered = frozenset({"scores", "alerts", "incidents", *accepted})
    history.save(tmp_path / "history.jsonl")
    verdict = check(history, Rules(frozenset({INPUTS, SAMPLES}), ordered=ordered))
    assert verdict.kept, f"seed {SEED}: {verdict}"
    families = [(model, family) for model, family, _ in incidents]
    assert ("digits", "evasion") in families
    assert len(families) == len(set(families)), f"duplicate incidents: {sorted(families)}"
    shown(
        4, "Tansu (embedded)", SEED, added_and_removed=times, **verdict.figures,
        incidents=len(incidents), duplicate_incidents=len(families) - len(set(families)),
        out_of_order=len(verdict.faults.get("disordered", ())),
    )  # fmt: skip


def holds(worker: Worker) -> bool:
    """Whether a process says that it was given inputs and samples."""
    said = worker.log.read_text() if worker.log.exists() else ""
    return all(
        any(f"{role}: holds {n} " in said for n in range(1, 5)) for role in ("score", "screen")
    )


async def mixed(feed: Feeder, checkpoint: MadeCheckpoint) -> None:
    """Send honest and hostile inputs and honest samples, some hundred a second, until cancelled."""
    rng = np.random.default_rng(SEED)
    x, y = checkpoint.x, checkpoint.y
    while True:
        for _ in range(10):
            n = feed.sent
            if n % 5 == 0:
                row = n // 5 % len(x)
                value, headers = encode_sample(
                    model="digits", x=x[row : row + 1], y=y[row : row + 1], source=f"s{n % 3}"
                )
                await feed.send(value, headers, topic=SAMPLES, key=b"s%d" % (n % 3))
            elif n % 5 == 1:
                noise = rng.integers(0, 17, (1, 8, 8), np.uint8)
                value, headers = binary(noise, f"a{n}", f"mallory-{n % 3}")
                await feed.send(value, headers, key=b"m%d" % (n % 3))
            else:
                value, headers = binary(x[n % len(x)], f"i{n}", f"c{n % 7}")
                await feed.send(value, headers, key=b"%d" % (n % 7))
        await asyncio.sleep(0.05)
