"""Every event by name, found by its class: a new module needs no entry here."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import schemas
from schemas.base import Event
from schemas.errors import SchemaError


def _found() -> dict[str, type[Event]]:
    result: dict[str, type[Event]] = {}
    for module in pkgutil.iter_modules(schemas.__path__):
        if module.name == "events":
            continue
        for value in vars(importlib.import_module(f"schemas.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Event) and "event" in vars(value):
                result[value.event] = value
    return result


EVENTS: dict[str, type[Event]] = _found()


def json_schema(event: str) -> dict[str, Any]:
    """The JSON Schema of an event, by its wire names.

    Raises
    ------
    SchemaError
        For an unknown name; the message lists the known ones.
    """
    if event not in EVENTS:
        raise SchemaError(f"no event {event!r}; there are {', '.join(sorted(EVENTS))}")
    return EVENTS[event].model_json_schema(by_alias=True, mode="serialization")
