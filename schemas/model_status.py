"""What a stream worker holds and serves, said every 5 s and at every change."""

from __future__ import annotations

from typing import ClassVar, Literal
from uuid import UUID

from schemas.base import Event, Model, Time


class ServedModel(Model):
    """One model as one worker sees it."""

    model: str
    epoch: int
    version: int
    digest: str
    state: Literal["ready", "active", "refused"]
    reason: str = ""


class ModelStatus(Event):
    """A worker's report; silent for 15 s means gone."""

    event: ClassVar[str] = "model-status"

    worker: UUID
    time: Time
    partitions: dict[str, tuple[int, ...]]
    """Partitions held, by topic name without the prefix."""
    models: tuple[ServedModel, ...]
    sources_version: int
    """Highest version of a source statement that the worker has applied; 0 for none."""
    leaving: bool = False
