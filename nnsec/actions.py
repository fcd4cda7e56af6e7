"""The actions inside an incident: what became of each, and the state that they amount to."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.action import Action
from schemas.incident import (
    ActionState,
    IncidentAction,
    IncidentState,
    IncidentSubject,
    LeftOut,
)

_RANK: dict[ActionState, int] = {
    "proposed": 0, "awaiting_approval": 1, "running": 2, "done": 3, "denied": 3, "failed": 3,
}  # fmt: skip


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
) -> IncidentState:
    """The state that the actions' states amount to, for an incident that is not finished.

    Parameters
    ----------
    left_out:
        How many actions are not among these any more, by what they were: they count on.

    Examples
    --------
    >>> derive((), (), {})
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
    if states == {"done"} and all(_answered(item, actions) for item in involved):
        return "contained"
    return "open"


def _answered(item: IncidentSubject, actions: tuple[IncidentAction, ...]) -> bool:
    """Whether something was done about a subject, or about the whole model."""
    return item.answered or any(
        a.subject == item.subject or a.subject.kind == "model" for a in actions
    )


def _newer(action: Action, known: IncidentAction) -> bool:
    """Whether a report is later than what is known: by its version, or by time without one."""
    if action.version:
        return action.version > known.version
    return (action.time, _RANK[action.outcome]) > (known.time, _RANK[known.state])
