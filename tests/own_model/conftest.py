"""Checkpoints of models that are nothing like the demo's: of images, of vectors, headless."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from acme import data, networks
from numpy.typing import NDArray
from torch import Tensor

from nnsec import attacks
from nnsec.adapters.registry import Registry
from nnsec.checkpoints import Created, create
from nnsec.settings import ModelTable
from nnsec.trust import keys
from nnsec.trust.keys import PrivateKey

TABLES: Mapping[str, dict[str, Any]] = {
    "pictures": {
        "architecture": "acme.networks:residual", "device": "cpu",
        "input": {"shape": [3, 32, 32], "dtype": "uint8", "range": [0, 255]},
        "classes": ["disc", "square", "stripes", "cross"],
    },
    "vectors": {
        "architecture": "acme.networks:two_layers", "device": "cpu", "alpha": 0.02,
        "input": {"shape": [30], "dtype": "float32", "range": [-data.REACH, data.REACH]},
    },
    "relative": {
        "architecture": "acme.networks:relative", "device": "cpu", "alpha": 0.02,
        "input": {"shape": [30], "dtype": "float32", "range": [-data.REACH, data.REACH]},
    },
    "headless": {
        "architecture": "acme.networks:headless", "device": "cpu",
        "input": {"shape": [3, 32, 32], "dtype": "uint8", "range": [0, 255]},
    },
}  # fmt: skip
NAMES = ("pictures", "vectors", "headless")
"""Those that all tests are run with."""
TRAINED = {"pictures": (900, 8), "headless": (900, 16), "vectors": (200, 40), "relative": (200, 40)}
"""Rows that the weights are trained on, and epochs."""
FRESH = {"pictures": 300, "headless": 300, "vectors": 100, "relative": 100}
"""Rows that neither weights nor detectors see."""


@dataclass(frozen=True, slots=True)
class Own:
    """A user's own model: what it is configured as, its checkpoint, and inputs never seen."""

    name: str
    table: dict[str, Any]
    weights: Mapping[str, Tensor]
    x: NDArray[Any]
    y: NDArray[np.int64]
    fresh: NDArray[Any]
    labels: NDArray[np.int64]
    made: Created
    registry: Path
    key: PrivateKey

    @property
    def spec(self) -> ModelTable:
        """As configured."""
        return ModelTable.model_validate(self.table)

    def attacked(self, epsilon: float) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Fresh inputs under PGD, on the grid that a sender could send; and where it succeeded."""
        network, spec = self.made.checkpoint.network, self.spec.input
        low, high = spec.range
        moved = attacks.pgd(
            network.module, network.scale(self.fresh), torch.from_numpy(self.labels),
            epsilon=epsilon, steps=20,
        ).numpy() * (high - low) + low  # fmt: skip
        sent = np.rint(moved) if spec.dtype == "uint8" else moved
        x = np.clip(sent, low, high).astype(spec.dtype)
        before, after = (network.forward(part).prediction for part in (self.fresh, x))
        return x, (before == self.labels) & (after != self.labels)


class _Owns(dict[str, Own]):
    """Each is made when it is first asked for: a test of vectors waits for no pictures."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self._key = folder, keys.generate()

    def __missing__(self, name: str) -> Own:
        table, (rows, epochs) = TABLES[name], TRAINED[name]
        low, high = table["input"]["range"]
        x, y = _data(name)
        scaled = (x[:rows].astype(np.float32) - low) / (high - low)
        module = getattr(networks, table["architecture"].partition(":")[2])()
        data.train(module, scaled, y[:rows], epochs=epochs, seed=0)
        end = len(x) - FRESH[name]
        made = create(
            Registry(str(self._folder)), model=name, spec=ModelTable.model_validate(table),
            weights=module.state_dict(), x=x[rows:end], y=y[rows:end], key=self._key,
            now=datetime.now(UTC),
        )  # fmt: skip
        self[name] = Own(name, table, module.state_dict(), x[rows:end], y[rows:end], x[end:],
                         y[end:], made, self._folder, self._key)  # fmt: skip
        return self[name]


def _data(name: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    return data.cancer(0) if name in {"vectors", "relative"} else data.pictures(1700, 0)


@pytest.fixture(scope="session")
def owns(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Own]:
    """All of them, in one registry, signed by one key."""
    return _Owns(tmp_path_factory.mktemp("own"))


@pytest.fixture(params=NAMES)
def own(request: pytest.FixtureRequest, owns: Mapping[str, Own]) -> Own:
    """Each of them."""
    found: Own = owns[request.param]
    return found
