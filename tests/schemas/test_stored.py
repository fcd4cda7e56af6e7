"""Records that were stored once: whatever the code becomes, they say what they said then.

Beside the events of our own (`test_fixtures`) these are the inputs and training samples that users
keep, what became of samples, and dead letters. A file is never changed.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from nnsec.settings import Limits
from schemas.dead_letter import decode_dead_letter
from schemas.inference import Expected, Request, decode_request
from schemas.outcome import Figure, decode_outcome
from schemas.training import Sample, decode_sample

FOLDER = Path(__file__).parent / "stored"
INPUTS = ("input-json.1", "input-binary.1", "input-structured.1", "input-base64.1")
SAMPLES = ("sample-json.1", "sample-binary.1")
OUTCOMES = ("accepted.1", "quarantined.1")
LETTERS = ("dead-letter.1", "dead-letter-cut.1")
MODELS = {"digits": Expected("digits", (1, 2, 2), "uint8", 0, 16)}
X = [[[[0, 3], [16, 1]]], [[[2, 2], [0, 9]]]]
TIME = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
TRACE = (("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),)
OPTIONS: dict[str, Any] = {
    "partition": 2, "offset": 7, "models": MODELS, "limits": Limits(), "default_model": ""
}  # fmt: skip


def stored(name: str) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]:
    """Key, value and headers of a stored record."""
    record = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    key, value = _raw(record["key"]), _raw(record["value"])
    return key, value, [(header, _raw(content)) for header, content in record["headers"]]


def _raw(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


def test_every_stored_record_is_read_here() -> None:
    """A file that no test looks at proves nothing."""
    assert {path.stem for path in FOLDER.iterdir()} == {*INPUTS, *SAMPLES, *OUTCOMES, *LETTERS}


@pytest.mark.parametrize("name", INPUTS)
def test_a_stored_input(name: str) -> None:
    """Of every way to write one."""
    found = decode_request(*stored(name), **OPTIONS)
    assert isinstance(found, Request)
    assert (found.id, found.model, found.client) == ("r-1", "digits", "app-7")
    assert found.x.tolist() == X
    assert found.time == TIME
    assert found.encoding == ("binary" if name == "input-binary.1" else "json")
    assert found.trace == (TRACE if name in ("input-json.1", "input-binary.1") else ())


@pytest.mark.parametrize("name", SAMPLES)
def test_a_stored_sample(name: str) -> None:
    """With its labels and its source."""
    found = decode_sample(*stored(name), **OPTIONS)
    assert isinstance(found, Sample)
    assert (found.id, found.model, found.source) == ("s-1", "digits", "lab-2")
    assert (found.x.tolist(), found.labels.tolist()) == (X, [3, 9])


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_stored_outcome_of_a_sample(name: str) -> None:
    """Where it came from, and why it was held back."""
    _, value, headers = stored(name)
    found = decode_outcome(value, headers)
    assert (found.log, found.partition, found.offset, found.rows) == (UUID(int=5), 2, 7, (0, 3))
    assert (found.verdict, found.version, found.time) == (name[:-2], "4", TIME)
    assert (found.sample.source, found.sample.x.tolist()) == ("lab-2", X)
    if name == "quarantined.1":
        assert found.reasons[0] == ("duplicate",)
        assert set(found.reasons[1]) == {"trigger", "duplicate"}
        assert found.figures[1]["trigger"] == Figure(9.0, 2.0)
    else:
        assert found.reasons == ((), ())


@pytest.mark.parametrize("name", LETTERS)
def test_a_stored_dead_letter(name: str) -> None:
    """The record as it was, or its beginning, and what was wrong with it."""
    found = decode_dead_letter(*stored(name))
    assert (found.key, found.topic, found.partition) == (b"app-7", "inference.inputs", 2)
    assert (found.log, found.attempts, found.field) == (UUID(int=5), 1, "value")
    if name == "dead-letter.1":
        assert (found.value, found.error_class) == (b"not json", "SchemaError")
        assert found.headers == (
            ("content-type", b"application/json"), ("nnsec-model", b"digits"), ("x", None)
        )  # fmt: skip
    else:
        assert (found.error_class, found.truncated) == ("TooLarge", 5000)
        assert found.value is not None
        assert set(found.value) == {ord("x")}
