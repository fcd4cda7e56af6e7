from __future__ import annotations

import pytest

from schemas.errors import SchemaError
from schemas.events import EVENTS, json_schema


def test_every_event_is_found() -> None:
    """The published names are all there."""
    assert set(EVENTS) >= {
        "alert", "incident", "action", "command", "model", "model-status", "source",
        "revocation", "label", "meta", "summary",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_every_event_has_a_schema(name: str) -> None:
    """Each event prints an object schema with its fields."""
    assert json_schema(name)["type"] == "object"
    assert json_schema(name)["properties"]


def test_wire_names_are_published() -> None:
    """A transition's first state is called `from` on the wire."""
    assert "from" in json_schema("incident")["$defs"]["Transition"]["properties"]


def test_an_unknown_event_lists_the_known() -> None:
    """A wrong name says which there are."""
    with pytest.raises(SchemaError, match="alert"):
        json_schema("alarm")
