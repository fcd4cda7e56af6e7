"""The benchmark of the scoring role: every contest does all inputs, and ratios are right."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from workers.bench import scoring
from workers.bench.contestants.work import Clock
from workers.bench.scoring import BARE, CONTESTS, Rate, Report
from workers.demo.material import Material


def test_every_contest_does_all_inputs(broker: str) -> None:
    """In processes of their own, on a real broker, in both kinds of record."""
    whole = Material.load("digits", seed=0)
    material = replace(whole, recipe=replace(whole.recipe, epochs=2, copies=2))
    contests = [CONTESTS[0], CONTESTS[1], CONTESTS[3]]  # each program once
    (report,) = scoring.measure(broker, "here", material, inputs=1280, rounds=1, contests=contests)
    figures = json.loads(json.dumps(report.figures()))
    assert figures["contests"].keys() == {one.words for one in contests}
    for found in figures["contests"].values():
        assert found["rows_per_second"] > 0
        assert found["megabytes_per_second"] > 0
    assert 0.05 < figures["in_doubt"] < 0.3


def test_ratios_are_taken_within_a_round() -> None:
    report = Report("here", "digits", 10, 0.1)
    suite = CONTESTS[1]
    for weather in (1.0, 0.1, 1.0):
        rates = {one.words: Rate(1000 * weather, 1.0) for one in CONTESTS}
        report.rounds.append(rates | {suite.words: Rate(700 * weather, 1.0)})
    assert report.ratio(suite) == pytest.approx(0.7)
    assert report.ratio(BARE) == 1.0
    assert report.rate(suite).rows_per_second == 700


def test_the_clock_leaves_the_first_tenth_out() -> None:
    clock = Clock(100)
    with pytest.raises(ValueError, match="at once"):
        clock.rates()
    clock.note(5, 1000)
    assert not clock.ended
    clock.note(5, 1000)
    clock.note(90, 180)
    assert clock.ended
    found = clock.rates()
    assert found["megabytes_per_second"] * 1e6 / found["rows_per_second"] == pytest.approx(2.0)
