from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnsec.settings import Limits
from schemas.errors import SchemaError
from schemas.inference import Expected, Request, Skipped, decode_request, encode_request

MODELS = {
    "digits": Expected("digits", (1, 2, 2), "uint8", 0, 16),
    "floats": Expected("floats", (3,), "float32", -1, 1),
}
GOOD: dict[str, Any] = {
    "id": "a",
    "model_name": "digits",
    "parameters": {"client": "app"},
    "inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0, 3, 16, 1]}],
}


def decode(value: bytes | None, headers: Any = (), key: bytes | None = None, **more: Any) -> Any:
    options: dict[str, Any] = {"default_model": "", "limits": Limits(), "models": MODELS} | more
    return decode_request(key, value, headers, partition=2, offset=7, **options)


def body(**changes: Any) -> bytes:
    return json.dumps({k: v for k, v in (GOOD | changes).items() if v is not ...}).encode()


def tensor(**changes: Any) -> bytes:
    return body(inputs=[{k: v for k, v in (GOOD["inputs"][0] | changes).items() if v is not ...}])


def test_a_json_request_is_read() -> None:
    """Flat and nested data give the same array, in the wire type."""
    flat = decode(body())
    nested = decode(tensor(data=[[[[0, 3], [16, 1]]]]))
    assert (flat.id, flat.model, flat.client, flat.encoding) == ("a", "digits", "app", "json")
    assert flat.x.dtype == np.uint8
    assert flat.x.tolist() == nested.x.tolist() == [[[[0, 3], [16, 1]]]]


@given(
    st.lists(st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3), min_size=1, max_size=5),
    st.sampled_from(["json", "binary"]),
)
def test_what_is_written_is_read(rows: list[list[float]], encoding: Any) -> None:
    """Both encodings carry every value without loss."""
    x = np.array(rows, np.float32)
    value, headers = encode_request(model="floats", x=x, id="i", client="c", encoding=encoding)
    got = decode(value, headers)
    assert isinstance(got, Request)
    assert got.encoding == encoding
    assert got.x.tobytes() == x.tobytes()


def test_binary_is_what_struct_says() -> None:
    """An independent reader of the binary part finds the same floats."""
    x = np.array([[0.5, -1, 0.25]], np.float32)
    value, headers = encode_request(model="floats", x=x)
    length = int(dict(headers)["inference-header-content-length"])
    assert struct.unpack("<3f", value[length:]) == (0.5, -1.0, 0.25)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (None, "value"), (b"", "value"), (b"[]", "value"), (b"\xff", "value"),
        (b'{"a":NaN}', "value"), (b"[" * 10_000, "value"), (b'{"id":"\\ud800"}', "value"),
        (b'{"id":1,"id":2}', "id"), (body(extra=1), "extra"), (body(id=""), "id"),
        (body(id=5), "id"), (body(id="a\n"), "id"), (body(id="x" * 257), "id"),
        (body(parameters=[]), "parameters"), (body(parameters={"client": 3}), "parameters.client"),
        (body(model_name=...), "model_name"), (body(model_name="no"), "model_name"),
        (body(inputs=[]), "inputs"), (body(inputs=[1]), "inputs[0]"),
        (body(inputs=GOOD["inputs"] * 2), "inputs[1].name"),
        (body(inputs=[*GOOD["inputs"], GOOD["inputs"][0] | {"name": "y"}]), "inputs[1]"),
        (tensor(odd=1), "inputs[0]"), (tensor(name=""), "inputs[0].name"),
        (tensor(parameters=1), "inputs[0].parameters"),
        (tensor(datatype="INT8"), "inputs[0].datatype"),
        (tensor(datatype="FP32"), "inputs[0].datatype"),
        (tensor(shape=[0, 1, 2, 2]), "inputs[0].shape"), (tensor(shape=[]), "inputs[0].shape"),
        (tensor(shape=[-1, 1, 2, 2]), "inputs[0].shape"),
        (tensor(shape=[True, 1, 2, 2]), "inputs[0].shape"),
        (tensor(shape=[1, 4]), "inputs[0].shape"), (tensor(shape=[70000, 1]), "inputs[0].shape"),
        (tensor(data=...), "inputs[0].data"), (tensor(data=[1, 2, 3]), "inputs[0].data"),
        (tensor(data=[0, 1, 2, 17]), "inputs[0].data"),
        (tensor(data=[0, 1, 2, 1.0]), "inputs[0].data"),
        (tensor(data=[0, 1, 2, 256]), "inputs[0].data"),
        (tensor(data=[[0, 1], [2, 3]]), "inputs[0].data"),
        (tensor(data=[[[[0, 1], 2]]]), "inputs[0].data"),
    ],
)  # fmt: skip
def test_bad_json_names_its_field(value: bytes | None, field: str) -> None:
    """Each fault is a SchemaError that names the field."""
    with pytest.raises(SchemaError) as caught:
        decode(value)
    assert caught.value.field == field


