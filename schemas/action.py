"""Action results: what remediation decided, began and finished."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from schemas.alert import Subject
from schemas.base import Event, Time
from schemas.incident import ActionState


class Action(Event):
    """One step of an action for one subject; guards are a fold of these.

    ``version`` counts the steps of one action, from 1. Of two records with one version the first in
    the log counts: so what a process says that was paused, and whose work another has taken over,
    is without effect. 0 is of a worker that does not count yet; those go by their time.
    """

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
    version: int = 0

    def is_meant(self, target: str) -> bool:
        """Whether a command's target names this action or its incident; an ordered one has none."""
        return target == self.id or (self.incident is not None and target == str(self.incident))

    def follows(self, version: int, time: datetime) -> bool:
        """Whether this record counts after the one with that version and time."""
        return self.version > version if self.version else self.time > time
