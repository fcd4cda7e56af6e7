"""Action results: what remediation decided, began and finished."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from schemas.alert import Subject
from schemas.base import Event, Time
from schemas.incident import ActionState


class Action(Event):
    """One step of an action for one subject; guards are a fold of these."""

    event: ClassVar[str] = "action"

    id: str
    action: str
    model: str
    incident: UUID | None
    subject: Subject
    outcome: ActionState
    automatic: bool
    by: str
    reason: str
    time: Time
    figures: dict[str, Any] = {}
