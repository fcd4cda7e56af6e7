"""A fitted suite on digits, and clean samples that nothing has seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from nnsec.models import small_cnn
from nnsec.network import Network
from nnsec.poisoning import ScreenSuite
from nnsec.poisoning.base import Reference
from nnsec.poisoning.samples import Geometry, Samples
from nnsec.settings import Input
from nnsec.splits import Splits
from tests.conftest import MadeCheckpoint

DIGITS = Input(shape=(1, 8, 8), dtype="uint8", range=(0, 16))


@dataclass(frozen=True, slots=True)
class Clean:
    """Clean digits that neither network nor suite has seen."""

    x: NDArray[Any]
    y: NDArray[np.int64]


@pytest.fixture(scope="session")
def network(checkpoint: MadeCheckpoint) -> Network:
    """A network trained for a moment."""
    module = small_cnn()
    module.load_state_dict(load_file(checkpoint.weights))
    return Network(module, DIGITS, device="cpu")


@pytest.fixture(scope="session")
def clean(checkpoint: MadeCheckpoint) -> Clean:
    """Some 400 of them."""
    return Clean(checkpoint.x, checkpoint.y)


@pytest.fixture(scope="session")
def suite(network: Network, checkpoint: MadeCheckpoint) -> ScreenSuite:
    """Fitted on 700 clean digits."""
    with np.load(checkpoint.reference) as arrays:
        x, y = arrays["x"], arrays["y"]
    splits = Splits.stratified(y, seed=0)
    return ScreenSuite.fit(network, x, y, splits=splits, seed=0, alpha=0.01)


def parts(geometry: Geometry, x: Any, y: Any, features: Any, classes: int) -> Reference:
    """A reference with a third of the samples in each part."""
    known, fit, fresh = (
        Samples.describe(geometry, x[k::3], y[k::3], features[k::3]) for k in range(3)
    )
    return Reference(geometry, known, fit, fresh, classes, alpha=0.01, seed=0)


@pytest.fixture(scope="session", params=["digits", "vectors", "large"])
def reference(request: pytest.FixtureRequest, clean: Clean) -> Reference:
    """Clean samples of three shapes: small images, plain vectors, large colour images."""
    rng = np.random.default_rng(0)
    x, y = clean.x, clean.y
    if request.param == "digits":
        return parts(Geometry((1, 8, 8), 0, 16), x, y, x.reshape(len(x), -1) / 16.0, 10)
    if request.param == "vectors":
        means = rng.normal(size=(4, 30))
        y = rng.integers(0, 4, 240)
        x = np.clip(means[y] + rng.normal(0, 0.4, (240, 30)), -4, 4).astype(np.float32)
        return parts(Geometry((30,), -4, 4), x, y, x, 4)
    y = rng.integers(0, 3, 150)
    x = rng.integers(0, 200, (3, 3, 48, 48))[y] + rng.integers(0, 56, (150, 3, 48, 48))
    features = np.stack([x.mean((1, 2, 3)), x.std((1, 2, 3)), y + rng.normal(0, 0.2, 150)], 1)
    return parts(Geometry((3, 48, 48), 0, 255), x.astype(np.uint8), y, features, 3)


@pytest.fixture(scope="session")
def vectors() -> tuple[Network, NDArray[Any], NDArray[np.int64]]:
    """A linear model of vectors with 30 features, and data that it separates."""
    rng = np.random.default_rng(1)
    means = rng.normal(size=(3, 30))
    y = rng.integers(0, 3, 900)
    x = np.clip(means[y] + rng.normal(0, 0.5, (900, 30)), -4, 4).astype(np.float32)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Linear(30, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
        )
    spec = Input(shape=(30,), dtype="float32", range=(-4, 4))
    return Network(module, spec, device="cpu"), x, y
