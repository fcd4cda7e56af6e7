"""Structured mode: the envelope is opened, its attributes stand where headers would."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from nnsec.settings import Limits
from schemas.errors import SchemaError
from schemas.inference import Expected, Request, Skipped, decode_request, encode_request

MODELS = {"digits": Expected("digits", (1, 2, 2), "uint8", 0, 16)}
STRUCTURED = (("content-type", b"application/cloudevents+json; charset=utf-8"),)
X = np.array([[[[0, 3], [16, 1]]]], np.uint8)
VALUE, _ = encode_request(model="digits", x=X, id="a", client="app", encoding="json")
BINARY, HEADERS = encode_request(model="digits", x=X, id="a", client="app", encoding="binary")
EVENT: dict[str, Any] = {
    "specversion": "1.0", "id": "e-1", "source": "/gateway", "type": "org.x.inference.request",
    "data": json.loads(VALUE),
}  # fmt: skip


def event(**changes: Any) -> bytes:
    return json.dumps({k: v for k, v in (EVENT | changes).items() if v is not ...}).encode()


def packed(raw: bytes, **changes: Any) -> bytes:
    return event(data=..., data_base64=base64.b64encode(raw).decode(), **changes)


def decode(value: bytes | None, headers: Any = STRUCTURED) -> Any:
    return decode_request(
        None, value, headers, partition=0, offset=0, models=MODELS, limits=Limits(),
        default_model="",
    )  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        event(), event(datacontenttype="application/json; charset=utf-8"),
        event(time="2026-01-02T03:04:05Z", subject="s", extension=True, number=-7, nothing=None),
        packed(VALUE), packed(VALUE, datacontenttype="application/json"),
        packed(
            BINARY, datacontenttype="application/octet-stream",
            inferenceheadercontentlength=int(dict(HEADERS)["inference-header-content-length"]),
        ),
    ],
)  # fmt: skip
def test_an_envelope_is_opened(value: bytes) -> None:
    """Plain or in base64, JSON or binary: the request in it is read, and answered in JSON."""
    found = decode(value)
    assert isinstance(found, Request)
    assert (found.id, found.client, found.encoding) == ("a", "app", "json")
    assert found.x.tolist() == X.tolist()


def test_attributes_stand_for_what_the_body_leaves_out() -> None:
    """Id, model, client, time and trace; ``ce_`` headers beside the envelope count for nothing."""
    body = {"inputs": EVENT["data"]["inputs"]}
    value = event(
        data=body, inferenceservicename="digits", nnsecclient="app-7",
        time="2026-01-02T03:04:05Z", traceparent="00-inside",
    )  # fmt: skip
    headers = (
        *STRUCTURED, ("ce_id", b"other"), ("ce_nnsecclient", b"other"), ("ce_time", b"noon"),
        ("tracestate", b"outside"),
    )  # fmt: skip
    found = decode(value, headers)
    assert (found.id, found.model, found.client) == ("e-1", "digits", "app-7")
    assert found.time is not None
    assert found.time.year == 2026
    assert dict(found.trace) == {"traceparent": b"00-inside", "tracestate": b"outside"}


def test_a_response_in_an_envelope_is_skipped() -> None:
    """As in binary mode."""
    value = event(type="org.x.inference.response", data={"outputs": []})
    assert isinstance(decode(value), Skipped)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (None, "value"), (b"[]", "value"), (b"{", "value"),
        (event(id=...), "id"), (event(id=""), "id"), (event(source=5), "source"),
        (event(specversion="0.3"), "specversion"), (event(type=None), "type"),
        (event(time="noon"), "time"), (event(subject=""), "subject"), (event(Bad="x"), "Bad"),
        (event(extension=1.5), "extension"), (event(extension=[1]), "extension"),
        (event(extension=2**31), "extension"), (event(extension="a\u0007"), "extension"),
        (event(data=...), "data"), (event(data_base64="aa=="), "data"), (event(data=[1]), "data"),
        (event(data=..., data_base64=5), "data_base64"),
        (event(data=..., data_base64="*"), "data_base64"),
        (packed(b"\xff"), "data_base64"), (packed(VALUE, datacontenttype="text/csv"),
                                          "datacontenttype"),
        (packed(BINARY, datacontenttype="application/octet-stream"),
         "inferenceheadercontentlength"),
        (event(datacontenttype="application/json; x=1"), "datacontenttype"),
        (event(datacontenttype="application/octet-stream"), "datacontenttype"),
        (event(inferenceheadercontentlength=5), "inferenceheadercontentlength"),
        (event(nnsecclient="x" * 257, data={"inputs": EVENT["data"]["inputs"],
                                            "model_name": "digits"}), "ce_nnsecclient"),
    ],
)  # fmt: skip
def test_a_bad_envelope_names_what_is_wrong(value: bytes | None, field: str) -> None:
    """Each fault is a SchemaError with the attribute's name."""
    with pytest.raises(SchemaError) as caught:
        decode(value)
    assert caught.value.field == field


def test_the_length_header_belongs_to_binary_mode() -> None:
    """An envelope has an attribute for it."""
    with pytest.raises(SchemaError) as caught:
        decode(event(), (*STRUCTURED, ("inference-header-content-length", b"5")))
    assert caught.value.field == "inference-header-content-length"
