"""What an incident's record has no room for is left out, counted, and counts on in its state."""

from __future__ import annotations

import json
from datetime import timedelta
from functools import reduce
from typing import Any

import pytest

from nnsec.fit import FEWEST_SUBJECTS, MAX_ACTIONS, fit
from nnsec.incidents import ActionSeen, AlertSeen, Event, step
from nnsec.subjects import MAX_UNLISTED, UNLISTED_BYTES, digest
from schemas.action import Action
from schemas.alert import Subject
from schemas.incident import Incident
from tests.nnsec.test_incidents import LOG, OPEN, T0, alert

LIMIT = 1_000_000
LONG = "\U0001f600" * 250
"""With six characters more, a name as long as names can be: 256 characters of 4 bytes."""


def action(number: int, outcome: Any, *, subject: str = "", name: str = "quarantine") -> Action:
    return Action(
        id=f"{name}-{number}", action=name, model="digits", incident=OPEN.id,
        subject=Subject(kind="source", id=subject or f"s{number}"), outcome=outcome,
        automatic=True, by="remediation", reason="policy of poisoning at severity high",
        time=T0 + timedelta(seconds=number), figures={},
    )  # fmt: skip


def after(incident: Incident, *events: Event | Action) -> Incident:
    def one(before: Incident, event: Event | Action) -> Incident:
        seen = ActionSeen(event) if isinstance(event, Action) else event
        taken = step(before, seen, log=LOG).incident
        assert taken is not None
        return taken

    return reduce(one, events, incident)


def later(one: Action, outcome: str) -> Action:
    return one.model_copy(update={"outcome": outcome, "time": one.time + timedelta(hours=1)})


def test_what_fits_is_left_as_it_is() -> None:
    """An incident of ordinary size is not touched."""
    incident = after(OPEN, action(1, "done"))
    assert fit(incident, LIMIT) is incident


def test_the_oldest_finished_actions_go_first() -> None:
    """One that failed or waits is kept however old it is, and the state is what it was."""
    first = action(0, "failed"), action(1, "awaiting_approval")
    done = [action(number, "done") for number in range(2, MAX_ACTIONS + 50)]
    incident = fit(after(OPEN, *first, *done), LIMIT)
    assert len(incident.actions) == MAX_ACTIONS
    assert [a.action_id for a in incident.actions[:3]] == [
        "quarantine-0", "quarantine-1", "quarantine-52",
    ]  # fmt: skip
    assert incident.left_out == {"done": 50}
    assert incident.state == "failed"
    again = after(incident, later(first[0], "done"), later(first[1], "done"))
    assert again.state == "contained"


def test_a_subject_stays_answered_when_its_action_is_left_out() -> None:
    """The incident is contained still, and only the subjects that were answered count so."""
    answer = action(0, "done", subject="s1")
    rest = [action(number, "done") for number in range(2, MAX_ACTIONS + 2)]
    incident = fit(after(OPEN, answer, *rest), LIMIT)
    assert "quarantine-0" not in {a.action_id for a in incident.actions}
    assert incident.subjects[0].answered
    news = action(5000, "done", subject="s1", name="rollback")
    assert after(incident, later(news, "running"), later(later(news, "done"), "done")).state == (
        "contained"
    )
    other = after(incident, AlertSeen(alert("new")), action(5001, "done"))
    assert other.state == "open"
    began = incident.history[-1].time - T0
    soon, late = (
        alert("s1", episode=2, after=began.total_seconds() + seconds) for seconds in (5, 60)
    )
    assert after(incident, AlertSeen(soon)).state == "contained"
    assert after(incident, AlertSeen(late)).state == "open"


@pytest.mark.parametrize(("outcome", "state"), [("denied", "open"), ("dry_run", "contained")])
def test_what_was_left_out_counts_on(outcome: str, state: str) -> None:
    """What a person denied keeps the incident open; a dry run still counts for nothing."""
    first = action(0, "proposed" if outcome == "dry_run" else outcome)
    first = first.model_copy(update={"figures": {"dry_run": outcome == "dry_run"}})
    kept = [action(number, "failed") for number in range(1, MAX_ACTIONS + 1)]
    incident = fit(after(OPEN, first, *kept), LIMIT)
    assert incident.left_out == {outcome: 1}
    answered = after(incident, action(2000, "done", subject="s1"))
    assert after(answered, *(later(one, "done") for one in kept)).state == state