OCTET = ("content-type", b"application/octet-stream")


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ([OCTET], "inference-header-content-length"),
        ([OCTET, ("Inference-Header-Content-Length", b"007")], "inference-header-content-length"),
        ([OCTET, ("inference-header-content-length", b"-1")], "inference-header-content-length"),
        ([OCTET, ("inference-header-content-length", b"9999")], "inference-header-content-length"),
        ([("inference-header-content-length", b"5")], "inference-header-content-length"),
        ([("content-type", b"text/plain")], "content-type"),
        ([("content-type", b"application/json; x=1")], "content-type"),
        ([("content-type", b"application/json"), ("Content-Type", b"a")], "content-type"),
        ([("ce_id", None)], "ce_id"), ([("ce_id", b"\xff")], "ce_id"),
        ([("a", b"")] * 200, "headers"), ([("ce_time", b"yesterday")], "ce_time"),
        ([("ce_specversion", b"0.3")], "ce_specversion"), ([("ce_specversion", b"1.0")], "ce_type"),
        ([("ce_type", b"org.inference.response")], "ce_type"),
    ],
)  # fmt: skip
def test_bad_headers_name_themselves(headers: Any, field: str) -> None:
    """A header at fault is the field of the error."""
    with pytest.raises(SchemaError) as caught:
        decode(body(), headers)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda v: v + b"x", "value"),
        (lambda v: v[:-1], "inputs[0].data"),
        (lambda v: v.replace(b'size":12', b'size":13'), "inputs[0].parameters.binary_data_size"),
        (
            lambda v: v.replace(b'"FP32"', b'"UINT8"').ljust(len(v) + 1),
            "inputs[0].parameters.binary_data_size",
        ),
        (lambda v: v[:-4] + b"\0\0\xc0\x7f", "inputs[0].data"),
    ],
)  # fmt: skip
def test_bad_binary_names_its_field(change: Any, field: str) -> None:
    """Sizes must agree with the bytes that are there, and values be finite."""
    value, headers = encode_request(model="floats", x=np.zeros((1, 3), np.float32))
    changed = change(value)
    length = str(changed.index(b"]}") + 2 if b"]}" in changed else 0)
    with pytest.raises(SchemaError) as caught:
        decode(changed, [headers[0], ("inference-header-content-length", length.encode())])
    assert caught.value.field == field


BOUNDS = st.floats(-1e30, 1e30) | st.sampled_from([-2.1179, 2.64, 0.1, 1e308, -1e308])


@given(BOUNDS, BOUNDS, st.sampled_from(["json", "binary"]))
def test_the_range_includes_its_bounds(one: float, other: float, encoding: Any) -> None:
    """As FP32 holds them; the next value beyond is refused, and so is infinity."""
    low, high = sorted((one, other))
    models = {"m": Expected("m", (2,), "float32", low, high)}
    with np.errstate(over="ignore"):
        bounds = np.clip(np.array([[low, high]]), -3.4028234663852886e38, 3.4028234663852886e38)
        x = bounds.astype(np.float32)
        beyond = np.nextafter(x, np.float32([[-np.inf, np.inf]]), dtype=np.float32)
    value, headers = encode_request(model="m", x=x, encoding=encoding)
    assert decode(value, headers, models=models).x.tobytes() == x.tobytes()
    for column in range(2):
        wrong = x.copy()
        wrong[0, column] = beyond[0, column]
        value, headers = encode_request(model="m", x=wrong)
        with pytest.raises(SchemaError) as caught:
            decode(value, headers, models=models)
        assert caught.value.field == "inputs[0].data"


