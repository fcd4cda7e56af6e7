"""Small trained networks, with clean data that they have not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from nnsec import datasets, training, transforms
from nnsec.models import small_cnn
from nnsec.network import Network
from nnsec.settings import Input
from nnsec.splits import Splits
from nnsec.suite import Suite

VECTORS = Input(shape=(6,), dtype="float32", range=(-4.0, 4.0))


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A network, and clean inputs in the wire dtype with their classes."""

    network: Network
    x: NDArray[Any]
    y: NDArray[np.int64]
    splits: Splits

    def suite(self, **options: Any) -> Suite:
        """Fit all detectors."""
        options = {"splits": self.splits, "seed": 0, "alpha": 0.01} | options
        return Suite.fit(self.network, self.x, self.y, **options)


@pytest.fixture(scope="session")
def on_images() -> Trained:
    """Digits."""
    data = datasets.load("digits")
    order = np.random.default_rng(0).permutation(len(data.x))
    train, rest = order[:500], order[500:1400]
    torch.manual_seed(0)
    module = training.fit(
        small_cnn(), data.x[train], data.y[train], input=data.input, epochs=8, batch=64, lr=3e-3,
        seed=0,
    )  # fmt: skip
    x, y = transforms.honest(data.x[rest], data.input, 1), data.y[rest]
    return Trained(Network(module, data.input, device="cpu"), x, y, Splits.stratified(y, seed=0))


@pytest.fixture(scope="session")
def on_vectors() -> Trained:
    """Three clouds in six dimensions, whose model has no layer that images would need."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 900)
    centres = rng.normal(0, 1.2, (3, 6))
    x = np.clip(rng.normal(centres[y], 0.8), -4, 4).astype(np.float32)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    training.fit(module, x[:300], y[:300], input=VECTORS, epochs=8, batch=64, lr=1e-2, seed=0)
    return Trained(
        Network(module, VECTORS, device="cpu"), x[300:], y[300:],
        Splits.stratified(y[300:], seed=0),
    )  # fmt: skip
