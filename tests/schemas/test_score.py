"""Scores: written in the encoding of their input, read strictly, and equal again when replayed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from uuid import UUID, uuid5

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.dead_letter import size
from schemas.errors import SchemaError
from schemas.events import EVENTS
from schemas.headers import Written
from schemas.inference import Request
from schemas.score import Response, Score, decode_score, encode_score
from schemas.score_size import check_score_fits, largest_score

LOG = UUID("6f1f2f5e-7c39-4b43-8f5c-0d5e8c1b2a3d")
KEPT = Path(__file__).parent / "data"
Encoding = Literal["json", "binary"]


def request(encoding: Encoding = "json", trace: Written = ()) -> Request:
    return Request("req-1", "digits", "app-7", encoding, np.zeros((2, 3), np.uint8), None, trace)


def figures(rows: int = 2, detectors: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(rows)
    return {
        "detectors": [f"d{i}" for i in range(detectors)],
        "prediction": rng.integers(0, 10, rows),
        "confidence": rng.random(rows, np.float32),
        "p_value": np.float32(1) - rng.random(rows, np.float32),
        "p_values": np.float32(1) - rng.random((rows, detectors), np.float32),
        "coverage": np.ones(rows, np.float32),
        "verdict": ["allow", "flag", "block"][:rows] + ["allow"] * (rows - 3),
    }


def encode(encoding: Encoding = "json", **changes: Any) -> tuple[bytes, Written]:
    trace = changes.pop("trace", ())
    return encode_score(
        request(encoding, trace), version=4, log=LOG, topic="inference.inputs", partition=3,
        offset=17, timestamp=1_767_323_045_678, **{**figures(), **changes},
    )  # fmt: skip


@pytest.mark.parametrize("encoding", ["json", "binary"])
@pytest.mark.parametrize(("rows", "detectors"), [(1, 1), (2, 3), (50, 7)])
def test_a_score_is_read_as_it_was_written(encoding: Encoding, rows: int, detectors: int) -> None:
    """Every figure, to the last bit, in both encodings."""
    written = figures(rows, detectors)
    score = decode_score(*encode(encoding, **written))
    assert (score.id, score.model, score.version, score.client) == ("req-1", "digits", 4, "app-7")
    assert (score.log, score.topic, score.partition, score.offset) == (
        LOG, "inference.inputs", 3, 17,
    )  # fmt: skip
    assert score.detectors == tuple(written["detectors"])
    assert score.verdict == tuple(written["verdict"])
    for name in ("prediction", "confidence", "p_value", "p_values", "coverage"):
        found = getattr(score, name)
        assert found.tobytes() == written[name].tobytes()
        assert found.shape == written[name].shape


@given(st.lists(st.floats(0, 1, width=32, exclude_min=True), min_size=1, max_size=9))
def test_figures_in_json_are_short_and_exact(values: list[float]) -> None:
    """The shortest decimal that gives back the same single-precision number, and valid JSON."""
    p_value = np.array(values, np.float32)
    rows = len(p_value)
    value, headers = encode(**{**figures(rows, 1), "p_value": p_value})
    assert decode_score(value, headers).p_value.tobytes() == p_value.tobytes()
    data = json.loads(value)["outputs"][2]["data"]
    assert all(len(repr(number)) <= 14 for number in data)


NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=256)


@given(
    st.sampled_from(["json", "binary"]), st.integers(1, 60), st.integers(1, 12), NAMES, NAMES,
    st.integers(0, 2**32), st.binary(max_size=512),
)  # fmt: skip
def test_no_score_is_larger_than_was_foretold(
    encoding: Encoding, rows: int, detectors: int, name: str, client: str, seed: int, trace: bytes
) -> None:
    """Whatever the figures are; in the binary encoding it is at most one byte a row less."""
    rng = np.random.default_rng(seed)
    names = [f"a_detector_{i}" for i in range(detectors)]
    asked = Request(
        name, "digits", client, encoding, np.zeros((rows, 3), np.uint8), None,
        (("tracestate", trace),),
    )  # fmt: skip

    def drawn(*shape: int) -> Any:  # all lengths that a figure can have
        return (10.0 ** rng.uniform(-44, 0, shape)).clip(1e-45, 1).astype(np.float32)

    value, headers = encode_score(
        asked, version=10**18 - 1, log=LOG, topic="inference.inputs", partition=2**31 - 1,
        offset=2**63 - 1, timestamp=2**62, detectors=names,
        prediction=np.full(rows, 65_535), confidence=drawn(rows), p_value=drawn(rows),
        p_values=drawn(rows, detectors), coverage=drawn(rows),
        verdict=rng.choice(["allow", "flag", "block"], rows).tolist(),
    )  # fmt: skip
    written, foretold = size(name.encode(), value, headers), largest_score(asked, names)
    assert written <= foretold
    if encoding == "binary":
        assert foretold - written <= 2048 + 12 * (2 * len(name) + len(client) + 6) + rows


def test_what_may_not_fit_is_refused_before_it_is_scored() -> None:
    """It names the shape, and says what to do."""
    asked = request("binary")
    bound = largest_score(asked, ["energy"])
    check_score_fits(asked, ["energy"], bound)
    with pytest.raises(
        SchemaError, match=r"the score of 2 inputs may take .* send fewer"
    ) as caught:
        check_score_fits(asked, ["energy"], bound - 1)
    assert (caught.value.error_class, caught.value.field) == ("TooLarge", "inputs[0].shape")


def test_the_json_is_an_open_inference_response() -> None:
    """One output tensor a figure, flat and row-major, with the position in the parameters."""
    value, headers = encode()
    body = json.loads(value)
    assert list(body) == ["id", "model_name", "model_version", "parameters", "outputs"]
    assert body["model_version"] == "4"
    assert body["parameters"] == {
        "log": str(LOG), "topic": "inference.inputs", "partition": 3, "offset": 17,
        "client": "app-7", "detectors": "d0,d1,d2",
    }  # fmt: skip
    tensors = {tensor["name"]: tensor for tensor in body["outputs"]}
    assert {name: (t["datatype"], t["shape"]) for name, t in tensors.items()} == {
        "prediction": ("INT64", [2]), "confidence": ("FP32", [2]), "p_value": ("FP32", [2]),
        "p_values": ("FP32", [2, 3]), "coverage": ("FP32", [2]), "verdict": ("BYTES", [2]),
    }  # fmt: skip
    assert len(tensors["p_values"]["data"]) == 6
    assert tensors["verdict"]["data"] == ["allow", "flag"]
    assert dict(headers)["content-type"] == b"application/json"


def test_the_binary_form_is_the_binary_tensor_extension() -> None:
    """Tensors lie behind the JSON without gaps; words have their length before them."""
    value, headers = encode("binary")
    known = dict(headers)
    assert known["content-type"] == b"application/octet-stream"
    size = int(known["inference-header-content-length"])
    outputs = json.loads(value[:size])["outputs"]
    sizes = [tensor["parameters"]["binary_data_size"] for tensor in outputs]
    assert sum(sizes) == len(value) - size
    assert not any("data" in tensor for tensor in outputs)
    assert value.endswith(b"\x05\0\0\0allow\x04\0\0\0flag")


def test_the_event_is_named_by_the_position_of_its_input() -> None:
    """So that a replay gives the same event, at the input's own time, with its trace."""
    trace = (("traceparent", b"00-1-2-01"), ("tracestate", b"a=b"))
    value, headers = encode(trace=trace)
    assert (value, headers) == encode(trace=trace)
    known = dict(headers)
    assert known["ce_id"].decode() == str(uuid5(LOG, "inference.inputs/3/17/score"))
    assert known["ce_type"] == b"nnsec.score.v1"
    assert known["ce_source"] == b"/nnsec/score"
    assert known["ce_time"] == b"2026-01-02T03:04:05.678Z"
    assert (known["traceparent"], known["tracestate"]) == (b"00-1-2-01", b"a=b")


