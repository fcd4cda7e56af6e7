"""The life of an incident, walked through as a table."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pytest

from nnsec import subjects
from nnsec.actions import derive
from nnsec.incidents import (
    ActionSeen,
    AlertSeen,
    Dismissed,
    Event,
    Quiet,
    Step,
    incident_id,
    stamped,
    step,
)
from schemas.action import Action
from schemas.alert import Alert, Subject
from schemas.incident import Incident, IncidentState
from schemas.threats import atlas

LOG = UUID(int=7)
T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STATES: tuple[IncidentState, ...] = (
    "open", "awaiting_approval", "containing", "contained", "failed", "resolved", "dismissed",
)  # fmt: skip


def alert(
    subject: str = "s1", seq: int = 0, *, episode: int = 1, after: float = 0.0, **changes: Any
) -> Alert:
    name = uuid5(LOG, f"{subject}/{episode}")
    values: dict[str, Any] = {
        "id": uuid5(name, str(seq)), "episode": name, "seq": seq,
        "time": T0 + timedelta(seconds=after), "model": "digits", "model_version": "2",
        "threat": "label_flip", "atlas": atlas("label_flip"), "severity": "high",
        "evidence": 1.5, "subject": Subject(kind="source", id=subject),
        "positions": (("training.samples", 0, 3, 0),), "counts": {"rows": 10.0 * (seq + 1)},
        "explanation": "labels disagree with their neighbours",
    }  # fmt: skip
    return Alert(**values | changes)


def action(outcome: str, *, name: str = "quarantine", after: float = 1.0, **changes: Any) -> Action:
    values: dict[str, Any] = {
        "id": f"{name}-1", "action": name, "model": "digits", "incident": OPEN.id,
        "subject": Subject(kind="source", id="s1"), "outcome": outcome, "automatic": True,
        "by": "remediation", "reason": "", "time": T0 + timedelta(seconds=after), "figures": {},
    }  # fmt: skip
    return Action(**values | changes)


def after(incident: Incident | None, *events: Event) -> Incident:
    for event in events:
        incident = step(incident, event, log=LOG).incident
    assert incident is not None
    return incident


OPEN = after(None, AlertSeen(alert()))
DISMISS = Dismissed("c-1", "digits", "key-1", "false alarm", T0 + timedelta(seconds=60))
QUIET = Quiet(600.0, T0 + timedelta(seconds=700))
IN: dict[IncidentState, Incident] = {
    "open": OPEN,
    "awaiting_approval": after(OPEN, ActionSeen(action("awaiting_approval"))),
    "containing": after(OPEN, ActionSeen(action("running"))),
    "contained": after(OPEN, ActionSeen(action("done"))),
    "failed": after(OPEN, ActionSeen(action("failed"))),
    "resolved": after(OPEN, QUIET),
    "dismissed": after(OPEN, DISMISS),
}
EVENTS: dict[str, Event] = {
    "same alert": AlertSeen(alert()),
    "more of an episode": AlertSeen(alert(seq=1, after=10)),
    "earlier episode": AlertSeen(alert(episode=2, after=10)),
    "new episode": AlertSeen(alert(episode=2, after=40)),
    "new subject": AlertSeen(alert("s2", after=10)),
    "action proposed": ActionSeen(action("proposed", after=20)),
    "action awaits": ActionSeen(action("awaiting_approval", after=20)),
    "action runs": ActionSeen(action("running", after=20)),
    "action done": ActionSeen(action("done", after=20)),
    "action denied": ActionSeen(action("denied", after=20)),
    "action failed": ActionSeen(action("failed", after=20)),
    "dismiss": DISMISS,
    "quiet": QUIET,
}
# open, awaiting_approval, containing, contained, failed, resolved, dismissed;
# "." nothing new, "+" the same state with more evidence
TABLE = {
    "same alert":         (".", ".", ".", ".", ".", ".", "."),
    "more of an episode": ("+", "+", "+", "+", "+", "open", "."),
    "earlier episode":    ("+", "+", "+", "+", "+", "open", "."),
    "new episode":        ("+", "+", "+", "open", "+", "open", "."),
    "new subject":        ("+", "+", "+", "open", "+", "open", "."),
    "action proposed":    ("containing", "containing", "+", "containing", "containing", "+", "+"),
    "action awaits":      ("awaiting_approval", "+", "awaiting_approval", "awaiting_approval",
                           "awaiting_approval", "+", "+"),
    "action runs":        ("containing", "containing", "+", "containing", "containing", "+", "+"),
    "action done":        ("contained", "contained", "contained", "+", "contained", "+", "+"),
    "action denied":      ("+", "open", "open", "open", "open", "+", "+"),
    "action failed":      ("failed", "failed", "failed", "failed", "+", "+", "+"),
    "dismiss":            ("dismissed",) * 5 + ("+", "."),
    "quiet":              ("resolved", ".", ".", "resolved", ".", ".", "."),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", EVENTS)
def test_every_state_answers_every_event_as_the_table_says(state: IncidentState, name: str) -> None:
    """The transition function is total, and is this table."""
    before = IN[state]
    assert before.state == state
    expected = TABLE[name][STATES.index(state)]
    taken = step(before, EVENTS[name], log=LOG)
    assert taken.incident is not None
    if expected in {".", "+"}:
        assert taken.change == {".": "none", "+": "evidence"}[expected]
        assert taken.incident.state == state
        assert taken.incident.version == before.version
        assert (taken.incident == before) == (expected == ".")
    else:
        assert taken.change == "transition"
        assert taken.incident.state == expected
        assert taken.incident.version == before.version + 1
        last = taken.incident.history[-1]
        assert (last.from_, last.to, last.version) == (state, expected, before.version + 1)


def test_the_document_has_the_same_table() -> None:
    """docs/incidents.md is part of the contract, so it cannot drift away."""
    text = (Path(__file__).parents[2] / "docs" / "incidents.md").read_text("utf-8")
    rows = {
        cells[0]: tuple(cells[1:])
        for line in text.splitlines()
        if line.startswith("| ")
        and len(cells := [c.strip(" `") for c in line.split("|")[1:-1]]) == 8
    }
    written = {"nothing": ".", "evidence": "+"}
    for name, expected in TABLE.items():
        assert tuple(written.get(cell, cell) for cell in rows[name]) == expected


@pytest.mark.parametrize("name", [name for name in EVENTS if "alert" not in name])
def test_only_an_alert_opens(name: str) -> None:
    """An action, a dismissal or quiet of an unknown incident is nothing."""
    event = EVENTS[name]
    taken = step(None, event, log=LOG)
    if isinstance(event, AlertSeen):
        assert taken.incident is not None
        assert taken.incident.state == "open"
    else:
        assert (taken.incident, taken.change) == (None, "none")


def test_an_opening_incident_is_whole() -> None:
    """The first record has its id, version 1 and one line of history that begins at nothing."""
    assert OPEN.id == incident_id(LOG, alert())
    assert OPEN.id == uuid5(LOG, f"digits/poisoning/{alert().episode}")
    assert (OPEN.version, OPEN.state, OPEN.history[0].from_) == (1, "open", "")
    assert OPEN.evidence["subjects"] == 1.0
    assert Incident.decode(OPEN.encode()) == OPEN


def test_a_gap_in_seq_counts_what_was_missed() -> None:
    """Alerts carry totals, so one that never came is counted by the next."""
    incident = after(OPEN, AlertSeen(alert(seq=4, after=40)))
    assert incident.subjects[0].alerts == 5
    assert incident.subjects[0].counts == {"rows": 50.0}


def test_severity_and_times_only_widen() -> None:
    """A later, weaker alert does not make an incident harmless."""
    late = alert("s2", after=-5, severity="low", threat="backdoor", evidence=9.0)
    incident = after(OPEN, AlertSeen(late))
    assert incident.severity == "high"
    assert incident.first_seen == late.time
    assert incident.last_seen == T0
    assert incident.threats == ("label_flip", "backdoor")
    assert incident.evidence["strongest"] == 9.0


def test_a_redelivered_older_outcome_does_not_turn_time_back() -> None:
    """`running` again after `done` is old news."""
    done = after(OPEN, ActionSeen(action("running", after=1)), ActionSeen(action("done", after=2)))
    for old in (action("running", after=1), action("done", after=2)):
        assert step(done, ActionSeen(old), log=LOG).change == "none"


@pytest.mark.parametrize("state", STATES)
def test_a_dismissal_for_another_model_does_nothing(state: IncidentState) -> None:
    """What was signed for one model ends no incident of another."""
    other = replace(DISMISS, model="other")
    assert step(IN[state], other, log=LOG) == Step(IN[state], "none")


def test_a_dismissal_counts_once() -> None:
    """One that came when the incident was resolved does not end it when it goes on."""
    noted = after(IN["resolved"], DISMISS)
    assert step(noted, DISMISS, log=LOG).change == "none"
    reopened = after(noted, AlertSeen(alert(seq=1, after=800)))
    assert step(reopened, DISMISS, log=LOG) == Step(reopened, "none")
    assert after(reopened, replace(DISMISS, command="c-2")).state == "dismissed"
    for number in range(20):
        noted = after(noted, replace(DISMISS, command=f"d-{number}"))
    assert len(noted.dismissals) == 16


def test_a_failed_action_may_be_tried_again() -> None:
    """A person approves once more, and the incident is contained after all."""
    incident = after(IN["failed"], ActionSeen(action("running", after=5)))
    assert incident.state == "containing"
    assert after(incident, ActionSeen(action("done", after=6))).state == "contained"


def test_two_actions_contain_only_together() -> None:
    """Contained means that every action is done and every subject answered."""
    first = after(OPEN, ActionSeen(action("done")))
    second = after(first, ActionSeen(action("proposed", name="rollback", after=2)))
    assert second.state == "containing"
    other = after(second, AlertSeen(alert("s2", after=3)))
    both = after(other, ActionSeen(action("done", name="rollback", after=4)))
    assert both.state == "open"
    model = Subject(kind="model", id="digits")
    wide = after(both, ActionSeen(action("done", name="retire", after=5, subject=model)))
    assert wide.state == "contained"


def test_a_subject_that_began_again_is_not_contained_until_it_is_answered_again() -> None:
    """Also where its action is heard of only after that, or while another subject's waits."""
    other = Subject(kind="source", id="s2")
    waiting = after(
        OPEN,
        AlertSeen(alert("s2")),
        ActionSeen(action("awaiting_approval", id="q-s2", subject=other)),
        AlertSeen(alert(episode=2, after=60)),
        ActionSeen(action("done", after=5)),
    )
    both = after(waiting, ActionSeen(action("done", id="q-s2", subject=other, after=90)))
    assert both.state == "open"
    again = action("proposed", id="again", after=91)
    assert after(both, ActionSeen(again)).state == "containing"
    ended = after(both, ActionSeen(again), ActionSeen(action("done", id="again", after=92)))
    assert ended.state == "contained"
    assert step(ended, AlertSeen(alert(episode=2, after=60)), log=LOG).change == "none"
    assert after(ended, AlertSeen(alert(episode=2, seq=1, after=200))).state == "contained"
    assert after(ended, AlertSeen(alert(episode=3, after=200))).state == "open"


