"""What several suites share: real services, and settings of their own for each test."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

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


@dataclass(frozen=True, slots=True)
class MadeCheckpoint:
    """A small checkpoint of the model ``digits``, version 1, that tests share.

    ``x`` and ``y`` are inputs that neither the weights nor the detectors have seen.
    """

    registry: Path
    digest: str
    release_key: Path
    operator_key: Path
    reference: Path
    weights: Path
    x: NDArray[np.uint8]
    y: NDArray[np.int64]

    def configure(self, settings: Settings, folder: Path) -> Settings:
        """Settings with this model, its keys, and a registry of the test's own with version 1."""
        shutil.copytree(self.registry, folder / "registry", dirs_exist_ok=True)
        return parse(
            settings.model_dump()
            | {
                "registry": {"url": str(folder / "registry")},
                "models": {"digits": SPEC},
                "trust": {
                    "release_keys": [f"{self.release_key}.pub"],
                    "operator_keys": [f"{self.operator_key}.pub"],
                },
            }
        )


SPEC = {
    "architecture": "nnsec.models:small_cnn",
    "input": {"shape": [1, 8, 8], "dtype": "uint8", "range": [0, 16]},
    "device": "cpu",
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MadeCheckpoint:
    """A checkpoint trained for a moment on 700 digits, fitted and calibrated on 700 others."""
    # Torch takes seconds to import, which tests without a model are spared.
    import torch
    from safetensors.torch import save_file

    from nnsec import datasets
    from nnsec.adapters.registry import Registry
    from nnsec.checkpoints import create
    from nnsec.models import small_cnn
    from nnsec.settings import ModelTable
    from nnsec.trust import keys

    folder = tmp_path_factory.mktemp("checkpoint")
    data = datasets.load("digits")
    order = np.random.default_rng(0).permutation(len(data.x))
    train, clean, rest = order[:700], order[700:1400], order[1400:]
    torch.manual_seed(0)
    module = small_cnn()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    x = torch.from_numpy(data.x[train]).float() / 16
    y = torch.from_numpy(data.y[train])
    for _ in range(12):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(x[batch]), y[batch]).backward()
            optimizer.step()
    save_file(module.state_dict(), folder / "weights.safetensors")
    np.savez(folder / "reference.npz", x=data.x[clean], y=data.y[clean])
    release, _ = keys.write_new(folder / "release"), keys.write_new(folder / "operator")
    made = create(
        Registry(str(folder / "registry")), model="digits", spec=ModelTable.model_validate(SPEC),
        weights=folder / "weights.safetensors", x=data.x[clean], y=data.y[clean], key=release,
        now=datetime.now(UTC), version=1,
    )  # fmt: skip
    return MadeCheckpoint(
        folder / "registry", made.digest, folder / "release", folder / "operator",
        folder / "reference.npz", folder / "weights.safetensors", data.x[rest], data.y[rest],
    )  # fmt: skip
