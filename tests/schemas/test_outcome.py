"""What became of training samples: written, and read back exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import pytest

from schemas.errors import SchemaError
from schemas.outcome import Figure, Outcome, decode_outcome, encode_outcome
from schemas.training import Sample

LOG = UUID(int=5)


def outcome(**changes: Any) -> Outcome:
    values: dict[str, Any] = {
        "log": LOG, "partition": 1, "offset": 9, "rows": (0, 2),
        "sample": Sample(
            "digits", "a", "läb", np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2),
            np.array([3, 0]), "json", (("traceparent", b"00-a"),),
        ),
        "verdict": "quarantined", "reasons": (("outlier",), ("outlier", "trigger")),
        "version": "4", "time": datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC),
        "figures": ({"outlier": Figure(2.5, 1.5)},
                    {"outlier": Figure(3.0, 1.5), "trigger": Figure(12.0, 8.0)}),
    } | changes  # fmt: skip
    return Outcome(**values)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"figures": ()},
        {"verdict": "accepted", "reasons": ((), ("label_distribution",)),
         "figures": ({}, {"label_distribution": Figure(9.0, 8.0)})},
        {"verdict": "accepted", "reasons": ((), ()), "figures": ()},
    ],
)  # fmt: skip
def test_an_outcome_comes_back_as_it_was(changes: dict[str, Any]) -> None:
    """Rows, reasons and figures, and where the samples lie in the log that they came from."""
    sent = outcome(**changes)
    value, headers = encode_outcome(sent)
    found = decode_outcome(value, headers)
    for name in ("log", "partition", "offset", "rows", "verdict", "reasons", "version", "time"):
        assert getattr(found, name) == getattr(sent, name)
    assert [dict(row) for row in found.figures] == [dict(row) for row in sent.figures]
    assert found.sample.x.tobytes() == sent.sample.x.tobytes()
    assert found.sample.labels.tolist() == [3, 0]
    assert (found.sample.source, found.sample.trace) == ("läb", (("traceparent", b"00-a"),))
    assert found.id == sent.id == uuid5(LOG, f"training.samples/1/9/{sent.verdict}")


def test_headers_say_enough_to_revoke_without_opening_the_record() -> None:
    """Position, rows and reasons; and a CloudEvent as all our events are."""
    value, headers = encode_outcome(outcome())
    known = dict(headers)
    assert known["nnsec-log"].decode() == str(LOG)
    assert (known["nnsec-partition"], known["nnsec-offset"], known["nnsec-rows"]) == (
        b"1", b"9", b"0,2",
    )  # fmt: skip
    assert known["nnsec-reasons"] == b"outlier,trigger"
    assert (known["ce_type"], known["ce_source"]) == (b"nnsec.sample.v1", b"/nnsec/screen")
    assert known["content-type"] == b"application/octet-stream"
    length = int(known["inference-header-content-length"])
    assert json.loads(value[:length])["parameters"]["reasons"] == "outlier,trigger"
    assert "nnsec-reasons" not in dict(encode_outcome(outcome(verdict="accepted"))[1])


def test_what_is_released_reads_as_accepted() -> None:
    """A record without the header of its reasons, with all else as it was."""
    value, headers = encode_outcome(outcome())
    kept = [(name, text) for name, text in headers if name != "nnsec-reasons"]
    assert decode_outcome(value, kept).verdict == "accepted"


def without(headers: Any, **changes: bytes | None) -> list[tuple[str, bytes]]:
    known: Mapping[str, Any] = dict(headers) | {
        name.replace("_", "-") if name != "ce_time" else name: text
        for name, text in changes.items()
    }
    return [(name, text) for name, text in known.items() if text is not None]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"nnsec_log": None}, "nnsec-log"), ({"nnsec_log": b"x"}, "nnsec-log"),
        ({"nnsec_partition": None}, "nnsec-partition"), ({"nnsec_offset": b"-1"}, "nnsec-offset"),
        ({"nnsec_rows": b""}, "nnsec-rows"), ({"nnsec_rows": b"0,x"}, "nnsec-rows"),
        ({"nnsec_rows": b"0"}, "inputs"), ({"nnsec_rows": b"0,1,2"}, "inputs"),
        ({"nnsec_rows": b"2,0"}, "nnsec-rows"), ({"nnsec_rows": b"2,2"}, "nnsec-rows"),
        ({"nnsec_rows": b"0,65536"}, "nnsec-rows"),
        ({"nnsec_rows": b"0,9000000000000000000"}, "nnsec-rows"),
        ({"nnsec_partition": b"2147483648"}, "nnsec-partition"),
        ({"nnsec_offset": b"9223372036854775808"}, "nnsec-offset"),
        ({"ce_time": b"noon"}, "ce_time"), ({"content_type": b"text/plain"}, "content-type"),
        ({"inference_header_content_length": b"3"}, "value"),
    ],
)  # fmt: skip
def test_a_damaged_header_is_named(changes: dict[str, Any], field: str) -> None:
    """Whatever is missing or is not what was written."""
    value, headers = encode_outcome(outcome())
    with pytest.raises(SchemaError) as caught:
        decode_outcome(value, without(headers, **changes))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        (b'"model_version":"4"', b'"model_version": 4 ', "model_version"),
        (b'"model_name":"digits"', b'"model_name":"      "', None),
        (b'"source"', b'"sourcx"', "parameters.source"),
        (b'"name":"label"', b'"name":"lobel"', "inputs"),
        (b'"reasons":"outlier,trigger"', b'"reasons":"outlier_trigger"', "inputs"),
        (b'"reasons":"outlier,trigger"', b'"reasons":"outlier,outlier"', "parameters.reasons"),
        (b'"parameters":{"source":', b'"parametery":{"source":', "parameters"),
        (b'"datatype":"INT64"', b'"datatype":"INT6x"', "inputs[1].datatype"),
    ],
)
def test_a_damaged_body_is_named(old: bytes, new: bytes, field: str | None) -> None:
    """Reasons that do not fit their table, names that are none, a tensor that is not there."""
    value, headers = encode_outcome(outcome())
    spoiled = value.replace(old, new)
    assert spoiled != value
    assert len(spoiled) == len(value)
    if field is None:
        assert decode_outcome(spoiled, headers).sample.model == " " * 6
        return
    with pytest.raises(SchemaError) as caught:
        decode_outcome(spoiled, headers)
    assert caught.value.field == field


def test_the_largest_position_is_read() -> None:
    """Kafka's last partition and offset, and the last row that a record can have."""
    sent = outcome(partition=2**31 - 1, offset=2**63 - 1, rows=(0, 65_535))
    found = decode_outcome(*encode_outcome(sent))
    assert (found.partition, found.offset, found.rows) == (2**31 - 1, 2**63 - 1, (0, 65_535))
    more = encode_outcome(outcome(rows=(0, 65_536)))
    assert decode_outcome(*more, max_rows=65_537).rows == (0, 65_536)


def test_more_reasons_than_there_can_be_are_refused() -> None:
    """There are 64 at most, so that reading a row costs little."""
    for count in (64, 65):
        names = tuple(f"n{number}" for number in range(count))
        figures = {name: Figure(2.0, 1.0) for name in names}
        written = encode_outcome(outcome(reasons=(names, names), figures=(figures, figures)))
        if count == 64:
            assert decode_outcome(*written).reasons == (names, names)
            continue
        with pytest.raises(SchemaError) as caught:
            decode_outcome(*written)
        assert caught.value.field == "parameters.reasons"


def test_labels_of_another_type_are_refused() -> None:
    """Also where as many bytes are there."""
    value, headers = encode_outcome(outcome(sample=Sample(
        "digits", "a", "s", np.zeros((2, 1, 2, 2), np.uint8), np.zeros(2, np.uint8), "json",
    )))  # fmt: skip
    with pytest.raises(SchemaError, match="labels are INT64"):
        decode_outcome(value, headers)
