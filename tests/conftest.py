"""What several suites share: real services, and settings of their own for each test."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnsec.settings import Settings, parse
from workers.embedded import Broker, Store, free_port

KAFKA_FOLDER = Path(__file__).parents[2] / "shared" / "kafka"


@pytest.fixture(scope="session")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The embedded broker, for tests that need its pid."""
    with Broker(tmp_path_factory.mktemp("broker")) as service:
        yield service


@pytest.fixture(scope="session")
def broker(embedded_broker: Broker) -> str:
    """Bootstrap address of the embedded broker."""
    return embedded_broker.url


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Valkey server."""
    with Store(tmp_path_factory.mktemp("store")) as service:
        yield service.url


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap address of Apache Kafka, where the machine has it."""
    home = Path(os.environ.get("KAFKA_HOME") or KAFKA_FOLDER)
    if not (home / "kafka").is_file():
        pytest.skip("Apache Kafka is not here: set KAFKA_HOME")
    folder, port = tmp_path_factory.mktemp("kafka"), free_port()
    with (folder / "out").open("wb") as log:
        process = subprocess.Popen(
            [str(home / "kafka"), str(folder), str(port), str(free_port())],
            stdout=log, stderr=log, env=os.environ | {"KAFKA_HEAP": "256m"},
        )  # fmt: skip
    try:
        probe = Broker(folder, port)
        probe._process = process
        probe.wait(60.0)
        yield probe.url
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def settings(request: pytest.FixtureRequest, broker: str, tmp_path: Path) -> Settings:
    """Settings with a prefix and a registry of the test's own; Redis if `valkey` is asked for."""
    prefix = f"t-{uuid.uuid4().hex[:10]}"
    url = request.getfixturevalue("valkey") if "valkey" in request.fixturenames else "embedded"
    return parse(
        {
            "kafka": {
                "bootstrap_servers": broker, "prefix": f"{prefix}.", "session_timeout": 4.0,
                "commit_interval": 0.1, "partitions": {"inputs": 4, "control": 1},
            },
            "redis": {"url": url, "prefix": f"{prefix}:"},
            "registry": {"url": str(tmp_path / "registry")},
        }
    )  # fmt: skip
