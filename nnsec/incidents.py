"""The life of an incident: one transition function, total over (state, event).

    open ──────────────▶ awaiting_approval ──▶ containing ──▶ contained ──▶ resolved
      ▲  a new subject, or one that began again ◀──────────────┘              │
      └── an alert of an episode that was not over after all ◀────────────────┘
    any but finished ──▶ failed (an action failed), dismissed (a person said so)

The state is derived from the states of the actions, never set. docs/incidents.md draws the whole
table; it is part of the contract, and tests/nnsec/test_incidents.py walks through all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID, uuid5

from nnsec import actions, subjects
from schemas.action import Action
from schemas.alert import Alert
from schemas.base import SEVERITIES, Severity
from schemas.incident import (
    FINISHED,
    Incident,
    IncidentState,
    IncidentSubject,
    Transition,
)
from schemas.threats import family

MAX_HISTORY = 50
MAX_DISMISSALS = 16
"""Commands remembered that came when the incident was resolved; they expire by themselves."""
ROLE = "correlate"

Change = Literal["none", "evidence", "transition"]


@dataclass(frozen=True, slots=True)
class AlertSeen:
    """An alert came in."""

    alert: Alert


@dataclass(frozen=True, slots=True)
class ActionSeen:
    """Remediation reported a step of an action."""

    action: Action


@dataclass(frozen=True, slots=True)
class Dismissed:
    """A person ended an incident of ``model``, with a signed command that is good for one use."""

    command: str
    model: str
    by: str
    reason: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nothing was heard of the incident for ``seconds``."""

    seconds: float
    time: datetime


Event = AlertSeen | ActionSeen | Dismissed | Quiet


@dataclass(frozen=True, slots=True)
class Step:
    """The incident after an event, and how it changed.

    ``transition``: the state changed, the version is already one higher: write it now.
    ``evidence``: the same state and version; write it when the rate allows, after `stamped`.
    ``none``: nothing new, as when a record is delivered again.
    """

    incident: Incident | None
    change: Change


def incident_id(log: UUID, alert: Alert) -> UUID:
    """UUIDv5(log of ``alerts``, "model/family/opening episode")."""
    return uuid5(log, f"{alert.model}/{family(alert.threat)}/{alert.episode}")


def step(incident: Incident | None, event: Event, *, log: UUID) -> Step:
    """Apply one event to an incident, or to none.

    Parameters
    ----------
    incident:
        The incident that the event is for; None if there is none yet. A finished one is only
        for alerts of episodes that it knows.
    event:
        What happened.
    log:
        Identity of the topic ``alerts``, the namespace of incident ids.

    Returns
    -------
    The incident after it. The function is pure, and never raises.
    """
    if incident is None:
        if isinstance(event, AlertSeen):
            return Step(_opened(event.alert, log), "transition")
        return Step(None, "none")
    if isinstance(event, AlertSeen):
        return _alert(incident, event.alert)
    if isinstance(event, ActionSeen):
        return _action(incident, event.action)
    if isinstance(event, Dismissed):
        return _dismissed(incident, event)
    return _quiet(incident, event)


def stamped(incident: Incident) -> Incident:
    """The incident with the next version, for a record that only adds evidence."""
    return incident.model_copy(update={"version": incident.version + 1})


def _opened(alert: Alert, log: UUID) -> Incident:
    merged = subjects.merge((), alert, {}, 0.0, frozenset())
    opening = Transition(
        from_="",
        to="open",
        version=1,
        by=ROLE,
        reason=_line(f"{alert.threat}: {alert.subject.kind} {alert.subject.id}"),
        time=alert.time,
    )
    return Incident(
        id=incident_id(log, alert),
        version=1,
        state="open",
        model=alert.model,
        model_version=alert.model_version,
        family=family(alert.threat),
        threats=(alert.threat,),
        severity=alert.severity,
        subjects=merged.listed,
        first_seen=alert.time,
        last_seen=alert.time,
        evidence=merged.totals,
        history=(opening,),
    )


