"""A second decoder of inference inputs, written from the contract alone, simple and slow.

It shares nothing with `schemas` and goes through the text character by character, so that what both
say alike is hardly wrong in the same way. It knows the two models that the tests send inputs of.
"""

from __future__ import annotations

import base64
import re
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

Headers = list[tuple[str, bytes | None]]

MODELS: dict[str, tuple[list[int], str, float, float]] = {
    "digits": ([1, 2, 2], "UINT8", 0, 16),
    "floats": ([3], "FP32", -1, 1),
}
"""Shape of one input, datatype, smallest and largest value."""
LARGEST = 2**128 - 2**104  # of single precision
READ = [
    "content-type", "inference-header-content-length", "ce_specversion", "ce_type", "ce_id",
    "ce_source", "ce_time", "ce_inferenceservicename", "ce_nnsecclient", "nnsec-model",
    "traceparent", "tracestate",
]  # fmt: skip


class Refused(Exception):  # noqa: N818 - the record is to become a dead letter
    """The record breaks the contract."""


@dataclass
class Read:
    """What a record says."""

    id: str
    model: str
    client: str
    encoding: str
    shape: list[int]
    values: list[float]
    time: datetime | None
    trace: list[tuple[str, bytes]]


def decode(
    key: bytes | None, value: bytes | None, headers: Headers, *, position: str, default: str,
    identity: str,
) -> Read | None:  # fmt: skip
    """What a record of ``inference.inputs`` says; None for a response, which is skipped."""
    known = _headers(headers, identity)
    if value is None or len(value) > 2**20:
        raise Refused
    media = _media(known.get("content-type", "application/json"))
    structured = media == "application/cloudevents+json"
    if structured:
        known, body, raw = _envelope(value, known)
    else:
        body, raw = _body(value, media, known.get("inference-header-content-length"))
    time = _event(known)
    if known.get("ce_type", "").endswith(".inference.response"):
        if "outputs" in body and "inputs" not in body:
            return None
        raise Refused
    model = _model(body, known, default)
    shape, values = _tensor(body, raw, model)
    name = _name(body["id"] if "id" in body else known.get("ce_id", position))
    trace = [(n, known[n].encode()) for n in ("traceparent", "tracestate") if n in known]
    client = _client(key, body.get("parameters", {}), known, identity)
    encoding = "json" if structured or raw is None else "binary"
    return Read(name, model, client, encoding, shape, values, time, trace)


def _headers(headers: Headers, identity: str) -> dict[str, str]:
    if len(headers) > 128:
        raise Refused
    found: dict[str, str] = {}
    for name, content in headers:
        name = name.lower()  # without case
        if name in READ or (identity not in ("", "key") and name == identity.lower()):
            if name in found or content is None:
                raise Refused
            found[name] = _text(content)
    return found


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused from None


def _media(content_type: str) -> str:
    parts = [part.strip().lower() for part in content_type.split(";")]
    for part in parts[1:]:
        if part.replace(" ", "") not in ("charset=utf-8", 'charset="utf-8"'):
            raise Refused
    return parts[0]


def _body(value: bytes, media: str, length: str | None) -> tuple[dict[str, Any], bytes | None]:
    raw = None
    if media == "application/octet-stream":
        if length is None or not re.fullmatch("0|[1-9][0-9]{0,11}", length, re.ASCII):
            raise Refused
        if int(length) > len(value):
            raise Refused
        value, raw = value[: int(length)], value[int(length) :]
    elif media != "application/json" or length is not None:
        raise Refused
    return _object(Json(_text(value)).document()), raw


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused
    return value


def _envelope(
    value: bytes, known: dict[str, str]
) -> tuple[dict[str, str], dict[str, Any], bytes | None]:
    if "inference-header-content-length" in known:
        raise Refused
    envelope = _object(Json(_text(value)).document())
    if ("data" in envelope) == ("data_base64" in envelope):
        raise Refused
    attributes: dict[str, str] = {}
    for name, content in envelope.items():
        if name in ("data", "data_base64"):
            continue
        if re.fullmatch("[a-z0-9]+", name) is None:
            raise Refused
        if content is not None:
            attributes[name] = _attribute(name, content)
    if any(name not in attributes for name in ("specversion", "id", "source", "type")):
        raise Refused
    media = _media(attributes.get("datacontenttype", "application/json"))
    length = attributes.get("inferenceheadercontentlength")
    raw = None
    if "data" in envelope:
        if media != "application/json" or length is not None:
            raise Refused
        body = _object(envelope["data"])
    else:
        body, raw = _body(_base64(envelope["data_base64"]), media, length)
    merged = {n: attributes[n] for n in ("traceparent", "tracestate") if n in attributes}
    merged |= {n: text for n, text in known.items() if not n.startswith("ce_")}
    merged |= {f"ce_{n}": text for n, text in attributes.items()}
    return merged, body, raw


