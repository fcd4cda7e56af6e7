"""Incidents: alerts of one model and one family, and what was done about them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from pydantic import ConfigDict, Field

from schemas.alert import Subject
from schemas.base import Event, Model, Severity, Time
from schemas.threats import Family, Threat

IncidentState = Literal[
    "open", "awaiting_approval", "containing", "contained", "failed", "resolved", "dismissed"
]
ActionState = Literal["proposed", "awaiting_approval", "running", "done", "denied", "failed"]
LeftOut = ActionState | Literal["dry_run"]
FINISHED: frozenset[IncidentState] = frozenset({"resolved", "dismissed"})


class IncidentSubject(Model):
    """A subject inside an incident, with totals of its newest episodes."""

    subject: Subject
    threats: tuple[Threat, ...]
    alerts: int
    first_seen: Time
    last_seen: Time
    evidence: float
    counts: dict[str, float]
    episodes: tuple[UUID, ...] = ()
    seqs: tuple[int, ...] = ()
    """The highest ``seq`` heard of each of ``episodes``."""
    opened: Time | None = None
    """When the newest of its episodes opened whose first alert was heard."""
    answered: bool = False
    """Whether an action for it was left out of the incident's ``actions``."""


Unlisted = tuple[str, int, bool]
"""Of a subject that is not listed: its newest episode (shortened), the highest ``seq`` heard of it,
and whether what was done about the subject was finished."""


class IncidentAction(Model):
    """The state of one action for one subject."""

    action: str
    action_id: str
    subject: Subject
    state: ActionState
    by: str
    reason: str
    time: Time
    figures: dict[str, Any] = {}
    version: int = 0


class Transition(Model):
    """One change of state."""

    model_config = ConfigDict(populate_by_name=True)

    from_: Annotated[str, Field(alias="from")]
    to: IncidentState
    version: int
    by: str
    reason: str
    time: Time


class Incident(Event):
    """The whole incident after one transition; ``version`` grows by 1 with each record."""

    event: ClassVar[str] = "incident"

    id: UUID
    version: Annotated[int, Field(ge=1)]
    state: IncidentState
    model: str
    model_version: str = ""
    family: Family
    threats: tuple[Threat, ...]
    severity: Severity
    subjects: tuple[IncidentSubject, ...]
    unlisted: dict[str, Unlisted] = {}
    """Subjects for which there is no room, by a digest; the one heard of last comes last."""
    first_seen: Time
    last_seen: Time
    evidence: dict[str, float]
    actions: tuple[IncidentAction, ...] = ()
    left_out: dict[LeftOut, int] = {}
    """How many actions are not in ``actions`` for want of room, by what they were."""
    history: tuple[Transition, ...] = ()
    dismissals: tuple[str, ...] = ()
    """Ids of signed dismissals that came when it was resolved: they are used up."""
    note: str = ""
