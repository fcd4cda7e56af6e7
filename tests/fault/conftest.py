"""A broker of a test's own, which it may kill, a released model on any broker, and the ledger."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nnsec.adapters import kafka
from nnsec.adapters.records import Out
from nnsec.settings import Settings, parse
from nnsec.trust import keys
from nnsec.trust.statements import sign_statement
from schemas.model_statement import ModelStatement
from tests.conftest import KAFKA_FOLDER, MadeCheckpoint
from tests.fault import reliability
from tests.fault.apache import Apache

Released = Callable[..., Any]


@pytest.fixture
def apache(tmp_path: Path) -> Iterator[Apache]:
    """Apache Kafka of the test's own, to be killed and started again."""
    home = Path(os.environ.get("KAFKA_HOME") or KAFKA_FOLDER)
    if not (home / "kafka").is_file():
        pytest.skip("Apache Kafka is not here: set KAFKA_HOME")
    with Apache(home, tmp_path / "kafka") as broker:
        yield broker


@pytest.fixture
def released(settings: Settings, checkpoint: MadeCheckpoint, tmp_path: Path) -> Released:
    """Settings on a broker, with its topics declared and checkpoint 1 of ``digits`` released."""

    async def release(servers: str = "", **tables: dict[str, Any]) -> Settings:
        given = checkpoint.configure(settings, tmp_path).model_dump()
        given["kafka"] |= {"session_timeout": 2.0, "commit_interval": 0.5, "start_at": "earliest"}
        if servers:
            given["kafka"]["bootstrap_servers"] = servers
        for name, table in tables.items():
            given[name] = given.get(name, {}) | table
        found = parse(given)
        now = datetime.now(UTC)
        await kafka.declare(found, now=now)
        said = ModelStatement(
            model="digits", epoch=1, phase="activate", version=1, digest=checkpoint.digest,
            reason="first release", issued=now, expires=now + timedelta(hours=1),
        )  # fmt: skip
        envelope = sign_statement(said, keys.load_private(checkpoint.release_key))
        async with kafka.publisher(found) as publish:
            await publish(Out("models", envelope, b"digits"))
        return found

    return release


@pytest.fixture
def shown(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Note what a run showed of a promise, for docs/reliability.md, and print it."""
    began = time.monotonic()

    def note(promise: int, broker: str, seed: int, **figures: Any) -> None:
        reliability.note(
            reliability.Shown(
                promise, request.node.callspec.id, broker, seed, figures,
                round(time.monotonic() - began, 1), request.node.nodeid,
            )
        )  # fmt: skip

    return note
