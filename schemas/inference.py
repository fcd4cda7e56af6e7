"""Inference requests: decoded strictly, and encoded for producers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from schemas import cloudevents, strict_json, tensors
from schemas import headers as record_headers
from schemas.base import Time
from schemas.errors import SchemaError
from schemas.headers import Headers, Written
from schemas.identities import choose_subject, record_id

_FIELDS = {"id", "model_name", "model_version", "parameters", "inputs", "outputs"}
_WIRE = {"uint8": "UINT8", "float32": "FP32"}
_UINT8 = 255
_LARGEST = float(np.finfo(np.float32).max)
_TIME: TypeAdapter[datetime] = TypeAdapter(Time)


class Limits(Protocol):
    """Bounds on what users send."""

    @property
    def depth(self) -> int: ...  # noqa: D102
    @property
    def rows(self) -> int: ...  # noqa: D102
    @property
    def headers(self) -> int: ...  # noqa: D102
    @property
    def bytes(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Expected:
    """What a configured model takes: ``shape`` without the batch axis, values in [low, high]."""

    model: str
    shape: tuple[int, ...]
    dtype: Literal["uint8", "float32"]
    low: float
    high: float
    name: str = "input"
    classes: int | None = None
    """Labels are 0 to classes − 1; None if the configuration does not say."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value in the wire type: 0.1 in FP32 is a little more."""
        if self.dtype == "uint8":
            return self.low, self.high
        low, high = (float(np.float32(min(max(b, -_LARGEST), _LARGEST)))
                     for b in (self.low, self.high))  # fmt: skip
        return low, high


@dataclass(frozen=True, slots=True)
class Skipped:
    """A response of a serving platform, not an input; counted and passed over."""


@dataclass(frozen=True, slots=True)
class Request:
    """One validated record of ``inference.inputs``.

    Parameters
    ----------
    x:
        (rows, *shape) in the wire type, finite and in the model's range.
    encoding:
        How it is to be answered; what came in an envelope is answered in JSON.
    trace:
        Trace headers to copy to what this record leads to; none of more than 512 bytes.
    """

    id: str
    model: str
    client: str
    encoding: Literal["json", "binary"]
    x: NDArray[Any]
    time: datetime | None
    trace: Written


def decode_request(
    key: bytes | None, value: bytes | None, headers: Headers, *, partition: int, offset: int,
    models: Mapping[str, Expected], limits: Limits, default_model: str, identity_header: str = "",
) -> Request | Skipped:  # fmt: skip
    """Read one record of ``inference.inputs``.

    Parameters
    ----------
    models:
        The configured models by name.
    default_model:
        The model of a record that names none; empty for none.
    identity_header:
        Header (or ``key``) whose value outranks ``parameters.client``; empty for none.

    Raises
    ------
    SchemaError
        With the field and the dead-letter class, for anything else than a valid request.
    """
    opened = open_record(
        value, headers, models=models, limits=limits, default_model=default_model,
        identity_header=identity_header,
    )  # fmt: skip
    if isinstance(opened, Skipped):
        return opened
    if len(opened.arrays) > 1:
        raise SchemaError("an inference input is one tensor", field="inputs[1]")
    fields, known = opened.fields, opened.known
    return Request(
        id=record_id(fields, known, f"{partition}/{offset}"),
        model=opened.expected.model,
        client=choose_subject(
            key, fields, known, identity_header, parameter="client", header="ce_nnsecclient"
        ),
        encoding=opened.encoding,
        x=check_tensor(next(iter(opened.arrays.values())), opened.expected),
        time=opened.time,
        trace=opened.trace,
    )


@dataclass(frozen=True, slots=True)
class Opened:
    """A record of tensors for a configured model, before its tensors are judged.

    Parameters
    ----------
    known:
        The headers that are read, by lower-case name.
    arrays:
        Name to (field, datatype, array) of each tensor, in order; at least one.
    """

    fields: Mapping[str, Any]
    known: Mapping[str, str]
    time: datetime | None
    expected: Expected
    encoding: Literal["json", "binary"]
    arrays: Mapping[str, tuple[str, str, NDArray[Any]]]

    @property
    def trace(self) -> Written:
        """Trace headers to copy to what this record leads to."""
        return record_headers.trace(self.known)


