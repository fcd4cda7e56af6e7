"""Training samples: read strictly, written without loss."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnsec.settings import Limits
from schemas.errors import SchemaError
from schemas.inference import Expected, Skipped
from schemas.training import Sample, decode_sample, encode_sample

MODELS = {
    "digits": Expected("digits", (1, 2, 2), "uint8", 0, 16),
    "floats": Expected("floats", (3,), "float32", -1, 1, name="vector", classes=4),
}
INPUT = {"name": "input", "datatype": "UINT8", "shape": [2, 1, 2, 2], "data": [0, 3, 16, 1] * 2}
LABEL = {"name": "label", "datatype": "INT64", "shape": [2], "data": [3, 0]}
GOOD: dict[str, Any] = {
    "id": "a", "model_name": "digits", "parameters": {"source": "lab"}, "inputs": [INPUT, LABEL],
}  # fmt: skip


def decode(value: bytes | None, headers: Any = (), key: bytes | None = None, **more: Any) -> Any:
    options: dict[str, Any] = {"default_model": "", "limits": Limits(), "models": MODELS} | more
    return decode_sample(key, value, headers, partition=2, offset=7, **options)


def body(**changes: Any) -> bytes:
    return json.dumps({k: v for k, v in (GOOD | changes).items() if v is not ...}).encode()


def label(**changes: Any) -> bytes:
    return body(inputs=[INPUT, LABEL | changes])


def test_a_sample_is_an_input_with_a_label() -> None:
    """The labels may come first; a dead letter would say where they were."""
    found = decode(body(), [("traceparent", b"00-a")])
    assert (found.id, found.model, found.source, found.encoding) == ("a", "digits", "lab", "json")
    assert found.labels.tolist() == [3, 0]
    assert (len(found), found.x.shape) == (2, (2, 1, 2, 2))
    assert (found.label_field, found.trace) == ("inputs[1].data", (("traceparent", b"00-a"),))
    assert decode(body(inputs=[LABEL, INPUT])).label_field == "inputs[0].data"


@given(st.integers(1, 5), st.sampled_from(["json", "binary"]), st.integers(0, 2**32))
def test_what_is_written_is_read(rows: int, encoding: Any, seed: int) -> None:
    """Both encodings carry every value without loss."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 17, (rows, 1, 2, 2)).astype(np.uint8), rng.integers(0, 10, rows)
    value, headers = encode_sample(model="digits", x=x, y=y, source="s", encoding=encoding)
    found = decode(value, headers)
    assert isinstance(found, Sample)
    assert found.x.tobytes() == x.tobytes()
    assert found.labels.tolist() == y.tolist()
    assert (found.encoding, found.source, len(found.id)) == (encoding, "s", 36)


def test_the_tensor_is_named_as_configured() -> None:
    """Beside a label its name is no longer free."""
    vector = {"name": "vector", "datatype": "FP32", "shape": [1, 3], "data": [0, 1, -1]}
    mine = LABEL | {"shape": [1], "data": [3]}
    assert decode(body(model_name="floats", inputs=[vector, mine])).labels.tolist() == [3]
    with pytest.raises(SchemaError, match="needs a tensor 'vector'"):
        decode(body(model_name="floats", inputs=[vector | {"name": "input"}, mine]))
    with pytest.raises(SchemaError, match="labels from 4 to 4; 0 to 3"):
        decode(body(model_name="floats", inputs=[vector, mine | {"data": [4]}]))


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (None, "value"), (b"{", "value"), (body(inputs=[INPUT]), "inputs"),
        (body(inputs=[LABEL]), "inputs"), (body(inputs=[INPUT, LABEL, LABEL]), "inputs[2].name"),
        (body(inputs=[INPUT, LABEL, LABEL | {"name": "more"}]), "inputs[2]"),
        (body(inputs=[INPUT | {"data": [17] * 8}, LABEL]), "inputs[0].data"),
        (body(inputs=[INPUT | {"shape": [2, 4]}, LABEL]), "inputs[0].shape"),
        (label(datatype="FP32"), "inputs[1].datatype"),
        (label(datatype="UINT8"), "inputs[1].datatype"),
        (label(shape=[2, 1]), "inputs[1].shape"), (label(shape=[1], data=[1]), "inputs[1].shape"),
        (label(data=[-1, 0]), "inputs[1].data"), (label(data=[65536, 0]), "inputs[1].data"),
        (label(data=[1.0, 0]), "inputs[1].data"), (label(data=[None, 0]), "inputs[1].data"),
        (body(parameters={"source": ""}), "parameters.source"),
        (body(parameters={"source": 5}), "parameters.source"),
        (body(id=5), "id"), (body(model_name="none"), "model_name"),
    ],
)  # fmt: skip
def test_a_fault_names_its_field(value: bytes | None, field: str) -> None:
    """Each is a SchemaError that names the field."""
    with pytest.raises(SchemaError) as caught:
        decode(value)
    assert caught.value.field == field


def test_who_sent_it_follows_the_order_of_the_contract() -> None:
    """A known identity outranks the body, the body the key; else nobody."""
    assert decode(body(), key=b"k").source == "lab"
    assert decode(body(), key=b"k", identity_header="key").source == "k"
    assert decode(body(parameters={}), key=b"k").source == "k"
    assert decode(body(parameters={}, id=...)).source == "anonymous"
    assert decode(body(parameters={}, id=...)).id == "2/7"
    skipped = decode(b'{"outputs":[]}', [("ce_type", b"x.inference.response")])
    assert skipped == Skipped()


def test_rows_are_taken_with_their_labels() -> None:
    """In the order asked for."""
    part = decode(body()).take([1, 0])
    assert part.labels.tolist() == [0, 3]
    assert len(decode(body()).take([1])) == 1
