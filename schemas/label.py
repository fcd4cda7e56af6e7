"""Labels: the truth about an input that was scored earlier."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from schemas.base import UserEvent
from schemas.errors import SchemaError
from schemas.identities import MAX_NAME, identity


def _id(value: str) -> str:
    """The id of an input, by the rule that inputs are held to."""
    try:
        return identity(value, None)
    except SchemaError as error:
        raise ValueError(str(error)) from error


class Label(UserEvent):
    """The true class of row ``row`` of the record ``id``."""

    event: ClassVar[str] = "label"

    id: Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_id)]
    row: Annotated[int, Field(ge=0, lt=2**32)] = 0
    label: Annotated[int, Field(ge=0, lt=2**16)]
