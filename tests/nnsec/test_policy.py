"""Which actions an incident calls for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from nnsec.actions import about
from nnsec.errors import ConfigError
from nnsec.policy import ACCUSED, action_id, check, plan
from nnsec.settings import PolicyTable
from schemas.action import Action
from schemas.alert import Subject
from schemas.incident import ActionState, Incident, IncidentSubject
from schemas.threats import FAMILIES

T0 = datetime(2026, 1, 2, tzinfo=UTC)
A = Subject(kind="source", id="a")
KINDS = {"quarantine": ("source",), "rollback": ("source", "model")}
POLICY = {"poisoning": PolicyTable(actions=("quarantine", "rollback"), approval="none")}


def incident(*subjects: tuple[str, str], **changes: Any) -> Incident:
    inside = tuple(
        IncidentSubject(
            subject=Subject(kind=kind, id=name), threats=("backdoor",), alerts=1,
            first_seen=T0, last_seen=T0, evidence=1.0, counts={},
        )
        for kind, name in subjects
    )  # fmt: skip
    values: dict[str, Any] = {
        "id": UUID(int=5), "version": 1, "state": "open", "model": "digits",
        "family": "poisoning", "threats": ("backdoor",), "severity": "high",
        "subjects": inside, "first_seen": T0, "last_seen": T0, "evidence": {},
    }  # fmt: skip
    return Incident(**values | changes)


def test_each_subject_gets_the_actions_in_their_order() -> None:
    """Quarantine before rollback, one source after the other."""
    intents = plan(incident(("source", "a"), ("source", "b")), POLICY, KINDS, {})
    assert [(i.subject.id, i.action, i.order) for i in intents] == [
        ("a", "quarantine", 0), ("a", "rollback", 1), ("b", "quarantine", 0), ("b", "rollback", 1),
    ]  # fmt: skip
    assert not any(i.approval for i in intents)
    assert len({i.id for i in intents}) == 4
    assert intents[0].id == action_id(UUID(int=5), "quarantine", Subject(kind="source", id="a"))


def test_planning_twice_is_planning_once() -> None:
    """Ids are functions of incident, action and subject."""
    one = incident(("source", "a"))
    assert plan(one, POLICY, KINDS, {}) == plan(
        one.model_copy(update={"version": 9}), POLICY, KINDS, {}
    )


def test_a_subject_that_began_again_calls_for_another_attempt() -> None:
    """One for each time, of what was done before it; what is under way or denied stands."""
    first, second = (action_id(UUID(int=5), "quarantine", A, number) for number in (0, 1))
    rollback = action_id(UUID(int=5), "rollback", A)

    def ids(opened: float, **outcomes: tuple[ActionState, float]) -> list[str]:
        known = {
            name: Action(
                id=name, action="quarantine", model="digits", incident=UUID(int=5), subject=A,
                outcome=outcome, automatic=True, by="", reason="",
                time=T0 + timedelta(seconds=done),
            )
            for name, (outcome, done) in outcomes.items()
        }  # fmt: skip
        one = incident(("source", "a"))
        item = one.subjects[0].model_copy(update={"opened": T0 + timedelta(seconds=opened)})
        one = one.model_copy(update={"subjects": (item,)})
        intents = plan(one, POLICY, KINDS, known)
        assert plan(one, POLICY, KINDS, known) == intents
        return [intent.id for intent in intents]

    assert ids(60) == [first, rollback]
    assert ids(0, **{first: ("done", 5)}) == [first, rollback]
    assert ids(12, **{first: ("done", 5)}) == [first, rollback]
    assert ids(60, **{first: ("done", 5)}) == [second, rollback]
    assert ids(60, **{first: ("done", 5), second: ("done", 70)}) == [second, rollback]
    assert ids(60, **{first: ("done", 5), second: ("denied", 20)}) == [second, rollback]
    assert ids(60, **{first: ("failed", 5)}) == [first, rollback]
    third = action_id(UUID(int=5), "quarantine", A, 2)
    assert ids(99, **{first: ("done", 5), second: ("done", 70)}) == [third, rollback]


@pytest.mark.parametrize("ahead", [-3600, -20, 0])
def test_an_action_is_never_before_what_it_was_planned_about(ahead: int) -> None:
    """By a clock that is behind, too: only what opened since calls for another attempt."""
    first, second = (action_id(UUID(int=5), "quarantine", A, number) for number in (0, 1))

    def wanted(opened: float) -> str:
        done = Action(
            id=first, action="quarantine", model="digits", incident=UUID(int=5), subject=A,
            outcome="done", automatic=True, by="", reason="", figures=about(T0),
            time=T0 + timedelta(seconds=2 + ahead),
        )  # fmt: skip
        one = incident(("source", "a"))
        item = one.subjects[0].model_copy(update={"opened": T0 + timedelta(seconds=opened)})
        one = one.model_copy(update={"subjects": (item,)})
        return plan(one, POLICY, KINDS, {first: done})[0].id

    assert wanted(0) == wanted(10) == first
    assert wanted(60) == second


@pytest.mark.parametrize(
    "changes",
    [
        {"severity": "medium"}, {"family": "evasion"}, {"state": "resolved"},
        {"state": "dismissed"}, {"subjects": ()},
    ],
)  # fmt: skip
def test_nothing_is_done_that_the_policy_does_not_ask_for(changes: dict[str, Any]) -> None:
    """Too mild, another family, finished, or without a subject: no action."""
    assert plan(incident(("source", "a"), **changes), POLICY, KINDS, {}) == ()


def test_an_action_is_only_for_its_kinds() -> None:
    """A model cannot be quarantined as a source."""
    intents = plan(incident(("model", "digits"), ("client", "c")), POLICY, KINDS, {})
    assert [(i.action, i.subject.kind) for i in intents] == [("rollback", "model")]


def test_approval_is_the_default() -> None:
    """Nothing acts by itself unless the configuration says so."""
    policy = {"poisoning": PolicyTable(actions=("quarantine",))}
    assert plan(incident(("source", "a")), policy, KINDS, {})[0].approval


@pytest.mark.parametrize(
    ("family", "actions", "said"),
    [("poisoning", ("quarantin",), "unknown action 'quarantin'"), ("poison", (), "unknown family")],
)
def test_a_wrong_name_is_a_configuration_error(
    family: str, actions: tuple[str, ...], said: str
) -> None:
    """A misspelt action would otherwise never run, and nobody would know."""
    with pytest.raises(ConfigError, match=said):
        check({family: PolicyTable(actions=actions)}, KINDS)
    check(POLICY, KINDS)


@pytest.mark.parametrize(
    ("family", "action", "said"),
    [
        ("evasion", "quarantine", "is for sources, and incidents of evasion accuse clients"),
        ("evasion", "rollback", "is for models and sources, and"),
        ("drift", "quarantine", "accuse models"),
        ("poisoning", "promote", "is for commands only"),
    ],
)
def test_an_action_that_could_never_run_is_a_configuration_error(
    family: str, action: str, said: str
) -> None:
    """Where none of the family's subjects is one that the action is for."""
    with pytest.raises(ConfigError, match=said):
        check({family: PolicyTable(actions=(action,))}, KINDS | {"promote": ()})
    check({"drift": PolicyTable(actions=("rollback",))}, KINDS)


def test_every_family_accuses_a_kind_of_subjects() -> None:
    """So that a table of any family can be checked."""
    assert ACCUSED.keys() == set(FAMILIES)
