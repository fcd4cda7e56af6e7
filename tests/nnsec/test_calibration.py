from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, binom

from nnsec.bets import CELLS, LEVELS, Bets, Levels
from nnsec.calibration import Calibration, rank_p_value
from nnsec.errors import ConfigError, Unsafe
from nnsec.evidence import BOUND, step


def _calibration(n: int, *, alpha: float = 0.01, classes: int = 1, seed: int = 0) -> Calibration:
    rng = np.random.default_rng(seed)
    return Calibration.fit(rng.normal(size=n), rng.integers(0, classes, n), alpha=alpha)


def test_p_values_are_ranks_among_the_calibration_scores() -> None:
    """P = (1 + #{calibration ≥ s}) / (n + 1): ties count, and p is never 0."""
    scores = np.array([3.0, 1.0, 2.0, 2.0])
    calibration = Calibration.fit(scores, np.zeros(4, np.int64), alpha=0.2)
    asked = np.array([0.0, 1.0, 2.0, 2.5, 3.0, 9.0])
    wanted = [(1 + sum(score >= s for score in scores)) / 5 for s in asked]
    assert calibration.p_value(asked).tolist() == pytest.approx(wanted)
    assert calibration.p_value(np.array([np.finfo(float).max])) > 0


@pytest.mark.parametrize("n", [400, 404, 500, 598])
def test_at_alpha_005_the_second_largest_score_is_the_threshold(n: int) -> None:
    """With 399 to 598 points, p ≤ 0.005 says exactly: above the second largest."""
    calibration = _calibration(n, alpha=0.005)
    second = calibration.scores[-2]
    asked = np.array([np.nextafter(second, -9), second, np.nextafter(second, 9), 99.0])
    flagged = calibration.p_value(asked) <= calibration.alpha
    assert flagged.tolist() == [False, False, True, True]


@pytest.mark.parametrize("n", [50, 400, 1000, 1001])
def test_levels_are_order_statistics_passed_strictly(n: int) -> None:
    """τ is the m-th largest score, m = max(1, ⌈ℓn⌉); a score at τ has not passed it."""
    calibration = _calibration(n)
    descending = np.sort(calibration.scores)[::-1]
    for index, (level, tau) in enumerate(
        zip(calibration.levels.levels, calibration.thresholds, strict=True)
    ):
        m = max(1, int(np.ceil(round(level * n, 9))))
        assert tau == descending[m - 1]
        passed = len(calibration.thresholds) - index
        if tau > descending[min(m, n - 1)]:
            assert calibration.level(np.array([np.nextafter(tau, 99)]))[0] >= passed
        assert calibration.level(np.array([tau]))[0] < passed
    assert calibration.level(np.array([-99.0, 99.0])).tolist() == [0, 5]


def test_certified_rates_are_clopper_pearson_with_tolerance() -> None:
    """Q = κ · BetaInv(1 − δ/J; m, n − m + 1) with κ = 2, δ = 0.01, J = 5, at full precision."""
    calibration = _calibration(1000)
    ranks = [1, 3, 10, 30, 100]
    wanted = [2 * beta.ppf(1 - 0.01 / 5, m, 1000 - m + 1) for m in ranks]
    assert calibration.rates == pytest.approx(wanted)
    for m, q in zip(ranks, wanted, strict=True):  # Clopper and Pearson's own definition
        assert binom.cdf(m - 1, 1000, q / 2) == pytest.approx(0.01 / 5, rel=1e-6)


def test_rates_hold_for_all_levels_at_once() -> None:
    """Over calibration draws, some true rate is over its q / κ in at most δ of them."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(500):
        calibration = Calibration.fit(rng.uniform(size=400), np.zeros(400, np.int64), alpha=0.01)
        wrong += bool((1 - calibration.thresholds > calibration.rates / 2).any())
    assert wrong <= 500 * 0.01 + 3 * np.sqrt(500 * 0.01)


def test_a_class_judges_itself_only_with_ten_points_over_alpha() -> None:
    """1,000 points at α = 0.01; 999 points are judged by the pool."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0, 1, 1000), rng.normal(5, 1, 999)])
    predictions = np.repeat([0, 1], [1000, 999])
    calibration = Calibration.fit(scores, predictions, alpha=0.01)
    asked = np.array([4.0, 4.0, 4.0])
    pooled = calibration.p_value(asked)
    by_class = calibration.p_value(asked, np.array([0, 1, 2]))
    assert by_class[0] == rank_p_value(np.sort(scores[:1000]), asked[:1])[0]
    assert by_class[1:].tolist() == pooled[1:].tolist()
    assert by_class[0] < 0.01 < pooled[0]
    small = _calibration(200, classes=3)
    assert np.array_equal(small.p_value(asked, np.array([0, 1, 2])), small.p_value(asked))


