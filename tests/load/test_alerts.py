"""A storm of alerts: one incident for each model and family, opened once, whoever is killed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import NAMESPACE_DNS, uuid5

import pytest

from nnsec.adapters import kafka
from nnsec.adapters.records import Out
from nnsec.settings import Settings, parse
from schemas.alert import Alert, Subject
from schemas.incident import Incident
from schemas.threats import Threat, atlas
from tests.fault.history import History
from tests.fault.plant import Plant

THREATS: tuple[Threat, ...] = (
    "query_attack", "extraction", "label_flip", "resource_abuse", "supply_chain"
)  # fmt: skip
"""One of each of five families."""
MODELS = [f"model-{i}" for i in range(10)]
SUBJECTS = 10
T0 = datetime(2026, 1, 2, tzinfo=UTC)


def storm(count: int, seed: int) -> list[Alert]:
    """Alerts of ten episodes in each of fifty pairs, mixed; those of an episode in order."""
    rng = random.Random(seed)
    seqs: Counter[tuple[str, Threat, int]] = Counter()
    found = []
    for _ in range(count):
        key = rng.choice(MODELS), rng.choice(THREATS), rng.randrange(SUBJECTS)
        model, threat, subject = key
        episode = uuid5(NAMESPACE_DNS, f"{model}/{threat}/{subject}")
        seq = seqs[key]
        seqs[key] += 1
        found.append(
            Alert(
                id=uuid5(episode, str(seq)), episode=episode, seq=seq,
                time=T0 + timedelta(seconds=10 * seq), model=model, model_version="1",
                threat=threat, atlas=atlas(threat), severity="high", evidence=1.5,
                subject=Subject(kind="client", id=f"s{subject}"), positions=(),
                counts={"inputs": float(seq)}, explanation="a storm",
            )
        )  # fmt: skip
    return found


async def send(settings: Settings, alerts: Sequence[Alert]) -> None:
    async with kafka.publisher(settings) as publish:
        for start in range(0, len(alerts), 500):
            part = alerts[start : start + 500]
            await publish(*(Out("alerts", a.encode(), a.model.encode()) for a in part))


async def incidents(settings: Settings, alerts: int, plant: Plant) -> list[Incident]:
    """All that was written, once the newest records count all alerts."""
    async with asyncio.timeout(60 + alerts / 100):
        while True:
            records = kafka.read_to_end(settings, ("incidents",))
            found = [Incident.decode(record.value) async for record in records]
            newest = {incident.id: incident for incident in found}
            if sum(incident.evidence["alerts"] for incident in newest.values()) >= alerts:
                return found
            assert any(worker.alive for worker in plant._workers), plant.logs()
            await asyncio.sleep(0.5)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(5_000, id="short"),
        pytest.param(100_000, id="full", marks=[pytest.mark.full, pytest.mark.timeout(1800)]),
    ],
)
async def test_a_storm_of_alerts_is_one_incident_a_pair(
    settings: Settings, tmp_path: Path, shown: Callable[..., None], count: int
) -> None:
    """Three correlators, one of them killed in the middle and started again: exactly fifty.

    Caught, for example: a correlator that begins anew instead of from what was written.
    """
    tables = settings.model_dump()
    tables["kafka"] |= {"partitions": {"inputs": 4, "control": 6}, "start_at": "earliest",
                        "session_timeout": 2.0}  # fmt: skip
    settings = parse(tables)
    await kafka.declare(settings, now=datetime.now(UTC))
    alerts = storm(count, seed=14)
    await send(settings, alerts[: count // 2])
    with Plant(settings, tmp_path / "plant", History()) as plant:
        workers = [plant.start("stream", "--role", "correlate") for _ in range(3)]
        await incidents(settings, count // 4, plant)
        workers[1].kill()
        await send(settings, alerts[count // 2 :])
        plant.start("stream", "--role", "correlate")
        found = await incidents(settings, count, plant)
    # What was on its way when the group changed may lie there twice, the same under the same id.
    written = {(i.id, i.version): i.encode() for i in found}
    assert all(written[i.id, i.version] == i.encode() for i in found)
    opened = Counter(pair for pair, _ in {((i.model, i.family), i.id) for i in found})
    assert len(opened) == len(MODELS) * len(THREATS)
    assert set(opened.values()) == {1}
    newest = {incident.id: incident for incident in found}.values()
    assert sum(incident.evidence["alerts"] for incident in newest) == count
    assert all(len(incident.subjects) == SUBJECTS for incident in newest)
    assert all(len(incident.history) == 1 for incident in newest)
    shown(14, "Tansu (embedded)", 14, alerts=count, correlators=3, kills=1, incidents=len(newest))
