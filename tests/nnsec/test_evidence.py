"""Evidence: the budget holds, repeats add nothing, the state is small and resumes exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from nnsec.bets import CELLS, LEVELS, Bets, Levels
from nnsec.errors import DigestMismatch
from nnsec.evidence import SLOT, Allowance, Evidence, step
from nnsec.repeats import Repeats
from schemas.topics import DAY_MS

LEVELS_400 = Levels.certified(400)
BETS_400 = Bets.against(LEVELS_400, version="1")


def evidence(*, weight: float = 1e-4, daily: float = 1.0, capacity: int = 100) -> Evidence:
    return Evidence(Allowance(weight=weight, daily=daily), capacity=capacity)


@pytest.mark.parametrize("n", [400, 1000])
def test_the_mean_alarms_of_honest_clients_stay_within_the_budget(n: int) -> None:
    """60 draws × 50 clients × 10⁴ inputs: mean at most 1, and in at least 95 % of the draws."""
    draws, clients, inputs = 60, 50, 10_000
    rng = np.random.default_rng(n)
    bets = Bets.against(Levels.certified(n))
    calibration = np.sort(rng.random((draws, n), np.float32), axis=1)
    index = [n - max(1, math.ceil(round(level * n, 9))) for level in LEVELS]
    thresholds = calibration[:, index]
    m = np.zeros((draws * clients, CELLS), np.float32)
    alarms = np.zeros(draws * clients)
    for _ in range(inputs):
        scores = rng.random((draws, clients), np.float32)
        level = (scores[:, :, None] > thresholds[:, None, :]).sum(-1).ravel()
        m, values = step(m, bets.factors[level], bets.used, 1e-4)
        alarms += values >= 1
    by_draw = alarms.reshape(draws, clients).mean(1)
    assert alarms.mean() <= 1
    assert (by_draw <= 1).mean() >= 0.95


def test_a_flood_of_inputs_past_the_levels_is_found_within_six() -> None:
    """The test above is not passed by never alarming."""
    state = evidence(weight=5e-6, daily=0.5)
    found = [state.update("x", 5, i, BETS_400, now=0)[1] is not None for i in range(6)]
    assert any(found)


def test_rates_are_the_certified_ones() -> None:
    """Q = κ · BetaInv(1 − δ/J; m, n − m + 1), m = max(1, ⌈ℓn⌉)."""
    for level, rate in zip(LEVELS_400.levels, LEVELS_400.rates, strict=True):
        m = max(1, math.ceil(round(level * 400, 9)))
        assert rate == pytest.approx(2 * beta.ppf(1 - 0.01 / 5, m, 400 - m + 1))


@given(st.integers(1, 5000), st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_every_bet_is_an_e_value_at_its_rate(n: int, raised: list[float]) -> None:
    """At the rate bet against, and at any lower one, no cell grows in the mean."""
    levels = Levels.certified(n)
    bets = Bets.against(levels, rates=raised)
    factors = bets.factors.astype(float).reshape(6, 5, 3)
    for index, rate in enumerate(bets.rates):
        for p in (min(rate, 1.0), min(rate, 1.0) / 2, 0.0):
            mean = p * factors[5, index] + (1 - p) * factors[0, index]
            assert (mean <= 1 + 1e-6).all()


def test_bets_are_three_a_level_without_duplicates() -> None:
    """3q equals max(√q, 3q) from q = 1/9 on, and then counts once."""
    used = (BETS_400.used > 0).reshape(5, 3)
    assert used[:3].all()
    assert used[3:].sum(1).tolist() == [2, 2]
    assert BETS_400.used.sum() == pytest.approx(1)
    q = LEVELS_400.rates[0]
    above = BETS_400.factors[5].reshape(5, 3)[0] * q
    assert above == pytest.approx([3 * q, math.sqrt(q), 0.95], rel=1e-5)


def test_levels_are_one_to_five_pairs() -> None:
    """Anything else is an error."""
    with pytest.raises(ValueError, match="1 to 5 pairs"):
        Levels(10, (0.1,), ())


def test_fewer_levels_leave_their_cells_out() -> None:
    """A checkpoint may have fewer than five levels."""
    levels = Levels.certified(50, (0.03, 0.1))
    bets = Bets.against(levels)
    assert not bets.used.reshape(5, 3)[2:].any()
    state = evidence()
    assert state.update("x", 2, 1, bets, now=0) == (True, None)
    assert state.evidence("x") > 0


@pytest.mark.parametrize("pattern", [[1] * 10, [1, 2] * 5, list(range(1, 21)) * 3])
def test_repeated_inputs_add_nothing(pattern: list[int]) -> None:
    """In a row, interleaved, or in a long cycle."""
    once, repeated = evidence(), evidence()
    for fingerprint in dict.fromkeys(pattern):
        once.update("x", int(fingerprint % 7 == 1), fingerprint, BETS_400, now=0)
    for fingerprint in pattern:
        repeated.update("x", int(fingerprint % 7 == 1), fingerprint, BETS_400, now=0)
    assert repeated.evidence("x") == once.evidence("x") > 0
    assert repeated.repeated == len(pattern) - len(set(pattern))


def test_a_cycle_as_long_as_the_memory_counts_once() -> None:
    """No two inputs of it put each other out, however often it comes round."""
    state = Evidence(Allowance(weight=1e-4, daily=1.0), capacity=10, memory=2000)
    for _ in range(4):
        for i in range(2000):
            state.update(f"c{i % 4}", 0, i, BETS_400, now=0)
    assert state.repeated == 3 * 2000


def test_an_input_that_is_sent_all_the_time_counts_once() -> None:
    """Also when others come between whose inputs the memory cannot hold."""
    state = Evidence(Allowance(weight=1e-4, daily=1.0), capacity=10, memory=100)
    assert state.update("camera", 0, 1, BETS_400, now=0)[0]
    for i in range(400):
        assert state.update("other", 0, 10 + i, BETS_400, now=0)[0]
        if i % 10 == 0:
            assert not state.update("camera", 0, 1, BETS_400, now=0)[0]
    for fingerprint in (2, 3, 4):
        assert state.update("camera", 0, fingerprint, BETS_400, now=0)[0]
    assert not state.update("camera", 0, 1, BETS_400, now=0)[0]


def test_the_pair_longest_unseen_is_forgotten_first() -> None:
    """Being seen again counts as new; beyond the capacity one goes for one."""
    repeats = Repeats(3)
    key = bytes(16)
    assert [repeats.seen(key, i) for i in (1, 2, 3, 1, 4)] == [False, False, False, True, False]
    assert [repeats.seen(key, i) for i in (1, 3, 4)] == [True] * 3
    assert not repeats.seen(key, 2)
    assert len(repeats) == 3


def test_the_table_of_an_earlier_nnsec_is_taken_up() -> None:
    """It held each pair at a place found by its hash; none of them is forgotten."""
    earlier, later = Repeats(64), Repeats(64)
    key = bytes(16)
    for i in range(40):
        earlier.seen(key, i)
    table = np.zeros(64, np.uint64)
    for pair in earlier.state()[24:].tolist():
        table[pair % 64] = pair
    later.restore(table)
    held = np.count_nonzero(table)
    assert 20 < held == len(later)
    assert sum(later.seen(key, i) for i in range(40)) == held
    smaller = Repeats(16)
    smaller.restore(earlier.state())
    assert all(smaller.seen(key, i) for i in range(24, 40))


def test_ten_equal_inputs_do_not_move_the_state_past_the_first() -> None:
    """Even inputs past every level."""
    state = evidence()
    assert state.update("x", 5, 7, BETS_400, now=0)[0]
    before = state.snapshot()
    for _ in range(9):
        assert state.update("x", 5, 7, BETS_400, now=0) == (False, None)
    state.repeated = 0
    assert state.snapshot() == before


def test_equal_inputs_of_two_clients_count_for_each() -> None:
    """A repeat is of the same client."""
    state = evidence()
    assert state.update("x", 0, 7, BETS_400, now=0)[0]
    assert state.update("y", 0, 7, BETS_400, now=0)[0]


def test_anonymous_is_never_a_subject() -> None:
    """Whatever is sent without a name accuses nobody."""
    state = evidence()
    for i in range(100):
        assert state.update("anonymous", 5, i, BETS_400, now=0) == (True, None)
    assert len(state) == 0


def test_the_allowance_of_a_day_is_never_exceeded() -> None:
    """Over 50 million draws it sums to less, and the integral that bounds it to no more ever."""
    expected, draws = 100_000, 50_000_000
    allowance = Allowance(weight=0.5 / expected, daily=0.5)
    drawn = [allowance.draw(0) for _ in range(1000)]
    total = 0.0
    for start in range(0, draws, 5_000_000):
        x = (np.arange(start, start + 5_000_000) + 1) / expected
        w = 0.1 / ((x + math.e) * np.log(x + math.e) ** 2) + np.where(x <= 1, 0.9, 0.0)
        w *= 0.5 / expected
        if start == 0:
            assert drawn == pytest.approx(w[:1000].tolist(), rel=1e-9)
        total += float(w.sum())
        assert w.min() > 0
    allowance.restore((0, draws))
    assert allowance.weight == pytest.approx(w[-1], rel=1e-9)
    assert 0.999 * allowance.spent < total <= allowance.spent < 0.5
    allowance.restore((0, 10**15))
    assert 0 < allowance.weight < 1e-15
    assert allowance.spent < 0.5


def test_what_is_drawn_sums_to_what_is_said_to_be_spent() -> None:
    """Also where a day expects few times, or less than one."""
    for expected in (0.5, 1.0, 3.3, 40.0):
        allowance = Allowance(weight=0.1 / expected, daily=0.1)
        drawn = [allowance.draw(7) for _ in range(5000)]
        assert min(drawn) > 0
        assert drawn == sorted(drawn, reverse=True)
        assert sum(drawn) <= allowance.spent < 0.1
        assert allowance.traffic == pytest.approx(5000 / expected)
        assert allowance.weight == drawn[-1]


def test_each_day_has_an_allowance_of_its_own() -> None:
    """Time never goes back to a day that is over."""
    allowance = Allowance(weight=0.03, daily=0.1)
    first = [allowance.draw(now) for now in (0, 0, 0, 0, 5)]
    assert [allowance.draw(now) for now in (DAY_MS, DAY_MS - 1, DAY_MS + 1)] == first[:3]
    assert allowance.state() == (1, 3)


@pytest.mark.parametrize(("times", "most"), [(0, 5), (1, 6), (100, 8)])
def test_a_flood_blinds_nobody(times: int, most: int) -> None:
    """After 1 and 100 times what a day expects, an attacker is found 1 and 3 inputs later."""
    state = evidence(weight=5e-6, daily=0.5)
    state.allowance.restore((0, times * 100_000))
    found = [state.update("x", 5, i, BETS_400, now=0)[1] is not None for i in range(most)]
    assert found == [False] * (most - 1) + [True]


def test_a_full_table_drops_the_client_with_the_least_evidence() -> None:
    """And counts it."""
    state = evidence(capacity=100)
    for i in range(100):
        state.update(f"c{i}", 1 if i == 42 else 3, 1, BETS_400, now=0)
    state.update("new", 3, 1, BETS_400, now=0)
    assert state.evicted == 1
    assert len(state) == 100
    assert state.evidence("c42") == 0
    assert state.evidence("new") > 0
    assert all(state.evidence(f"c{i}") > 0 for i in range(100) if i != 42)


def test_the_state_of_a_client_is_at_most_128_bytes() -> None:
    """Measured on the table itself."""
    state = evidence(capacity=10_000)
    for i in range(3000):
        state.update(f"c{i}", 0, 1, BETS_400, now=0)
    assert SLOT.itemsize <= 128
    assert state.nbytes / len(state) <= 128


def test_a_crossing_tells_the_figures_of_its_stretch() -> None:
    """Inputs from long before, when the evidence was near 0, are not counted in."""
    state = evidence(weight=5e-6, daily=0.5)
    for i in range(100):
        state.update("x", 0, i, BETS_400, now=0)
    crossing = None
    for i in range(100, 110):
        crossing = crossing or state.update("x", 5, i, BETS_400, now=0, tag=2)[1]
    assert crossing is not None
    assert crossing.evidence >= 1
    assert crossing.inputs <= 6
    assert crossing.passed == (crossing.inputs,) * 5
    assert crossing.tags[2] == crossing.inputs
    assert state.evidence("x") < 1


def test_another_checkpoint_keeps_the_evidence() -> None:
    """The mean stays; only which cells hold it changes."""
    state = evidence()
    for i in range(2):
        state.update("x", 5, i, BETS_400, now=0)
    before = state.evidence("x")
    other = Bets.against(Levels.certified(1000), version="2")
    none = Bets(np.ones_like(other.factors), other.used, other.era, other.rates)
    state.allowance.restore((0, 10**15))  # what is handed out now is not to be seen
    state.update("x", 0, 99, none, now=0)
    assert state.evidence("x") == pytest.approx(before, rel=1e-5)


def test_raised_rates_only_lower_the_evidence() -> None:
    """While drift is open, what all show accuses nobody."""
    plain, raised = evidence(), evidence()
    high = Bets.against(LEVELS_400, rates=(0.9, 0.9, 0.95, 0.97, 1.0))
    for i in range(3):
        plain.update("x", 5, i, BETS_400, now=0)
        raised.update("x", 5, i, high, now=0)
    assert 0 < raised.evidence("x") < plain.evidence("x")


def test_clear_returns_all_to_zero() -> None:
    """As when drift is found."""
    state = evidence()
    state.update("x", 5, 1, BETS_400, now=0)
    state.clear()
    assert state.evidence("x") == 0


def test_a_snapshot_resumes_bit_identically() -> None:
    """Both go on to the same bytes."""
    rng = np.random.default_rng(3)
    rows = [(f"c{rng.integers(9)}", int(rng.integers(6)), int(rng.integers(500)))
            for _ in range(600)]  # fmt: skip
    whole, half = evidence(capacity=7), evidence(capacity=7)
    for subject, level, fingerprint in rows[:300]:
        whole.update(subject, level, fingerprint, BETS_400, now=5)
        half.update(subject, level, fingerprint, BETS_400, now=5)
    resumed = evidence(capacity=7)
    resumed.restore(half.snapshot())
    for subject, level, fingerprint in rows[300:]:
        a = whole.update(subject, level, fingerprint, BETS_400, now=5)
        b = resumed.update(subject, level, fingerprint, BETS_400, now=5)
        assert a == b
    assert whole.snapshot() == resumed.snapshot()
    assert whole.evicted > 0


@pytest.mark.parametrize("at", [0, 40, -1])
def test_a_changed_snapshot_is_refused(at: int) -> None:
    """Whichever byte it is."""
    raw = bytearray(evidence().snapshot())
    raw[at] ^= 1
    with pytest.raises(DigestMismatch):
        evidence().restore(bytes(raw))