def test_what_was_left_out_answers_all_that_was_known_by_then() -> None:
    """Also where remediation's clock is an hour behind: only a later episode is a new one."""
    behind = step(OPEN, ActionSeen(action("done", after=-3600)), log=LOG).incident
    assert behind is not None
    item = behind.subjects[0].model_copy(update={"answered": True})
    cut = behind.model_copy(
        update={
            "state": "contained", "subjects": (item,), "actions": (), "left_out": {"done": 1},
            "history": (behind.history[-1].model_copy(update={"time": T0 - timedelta(hours=1)}),),
        }
    )  # fmt: skip
    assert after(cut, AlertSeen(alert(seq=1, after=10))).state == "contained"
    assert after(cut, AlertSeen(alert(episode=2, after=60))).state == "open"


def test_only_the_first_alert_of_an_episode_says_when_it_opened() -> None:
    """Totals that come after the action was done are of what it was about."""
    incident = after(IN["contained"], AlertSeen(alert(episode=2, seq=3, after=60)))
    assert incident.state == "contained"
    assert incident.subjects[0].opened == T0


def test_monitor_only_is_said() -> None:
    """Without a serving hook, nobody claims that the model that serves was changed."""
    done = action("done", name="rollback", figures={"monitor_only": True})
    incident = after(OPEN, ActionSeen(done))
    assert incident.note == incident.history[-1].reason == "contained (monitor only)"


