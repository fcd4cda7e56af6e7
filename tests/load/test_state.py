"""State across kills: evidence and drift go on as if the process had never died."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from nnsec.adapters import kafka
from nnsec.adapters.records import Out, Record
from nnsec.sealed import unseal
from nnsec.settings import Settings, parse
from nnsec.watch import Watch
from schemas.alert import Alert
from schemas.base import from_millis
from schemas.summary import INPUT_ROW, Summary
from streams import snapshots
from streams.checkpoints import Checkpoints
from tests.conftest import MadeCheckpoint
from tests.fault.history import History
from tests.fault.plant import Plant

LOG = UUID(int=3)
ROWS = 24
T0 = 1_760_000_000_000


def traffic(count: int, seed: int) -> list[Summary]:
    """Twelve honest clients, then an attacker beside them, then a drift of them all."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        rows = np.zeros(ROWS, INPUT_ROW)
        rows["offset"] = number * ROWS + np.arange(ROWS)
        rows["subject"] = rng.integers(0, 12, ROWS)
        rows["prediction"] = rng.integers(0, 10, ROWS)
        rows["confidence"], rows["p_value"] = rng.random(ROWS) * 0.5 + 0.5, 0.5
        rows["fingerprint"] = rng.integers(1, 2**63, ROWS)
        rows["level"] = rng.choice(6, ROWS, p=(0.9, 0.07, 0.02, 0.007, 0.002, 0.001))
        if count // 4 < number < count // 2:
            rows["subject"][:5], rows["level"][:5] = 12, 5
        if number > 3 * count // 4:
            rows["level"] = rng.integers(2, 6, ROWS)
        found.append(
            Summary.pack(
                rows, kind="input", log=LOG, topic="inference.inputs", model="digits",
                model_version="1", time=from_millis(T0 + 400 * number),
                subjects=(*(f"c{i}" for i in range(12)), "mallory"),
            )
        )  # fmt: skip
    return found


def comparable(raw: bytes) -> Mapping[str, Any]:
    """All of a snapshot but how often something was delivered again, which a kill does change."""
    parts: dict[str, Any] = {name: array.tobytes() for name, array in unseal(raw).items()}
    state = json.loads(parts.pop("state"))
    state["counts"] = state["counts"][1:]
    return parts | {"state": state}


async def newest(settings: Settings, log: UUID) -> snapshots.Snapshot | None:
    records = [record async for record in kafka.read_to_end(settings, ("state",))]
    return snapshots.newest("evidence", [0], records, log).get(0)


@pytest.mark.parametrize(
    ("count", "kills"),
    [(160, 3), pytest.param(3000, 20, marks=[pytest.mark.full, pytest.mark.timeout(1200)])],
)
async def test_evidence_killed_at_any_time_says_and_knows_the_same(
    settings: Settings, checkpoint: MadeCheckpoint, tmp_path: Path, count: int, kills: int
) -> None:
    """The alerts, to the byte, and in the end the state, are those of one that was never killed.

    Caught, for example: a snapshot that is committed before what it stands for is written.
    """
    tables = checkpoint.configure(settings, tmp_path).model_dump()
    tables["kafka"] |= {"start_at": "earliest", "session_timeout": 2.0, "commit_interval": 0.2}
    settings = parse(tables)
    logs = await kafka.declare(settings, now=datetime.now(UTC))
    summaries = traffic(count, seed=5)
    checkpoints = Checkpoints(settings)
    reference = checkpoints.calibration("digits", 1)
    checkpoints.close()
    whole = Watch("digits", settings.budget)
    expected = [
        alert.encode() for summary in summaries for alert in whole.apply(summary, reference)
    ]
    assert {Alert.decode(raw).threat for raw in expected} == {"evasion", "drift"}
    rng = random.Random(count)
    with Plant(settings, tmp_path / "plant", History()) as plant:
        worker = plant.start("stream", "--role", "evidence")
        async with kafka.publisher(settings) as publish:
            for number, summary in enumerate(summaries, 1):
                await publish(Out("summaries", summary.encode(), b"digits"))
                if number % (count // (kills + 1)) == 0 and number < count:
                    await _moves(settings, logs["summaries"], number // 2)
                    await asyncio.sleep(rng.random())
                    worker.kill()
                    worker = plant.start("stream", "--role", "evidence")
        snapshot = await _moves(settings, logs["summaries"], count - 1)
    records: list[Record] = [r async for r in kafka.read_to_end(settings, ("alerts",))]
    found = dict.fromkeys(record.value for record in records)
    assert list(found) == expected
    assert comparable(snapshot.models["digits"]) == comparable(whole.snapshot())


async def _moves(settings: Settings, log: UUID, offset: int) -> snapshots.Snapshot:
    """Wait until a snapshot stands for so many summaries."""
    async with asyncio.timeout(60):
        while True:
            found = await newest(settings, log)
            if found is not None and found.offset >= offset:
                return found
            await asyncio.sleep(0.2)
