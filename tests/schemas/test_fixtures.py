"""One full example of every event is kept here, and must decode for ever.

A fixture is never changed: where an event grows a field, the new field has a default, and the
example of the new form gets a file of its own beside the old one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.base import UserEvent
from schemas.errors import SchemaError
from schemas.events import EVENTS

FOLDER = Path(__file__).parent / "fixtures"
FILES = sorted(FOLDER.glob("*.json"))


def event_of(path: Path) -> Any:
    """The event of ``alert.json`` or, of a later form, ``alert.2.json``."""
    return EVENTS[path.name.split(".")[0]]


def within(kept: Any, written: Any) -> bool:
    """Whether all that is in ``kept`` is in ``written``, which may hold more fields."""
    if isinstance(kept, dict):
        return all(key in written and within(kept[key], written[key]) for key in kept)
    if isinstance(kept, list):
        return len(kept) == len(written) and all(map(within, kept, written))
    return bool(kept == written)


def test_every_event_has_an_example() -> None:
    """A new event brings its example along."""
    assert {path.name.split(".")[0] for path in FILES} == set(EVENTS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_decodes_and_nothing_of_it_is_lost(path: Path) -> None:
    """What is read from an example is written again, to the last field."""
    event = event_of(path)
    found = event.decode(path.read_bytes())
    assert event.decode(found.encode()) == found
    assert within(json.loads(path.read_bytes()), json.loads(found.encode()))


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_an_example_is_whole(name: str) -> None:
    """Together, the examples of an event show each of its fields once."""
    shown = {
        key for p in FILES if p.name.split(".")[0] == name for key in json.loads(p.read_text())
    }
    assert shown == set(EVENTS[name].model_json_schema(by_alias=True)["properties"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_later_fields_are_passed_over_in_ours_and_refused_from_users(path: Path) -> None:
    """A newer worker may run beside an older one; a user's slip of the pen is told to the user."""
    event, value = event_of(path), json.loads(path.read_bytes())
    later = json.dumps(value | {"of_tomorrow": 1}).encode()
    if issubclass(event, UserEvent):
        with pytest.raises(SchemaError) as caught:
            event.decode(later)
        assert caught.value.field == "of_tomorrow"
    else:
        assert event.decode(later) == event.decode(path.read_bytes())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_strictness_holds_for_every_event(path: Path) -> None:
    """No event is read with a key twice, NaN, too deep, as a list, cut off or empty."""
    event, text = event_of(path), path.read_text().strip()
    first = next(iter(json.loads(text)))
    nan = text[:-1] + ',"of_tomorrow":NaN}'
    deep = text[:-1] + ',"of_tomorrow":' + "[" * 40 + "]" * 40 + "}"
    twice = text[:-1] + f',"{first}":0}}'
    bad = [None, b"", b"[]", b"null", text[:-1].encode(), text.encode("utf-16")]
    bad += [b"\xef\xbb\xbf" + text.encode(), nan.encode(), deep.encode(), twice.encode()]
    for value in bad:
        with pytest.raises(SchemaError):
            event.decode(value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_required_field_is_missed_by_name(path: Path) -> None:
    """What is left out, or of another kind, is named."""
    event, value = event_of(path), json.loads(path.read_bytes())
    for name in event.model_json_schema(by_alias=True)["required"]:
        for change in ({k: v for k, v in value.items() if k != name}, value | {name: [[[]]]}):
            if change == value:
                continue
            with pytest.raises(SchemaError) as caught:
                event.decode(json.dumps(change).encode())
            assert caught.value.field.startswith(name)