def _attribute(name: str, value: Any) -> str:
    texts = (
        "specversion", "id", "source", "type", "datacontenttype", "dataschema", "subject", "time",
    )  # fmt: skip
    if name in texts and (not isinstance(value, str) or value == ""):
        raise Refused
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if not -(2**31) <= value < 2**31:
            raise Refused
        return str(value)
    if not isinstance(value, str) or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in value):
        raise Refused
    return value


def _base64(text: Any) -> bytes:
    if not isinstance(text, str):
        raise Refused
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise Refused from None


def _event(known: dict[str, str]) -> datetime | None:
    if "ce_specversion" in known:
        needed = [known.get(name) for name in ("ce_type", "ce_id", "ce_source")]
        if known["ce_specversion"] != "1.0" or not all(needed):
            raise Refused
    return _time(known["ce_time"]) if "ce_time" in known else None


def _time(text: str) -> datetime:
    pattern = r"(\d{4}-\d\d-\d\dT\d\d:\d\d:)(\d\d)(\.\d{1,30})?(Z|[+-]\d\d:\d\d)"
    match = re.fullmatch(pattern, text.upper(), re.ASCII)
    if match is None or (match[4] != "Z" and (match[4][1:3] > "23" or match[4][4:] > "59")):
        raise Refused
    leap = match[2] == "60"
    try:
        numbers = [int(n) for n in re.findall("[0-9]+", match[1] + ("59" if leap else match[2]))]
        time = datetime(*numbers[:6], tzinfo=UTC)
        micro = int((match[3] or ".0")[1:7].ljust(6, "0"))
        zone = match[4] if match[4] != "Z" else "+00:00"
        away = timedelta(hours=int(zone[1:3]), minutes=int(zone[4:])) * (
            -1 if zone[0] == "-" else 1
        )
        return time + timedelta(seconds=leap, microseconds=micro) - away
    except (ValueError, OverflowError):
        raise Refused from None


def _model(body: dict[str, Any], known: dict[str, str], default: str) -> str:
    fields = ("id", "model_name", "model_version", "parameters", "inputs", "outputs")
    if any(field not in fields for field in body):
        raise Refused
    _object(body.get("parameters", {}))
    name = body.get("model_name")
    if name is None:
        name = known.get("ce_inferenceservicename") or known.get("nnsec-model") or default
    if not isinstance(name, str) or name not in MODELS:
        raise Refused
    return name


def _tensor(body: dict[str, Any], raw: bytes | None, model: str) -> tuple[list[int], list[float]]:
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise Refused
    tensor = _object(inputs[0])
    if any(key not in ("name", "datatype", "shape", "data", "parameters") for key in tensor):
        raise Refused
    if not isinstance(tensor.get("name"), str) or tensor["name"] == "":
        raise Refused
    each, datatype, low, high = MODELS[model]
    shape = tensor.get("shape")
    if tensor.get("datatype") != datatype or not isinstance(shape, list) or shape[1:] != each:
        raise Refused
    if any(type(n) is not int for n in shape) or not 1 <= shape[0] <= 65536:
        raise Refused
    parameters = _object(tensor.get("parameters", {}))
    count = shape[0] * (4 if model == "digits" else 3)
    if raw is None:
        values = _values(tensor.get("data"), shape, count, datatype)
    else:
        values = _bytes(tensor, raw, parameters.get("binary_data_size"), count, datatype)
    if not all(low <= value <= high for value in values):  # no NaN is
        raise Refused
    return shape, values


def _bytes(tensor: dict[str, Any], raw: bytes, size: Any, count: int, datatype: str) -> list[float]:
    if "data" in tensor or type(size) is not int or size != len(raw):
        raise Refused
    if size != count * (1 if datatype == "UINT8" else 4):
        raise Refused
    return list(raw) if datatype == "UINT8" else list(struct.unpack(f"<{count}f", raw))


