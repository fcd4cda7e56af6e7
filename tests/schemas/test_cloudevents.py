"""CloudEvents in structured mode: opened strictly, and then read as any other record."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnsec.settings import Limits
from schemas.cloudevents import MEDIA, unwrap
from schemas.errors import SchemaError
from schemas.inference import Expected, Request, Skipped, decode_request, encode_request

MODELS = {"digits": Expected("digits", (1, 2, 2), "uint8", 0, 16)}
X = np.array([[[[0, 3], [16, 1]]]], np.uint8)
BODY: dict[str, Any] = {
    "id": "a", "model_name": "digits", "parameters": {"client": "app"},
    "inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0, 3, 16, 1]}],
}  # fmt: skip
EVENT: dict[str, Any] = {
    "specversion": "1.0", "id": "e1", "source": "/s", "type": "io.seldon.inference.request",
    "data": BODY,
}  # fmt: skip
HEADERS = (("content-type", MEDIA.encode()),)


def event(**changes: Any) -> bytes:
    return json.dumps({k: v for k, v in (EVENT | changes).items() if v is not ...}).encode()


def decode(value: bytes | None, headers: Any = HEADERS, **more: Any) -> Any:
    options: dict[str, Any] = {"default_model": "", "limits": Limits(), "models": MODELS} | more
    return decode_request(b"key", value, headers, partition=2, offset=7, **options)


def test_an_envelope_is_read_as_its_data() -> None:
    """The request is the same as without it, and is answered in JSON."""
    plain = decode(json.dumps(BODY).encode(), ())
    found = decode(event(time="2026-01-02T03:04:05Z", subject="s", dataschema="http://x/y"))
    assert isinstance(found, Request)
    assert (found.id, found.model, found.client) == (plain.id, plain.model, plain.client)
    assert found.x.tobytes() == plain.x.tobytes()
    assert found.encoding == "json"
    assert found.time is not None
    assert decode(event(), ((MEDIA.split("/")[0], b"x"), *HEADERS)).id == "a"


def test_attributes_stand_where_headers_stand() -> None:
    """Id, model and client of the envelope count where the body names none."""
    bare = {k: v for k, v in BODY.items() if k == "inputs"}
    found = decode(event(data=bare, inferenceservicename="digits", nnsecclient="c"))
    assert (found.id, found.model, found.client) == ("e1", "digits", "c")
    with pytest.raises(SchemaError, match="names no model"):
        decode(event(data=bare))


def test_ce_headers_beside_an_envelope_are_ignored() -> None:
    """Even where they are no CloudEvent at all; other headers still count."""
    beside = (*HEADERS, ("ce_id", b"h"), ("ce_specversion", b"0.3"), ("ce_time", b"noon"),
              ("nnsec-model", b"digits"), ("traceparent", b"00-h"))  # fmt: skip
    found = decode(event(data={"inputs": BODY["inputs"]}, traceparent="00-e"), beside)
    assert (found.id, found.model) == ("e1", "digits")
    assert found.trace == (("traceparent", b"00-h"),)
    alone = decode(event(traceparent="00-e", tracestate="v"))
    assert alone.trace == (("traceparent", b"00-e"), ("tracestate", b"v"))


@pytest.mark.parametrize("encoding", ["json", "binary"])
def test_data_base64_is_read_by_its_content_type(encoding: Any) -> None:
    """The binary extension's length is an attribute of the envelope."""
    value, headers = encode_request(model="digits", x=X, id="b", client="c", encoding=encoding)
    known = {name: text.decode() for name, text in headers}
    more: dict[str, Any] = {"datacontenttype": known["content-type"]}
    if encoding == "binary":
        more["inferenceheadercontentlength"] = int(known["inference-header-content-length"])
    found = decode(event(data=..., data_base64=base64.b64encode(value).decode(), **more))
    assert (found.id, found.encoding) == ("b", "json")
    assert found.x.tobytes() == X.tobytes()


def test_null_attributes_are_absent() -> None:
    """As the CloudEvents JSON format says."""
    assert decode(event(datacontenttype=None, time=None, subject=None)).id == "a"