def _alert(incident: Incident, alert: Alert) -> Step:
    known = next((s for s in incident.subjects if s.subject == alert.subject), None)
    if incident.state == "dismissed" or subjects.heard(incident, alert):
        return Step(incident, "none")
    full = known is None and len(incident.subjects) >= subjects.MAX_SUBJECTS
    merged = subjects.merge(
        incident.subjects,
        alert,
        incident.unlisted,
        incident.evidence.get("subjects_left_out", 0.0),
        actions.settled(incident.actions, incident.subjects) if full else frozenset(),
    )
    updated = incident.model_copy(
        update={
            "subjects": merged.listed,
            "unlisted": merged.unlisted,
            "model_version": alert.model_version,
            "threats": subjects.with_threat(incident.threats, alert.threat),
            "severity": worse(incident.severity, alert.severity),
            "first_seen": min(incident.first_seen, alert.time),
            "last_seen": max(incident.last_seen, alert.time),
            "evidence": merged.totals,
        }
    )
    name = f"{alert.subject.kind} {alert.subject.id}"
    item = next((s for s in merged.listed if s.subject == alert.subject), None)
    if incident.state == "contained" and item is not None:
        if known is None:
            return _moved(updated, "open", ROLE, f"new subject: {name}", alert.time)
        if _began_again(updated, item, known.opened):
            return _moved(updated, "open", ROLE, f"began again: {name}", alert.time)
    if incident.state == "resolved":
        return _moved(updated, "open", ROLE, f"not over: {name}", alert.time)
    return Step(updated, "evidence")


def _began_again(incident: Incident, item: IncidentSubject, before: datetime | None) -> bool:
    """Whether a subject of a contained incident goes on after what was done about it."""
    if actions.began_again(incident.actions, (item,)):
        return True
    # Of an action that was left out no more is known than that it was done when all were, and that
    # no episode had begun again of those that were known before.
    done = incident.history[-1].time
    return item.answered and actions.renewed(item.opened, done, actions.about(before))


def _action(incident: Incident, action: Action) -> Step:
    taken = actions.merge(incident.actions, action)
    if taken is None:
        return Step(incident, "none")
    unlisted = actions.noted(taken, incident.unlisted, action)
    updated = incident.model_copy(update={"actions": taken, "unlisted": unlisted})
    if incident.state in FINISHED:
        return Step(updated, "evidence")
    state = actions.derive(taken, updated.subjects, updated.left_out, updated.unlisted)
    if state == incident.state:
        return Step(updated, "evidence")
    note = ""
    reason = f"{action.action} of {action.subject.kind} {action.subject.id}: {action.outcome}"
    if state == "contained" and any(a.figures.get("monitor_only") for a in taken):
        note = "contained (monitor only)"
        reason = note
    elif action.reason:
        reason = f"{reason}; {action.reason}"
    return _moved(updated.model_copy(update={"note": note}), state, action.by, reason, action.time)


def _quiet(incident: Incident, event: Quiet) -> Step:
    """Quiet ends what is open or contained; what failed, runs or waits needs more than time."""
    if incident.state not in {"open", "contained"}:
        return Step(incident, "none")
    return _moved(incident, "resolved", ROLE, f"quiet for {event.seconds:g} s", event.time)


def _dismissed(incident: Incident, event: Dismissed) -> Step:
    """End it; a resolved one notes the command, which would end it later, were it sent again."""
    known = event.command in incident.dismissals
    if event.model != incident.model or incident.state == "dismissed" or known:
        return Step(incident, "none")
    if incident.state != "resolved":
        return _moved(incident, "dismissed", event.by, event.reason, event.time)
    noted = (*incident.dismissals, event.command)[-MAX_DISMISSALS:]
    return Step(incident.model_copy(update={"dismissals": noted}), "evidence")


def _moved(incident: Incident, state: IncidentState, by: str, reason: str, time: datetime) -> Step:
    version = incident.version + 1
    change = Transition(
        from_=incident.state, to=state, version=version, by=by, reason=_line(reason), time=time
    )
    history = (*incident.history, change)[-MAX_HISTORY:]
    return Step(
        incident.model_copy(update={"state": state, "version": version, "history": history}),
        "transition",
    )


def worse(one: Severity, other: Severity) -> Severity:
    """The more severe of two.

    >>> worse("low", "high")
    'high'
    """
    return max(one, other, key=SEVERITIES.index)


def _line(text: str) -> str:
    """One line of at most 300 characters: subjects are the users' words."""
    return " ".join(text.split())[:300]
