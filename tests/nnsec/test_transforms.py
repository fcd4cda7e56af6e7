from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nnsec import datasets, transforms
from nnsec.settings import Input

DIGITS = datasets.load("digits")
VECTOR = Input(shape=(12,), dtype="float32", range=(-1.0, 3.0))
COLOUR = Input(shape=(3, 16, 16), dtype="uint8", range=(0, 255))


def _draw(spec: Input) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    low, high = spec.range
    values = rng.uniform(low, high, (20, *spec.shape))
    return (np.rint(values) if spec.dtype == "uint8" else values).astype(spec.dtype)


@pytest.mark.parametrize("spec", [DIGITS.input, VECTOR, COLOUR], ids=["digits", "vector", "colour"])
@pytest.mark.parametrize("name", ["honest", "drift", "stamp_trigger"])
def test_results_stay_on_the_wire(spec: Input, name: str) -> None:
    """Each change keeps shape, dtype and range, and leaves its argument as it was."""
    x = _draw(spec)
    before = x.copy()
    found = {
        "honest": lambda: transforms.honest(x, spec, 1),
        "drift": lambda: transforms.drift(x, spec, 0.5, 1),
        "stamp_trigger": lambda: transforms.stamp_trigger(x, spec),
    }[name]()
    assert found.dtype == x.dtype
    assert found.shape == x.shape
    assert spec.range[0] <= found.min() <= found.max() <= spec.range[1]
    assert not np.array_equal(found, before)
    assert np.array_equal(x, before)


def test_honest_is_small_seeded_and_different_for_each_row() -> None:
    """One seed gives one result; equal images come out unequal, and near what they were."""
    x = DIGITS.x[:1].repeat(50, axis=0)
    one, same, other = (transforms.honest(x, DIGITS.input, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert len({row.tobytes() for row in one}) > 45
    assert np.abs(one.astype(int) - x).mean() < 2


def test_drift_grows_with_its_amount() -> None:
    """Nothing at 0, and more the larger it is, row by row where amounts are given for each."""
    x = DIGITS.x[:40]
    assert np.array_equal(transforms.drift(x, DIGITS.input, 0.0, 3), x)
    moved = [
        np.abs(transforms.drift(x, DIGITS.input, much, 3).astype(int) - x).mean()
        for much in (0.2, 0.6, 1.0)
    ]
    assert moved == sorted(moved)
    half = transforms.drift(x, DIGITS.input, np.repeat([0.0, 1.0], 20), 3)
    assert np.array_equal(half[:20], x[:20])
    assert not np.array_equal(half[20:], x[20:])


def test_the_trigger_is_one_square_in_one_place() -> None:
    """Two by two pixels of 8 by 8, the last quarter of a vector, and nothing else."""
    x = DIGITS.x[:5]
    stamped = transforms.stamp_trigger(x, DIGITS.input)
    assert (stamped[..., 6:, 6:] == 16).all()
    stamped[..., 6:, 6:] = x[..., 6:, 6:]
    assert np.array_equal(stamped, x)
    vectors = transforms.stamp_trigger(_draw(VECTOR), VECTOR, value=0.5)
    assert (vectors[:, 9:] == 1.0).all()


def test_to_grid_rounds_as_a_sender_would() -> None:
    """What is outside is clipped, the rest goes to the nearest step of the grid."""
    found = transforms.to_grid(np.array([-1.0, 0.04, 0.49, 2.0]), Input(shape=(), range=(0, 16)))
    assert found.tolist() == [0, 1, 8, 16]
    assert not transforms.is_image(VECTOR)