def _json(change: Callable[[dict[str, Any]], Any]) -> tuple[bytes, Written]:
    value, headers = encode()
    body = json.loads(value)
    change(body)
    return json.dumps(body).encode(), headers


def _head(change: Callable[[dict[str, Any]], Any]) -> tuple[bytes, Written]:
    """A binary score whose JSON part was changed, with the right length."""
    value, headers = encode("binary")
    size = int(dict(headers)["inference-header-content-length"])
    body = json.loads(value[:size])
    change(body)
    head = json.dumps(body).encode()
    known = {**dict(headers), "inference-header-content-length": str(len(head)).encode()}
    return head + value[size:], tuple(known.items())


def test_what_a_newer_writer_adds_is_passed_over() -> None:
    """Unknown fields and unknown tensors, in both encodings."""

    def more(body: dict[str, Any]) -> None:
        body["parameters"]["trace"] = [1]
        body["novel"] = {"a": 1}
        extra = {"name": "novel", "datatype": "FP64", "shape": [2], "data": [1, 2]}
        if "parameters" in body["outputs"][0]:
            extra["parameters"] = {"binary_data_size": 0}
        body["outputs"].insert(1, extra)

    expected = decode_score(*encode())
    for changed in (_json(more), _head(more)):
        assert same(decode_score(*changed), expected)


