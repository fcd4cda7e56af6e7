"""Alerts: something is wrong with a subject, with the evidence for it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal
from uuid import UUID

from pydantic import Field

from schemas.base import Event, Model, Severity, Time
from schemas.threats import Threat

Coordinates = tuple[str, int, int, int]
"""``[topic, partition, offset, row]`` as people read it."""


class Subject(Model):
    """Whom or what an alert is about; never one input."""

    kind: Literal["client", "source", "window", "model"]
    id: str


class Alert(Event):
    """One message of an episode: a rule that crossed its bound for a subject.

    ``id`` is UUIDv5(episode, seq); ``episode`` is UUIDv5(log, "rule/subject/position of the row
    that crossed the bound"). ``evidence`` is the evidence value when it was sent (1 is the bound).
    """

    event: ClassVar[str] = "alert"

    id: UUID
    episode: UUID
    seq: Annotated[int, Field(ge=0)]
    time: Time
    model: str
    model_version: str
    threat: Threat
    atlas: tuple[str, ...]
    severity: Severity
    evidence: Annotated[float, Field(ge=0)]
    subject: Subject
    positions: Annotated[tuple[Coordinates, ...], Field(max_length=100)]
    counts: dict[str, float]
    explanation: str