def test_a_dry_run_contains_nothing_and_holds_nothing_up() -> None:
    """What is only proposed for show leaves the incident open, and it can end by quiet."""
    incident = after(OPEN, ActionSeen(action("proposed", figures={"dry_run": True})))
    assert incident.state == "open"
    assert after(incident, QUIET).state == "resolved"


def crowd(incident: Incident, count: int, *, seq: int = 0, **changes: Any) -> Incident:
    """With alerts of ``count`` more subjects, each with more evidence than the one before."""
    news = (alert(f"c-{n}", seq, evidence=2.0 + n, **changes) for n in range(count))
    return after(incident, *map(AlertSeen, news))


def test_many_subjects_stay_within_a_message() -> None:
    """Whoever comes when there is no room is counted once, and the record stays below a mebibyte.

    Nobody makes room before something was done about him, however weak he is beside the others.
    """
    incident = OPEN
    for seq in range(3):
        incident = crowd(incident, subjects.MAX_SUBJECTS + 20, seq=seq)
    assert len(incident.subjects) == subjects.MAX_SUBJECTS
    assert incident.evidence["subjects"] == subjects.MAX_SUBJECTS + 21
    assert incident.evidence["subjects_left_out"] == 21
    assert "s1" in {s.subject.id for s in incident.subjects}
    assert len(incident.encode()) < 2**20


