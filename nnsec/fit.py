"""Leaving out of an incident what its record has no room for, and counting it."""

from __future__ import annotations

from collections import Counter

from nnsec import subjects
from nnsec.actions import settled
from schemas.base import Model
from schemas.incident import Incident, IncidentAction, IncidentSubject, LeftOut

MAX_ACTIONS = 1000
"""Actions in a record, as long as all others are finished."""
FEWEST_SUBJECTS = 100
"""The strongest subjects, which stay as long as leaving out anything else makes room."""
_COUNTS = 256
"""Bytes by which the counts of what was left out may grow."""
_ORDER: tuple[LeftOut, ...] = (
    "dry_run", "done", "denied", "proposed", "running", "awaiting_approval", "failed",
)  # fmt: skip
"""What goes first: what says least about the state of the incident."""
_OVER = ("dry_run", "done", "denied")


def fit(incident: Incident, limit: int) -> Incident:
    """The incident as it is written: with `MAX_ACTIONS`, and in so many bytes.

    First go the oldest finished actions, then the subjects down to `FEWEST_SUBJECTS`, those that
    are settled first and then those with the least evidence, then unfinished actions, then all
    subjects but one and old transitions. An action that was left out counts on in the state of the
    incident, as what it was; a subject is remembered by a digest, in a sixteenth of the bytes.

    Parameters
    ----------
    limit:
        Bytes of the encoded incident, from about 8,000: what is left of it cannot be less.
    """
    most = min(subjects.MAX_UNLISTED, limit // 16 // subjects.UNLISTED_BYTES)
    if len(incident.unlisted) > most:
        incident = incident.model_copy(
            update={"unlisted": subjects.newest(incident.unlisted, most)}
        )
    over_with = settled(incident.actions, incident.subjects)
    ordered = sorted(incident.actions, key=_worth)
    over = sum(not _stays(a) for a in ordered)
    finished, unfinished = ordered[:over], ordered[over:]
    gone: list[Model] = [*finished[: max(0, len(ordered) - MAX_ACTIONS)]]
    bytes_left = limit - _COUNTS - len(incident.encode()) + sum(map(_size, gone))
    weakest = sorted(incident.subjects, key=lambda s: (s.subject not in over_with, s.evidence))
    unlisted = len(incident.unlisted)
    for item in (
        *finished[len(gone) :], *weakest[:-FEWEST_SUBJECTS], *unfinished,
        *weakest[-FEWEST_SUBJECTS:-1], *incident.history[:-1],
    ):  # fmt: skip
        if bytes_left >= 0:
            break
        gone.append(item)
        bytes_left += _size(item)
        if isinstance(item, IncidentSubject) and unlisted < most:
            bytes_left -= subjects.UNLISTED_BYTES
            unlisted += 1
    return _without(incident, gone, most) if gone else incident


def _without(incident: Incident, gone: list[Model], most: int) -> Incident:
    """The incident without some of its actions, subjects and transitions."""
    names = set(map(id, gone))
    actions = [a for a in incident.actions if id(a) in names]
    answered = {a.subject for a in actions}
    whole = any(a.subject.kind == "model" for a in actions)
    kept = tuple(
        s.model_copy(update={"answered": True}) if whole or s.subject in answered else s
        for s in incident.subjects
        if id(s) not in names
    )
    dropped = tuple(s for s in incident.subjects if id(s) in names)
    unlisted = subjects.remembered(dropped, settled(incident.actions, dropped))
    return incident.model_copy(
        update={
            "actions": tuple(a for a in incident.actions if id(a) not in names),
            "left_out": dict(Counter(incident.left_out) + Counter(map(_what, actions))),
            "subjects": kept,
            "unlisted": subjects.newest(incident.unlisted | unlisted, most),
            "evidence": subjects.totals(
                kept, incident.evidence.get("subjects_left_out", 0.0) + len(dropped)
            ),
            "history": tuple(h for h in incident.history if id(h) not in names),
        }
    )


def _worth(action: IncidentAction) -> tuple[bool, bool, int, float]:
    """Where an action stands in the order in which they are left out."""
    rank = _ORDER.index(_what(action))
    return _stays(action), _alone(action), rank, action.time.timestamp()


def _what(action: IncidentAction) -> LeftOut:
    return "dry_run" if action.figures.get("dry_run") else action.state


def _stays(action: IncidentAction) -> bool:
    """Whether subjects go before it: it is not finished, or says what no other does."""
    return _what(action) not in _OVER or _alone(action)


def _alone(action: IncidentAction) -> bool:
    """Whether it answers for the whole model, or says that nothing was swapped."""
    return action.subject.kind == "model" or bool(action.figures.get("monitor_only"))


def _size(item: Model) -> int:
    """Bytes in the record, with the comma."""
    return len(item.model_dump_json(by_alias=True).encode()) + 1
