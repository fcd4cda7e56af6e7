"""Log identities: offsets start again when a topic is made anew, so each making has a UUID."""

from __future__ import annotations

from typing import ClassVar
from uuid import UUID

from schemas.base import Event, Time


class Meta(Event):
    """The identity of one topic's log; the record's key is the topic."""

    event: ClassVar[str] = "meta"

    log: UUID
    declared: Time
