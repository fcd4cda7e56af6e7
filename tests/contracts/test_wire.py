"""What is published about the wire is what the code does: schemas, topics, severities."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nnsec.adapters.declaration import config, partitions
from nnsec.settings import Settings, parse
from schemas import events, threats
from schemas.alert import Alert
from schemas.base import SEVERITIES
from schemas.topics import DAY_MS, TOPICS, UNLIMITED
from workers.cli import app

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests/schemas/fixtures"
USERS = {"inference.inputs", "training.samples", "labels", "federated.updates"}


def checked(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> list[str]:
    """Whether a value has the properties and types that a JSON Schema of ours asks for."""
    if "$ref" in schema:
        return checked(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root)
    if "anyOf" in schema:
        found = [checked(one, value, root) for one in schema["anyOf"]]
        return [] if [] in found else found[0]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float),
             "boolean": bool, "null": type(None)}  # fmt: skip
    kind = schema.get("type")
    if kind and not isinstance(value, kinds[kind]):
        return [f"{value!r} is no {kind}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{value!r} is none of {schema['enum']}"]
    if kind == "array" and isinstance(schema.get("items"), dict):
        return [fault for one in value for fault in checked(schema["items"], one, root)]
    if kind == "object":
        missing = [f"no {name}" for name in schema.get("required", ()) if name not in value]
        properties = schema.get("properties", {})
        return missing + [
            f"{name}: {fault}"
            for name, one in value.items() if name in properties
            for fault in checked(properties[name], one, root)
        ]  # fmt: skip
    return []


@pytest.mark.parametrize("event", sorted(events.EVENTS))
def test_every_event_has_a_printed_schema_that_its_example_fits(event: str) -> None:
    """`nnsec schema EVENT` prints what the kept example is an instance of."""
    shown = CliRunner().invoke(app, ["schema", event])
    assert shown.exit_code == 0
    schema = json.loads(shown.stdout)
    assert schema == events.json_schema(event)
    assert schema["properties"]
    example = FIXTURES / f"{event}.json"
    assert example.exists(), "every event keeps an example that decodes for ever"
    value = json.loads(example.read_text())
    assert checked(schema, value, schema) == []
    broken = dict.fromkeys(schema.get("required", ()))
    assert checked(schema, broken, schema) or not broken


def test_no_event_is_missing_from_the_list() -> None:
    """Without a name the command lists every event."""
    assert CliRunner().invoke(app, ["schema"]).stdout.split() == sorted(events.EVENTS)


def test_the_page_about_topics_is_the_table() -> None:
    """docs/topics.md has each topic once, with writers, key, partitions and retention."""
    page = (ROOT / "docs/topics.md").read_text()
    rows = re.findall(
        r"^\| `nnsec\.([^`]+)` \| (.*) \| (.*) \| (\d+) \| (.*) \|$", page, re.MULTILINE
    )
    assert [row[0] for row in rows] == list(TOPICS)
    for name, writers, key, count, kept in rows:
        topic = TOPICS[name]
        assert writers.split(", ") == list(topic.writers)
        assert (key, int(count)) == (topic.key, partitions(Settings(), topic))
        if kept not in {"compact", "unlimited"}:
            assert int(kept.removesuffix(" d")) * DAY_MS == topic.retention_ms
        else:
            assert (kept == "compact") == topic.compact
            assert topic.retention_ms == UNLIMITED


@pytest.mark.parametrize("name", TOPICS)
def test_every_topic_can_be_declared(name: str) -> None:
    """Names, retention and time stamps are what Kafka takes.

    It stamps what users write, and what is judged by its age: a writer must not choose that.
    """
    topic = TOPICS[name]
    assert re.fullmatch(r"[a-z][a-z.-]*", name)
    assert name == topic.name
    assert topic.log_append_time == (name in {*USERS, "commands", "models", "models.status"})
    assert ("user" in topic.writers) == (name in USERS)
    assert topic.retention_ms == UNLIMITED or topic.retention_ms % DAY_MS == 0
    settings = parse({"kafka": {"max_message_bytes": 2_000_000}})
    declared = config(settings, topic)
    assert declared["cleanup.policy"] == ("compact" if topic.compact else "delete")
    assert int(declared["max.message.bytes"]) >= 2_000_000


def test_topics_cannot_be_changed() -> None:
    """A topic is a value."""
    with pytest.raises(AttributeError):
        TOPICS["scores"].name = "other"  # type: ignore[misc]


def test_every_severity_and_threat_can_be_in_an_alert() -> None:
    """The lists that people choose from are those of the schema."""
    schema = events.json_schema("alert")
    assert tuple(schema["properties"]["severity"]["enum"]) == SEVERITIES
    assert tuple(schema["properties"]["threat"]["enum"]) == threats.THREATS
    example = json.loads((FIXTURES / "alert.json").read_text())
    for threat in threats.THREATS:
        alert = Alert.model_validate_json(json.dumps(example | {"threat": threat}))
        assert Alert.decode(alert.encode()) == alert


def test_schemas_import_nothing_that_takes_long() -> None:
    """A program of someone else's that only reads our events is not made to load torch."""
    code = "import sys, schemas.events; print({'torch', 'faust', 'aiokafka'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "set()"
