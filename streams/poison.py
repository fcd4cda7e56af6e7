"""A record that cannot pass becomes a dead letter."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from nnsec.adapters.declaration import config
from nnsec.adapters.publisher import TooLarge
from nnsec.adapters.records import Out, Record
from nnsec.settings import Settings
from schemas import dead_letter as letters
from schemas.errors import SchemaError
from schemas.topics import TOPICS


def dead_letter(
    settings: Settings,
    logs: Mapping[str, UUID],
    record: Record,
    error: Exception,
    attempts: int,
) -> Out:
    """Write the dead letter of one record, cut if it would not fit its topic."""
    limit = int(config(settings, TOPICS["dead-letters"])["max.message.bytes"])
    key, value, headers = letters.dead_letter(
        record.key, record.value, record.headers, log=logs[record.topic], topic=record.topic,
        partition=record.partition, offset=record.offset, timestamp=record.timestamp,
        error=_named(error), attempts=attempts, limit=limit,
    )  # fmt: skip
    return Out("dead-letters", value, key, headers, timestamp=record.timestamp)


def error_class(letter: Out) -> str:
    """The published class of what is wrong with a record."""
    found = dict(letter.headers).get("nnsec-error-class")
    return (found or b"").decode()


def _named(error: Exception) -> SchemaError:
    """Give any error a published class and a field."""
    if isinstance(error, SchemaError):
        return error
    name = "TooLarge" if isinstance(error, TooLarge) else "ModelFailed"
    return SchemaError(f"{type(error).__name__}: {error}", field="value", error_class=name)
