"""Settings for tests of delivery on a broker, and the log of a correlator without one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from nnsec.adapters import kafka
from nnsec.settings import Settings
from tests.streams.incident_log import Kept


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