def same(a: Score, b: Score) -> bool:
    names = ("id", "model", "version", "offset", "verdict", "detectors")
    return all(getattr(a, name) == getattr(b, name) for name in names) and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("prediction", "confidence", "p_value", "p_values", "coverage")
    )


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no tensor": (lambda b: b["outputs"].pop(), "outputs"),
    "a tensor twice": (lambda b: b["outputs"].append(b["outputs"][0]), "outputs[6]"),
    "another type": (lambda b: b["outputs"][0].update(datatype="FP32"), "outputs[0]"),
    "too few values": (lambda b: b["outputs"][1]["data"].pop(), "outputs[1]"),
    "a word among numbers": (lambda b: b["outputs"][1].update(data=["a", 1]), "outputs[1]"),
    "a fraction as a class": (lambda b: b["outputs"][0].update(data=[1.5, 2]), "outputs[0]"),
    "over 64 bits": (lambda b: b["outputs"][0].update(data=[2**70, 2]), "outputs[0]"),
    "over single precision": (lambda b: b["outputs"][1].update(data=[1e39, 0]), "outputs[1]"),
    "an unknown verdict": (lambda b: b["outputs"][5].update(data=["allow", "deny"]), "outputs"),
    "a p-value of 0": (lambda b: b["outputs"][2].update(data=[0, 1]), "outputs"),
    "a p-value over 1": (lambda b: b["outputs"][3].update(data=[1, 1, 1, 1, 1, 1.1]), "outputs"),
    "other rows": (lambda b: b["outputs"][4].update(shape=[1], data=[1]), "outputs"),
    "no batch axis": (lambda b: b["outputs"][0].update(shape=[], data=[1]), "outputs"),
    "other detectors": (lambda b: b["parameters"].update(detectors="d0"), "outputs"),
    "a negative shape": (lambda b: b["outputs"][0].update(shape=[-2]), "outputs[0].shape[0]"),
    "a version in words": (lambda b: b.update(model_version="new"), "model_version"),
    "no log": (lambda b: b["parameters"].pop("log"), "parameters.log"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_score_is_refused_by_its_field(name: str) -> None:
    """And never with a warning of numpy's."""
    change, field = BROKEN[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SchemaError) as caught:
            decode_score(*_json(change))
    assert caught.value.field == field


@pytest.mark.parametrize("size", [None, "8", -1, 10**9])
def test_binary_sizes_are_checked(size: object) -> None:
    """Each tensor lies within the value."""

    def change(body: dict[str, Any]) -> None:
        body["outputs"][1]["parameters"]["binary_data_size"] = size

    with pytest.raises(SchemaError) as caught:
        decode_score(*_head(change))
    assert caught.value.field == "outputs[1]"


def test_binary_bytes_are_whole_values() -> None:
    """No part of a number, nothing left over, no cut word."""

    def shift(body: dict[str, Any]) -> None:
        body["outputs"][0]["parameters"]["binary_data_size"] -= 1
        body["outputs"][1]["parameters"]["binary_data_size"] += 1

    value, headers = encode("binary")
    for broken in (_head(shift), (value + b"x", headers), (value[:-1], headers)):
        with pytest.raises(SchemaError):
            decode_score(*broken)


@pytest.mark.parametrize("length", [None, b"", b"-1", b"1e3", b"99999", b"1" * 5000])
def test_the_length_header_is_checked(length: bytes | None) -> None:
    """It is decimal and within the value."""
    value, headers = encode("binary")
    known = dict(headers)
    del known["inference-header-content-length"]
    if length is not None:
        known["inference-header-content-length"] = length
    with pytest.raises(SchemaError, match=r"length|needs this header") as caught:
        decode_score(value, tuple(known.items()))
    assert caught.value.field == "inference-header-content-length"


def test_a_record_without_a_value_is_no_score() -> None:
    """Nor is one of nonsense, or far too long a one."""
    for value in (None, b"", b"{", b"[]"):
        with pytest.raises(SchemaError):
            decode_score(value, ())
    value, headers = encode("binary")
    with pytest.raises(SchemaError) as caught:
        decode_score(value + bytes(17 * 1024 * 1024), headers)
    assert caught.value.error_class == "TooLarge"


@pytest.mark.parametrize("name", ["score-v1.json", "score-v1.bin"])
def test_the_first_version_is_read_for_ever(name: str) -> None:
    """Kept payloads decode to the same figures."""
    raw = (KEPT / name).read_bytes()
    headers: Written = (("content-type", b"application/json"),)
    if name.endswith(".bin"):
        headers = (
            ("content-type", b"application/octet-stream"),
            ("inference-header-content-length", str(raw.index(b"]}") + 2).encode()),
        )
    score = decode_score(raw, headers)
    assert score.detectors == ("confidence", "energy")
    assert score.prediction.tolist() == [7, 1]
    assert score.p_value.tolist() == [0.5, 0.00390625]
    assert score.p_values.tolist() == [[0.25, 1.0], [0.125, 0.0625]]
    assert score.verdict == ("allow", "flag")


def test_the_schema_is_published() -> None:
    """By the name that `ce_type` has."""
    assert EVENTS["score"] is Response
