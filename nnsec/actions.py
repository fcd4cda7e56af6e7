"""The actions inside an incident: what became of each, and the state that they amount to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from nnsec.subjects import digest
from schemas.action import Action
from schemas.alert import Subject
from schemas.base import to_millis
from schemas.incident import (
    ActionState,
    IncidentAction,
    IncidentState,
    IncidentSubject,
    LeftOut,
    Unlisted,
)

SKEW = timedelta(seconds=10)
"""By how much an episode must have opened after an action was done. Its time is stream time, which
may be 5 s ahead of a worker's clock, and what provoked the action must not look like what followed.
"""

_RANK: dict[ActionState, int] = {
    "proposed": 0, "awaiting_approval": 1, "running": 2, "done": 3, "denied": 3, "failed": 3,
}  # fmt: skip
_OVER: frozenset[ActionState] = frozenset({"done", "denied"})


def merge(known: tuple[IncidentAction, ...], action: Action) -> tuple[IncidentAction, ...] | None:
    """The actions with one report more; None if it is no later than what is known."""
    before = next((a for a in known if a.action_id == action.id), None)
    if before is not None and not _newer(action, before):
        return None
    entry = IncidentAction(
        action=action.action,
        action_id=action.id,
        subject=action.subject,
        state=action.outcome,
        by=action.by,
        reason=action.reason,
        time=action.time,
        figures=action.figures,
        version=action.version,
    )
    if before is None:
        return (*known, entry)
    return tuple(entry if a is before else a for a in known)


def derive(
    actions: tuple[IncidentAction, ...],
    involved: tuple[IncidentSubject, ...],
    left_out: Mapping[LeftOut, int],
    unlisted: Mapping[str, Unlisted],
) -> IncidentState:
    """The state that the actions' states amount to, for an incident that is not finished.

    Parameters
    ----------
    left_out:
        How many actions are not among these any more, by what they were: they count on.
    unlisted:
        The subjects that are not among these for want of room.

    Examples
    --------
    >>> derive((), (), {}, {})
    'open'
    """
    states = {a.state for a in actions if not a.figures.get("dry_run")}
    states |= {state for state in left_out if state != "dry_run"}
    if "failed" in states:
        return "failed"
    if "awaiting_approval" in states:
        return "awaiting_approval"
    if states & {"proposed", "running"}:
        return "containing"
    if states == {"done"} and _answered(actions, involved, unlisted):
        return "contained"
    return "open"


def began_again(
    actions: Iterable[IncidentAction], involved: Iterable[IncidentSubject]
) -> frozenset[Subject]:
    """The subjects of which an episode opened after the newest action of a kind was done."""
    opened = {item.subject: item.opened for item in involved}
    newest = {
        (a.subject, a.action): a
        for a in actions  # a later attempt comes after the earlier ones
        if a.subject in opened and not a.figures.get("dry_run")
    }
    return frozenset(
        a.subject
        for a in newest.values()
        if a.state == "done" and renewed(opened[a.subject], a.time, a.figures)
    )


def settled(
    actions: Iterable[IncidentAction], involved: Iterable[IncidentSubject]
) -> frozenset[Subject]:
    """The subjects about which all is done or denied that was called for, and none began again."""
    real = [a for a in actions if not a.figures.get("dry_run")]
    under_way = {a.subject for a in real if a.state not in _OVER}
    over = {a.subject for a in real} - under_way
    whole = any(target.kind == "model" for target in over)
    answered = {s.subject for s in involved if whole or s.answered or s.subject in over}
    return frozenset(answered - under_way - began_again(real, involved))


def noted(
    actions: Iterable[IncidentAction], unlisted: dict[str, Unlisted], action: Action
) -> dict[str, Unlisted]:
    """The subjects that are not listed, where one may be answered by an action that ended.

    It is noted now, as the action may be left out later: then a newer episode, which it does not
    answer, could not be told from this one any more.
    """
    if not unlisted or action.outcome not in _OVER or action.figures.get("dry_run"):
        return unlisted
    real = [a for a in actions if not a.figures.get("dry_run")]
    under_way = {digest(a.subject) for a in real if a.state not in _OVER}
    named = unlisted.keys() if action.subject.kind == "model" else {digest(action.subject)}
    ended = named - under_way
    return {
        name: (episode, seq, answered or name in ended)
        for name, (episode, seq, answered) in unlisted.items()
    }


def about(opened: datetime | None) -> dict[str, int]:
    """What the figures of an action say of the newest episode that it was planned about."""
    return {} if opened is None else {"opened_ms": to_millis(opened)}


def renewed(opened: datetime | None, done: datetime, figures: Mapping[str, Any]) -> bool:
    """Whether an episode that opened then is none that an action done by then was about.

    Parameters
    ----------
    figures:
        Of the action. What it was planned `about` did not come after it, though the clock by which
        it was done may be behind stream time by any amount.
    """
    if opened is None:
        return False
    planned = figures.get("opened_ms")
    known = planned if isinstance(planned, int) else 0
    return to_millis(opened) > max(to_millis(done), known) + SKEW // timedelta(milliseconds=1)


def _answered(
    actions: tuple[IncidentAction, ...],
    involved: tuple[IncidentSubject, ...],
    unlisted: Mapping[str, Unlisted],
) -> bool:
    """Whether something was done about each subject, or the whole model, and none began again."""
    targets = {a.subject for a in actions}
    if began_again(actions, involved):
        return False
    if any(target.kind == "model" for target in targets):
        return True
    waiting = {name for name, (_, _, answered) in unlisted.items() if not answered}
    return all(item.answered or item.subject in targets for item in involved) and (
        not waiting or waiting <= set(map(digest, targets))
    )


def _newer(action: Action, known: IncidentAction) -> bool:
    """Whether a report is later than what is known: by its version, or by time without one."""
    if action.version:
        return action.version > known.version
    return (action.time, _RANK[action.outcome]) > (known.time, _RANK[known.state])
