"""Ten kinds of records that are no inference request, each wrong in one way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnsec.settings import Input
from schemas.inference import encode_request

Headers = tuple[tuple[str, bytes], ...]
JSON: Headers = (("content-type", b"application/json"),)


@dataclass(frozen=True, slots=True)
class Malformed:
    """One record, and the field that its dead letter names."""

    name: str
    value: bytes | None
    headers: Headers
    field: str


def malformed(model: str, input: Input) -> tuple[Malformed, ...]:  # noqa: A002 - as in settings
    """All ten kinds, for a model that takes such inputs."""
    low, high = input.range
    zeros = np.full((1, *input.shape), low, input.dtype)
    value, headers = encode_request(model=model, x=zeros, client="careless", encoding="binary")
    good = json.loads(encode_request(model=model, x=zeros, client="careless", encoding="json")[0])
    tensor = good["inputs"][0]

    def body(**changes: Any) -> bytes:
        return json.dumps({**good, **changes}).encode()

    def inputs(**changes: Any) -> bytes:
        return body(inputs=[{**tensor, **changes}])

    data = list(tensor["data"])
    return (
        Malformed("no JSON", b"{ this is no JSON", JSON, "value"),
        Malformed("no value", None, JSON, "value"),
        Malformed("not a number", _nan(good, tensor), JSON, "value"),
        Malformed("a key twice", b'{"id": "a", ' + body()[1:], JSON, "id"),
        Malformed("too deep", b'{"inputs": ' + b"[" * 64 + b"]" * 64 + b"}", JSON, "value"),
        Malformed("another model", body(model_name="nobody"), JSON, "model_name"),
        Malformed("an unknown field", body(input=1), JSON, "input"),
        Malformed("another shape", inputs(shape=[1, *input.shape[:-1], input.shape[-1] + 1]), JSON,
                  "inputs[0].data"),
        Malformed("out of range", inputs(data=[int(high) + 1, *data[1:]]), JSON, "inputs[0].data"),
        Malformed("a tensor cut short", value[:-1], headers, "inputs[0].data"),
    )  # fmt: skip


def _nan(good: Mapping[str, Any], tensor: Mapping[str, Any]) -> bytes:
    data = [float("nan"), *tensor["data"][1:]]
    return json.dumps({**good, "inputs": [{**tensor, "data": data}]}).encode()
