from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nnsec.errors import ConfigError, Unsafe
from nnsec.fusion import Fusion


def _scores(n: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """Two correlated scores and a heavy-tailed one on another scale."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=n)
    second = 0.9 * first + 0.45 * rng.normal(size=n)
    return np.column_stack([first, second, 1e4 * rng.lognormal(size=n)])


def test_clean_scores_are_near_and_strange_ones_far_on_both_sides() -> None:
    """What looks cleaner than clean inputs do is as strange as what looks worse."""
    fusion = Fusion.fit(_scores())
    clean = fusion.score(_scores(seed=1))
    assert np.median(clean) == pytest.approx(np.sqrt(2.4), rel=0.15)  # chi, three axes
    high, low = fusion.score(np.array([[6.0, 6.0, 1e4], [-6.0, -6.0, 1e4]]))
    assert min(high, low) > np.quantile(clean, 0.999)


def test_it_knows_which_scores_go_together() -> None:
    """Two scores that always agree are stranger apart than far out together."""
    fusion = Fusion.fit(_scores())
    together, apart = fusion.score(np.array([[2.0, 1.8, 1e4], [2.0, -1.8, 1e4]]))
    assert apart > 2 * together


def test_one_heavy_tail_does_not_drown_the_rest() -> None:
    """An ordinary value of the heavy score is no alarm, and one of a light score still is."""
    fusion = Fusion.fit(_scores())
    tail = np.quantile(_scores()[:, 2], 0.99)
    heavy, light = fusion.score(np.array([[0.0, 0.0, tail], [5.0, 4.5, 1e4]]))
    assert light > 1.5 * heavy


def test_a_part_is_what_the_whole_says_of_some_scores() -> None:
    """From one covariance: over the rest's best case the whole is the part, else it is more."""
    scores = _scores(seed=2)
    fusion = Fusion.fit(_scores())
    columns = np.array([True, True, False])
    part, whole = fusion.part(columns).score(scores[:, columns]), fusion.score(scores)
    assert (whole >= part * (1 - 1e-9)).all()
    grid = np.repeat(scores[:1], 20_000, axis=0)
    grid[:, 2] = np.geomspace(1e2, 1e6, len(grid))
    assert fusion.score(grid).min() == pytest.approx(part[0], rel=1e-4)
    assert fusion.part(np.ones(3, bool)) is fusion


def test_extreme_and_constant_scores_stay_finite() -> None:
    """Any finite figure has a finite distance, also of a detector that says one thing only."""
    constant = np.column_stack([_scores(50), np.zeros(50)])
    fusion = Fusion.fit(constant)
    extremes = np.array([[1e30] * 4, [-1e30] * 4, [0.0] * 4])
    assert np.isfinite(fusion.score(extremes)).all()
    assert fusion.score(extremes)[0] > fusion.score(constant).max()


def test_too_few_inputs_are_named() -> None:
    """A covariance of three scores needs five inputs."""
    with pytest.raises(ConfigError, match="at least 5"):
        Fusion.fit(_scores(4))


def test_restored_it_is_the_same() -> None:
    """State gives the same distances to the last bit."""
    fusion = Fusion.fit(_scores())
    x = _scores(seed=2)
    assert np.array_equal(Fusion.restore(fusion.state()).score(x), fusion.score(x))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", None),
        ("mean", np.zeros(2)),
        ("centre", np.zeros((3, 1))),
        ("precision", np.eye(2)),
        ("power", np.full(3, np.nan)),
        ("spread", np.full(3, "x")),
        ("centre", np.float64(1.0)),
    ],
)
def test_hostile_state_is_refused(name: str, value: Any) -> None:
    """What is missing, has another shape, or is no finite number is a named error."""
    state = {key: array for key, array in Fusion.fit(_scores()).state().items() if key != name}
    if value is not None:
        state[name] = value
    with pytest.raises(Unsafe, match="fusion"):
        Fusion.restore(state)