def _values(data: Any, shape: list[int], count: int, datatype: str) -> list[float]:
    if not isinstance(data, list):
        raise Refused
    if data and isinstance(data[0], list):
        data = _nested(data, shape)
    if len(data) != count:
        raise Refused
    if datatype == "UINT8":
        if not all(type(v) is int and 0 <= v <= 255 for v in data):
            raise Refused
        return list(data)
    if not all(type(v) in (int, float) and -LARGEST <= v <= LARGEST for v in data):
        raise Refused
    return [struct.unpack("<f", struct.pack("<f", v))[0] for v in data]


def _nested(data: Any, shape: list[int]) -> list[Any]:
    if not shape:
        return [data]
    if not isinstance(data, list) or len(data) != shape[0]:
        raise Refused
    return [value for part in data for value in _nested(part, shape[1:])]


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 256:
        raise Refused
    if any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in value):
        raise Refused
    return value


def _client(
    key: bytes | None, parameters: dict[str, Any], known: dict[str, str], identity: str
) -> str:
    named = _name(parameters["client"]) if "client" in parameters else None
    if identity not in ("", "key"):
        return _name(known.get(identity.lower(), "anonymous"))
    if identity == "" and named is not None:
        return named
    if identity == "" and "ce_nnsecclient" in known:
        return _name(known["ce_nnsecclient"])
    if not key:
        return "anonymous"
    try:
        return _name(key.decode("utf-8"))
    except UnicodeDecodeError:
        return _name(key.hex())


class Json:
    """RFC 8259, read from left to right; numbers of at most 400 characters, 32 levels."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def document(self) -> Any:
        """The one value of the text."""
        value = self._value(1)
        self._space()
        if self.at != len(self.text):
            raise Refused
        return value

    def _space(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in " \t\n\r":
            self.at += 1

    def _next(self) -> str:
        self._space()
        return self.text[self.at : self.at + 1]

    def _take(self, text: str) -> None:
        if not self.text.startswith(text, self.at):
            raise Refused
        self.at += len(text)

    def _value(self, depth: int) -> Any:
        first = self._next()
        if first in ("{", "[") and depth > 32:
            raise Refused
        if first == "{":
            return self._members(depth)
        if first == "[":
            return self._items(depth)
        if first == '"':
            return self._string()
        for word, value in (("true", True), ("false", False), ("null", None)):
            if self.text.startswith(word, self.at):
                self._take(word)
                return value
        return self._number()

    def _members(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self._take("{")
        if self._next() == "}":
            self._take("}")
            return found
        while True:
            self._space()
            name = self._string()
            if name in found:
                raise Refused
            self._space()
            self._take(":")
            found[name] = self._value(depth + 1)
            if self._next() == "}":
                self._take("}")
                return found
            self._take(",")

    def _items(self, depth: int) -> list[Any]:
        found: list[Any] = []
        self._take("[")
        if self._next() == "]":
            self._take("]")
            return found
        while True:
            found.append(self._value(depth + 1))
            if self._next() == "]":
                self._take("]")
                return found
            self._take(",")

    def _string(self) -> str:
        self._take('"')
        found = b""  # in UTF-16, as the escapes are
        while not self.text.startswith('"', self.at):
            plain = re.compile(r'[^"\\\x00-\x1f]+').match(self.text, self.at)
            if plain:
                self.at = plain.end()
                found += plain[0].encode("utf-16-le")
            else:
                found += self._escape().to_bytes(2, "little")
        self._take('"')
        try:
            return found.decode("utf-16-le")
        except UnicodeDecodeError:
            raise Refused from None

    def _escape(self) -> int:
        self._take("\\")  # anything else is a control character, or the end of the text
        letter = self.text[self.at : self.at + 1]
        simple = dict(zip('"\\/bfnrt', '"\\/\b\f\n\r\t', strict=True))
        if letter in simple:
            self.at += 1
            return ord(simple[letter])
        match = re.compile("u([0-9a-fA-F]{4})").match(self.text, self.at)
        if match is None:
            raise Refused
        self.at = match.end()
        return int(match[1], 16)

    def _number(self) -> int | float:
        pattern = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
        match = pattern.match(self.text, self.at)
        if match is None or len(match[0]) > 400:
            raise Refused
        self.at = match.end()
        return int(match[0]) if match[2] is None and match[3] is None else float(match[0])
