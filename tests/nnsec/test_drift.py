"""Drift: found when all clients show it, and not when one does."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from nnsec.bets import LEVELS, Bets, Levels
from nnsec.change import Change
from nnsec.drift import CALM, WINDOW, Drift, Reference, interval
from nnsec.errors import ConfigError, DigestMismatch
from nnsec.evidence import Allowance, Evidence
from nnsec.sealed import seal, unseal
from nnsec.signals import Shift, Signal
from nnsec.windows import Panel

N = 400


def reference(n: int = N) -> Reference:
    return Reference(
        (Levels.certified(n),),
        None,
        0.005,
        10,
        n,
        (0.1,) * 10,
        ((0.03, 0.3), (0.1, 0.5)),
        0.03,
        300,
    )


def drift(*, budget: float = 1.0) -> Drift:
    windows = 100_000 / WINDOW
    return Drift(
        reference(),
        inputs=Allowance(weight=0.15 * budget / windows, daily=0.15 * budget),
        labels=Allowance(weight=0.05 * budget / windows, daily=0.05 * budget),
    )


@dataclass
class Outcome:
    drift_at: int | None = None
    honest_at: int | None = None
    attacker_at: int | None = None
    false: int = 0
    concentrated: int = 0
    shifts: list[Shift] = field(default_factory=list)


def play(seed: int, *, before: int, ramp: int, shift: float, attacker: float) -> Outcome:
    """Eleven honest clients and an attacker who leaves before all of them begin to drift."""
    rng = np.random.default_rng(seed)
    calibration = np.sort(rng.normal(size=N))
    index = [N - max(1, math.ceil(round(level * N, 9))) for level in LEVELS]
    thresholds = calibration[index]
    watched = drift()
    clients = Evidence(Allowance(weight=5e-6, daily=0.5), capacity=100)
    base = bets = Bets.against(Levels.certified(N))
    outcome, windows = Outcome(), 0
    for i in range(before + 2 * ramp):
        amount = min(max((i - before) / max(ramp, 1), 0), 1)
        attack = before // 3 < i < before and rng.random() < attacker
        name = "attacker" if attack else f"c{rng.integers(11)}"
        score = rng.normal() + (2.5 if attack else shift * amount)
        level = int((score > thresholds).sum())
        confidence = rng.random() if rng.random() < amount / 2 else rng.beta(5, 1)
        _, crossing = clients.update(name, level, i, bets, now=0)
        if crossing and attack:
            outcome.attacker_at = outcome.attacker_at or i - before // 3
        elif crossing and outcome.honest_at is None:
            outcome.honest_at = i - before
        was = watched.open
        shifts = watched.add_input(
            name, level, float(confidence), int(rng.integers(10)), ("l", "t", 0, i, 0, i)
        )
        spread = [s for s in shifts if s.verdict == "spread"]
        outcome.concentrated += len(shifts) - len(spread)
        if spread:
            outcome.false += i < before
            outcome.shifts = outcome.shifts or spread
            outcome.drift_at = outcome.drift_at if outcome.drift_at is not None else i - before
            if not was:
                clients.clear()
        if watched.windows != windows:
            windows, raised = watched.windows, watched.raised()
            bets = base if raised is None else Bets.against(Levels.certified(N), rates=raised)
    return outcome


@pytest.mark.parametrize("seed", range(4))
def test_a_slow_drift_is_found_before_any_honest_client_is_accused(seed: int) -> None:
    """And neither honest traffic nor an attacker with a fifth of it is taken for drift before."""
    outcome = play(seed, before=3000, ramp=1000, shift=3.0, attacker=0.2)
    assert outcome.false == 0
    assert outcome.attacker_at is not None
    assert outcome.attacker_at < 150
    assert outcome.drift_at is not None
    assert outcome.drift_at < 700
    assert outcome.honest_at is None
    since = min(shift.since[3] for shift in outcome.shifts)
    assert 3000 - 2 * WINDOW <= since <= 3000 + outcome.drift_at


def test_a_large_attacker_is_no_drift() -> None:
    """With 30 % of the traffic for thousands of inputs."""
    outcome = play(9, before=6000, ramp=0, shift=0.0, attacker=0.3)
    assert outcome.false == 0
    assert outcome.attacker_at is not None
    assert outcome.honest_at is None


def feed(watched: Drift, rows: int, *, level: int, clients: int = 10, seed: int = 0,
         prediction: int | None = None) -> list[Shift]:  # fmt: skip
    rng = np.random.default_rng(seed)
    found: list[Shift] = []
    for i in range(rows):
        shown = int(rng.integers(10)) if prediction is None else prediction
        found += watched.add_input(
            f"c{i % clients}", level, 0.9, shown, ("l", "t", 1, i, 0, 1000 + i)
        )
    return found


def labelled(watched: Drift, rows: int, *, wrong: bool) -> None:
    for i in range(rows):
        watched.add_label(f"c{i % 10}", wrong, ("l", "labels", 0, i, 0, 1000 + i))


def resumed(watched: Drift) -> Drift:
    again = drift()
    again.restore(watched.snapshot())
    return again


def is_open(watched: Drift) -> bool:
    return watched.open


def test_drift_closes_after_calm_windows() -> None:
    """It is open while all clients are outside, and a while longer."""
    watched = drift()
    feed(watched, 4 * WINDOW, level=5)
    assert is_open(watched)
    raised = watched.raised()
    assert raised is not None
    assert min(raised) >= 0.95
    feed(watched, (CALM + 6) * WINDOW, level=0, seed=1)
    assert not is_open(watched)
    assert watched.raised() is None


@pytest.mark.parametrize("restored", [False, True])
def test_windows_of_labels_do_not_end_a_drift_of_inputs(restored: bool) -> None:
    """Nor those of inputs one of labels; each ends by its own, after a restart too."""
    watched = drift()
    feed(watched, 4 * WINDOW, level=5)
    while watched._panel.outside():
        feed(watched, WINDOW, level=0)
    labelled(watched, 2 * CALM * WINDOW, wrong=False)
    if restored:
        watched = resumed(watched)
    assert is_open(watched)
    labelled(watched, 4 * WINDOW, wrong=True)
    feed(watched, CALM * WINDOW, level=0)
    assert is_open(watched)
    if restored:
        watched = resumed(watched)
    labelled(watched, (CALM + 6) * WINDOW, wrong=False)
    assert not is_open(watched)


@pytest.mark.parametrize(("wrong", "ends"), [(False, True), (True, False)])
def test_a_drift_that_an_earlier_nnsec_left_open_ends_as_well(wrong: bool, ends: bool) -> None:
    """It counted one kind of calm: what lies outside now says whether labels must become calm."""
    watched = drift()
    feed(watched, 4 * WINDOW, level=5)
    labelled(watched, 4 * WINDOW, wrong=wrong)
    arrays = unseal(watched.snapshot())
    older = drift()
    older.restore(seal(**{**arrays, "flags": np.array([1, 3], np.int64)}))
    assert is_open(older)
    feed(older, (CALM + 6) * WINDOW, level=0)
    assert is_open(older) is not ends


def test_one_client_alone_is_concentrated() -> None:
    """What a single client shows is an attack or its own data, never spread."""
    watched = drift()
    shifts = feed(watched, 6 * WINDOW, level=5, clients=1)
    assert shifts
    assert {shift.verdict for shift in shifts} == {"concentrated"}
    assert not watched.open
    assert watched.raised() is None


def test_two_of_twelve_clients_are_concentrated_with_their_share() -> None:
    """The excess is theirs."""
    watched = drift()
    found: list[Shift] = []
    for i in range(10 * WINDOW):
        client = i % 12
        found += watched.add_input(
            f"c{client}", 5 if client < 2 else 0, 0.9, i % 10, ("l", "t", 0, i, 0, i)
        )
    assert all(shift.verdict == "concentrated" for shift in found)
    assert all(shift.top_share > 0.9 for shift in found)


def test_anonymous_inputs_vote_each_for_itself_where_there_are_no_clients() -> None:
    """A model whose users send no names still has drift."""
    watched = drift()
    found: list[Shift] = []
    for i in range(4 * WINDOW):
        found += watched.add_input("anonymous", 5, 0.9, i % 10, ("l", "t", 0, i, 0, i))
    assert any(shift.verdict == "spread" for shift in found)


def test_anonymous_is_one_client_among_others() -> None:
    """So a flood without a name cannot pass for all clients."""
    watched = drift()
    found: list[Shift] = []
    for i in range(12 * WINDOW):
        name, level = ("anonymous", 5) if i % 3 else (f"c{i % 7}", 0)
        found += watched.add_input(name, level, 0.9, i % 10, ("l", "t", 0, i, 0, i))
    assert not [shift for shift in found if shift.verdict == "spread"]


def test_a_change_alone_is_no_drift() -> None:
    """ADWIN and Page-Hinkley open nothing: a new name a window, ten times, is no evidence yet."""
    rng = np.random.default_rng(1)
    watched = drift()
    for i in range(50 * WINDOW):
        new = i >= 40 * WINDOW and i % WINDOW == 0
        shown = 7 if new else int(rng.integers(10))
        where = ("l", "t", 0, i, 0, i)
        found = watched.add_input(f"new{i}" if new else "app", 0, 0.9, shown, where)
        assert not [shift for shift in found if shift.verdict == "spread"]
    panel = watched._panel
    assert (panel.windows - panel._found < 10).any()
    assert panel.outside()
    assert not watched.open


def test_a_class_that_all_clients_get_is_found_both_ways() -> None:
    """Too often one class, too seldom the others."""
    watched = drift()
    names = {s.signal.name for s in feed(watched, 90 * WINDOW, level=0, prediction=3)}
    assert "share of predictions of class 3" in names
    assert "share of predictions of class 4" in names


def test_errors_of_all_clients_are_drift() -> None:
    """Where labels come."""
    watched = drift()
    rng = np.random.default_rng(1)
    honest: list[Shift] = []
    found: list[Shift] = []
    for i in range(20 * WINDOW):
        where = ("l", "labels", 0, i, 0, i)
        honest += watched.add_label(f"c{i % 10}", bool(rng.random() < 0.03), where)
    for i in range(4 * WINDOW):
        found += watched.add_label(f"c{i % 10}", bool(rng.random() < 0.4), where)
    assert not honest
    assert found
    assert found[0].signal.name == "error rate"
    assert found[-1].verdict == "spread"
    assert watched.open


def test_without_known_errors_labels_say_nothing() -> None:
    """No interval, no verdict."""
    base = reference()
    silent = Reference(base.tiers, None, base.alpha, 10, base.n, base.class_rates)
    watched = Drift(
        silent, inputs=Allowance(weight=1e-4, daily=1), labels=Allowance(weight=1e-4, daily=1)
    )
    assert watched.add_label("x", True, ("l", "t", 0, 0, 0, 0)) == []
    resumed = Drift(silent, inputs=watched.spent[0], labels=watched.spent[1])
    resumed.restore(watched.snapshot())


def test_a_reference_needs_a_tier() -> None:
    """A clear error instead of an index."""
    empty = Reference((), None, 0.01, 2, 10, (0.5, 0.5))
    with pytest.raises(ConfigError, match="tier"):
        Drift(empty, inputs=Allowance(weight=1, daily=1), labels=Allowance(weight=1, daily=1))


def test_intervals_hold_the_rate_and_their_ends() -> None:
    """Wider than the rate, and one-sided where it is 0 or 1."""
    low, high = interval(0.1, 400)
    assert 0 < low < 0.1 < high < 1
    assert interval(0.0, 50)[0] == 0
    assert interval(1.0, 50)[1] == 1


def _rows(count: int) -> list[tuple[str, int, float, int]]:
    rng = np.random.default_rng(5)
    return [
        (f"c{rng.integers(8)}", int(rng.integers(6)), float(rng.random()), int(rng.integers(10)))
        for _ in range(count)
    ]


@pytest.mark.parametrize("cut", [0, WINDOW, 5 * WINDOW + 17])
def test_a_snapshot_resumes_drift_bit_identically(cut: int) -> None:
    """River's detectors included."""
    rows = _rows(10 * WINDOW + 31)
    whole, half, resumed = drift(), drift(), drift()
    for i, row in enumerate(rows[:cut]):
        half.add_input(*row, ("l", "t", 0, i, 0, i))
        half.add_label(row[0], row[1] > 3, ("l", "labels", 0, i, 0, i))
    resumed.restore(half.snapshot())
    for allowance, spent in zip(resumed.spent, half.spent, strict=True):
        allowance.restore(spent.state())  # all checkpoints draw from it, so it is kept beside
    for i, row in enumerate(rows):
        where = ("l", "t", 0, i, 0, i)
        labelled = ("l", "labels", 0, i, 0, i)
        expected = whole.add_input(*row, where), whole.add_label(row[0], row[1] > 3, labelled)
        if i >= cut:
            found = resumed.add_input(*row, where), resumed.add_label(row[0], row[1] > 3, labelled)
            assert found == expected
    assert resumed.snapshot() == whole.snapshot()