def open_record(
    value: bytes | None, headers: Headers, *, models: Mapping[str, Expected], limits: Limits,
    default_model: str, identity_header: str,
) -> Opened | Skipped:  # fmt: skip
    """Do what inference inputs and training samples have in common; see `decode_request`."""
    also = "" if identity_header == "key" else identity_header
    found = record_headers.read(headers, limit=limits.headers, also=also)
    event = cloudevents.unwrap(value, found, size=limits.bytes, depth=limits.depth)
    known, body = event.known, event.body
    time = check_event(known)
    if known.get("ce_type", "").endswith(".inference.response"):
        if "outputs" in body.fields and "inputs" not in body.fields:
            return Skipped()
        raise SchemaError("a response has outputs and no inputs", field="ce_type")
    expected = choose_model(body.fields, known, models, default_model)
    arrays = tensors.read(body, max_rows=limits.rows)
    plain = event.structured or body.binary is None
    encoding: Literal["json", "binary"] = "json" if plain else "binary"
    return Opened(body.fields, known, time, expected, encoding, arrays)


def check_event(known: Mapping[str, str]) -> datetime | None:
    """Check the CloudEvents headers; the event's own time, for showing only.

    Raises
    ------
    SchemaError
        If ``ce_specversion`` is there and the event is not CloudEvents 1.0, or for a bad time.
    """
    if "ce_specversion" in known:
        if known["ce_specversion"] != "1.0":
            raise SchemaError("only CloudEvents 1.0 is read", field="ce_specversion")
        for name in ("ce_type", "ce_id", "ce_source"):
            if not known.get(name):
                raise SchemaError("a CloudEvent needs this header", field=name)
    if "ce_time" not in known:
        return None
    try:
        return _TIME.validate_json(json.dumps(known["ce_time"]), strict=True)
    except ValidationError as error:
        raise SchemaError("not a time in RFC 3339", field="ce_time") from error


def choose_model(
    fields: Mapping[str, Any], known: Mapping[str, str], models: Mapping[str, Expected],
    default: str,
) -> Expected:  # fmt: skip
    """The model of a request: the body wins, then the headers, then the configured one."""
    if not fields.keys() <= _FIELDS:
        odd = strict_json.shown(min(fields.keys() - _FIELDS))
        raise SchemaError(f"unknown field {odd}", field=odd)
    if not isinstance(fields.get("parameters", {}), dict):
        raise SchemaError("parameters are a JSON object", field="parameters")
    name = fields.get("model_name")
    if name is None:
        headers = (known.get("ce_inferenceservicename"), known.get("nnsec-model"), default)
        name = next((header for header in headers if header), None)
    if not isinstance(name, str) or not name:
        raise SchemaError("the record names no model", field="model_name")
    if name not in models:
        raise SchemaError(
            f"no model {name[:100]!r} is configured", field="model_name", error_class="UnknownModel"
        )
    return models[name]


def check_tensor(tensor: tuple[str, str, NDArray[Any]], expected: Expected) -> NDArray[Any]:
    """Hold a tensor against what the model takes."""
    field, datatype, x = tensor
    if datatype != _WIRE[expected.dtype]:
        raise SchemaError(
            f"the model takes {_WIRE[expected.dtype]}, not {datatype}", field=f"{field}.datatype"
        )
    if x.shape[1:] != expected.shape:
        raise SchemaError(
            f"the model takes [N, {', '.join(map(str, expected.shape))}]", field=f"{field}.shape"
        )
    if datatype == "UINT8" and expected.low <= 0 and expected.high >= _UINT8:
        return x  # every byte is within the range
    low, high = float(x.min()), float(x.max())  # a NaN makes both comparisons false
    lowest, highest = expected.bounds
    if not (lowest <= low and high <= highest):
        raise SchemaError(
            f"values from {low:g} to {high:g}; {expected.low:g} to {expected.high:g} are allowed",
            field=f"{field}.data",
        )
    return x


def encode_request(
    *, model: str, x: NDArray[Any], id: str | None = None, client: str | None = None,  # noqa: A002
    encoding: Literal["json", "binary"] = "binary",
) -> tuple[bytes, Written]:  # fmt: skip
    """Write a request, for producers.

    Parameters
    ----------
    x:
        (rows, *shape), uint8 or float32.

    Returns
    -------
    tuple
        The value and its headers.
    """
    return tensors.write(
        {"id": id or str(uuid4()), "model_name": model},
        {} if client is None else {"client": client},
        {"input": x},
        encoding,
    )
