"""The policy: which actions an incident calls for, from the tables ``[policy.<family>]``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from uuid import UUID, uuid5

from nnsec.actions import renewed
from nnsec.errors import ConfigError
from nnsec.settings import PolicyTable
from schemas.action import Action
from schemas.alert import Subject
from schemas.base import SEVERITIES
from schemas.incident import FINISHED, Incident, IncidentSubject
from schemas.threats import FAMILIES, Family

ACCUSED: Mapping[Family, str] = {
    "evasion": "client", "privacy": "client", "poisoning": "source", "drift": "model",
    "abuse": "client", "trust": "model",
}  # fmt: skip
"""The kind of the subjects that incidents of a family accuse."""


@dataclass(frozen=True, slots=True)
class Intent:
    """One action for one subject that the policy wants.

    ``order`` is its place in the policy: the actions for one subject run one after the other, and
    a later one is not begun if an earlier one did not get done. ``attempt`` is 0 for the first, and
    one more each time that the subject began again after the action was done.
    """

    id: str
    action: str
    subject: Subject
    order: int
    approval: bool
    attempt: int = 0


def action_id(incident: UUID, action: str, subject: Subject, attempt: int = 0) -> str:
    """UUIDv5(incident, "action/kind/id"), so that asking twice is asking once.

    Of a later attempt it is "attempt/action/kind/id": whatever a subject is called, no action's
    name begins with a number.

    >>> action_id(UUID(int=1), "rollback", Subject(kind="model", id="digits"))
    '787cfb5b-3703-554e-9c06-7302561e1369'
    """
    again = f"{attempt}/" if attempt else ""
    return str(uuid5(incident, f"{again}{action}/{subject.kind}/{subject.id}"))


def check(policy: Mapping[str, PolicyTable], kinds: Mapping[str, Collection[str]]) -> None:
    """Check the policy's names against what exists, and that each action can ever be called for.

    Parameters
    ----------
    kinds:
        Action name to the kinds of subjects that it is for.

    Raises
    ------
    ConfigError
        Naming the unknown family or action and those that are known, or the action that is for
        none of the subjects that the family accuses.
    """
    for family, table in policy.items():
        if family not in FAMILIES:
            raise ConfigError(f"unknown family [policy.{family}]; known: {', '.join(FAMILIES)}")
        for name in table.actions:
            if name not in kinds:
                known = ", ".join(sorted(kinds))
                raise ConfigError(
                    f"unknown action {name!r} in [policy.{family}] actions; known: {known}"
                )
            if ACCUSED[family] not in kinds[name]:
                found = " and ".join(f"{kind}s" for kind in sorted(kinds[name])) or "commands only"
                raise ConfigError(
                    f"{name!r} in [policy.{family}] actions would never run: it is for {found}, "
                    f"and incidents of {family} accuse {ACCUSED[family]}s"
                )


def plan(
    incident: Incident,
    policy: Mapping[str, PolicyTable],
    kinds: Mapping[str, Collection[str]],
    known: Mapping[str, Action],
) -> tuple[Intent, ...]:
    """What the policy wants done about an incident as it is now.

    Parameters
    ----------
    incident:
        Finished ones call for nothing.
    policy:
        By family.
    kinds:
        Action name to the kinds of subjects that it is for.
    known:
        What became of all actions so far, by id. The incident may have had no room for some.

    Returns
    -------
    Intents in the order in which they are to run: all actions of one subject, then the next one.
    """
    table = policy.get(incident.family)
    if table is None or incident.state in FINISHED:
        return ()
    if SEVERITIES.index(incident.severity) < SEVERITIES.index(table.severity):
        return ()
    return tuple(
        Intent(
            id=action_id(incident.id, name, item.subject, attempt),
            action=name,
            subject=item.subject,
            order=order,
            approval=table.approval == "required",
            attempt=attempt,
        )
        for item in incident.subjects
        for order, name in enumerate(table.actions)
        if item.subject.kind in kinds.get(name, ())
        for attempt in (_attempt(incident.id, name, item, known),)
    )


def _attempt(
    incident: UUID, action: str, item: IncidentSubject, known: Mapping[str, Action]
) -> int:
    """The first one that was not done before the subject began again."""
    attempt = 0
    while (
        (last := known.get(action_id(incident, action, item.subject, attempt))) is not None
        and last.outcome == "done"
        and renewed(item.opened, last.time, last.figures)
    ):
        attempt += 1
    return attempt
