"""Model statements: which checkpoint serves; on the wire inside a signed envelope."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.base import Event, Time


class ModelStatement(Event):
    """Epoch ``epoch`` of a model, first to prepare, then to activate."""

    event: ClassVar[str] = "model"

    model: str
    epoch: Annotated[int, Field(ge=1)]
    phase: Literal["prepare", "activate"]
    version: Annotated[int, Field(ge=1)]
    digest: str
    reason: str
    incident: str = ""
    issued: Time
    expires: Time
