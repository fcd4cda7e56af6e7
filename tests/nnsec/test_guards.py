"""What the automation may do without a person, as a table of histories."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnsec.errors import GuardRefused
from nnsec.guards import EVERYTHING, Ledger, Population, Request
from schemas.action import Action
from schemas.alert import Subject

NOW = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
MANY = Population(models=100, sources=100)
FEW = Population(models=1, sources=3)


def done(name: str, target: str, minutes_ago: float, **changes: Any) -> Action:
    """An action on a source, or on the model for a rollback."""
    values: dict[str, Any] = {
        "id": f"{name}-{target}-{minutes_ago}", "action": name, "model": "digits",
        "incident": UUID(int=1), "subject": Subject(kind="source", id=target),
        "outcome": "done", "automatic": True, "by": "remediation", "reason": "",
        "time": NOW - timedelta(minutes=minutes_ago), "figures": {},
    }  # fmt: skip
    return Action(**values | changes)


def rolled(
    minutes_ago: float, left: int, reached: int, model: str = "digits", **more: Any
) -> Action:
    figures = {"from": left, "to": reached}
    return done("rollback", "s", minutes_ago, **{"model": model, "figures": figures} | more)


def promoted(minutes_ago: float, left: int, reached: int) -> Action:
    figures = {"from": left, "to": reached}
    return done("promote", "s", minutes_ago, figures=figures, automatic=False)


def quarantine(source: str = "s1", *, automatic: bool = True) -> Request:
    return Request("quarantine", "digits", source, automatic)


def rollback(version: int = 2, model: str = "digits", *, automatic: bool = True) -> Request:
    return Request("rollback", model, model, automatic, version)


def refusal(
    request: Request, *actions: Action, population: Population = FEW,
    begun: tuple[datetime, str] | None = None,
) -> str:  # fmt: skip
    """The guard that said no; empty if none did."""
    ledger = Ledger()
    for action in actions:
        ledger.learn_one(action)
    try:
        ledger.check(request, now=NOW, population=population, begun=begun)
    except GuardRefused as error:
        return str(error).split(":")[0]
    return ""


@pytest.mark.parametrize(
    ("request_", "history", "population", "expected"),
    [
        (quarantine(), [], FEW, ""),
        (quarantine("s2"), [done("quarantine", "s1", 59)], FEW, "rate"),
        (quarantine("s2"), [done("quarantine", "s1", 61)], FEW, ""),
        (quarantine("s2"), [done("quarantine", "s1", 59)], MANY, ""),
        (quarantine("x"), [done("quarantine", f"s{i}", 30) for i in range(9)], MANY, ""),
        (quarantine("x"), [done("quarantine", f"s{i}", 30) for i in range(10)], MANY, "rate"),
        (quarantine("x"), [done("quarantine", "s1", 30, automatic=False)], FEW, ""),
        (quarantine("x"), [done("quarantine", "s1", 30, outcome="failed")], FEW, "rate"),
        (quarantine("x"), [done("quarantine", "s1", 30, outcome="running")], FEW, "rate"),
        (quarantine("x"), [done("quarantine", "s1", 30, outcome="denied")], FEW, ""),
        (quarantine("x"), [done("quarantine", "s1", 30, outcome="proposed")], FEW, ""),
        (quarantine("s1"), [done("quarantine", "s1", 9)], MANY, "cool-down"),
        (quarantine("s1"), [done("quarantine", "s1", 11)], MANY, ""),
        (quarantine("s1"), [done("quarantine", "s1", 90), done("release", "s1", 80)], MANY,
         "flapping"),
        (quarantine("s1"), [done("quarantine", "s1", 1600), done("release", "s1", 1500)], MANY, ""),
        (quarantine("s1"), [done("release", "s1", 80)], MANY, ""),
        (rollback(), [rolled(9, 2, 1)], MANY, "cool-down"),
        (rollback(3), [rolled(11, 2, 1)], MANY, ""),
        (rollback(3), [rolled(9, 2, 1, figures={"needed": False})], MANY, ""),
        (rollback(2), [rolled(90, 2, 1), promoted(80, 1, 2)], MANY, "flapping"),
        (rollback(3), [rolled(90, 2, 1), promoted(80, 1, 3)], MANY, ""),
        (rollback(), [rolled(30, 2, 1, "other")], FEW, "rate"),
        (rollback(), [rolled(30, 2, 1, "other")], MANY, ""),
        (quarantine(""), [], MANY, "target"),
        (quarantine("", automatic=False), [], MANY, "target"),
        (quarantine("anonymous"), [], MANY, "target"),
        (quarantine("anonymous", automatic=False), [], MANY, "target"),
        (quarantine(" "), [], MANY, ""),
        (quarantine("All"), [], MANY, ""),
        (quarantine("*"), [], MANY, ""),
        (quarantine("prod-*"), [], MANY, ""),
        (rollback(model=""), [], MANY, "target"),
        (rollback(model=" "), [], MANY, "target"),
        (rollback(model="All"), [], MANY, "target"),
        (rollback(model="*"), [], MANY, "target"),
        (rollback(model="prod-*", automatic=False), [], MANY, "target"),
        (Request("quarantine", "*", "s1", automatic=True), [], MANY, "target"),
        (rollback(automatic=False), [rolled(1, 2, 1)], FEW, ""),
    ],
)  # fmt: skip
def test_guards(
    request_: Request, history: list[Action], population: Population, expected: str
) -> None:
    """Each history lets the request pass, or names the guard that does not."""
    assert refusal(request_, *history, population=population) == expected


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        ((5, "b"), [], ""),
        ((5, "b"), [(6, "a")], "rate"),
        ((5, "b"), [(4, "a")], ""),
        ((5, "b"), [(5, "a")], "rate"),
        ((5, "b"), [(5, "c")], ""),
    ],
)
def test_of_those_who_began_at_once_the_first_go_on(
    own: tuple[int, str], others: list[tuple[int, str]], expected: str
) -> None:
    """Judged again while it runs, an action counts neither itself nor what began after it."""
    known = [
        rolled(minutes, 2, 1, name, id=name, outcome="running") for minutes, name in (own, *others)
    ]
    begun = NOW - timedelta(minutes=own[0]), own[1]
    assert refusal(rollback(model=own[1]), *known, begun=begun) == expected


def test_a_clock_that_stepped_back_frees_nothing() -> None:
    """An action from the future counts as one of just now."""
    assert refusal(rollback(), rolled(-60, 2, 1), population=MANY) == "cool-down"


@pytest.mark.parametrize(
    ("switches", "halted"),
    [
        ([], False),
        ([("halt", EVERYTHING, 5)], True),
        ([("halt", "digits", 5)], True),
        ([("halt", "other", 5)], False),
        ([("halt", EVERYTHING, 5), ("resume", EVERYTHING, 4)], False),
        ([("resume", EVERYTHING, 4), ("halt", EVERYTHING, 5)], True),
        ([("halt", EVERYTHING, 4), ("resume", EVERYTHING, 5)], False),
        ([("resume", "digits", 4), ("resume", EVERYTHING, 3), ("halt", EVERYTHING, 5)], True),
        ([("halt", EVERYTHING, 5), ("resume", "digits", 4)], False),
        ([("resume", "digits", 5), ("halt", EVERYTHING, 4)], True),
    ],
)
def test_the_kill_switch(switches: list[tuple[str, str, int]], *, halted: bool) -> None:
    """The last in the log counts, of the wide and the model's the newer; a person may still act."""
    ledger = Ledger()
    for name, model, minutes in switches:
        ledger.learn_one(done(name, "x", minutes, model=model))
    assert ledger.halted("digits") is halted
    ledger.check(rollback(automatic=False), now=NOW, population=FEW)
    if halted:
        with pytest.raises(GuardRefused, match="kill switch"):
            ledger.check(rollback(), now=NOW, population=FEW)