def test_only_who_is_answered_makes_room() -> None:
    """Not one whose action waits, runs or failed, nor one that began again; the weakest first."""
    full = crowd(OPEN, subjects.MAX_SUBJECTS - 1)
    wanted = {"c-0": "running", "c-1": "failed", "c-2": "done", "c-3": "denied", "c-4": "done"}
    for name, outcome in wanted.items():
        target = Subject(kind="source", id=name)
        full = after(full, ActionSeen(action(outcome, id=name, subject=target)))
    full = after(full, AlertSeen(alert("c-2", episode=2, after=60, evidence=4.0)))
    names = []
    for number in range(3):
        before = full
        full = after(full, AlertSeen(alert(f"new-{number}")))
        gone = {s.subject.id for s in before.subjects} - {s.subject.id for s in full.subjects}
        names.append("".join(gone))
        assert full.evidence["subjects"] == subjects.MAX_SUBJECTS + number + 1
    assert names == ["c-3", "c-4", ""]


def test_a_subject_without_room_keeps_the_incident_from_being_contained() -> None:
    """Nothing was done about it; it is listed with its next alert, as others are answered."""
    full = crowd(OPEN, subjects.MAX_SUBJECTS - 1)
    full = after(full, AlertSeen(alert("late")))
    for item in full.subjects:
        done = action("done", id=item.subject.id, subject=item.subject)
        full = after(full, ActionSeen(done))
    assert full.state == "open"
    listed = after(full, AlertSeen(alert("late", seq=1, after=10)))
    assert "late" in {s.subject.id for s in listed.subjects}
    done = action("done", id="late", subject=Subject(kind="source", id="late"), after=11)
    assert after(listed, ActionSeen(done)).state == "contained"


def test_old_alerts_of_a_subject_without_room_change_nothing() -> None:
    """What was answered neither reopens its incident nor opens another after a dismissal."""
    full = crowd(OPEN, subjects.MAX_SUBJECTS - 1)
    for item in full.subjects:
        done = action("done", id=item.subject.id, subject=item.subject)
        full = after(full, ActionSeen(done))
    assert full.state == "contained"
    full = after(full, AlertSeen(alert("new", evidence=9.0)))
    assert "s1" not in {s.subject.id for s in full.subjects}
    done = action("done", id="new", subject=Subject(kind="source", id="new"))
    contained = after(full, ActionSeen(done))
    assert contained.state == "contained"
    assert step(contained, AlertSeen(alert()), log=LOG) == Step(contained, "none")
    totals = after(contained, AlertSeen(alert(seq=1, after=30)))
    assert totals.state == "contained"
    assert totals.evidence["subjects"] == subjects.MAX_SUBJECTS + 1
    assert step(totals, AlertSeen(alert(seq=1, after=30)), log=LOG) == Step(totals, "none")
    assert after(totals, AlertSeen(alert(episode=2, after=90))).state == "open"
    dismissed = after(totals, DISMISS)
    assert subjects.knows(dismissed, alert(seq=2))
    assert not subjects.knows(dismissed, alert(episode=2))
    assert not subjects.knows(dismissed, alert("other"))


def test_history_and_episodes_are_bounded() -> None:
    """An incident that goes on for ever does not grow for ever."""
    incident = OPEN
    for number in range(200):
        outcome = ("running", "done")[number % 2]
        incident = after(incident, ActionSeen(action(outcome, after=10.0 + number)))
        incident = after(incident, AlertSeen(alert(episode=10 + number)))
    assert len(incident.history) == 50
    assert len(incident.subjects[0].episodes) == subjects.MAX_EPISODES
    assert incident.subjects[0].alerts == 201
    assert subjects.knows(incident, alert(episode=209))


def test_a_reason_is_one_line() -> None:
    """Subjects are the users' words; a log line cannot be forged with them."""
    incident = after(None, AlertSeen(alert("a\nstate: resolved" + "x" * 500)))
    assert re.fullmatch(r"[^\n]{1,300}", incident.history[0].reason)


def test_evidence_records_raise_the_version() -> None:
    """Every record has a version of its own."""
    assert stamped(OPEN).version == OPEN.version + 1
    assert stamped(OPEN).history == OPEN.history


def test_no_actions_and_no_subjects_is_open() -> None:
    """The derived state is defined for nothing at all."""
    assert derive((), (), {}, {}) == "open"