def test_a_changed_drift_snapshot_is_refused() -> None:
    """River's own reader would take it."""
    watched = drift()
    feed(watched, 3 * WINDOW, level=1)
    raw = bytearray(watched.snapshot())
    raw[len(raw) // 2] ^= 1
    with pytest.raises(DigestMismatch):
        drift().restore(bytes(raw))


def test_change_detectors_find_a_step_and_not_noise() -> None:
    """ADWIN and Page-Hinkley on votes in [0, 1]."""
    rng = np.random.default_rng(2)
    change = Change()
    assert not change.update(rng.beta(2, 20, 5000).tolist())
    assert change.update(rng.beta(8, 8, 300).tolist()) == {"adwin", "page_hinkley"}
    resumed = Change()
    resumed.restore(*change.state())
    more = rng.random(200).tolist()
    assert [change.update([v]) for v in more] == [resumed.update([v]) for v in more]


def test_the_choice_of_who_votes_comes_from_the_past() -> None:
    """A client that stood out in earlier windows does not feed the e-detector again."""
    panel = Panel([Signal("s", 0.0, 0.1, 1.0)], size=10, allowance=Allowance(weight=1e-6, daily=1))
    values = {key: np.array([float(key == 0)]) for key in range(10)}
    levels = []
    for window in range(4):
        for key in range(10):
            panel.add(key, values[key], ("l", "t", 0, window * 10 + key, 0, 0))
        levels.append(panel.evidence[0])
    assert levels[1] < levels[0] * 2
    assert max(levels) < 1e-4