def test_promises_say_what_so_few_points_can_do() -> None:
    """The 5 to 95 % range of the rate is Beta(k, n + 1 − k); without k nothing is flagged."""
    promise = _calibration(400).describe()
    assert promise.smallest_p == pytest.approx(1 / 401)
    assert promise.false_positive_rate == pytest.approx(tuple(beta.ppf([0.05, 0.95], 4, 397)))
    assert "400 points" in str(promise)
    nothing = _calibration(50).describe()
    assert nothing.false_positive_rate == (0.0, 0.0)
    assert "fewer than 99 nothing is ever flagged" in str(nothing)


def test_at_the_smallest_share_the_best_bet_stands_still() -> None:
    """Its mean log is 0 where so many inputs pass all levels."""
    calibration = _calibration(1000)
    share = calibration.describe().smallest_attack_share
    bets = Bets.against(calibration.levels)
    gain = np.log(bets.factors[-1].astype(float))
    loss = np.log(bets.factors[0].astype(float))
    growth = share * gain + (1 - share) * loss
    assert 0 < share < 0.2
    assert growth[bets.used > 0].max() == pytest.approx(0, abs=1e-6)


def test_under_the_smallest_share_some_are_still_found() -> None:
    """As docs/own-model.md says: it is where evidence grows steadily, not a limit of what is."""
    calibration, rng = _calibration(400), np.random.default_rng(0)
    bets = Bets.against(calibration.levels)
    share = 0.8 * calibration.describe().smallest_attack_share
    assert share == pytest.approx(0.045, abs=5e-4)
    m, found = np.zeros((200, CELLS), np.float32), np.zeros(200, bool)
    for _ in range(6000):
        level = (rng.random(200)[:, None] < LEVELS).sum(1)
        level[rng.random(200) < share] = len(LEVELS)
        m, evidence = step(m, bets.factors[level], bets.used, 5e-6)
        found |= evidence >= BOUND
    assert 0.25 < found.mean() < 0.55
    assert "grows steadily from 5.6 % attack inputs on" in str(calibration.describe())


def test_there_must_be_something_to_calibrate_on() -> None:
    """No score is a named error, and so are levels that are none."""
    with pytest.raises(ConfigError, match="calibrate"):
        Calibration.fit(np.zeros(0), np.zeros(0, np.int64), alpha=0.01)
    with pytest.raises(ValueError, match="1 to 5 pairs"):
        Levels(10, (0.1,), (0.1, 0.2))


def test_restored_it_is_the_same() -> None:
    """State gives the same p-values and levels."""
    calibration = _calibration(300, classes=3)
    copy = Calibration.restore(calibration.state())
    asked = np.linspace(-4, 4, 50)
    assert np.array_equal(copy.p_value(asked), calibration.p_value(asked))
    assert np.array_equal(copy.level(asked), calibration.level(asked))
    assert (copy.alpha, copy.n) == (calibration.alpha, 300)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scores", None),
        ("scores", np.array([2.0, 1.0])),
        ("scores", np.array([1.0, np.nan])),
        ("scores", np.array([1.0, np.inf])),
        ("scores", np.zeros(0)),
        ("scores", np.zeros((2, 1))),
        ("scores", np.array(["a", "b"])),
        ("predictions", np.zeros(3, np.int64)),
        ("alpha", np.zeros(0)),
        ("alpha", np.array([0.0])),
        ("alpha", np.array([np.nan])),
    ],
)
def test_hostile_state_is_refused(name: str, value: Any) -> None:
    """Scores that do not ascend, are not finite or not there, and an α that is none."""
    good = {"scores": np.array([1.0, 2.0]), "predictions": np.zeros(2, np.int64)}
    state = {k: v for k, v in (good | {"alpha": np.array([0.1])}).items() if k != name}
    if value is not None:
        state[name] = value
    with pytest.raises(Unsafe, match="calibration"):
        Calibration.restore(state)
