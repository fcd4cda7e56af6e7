"""Revocations: samples that were accepted and must not be learned from after all."""

from __future__ import annotations

from typing import Annotated, ClassVar
from uuid import UUID

from pydantic import Field

from schemas.base import Event, Time

MAX_POSITIONS = 10_000


class Revocation(Event):
    """Up to 10,000 positions of ``training.samples``; a release is a later one, withdrawn."""

    event: ClassVar[str] = "revocation"

    id: str
    model: str
    source: str
    incident: str
    log: UUID
    positions: Annotated[tuple[tuple[int, int, int], ...], Field(max_length=MAX_POSITIONS)]
    """(partition, offset, row)"""
    withdrawn: bool = False
    reason: str
    time: Time
