"""Source statements: whether samples of a source may be learned from."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.base import Event, Time

SourceState = Literal["trusted", "watched", "quarantined"]


class Source(Event):
    """The newest statement holds; ``version`` grows by 1 with every statement on the topic."""

    event: ClassVar[str] = "source"

    source: str
    state: SourceState
    reason: str
    incident: str = ""
    version: Annotated[int, Field(ge=1)]
    time: Time
