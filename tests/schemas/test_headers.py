from __future__ import annotations

from datetime import UTC, datetime

import pytest

from schemas import headers
from schemas.errors import SchemaError


def test_known_headers_are_read_whatever_their_case() -> None:
    """Names have no case; strangers are passed over, twice or not UTF-8 as they may be."""
    found = headers.read(
        [("CE_Id", "é".encode()), ("x", b"\xff"), ("x", None), ("Who", b"a")], limit=4, also="wHo"
    )
    assert found == {"ce_id": "é", "who": "a"}


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ([("ce_id", b"1"), ("CE_ID", b"1")], "ce_id"),
        ([("who", b"1"), ("Who", b"2")], "who"),
        ([("traceparent", None)], "traceparent"),
        ([("nnsec-model", b"\xff")], "nnsec-model"),
        ([("a", b""), ("b", b""), ("c", b"")], "headers"),
    ],
)
def test_a_header_at_fault_is_named(sent: headers.Headers, field: str) -> None:
    """Twice, null, not UTF-8, or too many."""
    with pytest.raises(SchemaError) as caught:
        headers.read(sent, limit=2, also="who")
    assert caught.value.field == field


def test_what_could_not_be_read_is_refused_for_its_reason() -> None:
    """Its bytes may look like an input, and are none."""
    with pytest.raises(SchemaError, match="a record that breaks the rules") as caught:
        headers.read([("NNSec-Unreadable", b"a record that breaks the rules")], limit=9)
    assert caught.value.field == headers.UNREADABLE


def test_our_events_are_cloudevents() -> None:
    """What we write names type, source, id and time, and what we read back is the same."""
    time = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    written = headers.event_headers(
        "alert", id="a-1", source_role="evidence", time=time, extra=(("x", b"1"),)
    )
    assert headers.read(written, limit=10) == {
        "content-type": "application/json",
        "ce_specversion": "1.0",
        "ce_type": "nnsec.alert.v1",
        "ce_source": "/nnsec/evidence",
        "ce_id": "a-1",
        "ce_time": "2026-01-02T03:04:05.678Z",
    }
    assert written[-1] == ("x", b"1")