def test_data_beside_the_binary_part_is_refused() -> None:
    """A record with a binary part holds all its tensors there."""
    value = body()
    with pytest.raises(SchemaError, match="binary part") as caught:
        decode(value, [OCTET, ("inference-header-content-length", str(len(value)).encode())])
    assert caught.value.field == "inputs[0].data"


def test_the_body_wins_over_headers() -> None:
    """Model, id and client come from the body, then the headers, then the record."""
    headers = [("CE_InferenceServiceName", b"digits"), ("ce_id", b"h"), ("ce_nnsecclient", b"hc")]
    bare = body(model_name=..., id=..., parameters=...)
    assert decode(body(), [("nnsec-model", b"no")]).model == "digits"
    got = decode(bare, headers)
    assert (got.model, got.id, got.client) == ("digits", "h", "hc")
    got = decode(bare, key=b"\xff", default_model="digits")
    assert (got.id, got.client) == ("2/7", "ff")
    assert decode(bare, key=b"", default_model="digits").client == "anonymous"
    assert decode(bare, key=b"k", default_model="digits").client == "k"


def test_a_known_identity_outranks_what_a_client_says() -> None:
    """A configured header or the key names the client, whatever the body claims."""
    assert decode(body(), key=b"real", identity_header="key").client == "real"
    assert decode(body(), [("x-user", b"u")], identity_header="X-User").client == "u"
    assert decode(body(), identity_header="x-user").client == "anonymous"


def test_responses_are_skipped_and_traces_kept() -> None:
    """A serving platform's response is no input; trace headers go along with a request."""
    response = json.dumps({"model_name": "digits", "outputs": []}).encode()
    assert decode(response, [("ce_type", b"io.seldon.inference.response")]) == Skipped()
    got = decode(body(), [("traceparent", b"00-a"), ("ce_time", b"2026-01-02T03:04:05Z")])
    assert got.trace == (("traceparent", b"00-a"),)
    assert got.time is not None


def test_a_long_trace_is_not_copied() -> None:
    """At most 512 bytes each, as a header or as an attribute of an envelope, and by itself."""
    for length, kept in ((512, True), (513, False)):
        state = "é" * 256 + "x" * (length - 512)
        headers = [("traceparent", b"00-a"), ("TraceState", state.encode())]
        assert decode(body(), headers).trace == (
            ("traceparent", b"00-a"), *[("tracestate", state.encode())] * kept,
        )  # fmt: skip
        envelope = {
            "specversion": "1.0", "id": "e", "source": "/s", "type": "t", "tracestate": state,
            "data": json.loads(body()),
        }  # fmt: skip
        got = decode(
            json.dumps(envelope).encode(), [("content-type", b"application/cloudevents+json")]
        )
        assert got.trace == (("tracestate", state.encode()),) * kept


def test_a_large_value_is_too_large() -> None:
    """Size is judged before anything is parsed."""
    with pytest.raises(SchemaError) as caught:
        decode(body(), limits=Limits(bytes=10))
    assert caught.value.error_class == "TooLarge"


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_mutations_raise_nothing_else(junk: bytes, at: int, byte: int) -> None:
    """Whatever bytes come, the answer is a request or a SchemaError."""
    value, headers = encode_request(model="floats", x=np.zeros((1, 3), np.float32), id="i")
    at %= len(value)
    for candidate in (junk, value[:at] + bytes([byte]) + value[at + 1 :], value[:at] + junk):
        try:
            found = decode(candidate, headers)
        except SchemaError:
            continue
        assert isinstance(found, Request)