def test_the_longest_names_fit() -> None:
    """The 500 subjects alone, and with two actions each the strongest that there is room for."""
    names = [f"{LONG}{number:06}" for number in range(499)]
    incident = after(
        OPEN, *(AlertSeen(alert(name, evidence=2.0 + n)) for n, name in enumerate(names))
    )
    assert len(fit(incident, LIMIT).subjects) == 500
    wanted = [
        action(number, "proposed", subject=subject, name=name)
        for number, subject in enumerate(names)
        for name in ("quarantine", "rollback")
    ]
    incident = after(incident, *wanted)
    assert len(incident.encode()) > LIMIT
    cut = fit(incident, LIMIT)
    assert LIMIT * 0.99 < len(cut.encode()) <= LIMIT
    assert Incident.decode(cut.encode()) == cut
    assert {s.subject.id for s in cut.subjects} == set(names[-FEWEST_SUBJECTS:])
    assert cut.evidence["subjects"] == incident.evidence["subjects"]
    assert cut.left_out == {"proposed": len(wanted) - len(cut.actions)}
    # Some that are not done are not known any more: nobody may say that it is contained.
    kept = {a.action_id for a in cut.actions}
    ended = after(cut, *(later(one, "done") for one in wanted if one.id in kept))
    assert ended.state == "containing"


def test_subjects_without_room_are_remembered() -> None:
    """Those that are answered go first, each counts once, and its old alerts change nothing."""
    names = [f"{LONG}{number:06}" for number in range(499)]
    incident = after(
        OPEN,
        *(AlertSeen(alert(name, evidence=2.0 + n)) for n, name in enumerate(names)),
        *(action(n, "done", subject=name) for n, name in enumerate(names) if n >= 400),
    )
    cut = fit(incident, 500_000)
    assert 490_000 < len(cut.encode()) <= 500_000
    assert Incident.decode(cut.encode()) == cut
    kept = {s.subject.id for s in cut.subjects}
    assert kept < {"s1", *names[:400]}
    assert len(cut.unlisted) == 500 - len(kept) == cut.evidence["subjects_left_out"]
    for name in names:
        assert step(cut, AlertSeen(alert(name)), log=LOG).change == "none"
    assert cut.unlisted[digest(alert(names[-1]).subject)][2]
    small = fit(incident, 30_000)
    assert len(small.encode()) <= 30_000
    assert len(small.unlisted) == 30_000 // 16 // UNLISTED_BYTES


def test_subjects_without_room_are_answered_when_their_actions_end() -> None:
    """Each when all of its own did, so that the incident is contained when these are left out."""
    limit, names = 360_000, [f"{LONG}{number:06}" for number in range(150)]
    listed = after(
        OPEN, *(AlertSeen(alert(name, evidence=2.0 + n)) for n, name in enumerate(names))
    )
    begun = [action(n, "running", subject=name) for n, name in enumerate(["s1", *names])]
    cut = fit(after(listed, *begun), limit)
    waiting = [n for n in ["s1", *names] if digest(alert(n).subject) in cut.unlisted]
    assert waiting
    assert not any(answered for _, _, answered in cut.unlisted.values())
    assert len(cut.actions) == len(begun)
    again = digest(alert(waiting[-1]).subject)
    second = action(900, "running", subject=waiting[-1], name="rollback")
    ended = after(cut, second, *(later(one, "done") for one in begun))
    assert {name for name, (_, _, over) in ended.unlisted.items() if not over} == {again}
    ended = after(ended, later(second, "done"))
    assert ended.state == "contained"
    assert all(answered for _, _, answered in ended.unlisted.values())

    for number in range(1000, 1200):
        news = alert(f"{LONG}{number:06}")
        done = action(9000 + number, "done", subject=news.subject.id)
        ended = fit(after(ended, AlertSeen(news), done), limit)
        assert ended.state == "contained"
    assert not {a.subject for a in ended.actions} & {alert(n).subject for n in waiting}


def test_a_full_record_fits_with_all_that_is_remembered() -> None:
    """Subjects with the longest names and digests of 1,000 more, in a record of Kafka's default."""
    crowd = [f"{LONG}{number:06}" for number in range(499 + MAX_UNLISTED)]
    incident = after(OPEN, *(AlertSeen(alert(name)) for name in crowd))
    assert len(incident.unlisted) == MAX_UNLISTED
    assert max(len(f'"{k}":{json.dumps(v)},') for k, v in incident.unlisted.items()) <= (
        UNLISTED_BYTES
    )
    assert fit(incident, 1_046_540) is incident


def test_a_small_limit_is_kept() -> None:
    """Transitions and all subjects but the strongest go where nothing else is left."""
    incident = OPEN
    for number in range(60):
        outcome = ("running", "done")[number % 2]
        incident = after(
            incident, action(number, outcome, subject=LONG), AlertSeen(alert(f"{LONG}{number}"))
        )
    cut = fit(incident, 8000)
    assert len(cut.encode()) <= 8000
    assert cut.history[-1] == incident.history[-1]
    assert len(cut.subjects) >= 1