def test_responses_are_skipped() -> None:
    """In an envelope too."""
    data = {"model_name": "digits", "outputs": []}
    assert decode(event(type="io.seldon.inference.response", data=data)) == Skipped()
    with pytest.raises(SchemaError) as caught:
        decode(event(type="io.seldon.inference.response"))
    assert caught.value.field == "ce_type"


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (None, "value"), (b"", "value"), (b"[]", "value"), (b"{", "value"),
        (event(specversion=...), "specversion"), (event(specversion="0.3"), "specversion"),
        (event(specversion=1.0), "specversion"),
        (event(id=...), "id"), (event(id=""), "id"), (event(id=7), "id"), (event(id=None), "id"),
        (event(source=...), "source"), (event(type=...), "type"),
        (event(time="yesterday"), "time"), (event(time=5), "time"),
        (event(subject=""), "subject"), (event(dataschema=[]), "dataschema"),
        (event(Upper="x"), "Upper"), (event(**{"a-b": "x"}), "a-b"), (event(**{"": "x"}), '""'),
        (event(extra={}), "extra"), (event(extra=1.5), "extra"), (event(extra=2**31), "extra"),
        (event(extra="a\nb"), "extra"),
        (event(data=...), "data"), (event(data_base64="aGk="), "data"),
        (event(data=[]), "data"), (event(data="x"), "data"),
        (event(datacontenttype="application/octet-stream"), "datacontenttype"),
        (event(datacontenttype="text/plain"), "datacontenttype"),
        (event(datacontenttype="application/json; x=1"), "datacontenttype"),
        (event(inferenceheadercontentlength=5), "inferenceheadercontentlength"),
        (event(data=..., data_base64=5), "data_base64"),
        (event(data=..., data_base64="a"), "data_base64"),
        (event(data=..., data_base64="aGk="), "data_base64"),
        (event(data=..., data_base64="e30=", datacontenttype="x/y"), "datacontenttype"),
        (event(data=..., data_base64="e30=", inferenceheadercontentlength=2),
         "inferenceheadercontentlength"),
        (event(data=..., data_base64="e30=", datacontenttype="application/octet-stream"),
         "inferenceheadercontentlength"),
        (event(data=BODY | {"odd": 1}), "odd"),
        (event(data=BODY | {"inputs": []}), "inputs"),
    ],
)  # fmt: skip
def test_a_fault_names_its_attribute(value: bytes | None, field: str) -> None:
    """Required, typed and bounded as the CloudEvents JSON format has it."""
    with pytest.raises(SchemaError) as caught:
        decode(value)
    assert caught.value.field == field


def test_a_length_header_beside_an_envelope_is_refused() -> None:
    """It would say nothing about what lies inside."""
    with pytest.raises(SchemaError) as caught:
        decode(event(), (*HEADERS, ("inference-header-content-length", b"5")))
    assert caught.value.field == "inference-header-content-length"


def test_truths_and_small_numbers_are_attributes() -> None:
    """Extensions may be text, whole numbers or truth values."""
    assert decode(event(flag=True, number=-(2**31), text="x")).id == "a"


def test_what_is_no_envelope_is_passed_on() -> None:
    """By its own content type, with all its headers."""
    known = {"content-type": "application/json", "ce_id": "h"}
    found = unwrap(b'{"a": 1}', known, size=100, depth=4)
    assert (found.known, found.body.fields, found.structured) == (known, {"a": 1}, False)
    with pytest.raises(SchemaError) as caught:
        unwrap(event(), {"content-type": MEDIA}, size=20, depth=8)
    assert caught.value.error_class == "TooLarge"


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.sampled_from([*EVENT, "datacontenttype", "time", "data_base64", "x"]), JUNK)
def test_nothing_else_is_raised(name: str, junk: Any) -> None:
    """Whatever an attribute holds, the answer is a request or a SchemaError."""
    try:
        found = decode(event(**{name: junk}))
    except SchemaError as error:
        found = error
    assert isinstance(found, Request | Skipped) or found.field