def test_a_switch_that_was_not_thrown_is_none() -> None:
    """Only a `halt` that was done counts."""
    ledger = Ledger()
    ledger.learn_one(done("halt", "x", 1, model="digits", outcome="denied"))
    ledger.learn_one(done("approve", "x", 1))
    assert not ledger.halted("digits")


@pytest.mark.parametrize("end", [{"figures": {"needed": False}}, {"outcome": "denied"}])
@pytest.mark.parametrize(("first", "expected"), [("failed", ""), ("running", "cool-down")])
def test_what_ran_counts_whatever_became_of_it(
    end: dict[str, Any], first: str, expected: str
) -> None:
    """A later try that is denied or not needed takes back only what never ran."""
    history = [rolled(5, 2, 1, id="a", outcome=first), rolled(4, 2, 1, id="a", **end)]
    assert refusal(rollback(), *history, population=MANY) == expected


def test_what_a_person_tries_again_stays_an_act_of_the_automation() -> None:
    """The cool-down is not forgotten, nor begun anew; what never ran is the person's alone."""
    again = rolled(1, 2, 1, id="a", automatic=False)
    for first, expected in (
        (rolled(9, 2, 1, id="a", outcome="running"), "cool-down"),
        (rolled(11, 2, 1, id="a", outcome="running"), ""),
        (rolled(9, 2, 1, id="a", outcome="failed"), ""),
    ):
        assert refusal(rollback(), first, again, population=MANY) == expected


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 120)), max_size=60), st.integers(1, 60)
)
def test_no_hour_holds_more_quarantines_than_allowed(
    wishes: list[tuple[int, int]], sources: int
) -> None:
    """However alerts are made up, the automation stays within max(1, 10 %) of the sources."""
    ledger = Ledger()
    taken: list[tuple[datetime, str]] = []
    for source, minute in sorted(wishes, key=lambda wish: wish[1]):
        now = NOW + timedelta(minutes=minute)
        name = f"s{source}"
        try:
            ledger.check(
                quarantine(name), now=now, population=Population(models=1, sources=sources)
            )
        except GuardRefused:
            continue
        ledger.learn_one(done("quarantine", name, 0, id=f"{name}{minute}", time=now))
        taken.append((now, name))
    for start, _ in taken:
        within = {name for time, name in taken if timedelta() <= time - start < timedelta(hours=1)}
        assert len(within) <= max(1, sources // 10)
