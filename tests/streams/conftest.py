"""Settings for tests of delivery on a broker, and what the correlator and the screen need."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from nnsec import transforms
from nnsec.adapters import kafka
from nnsec.adapters.records import Record
from nnsec.settings import Input, Settings, parse
from nnsec.trust import keys
from nnsec.trust.statements import sign_statement
from schemas.model_statement import ModelStatement
from streams.agent import Context
from streams.checkpoints import Checkpoints
from streams.control import Control
from streams.screen import ScreenAgent
from tests.conftest import MadeCheckpoint
from tests.streams.incident_log import Kept
from tests.streams.screening import LOGS, NOW, STAMP, Topic, record


@pytest.fixture
async def quick(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with small batches and short sessions, and the topics declared."""
    monkeypatch.chdir(tmp_path)
    changed = settings.kafka.model_copy(
        update={"session_timeout": 2.0, "max_batch": 16, "drain_seconds": 8.0}
    )
    found = settings.model_copy(update={"kafka": changed})
    await kafka.declare(found, now=datetime.now(UTC))
    return found


@pytest.fixture
async def apache(quick: Settings, kafka_address: str) -> Settings:
    """The same on Apache Kafka; the embedded broker does not say that an offset is out of range."""
    changed = quick.kafka.model_copy(update={"bootstrap_servers": kafka_address})
    found = quick.model_copy(update={"kafka": changed})
    await kafka.declare(found, now=datetime.now(UTC))
    return found


@pytest.fixture
def kafka_address(request: pytest.FixtureRequest) -> str:
    address: str = request.getfixturevalue("kafka")
    return address


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    """The topic ``incidents`` as a list; an incident is resolved after 6 s."""
    return Kept(tmp_path, quiet_seconds=6.0)


@pytest.fixture(scope="module")
def configured(checkpoint: MadeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return checkpoint.configure(parse({}), tmp_path_factory.mktemp("screen"))


@pytest.fixture(scope="module")
def context(configured: Settings, checkpoint: MadeCheckpoint) -> Context:
    checkpoints = Checkpoints(configured)
    control = Control(configured, uuid.UUID(int=1), checkpoints)
    statement = ModelStatement(
        model="digits", epoch=1, phase="activate", version=1, digest=checkpoint.digest,
        reason="test", issued=NOW, expires=NOW + timedelta(hours=1),
    )  # fmt: skip
    value = sign_statement(statement, keys.load_private(checkpoint.release_key))
    control.apply(Record("models", 0, 0, STAMP, b"digits", value))
    assert asyncio.run(control.load_wanted())
    return Context(configured, LOGS, control, checkpoints, control.worker)


@pytest.fixture
def agent(context: Context) -> ScreenAgent:
    return Topic().agent(context)


@pytest.fixture(scope="module")
def traffic(checkpoint: MadeCheckpoint) -> list[Record]:
    """Honest samples of three sources, and poison of a fourth: flipped and stamped ones."""
    rng = np.random.default_rng(3)
    records, offsets = [], [0, 0]
    for number in range(90):
        rows = rng.integers(0, 280, rng.integers(1, 4))
        x, y, source = checkpoint.x[rows], checkpoint.y[rows], f"s{number % 4}"
        if source == "s3":
            flipped = number % 3 == 0
            x = x if flipped else transforms.stamp_trigger(x, Input(shape=(1, 8, 8), range=(0, 16)))
            y = (y + 1) % 10 if flipped else np.full_like(y, 7)
        partition = number % 2
        offsets[partition] += 1 + number % 5 // 4  # logs have gaps
        records.append(record(x, y, offsets[partition], partition=partition, source=source))
    return records
