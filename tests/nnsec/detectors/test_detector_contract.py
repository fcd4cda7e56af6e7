"""What holds of every detector: a new module is tested the day it arrives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from nnsec import detectors
from nnsec.detectors import Detector
from nnsec.errors import Unsafe
from nnsec.network import Network

NAMES = detectors.names()


CASES = [
    (name, kind)
    for name in NAMES
    for kind in ("on_images", "on_vectors")
    if kind == "on_images" or not detectors.found()[name].needs_images
]


@pytest.fixture
def trained(request: pytest.FixtureRequest, kind: str) -> Any:
    """Each kind of model that the detector can be used with."""
    return request.getfixturevalue(kind)


def _fitted(name: str, trained: Any, seed: int = 0) -> Detector:
    detector = detectors.make(name)
    reference = trained.network.forward(trained.x[trained.splits.train])
    detector.fit(reference, trained.y[trained.splits.train], trained.network, seed)
    return detector


def _score(detector: Detector, network: Network, x: NDArray[Any]) -> NDArray[np.float64]:
    return detector.score(network.forward(x), network)


def _extremes(network: Network) -> NDArray[Any]:
    """The range's two ends, its middle, and noise."""
    low, high = network.input.range
    shape = (8, *network.input.shape)
    noise = np.random.default_rng(0).uniform(low, high, shape)
    noise[0], noise[1], noise[2] = low, high, (low + high) / 2
    return noise.astype(network.input.dtype)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_state_restores_to_the_last_bit(name: str, trained: Any) -> None:
    """A detector made anew from its state gives the same figures, and the same state."""
    detector = _fitted(name, trained)
    copy = detectors.make(name)
    copy.restore({key: array.copy() for key, array in detector.state().items()})
    x = trained.x[trained.splits.calibrate[:64]]
    assert np.array_equal(_score(detector, trained.network, x), _score(copy, trained.network, x))
    assert {k: v.tobytes() for k, v in copy.state().items()} == {
        k: v.tobytes() for k, v in detector.state().items()
    }


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_row_is_scored_by_itself(name: str, trained: Any) -> None:
    """In another order and beside other rows, a row's figure is the same."""
    detector = _fitted(name, trained)
    x = trained.x[trained.splits.calibrate[:32]]
    scores = _score(detector, trained.network, x)
    assert scores.shape == (32,)
    assert scores.dtype == np.float64
    assert np.array_equal(_score(detector, trained.network, x[::-1].copy())[::-1], scores)
    beside = np.concatenate([x[:16], _extremes(trained.network), x[:8]])
    assert np.array_equal(_score(detector, trained.network, beside)[:16], scores[:16])


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_extremes_have_finite_figures(name: str, trained: Any) -> None:
    """Black, white, grey and noise are suspicious at most, never a NaN."""
    scores = _score(_fitted(name, trained), trained.network, _extremes(trained.network))
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_no_valid_input_has_a_figure_that_is_not_finite(name: str, trained: Any) -> None:
    """Constant inputs, ones of few values, and ones with a single value that differs."""
    detector, spec = _fitted(name, trained), trained.network.input
    low, high = spec.range
    ends = st.sampled_from([low, high, np.nextafter(np.float32(low), np.float32(high))])
    value = ends | st.floats(low, high, width=32)

    @settings(max_examples=60, deadline=None)
    @given(arrays(np.float32, (2, *spec.shape), elements=value, fill=value))
    def holds(x: NDArray[np.float32]) -> None:
        assert np.isfinite(_score(detector, trained.network, x.astype(spec.dtype))).all()

    holds()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_one_seed_gives_one_detector(name: str, trained: Any) -> None:
    """What is fitted is a function of the data and the seed; scoring changes none of it."""
    first, second = (_fitted(name, trained, seed=3) for _ in range(2))
    _score(first, trained.network, _extremes(trained.network))
    one, two = first.state(), second.state()
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", NAMES)
def test_clean_inputs_are_less_suspicious_than_noise(name: str, on_images: Any) -> None:
    """Larger means more suspicious: few clean images lie above the median of uniform noise.

    Detectors that look at the model's answer alone are asked for no more than a number: noise may
    be answered with confidence.
    """
    detector = _fitted(name, on_images)
    noise = np.random.default_rng(1).integers(0, 17, (64, 1, 8, 8)).astype(np.uint8)
    clean = _score(detector, on_images.network, on_images.x[on_images.splits.calibrate[:64]])
    median = np.median(_score(detector, on_images.network, noise))
    if name in {"confidence", "energy", "feature_squeezing"}:
        assert np.ptp(clean) > 0
    else:
        assert (clean > median).mean() < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_hostile_state_is_refused(name: str, on_images: Any) -> None:
    """A state that lacks an array, or holds NaN, text or nothing, is a named error."""
    good = _fitted(name, on_images).state()
    for key, array in good.items():
        for bad in (
            None,
            np.full(array.shape, np.nan),
            np.full(array.shape, "x"),
            array[:0],
        ):
            state = {k: v for k, v in good.items() if k != key}
            if bad is not None:
                state[key] = bad
            with pytest.raises(Unsafe, match=name):
                detectors.make(name).restore(state)
