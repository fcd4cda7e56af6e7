"""Labels: the truth about an input that was scored earlier."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from schemas.base import UserEvent


class Label(UserEvent):
    """The true class of row ``row`` of the record ``id``."""

    event: ClassVar[str] = "label"

    id: Annotated[str, Field(min_length=1, max_length=256)]
    row: Annotated[int, Field(ge=0, lt=2**32)] = 0
    label: Annotated[int, Field(ge=0, lt=2**16)]
