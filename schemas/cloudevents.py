"""CloudEvents 1.0 in structured mode: the envelope is opened, the request in it read as any other.

After `unwrap` nothing needs to know how a record came: the attributes of the envelope stand where
those of binary mode stand, as ``ce_…`` headers (CloudEvents JSON format, §2 and §3; Kafka binding,
§3.3).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas import strict_json, tensors
from schemas.base import parse_time
from schemas.errors import SchemaError
from schemas.headers import TRACE
from schemas.tensors import Body

MEDIA = "application/cloudevents+json"
_REQUIRED = ("specversion", "id", "source", "type")
_TEXTS = (*_REQUIRED, "datacontenttype", "dataschema", "subject", "time")
_READ = (*_REQUIRED, "time", "inferenceservicename", "nnsecclient")
_LENGTH = "inferenceheadercontentlength"
_NAME = re.compile("[a-z0-9]+")
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f]")
_FIELDS = {
    "content-type": "datacontenttype",
    "inference-header-content-length": _LENGTH,
    "value": "data_base64",
}
"""What a header is called inside the envelope."""


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """A record, however it came.

    Parameters
    ----------
    known:
        The headers that are read; in structured mode ``ce_…`` are the envelope's attributes.
    body:
        The request.
    structured:
        Whether there was an envelope.
    """

    known: Mapping[str, str]
    body: Body
    structured: bool


def unwrap(value: bytes | None, known: Mapping[str, str], *, size: int, depth: int) -> Unwrapped:
    """Take a record apart by its content type, and out of its envelope if it has one.

    Parameters
    ----------
    known:
        From `schemas.headers.read`. In structured mode ``ce_…`` headers count for nothing.
    size, depth:
        Most bytes, and most levels of nesting, of the value.

    Raises
    ------
    SchemaError
        Naming the header, or the attribute of the envelope.
    """
    content_type = known.get("content-type", "application/json")
    length = known.get("inference-header-content-length")
    if tensors.media_type(content_type) != MEDIA:
        return Unwrapped(
            known, tensors.split(value, content_type, length, size=size, depth=depth), False
        )
    if length is not None:
        raise SchemaError(
            f"only application/octet-stream has this header; an envelope has {_LENGTH}",
            field="inference-header-content-length",
        )
    envelope = strict_json.loads(value, limit=size, depth=depth)
    if not isinstance(envelope, dict):
        raise SchemaError("a CloudEvent is a JSON object")
    payload = {name: envelope.pop(name) for name in ("data", "data_base64") if name in envelope}
    attributes = _attributes(envelope)
    rest = {name: text for name, text in known.items() if not name.startswith("ce_")}
    traces = {name: attributes[name] for name in TRACE if name in attributes}
    own = {f"ce_{name}": attributes[name] for name in _READ if name in attributes}
    body = _payload(payload, attributes, size=size, depth=depth)
    return Unwrapped(traces | rest | own, body, True)


def _attributes(envelope: Mapping[str, Any]) -> dict[str, str]:
    """The attributes as text; null is the same as absent."""
    found: dict[str, str] = {}
    for name, value in envelope.items():
        field = strict_json.shown(name)
        if not _NAME.fullmatch(name):
            raise SchemaError("attributes are named in lower-case letters and digits", field=field)
        if value is not None:
            found[name] = _text(name, value, field)
    for name in _REQUIRED:
        if name not in found:
            raise SchemaError("a CloudEvent needs this attribute", field=name)
    if found["specversion"] != "1.0":
        raise SchemaError("only CloudEvents 1.0 is read", field="specversion")
    if "time" in found:
        parse_time(found["time"], field="time")
    return found


def _text(name: str, value: Any, field: str) -> str:
    """One attribute as text; only texts, whole numbers of 32 bits and truth values are allowed."""
    if name in _TEXTS and (type(value) is not str or not value):
        raise SchemaError("this attribute is text, and not empty", field=field)
    if type(value) not in (str, int, bool):
        raise SchemaError("an attribute is text, a whole number or a truth value", field=field)
    if type(value) is int and not -(2**31) <= value < 2**31:
        raise SchemaError("a number of more than 32 bits", field=field)
    text = str(value).lower() if type(value) is bool else str(value)
    if _CONTROL.search(text):
        raise SchemaError("no control characters are allowed", field=field)
    return text


def _payload(
    payload: Mapping[str, Any], attributes: Mapping[str, str], *, size: int, depth: int
) -> Body:
    if len(payload) != 1:
        raise SchemaError("an event has one of data and data_base64", field="data")
    content_type = attributes.get("datacontenttype", "application/json")
    if "data_base64" in payload:
        raw = _decoded(payload["data_base64"])
        try:
            length = attributes.get(_LENGTH)
            return tensors.split(raw, content_type, length, size=size, depth=depth)
        except SchemaError as error:
            field = _FIELDS.get(error.field, error.field)
            raise SchemaError(str(error), field=field, error_class=error.error_class) from error
    try:
        media = tensors.media_type(content_type)
    except SchemaError as error:
        raise SchemaError(str(error), field="datacontenttype") from error
    if media != "application/json":
        raise SchemaError(f"{media[:80]!r} travels in data_base64", field="datacontenttype")
    if _LENGTH in attributes:
        raise SchemaError("only application/octet-stream has this attribute", field=_LENGTH)
    if not isinstance(payload["data"], dict):
        raise SchemaError("a request is a JSON object", field="data")
    return Body(payload["data"], None)


def _decoded(text: Any) -> bytes:
    if not isinstance(text, str):
        raise SchemaError("base64 is text", field="data_base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SchemaError("not base64", field="data_base64") from error
