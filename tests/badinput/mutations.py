"""Records gone wrong, drawn from a seed: with one fault whose field is known, two, or any."""

from __future__ import annotations

import base64
import copy
import json
import random
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Headers = list[tuple[str, bytes | None]]
DATA = "inputs[0].data"
SHAPE = "inputs[0].shape"
TYPE = "inputs[0].datatype"
SIZE = "inputs[0].parameters.binary_data_size"
LENGTH = "inference-header-content-length"
WAYS = ("json", "binary", "structured", "base64")


@dataclass
class Draft:
    """A request before it is written; ``raw`` texts in quotes are written without them."""

    way: str
    body: dict[str, Any]
    tensor: dict[str, Any]
    values: list[Any]
    headers: Headers = field(default_factory=list)
    key: bytes | None = None
    default: str = ""
    identity: str = ""
    envelope: dict[str, Any] = field(default_factory=dict)
    tail: bytes = b""
    """Follows the binary part."""


@dataclass(frozen=True)
class Case:
    """A record to decode; ``fields`` are those to blame, None where nothing is known of it."""

    name: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    default: str
    identity: str
    fields: frozenset[str] | None


def raw(text: str) -> str:
    """A text that stands in the JSON as it is."""
    return f"@raw:{text}@"


def draft(rng: random.Random, way: str) -> Draft:
    """A good request for one of the models, each time another."""
    digits = rng.random() < 0.6
    rows = rng.choice((1, 1, 1, 2, 3))
    shape = [rows, 1, 2, 2] if digits else [rows, 3]
    count = rows * (4 if digits else 3)
    values: list[Any] = [
        rng.randrange(17) if digits else round(rng.uniform(-1, 1), rng.choice((0, 2, 17)))
        for _ in range(count)
    ]
    tensor = {
        "name": rng.choice(("input", "x", "ü")), "datatype": "UINT8" if digits else "FP32",
        "shape": shape,
    }  # fmt: skip
    body: dict[str, Any] = {"model_name": "digits" if digits else "floats"}
    if rng.random() < 0.7:
        body["id"] = rng.choice(("r-1", "ä\u2028", "😀", "x" * 256))
    if rng.random() < 0.7:
        body["parameters"] = {"client": rng.choice(("app", "a b", "ÿ")), "more": [1.5, None, {}]}
    if rng.random() < 0.2:
        body["model_version"] = rng.choice((3, "3", None))
    found = Draft(way, body, tensor, values)
    if rng.random() < 0.3:
        found.key = rng.choice((b"k", b"", b"\xff\x00", "ключ".encode()))
    if rng.random() < 0.2:
        found.default = "digits"
    if rng.random() < 0.2:
        found.identity = rng.choice(("key", "X-User"))
        found.headers.append(("x-user", b"known"))
    if rng.random() < 0.3:
        found.headers.append(("traceparent", b"00-a-b-01"))
        found.headers.append(("Unknown", rng.choice((None, b"\xff", b"1"))))
    if rng.random() < 0.2:
        found.headers.append(("CE_Time", rng.choice((b"2026-02-03T04:05:60.5+01:00",
                                                      b"2024-02-29t00:00:00z"))))  # fmt: skip
    found.envelope = {"specversion": "1.0", "id": "e", "source": "/s", "type": "t.request"}
    return found


def write(found: Draft) -> tuple[bytes, Headers]:
    """The value and headers of a draft."""
    tensor, headers = dict(found.tensor), list(found.headers)
    inline = found.way in ("json", "structured")
    tail = b""
    if inline:
        tensor.setdefault("data", found.values)
    else:
        code = "f" if tensor["datatype"] == "FP32" else "B"
        known = [v if isinstance(v, int | float) else 0 for v in found.values]
        tail = struct.pack(f"<{len(known)}{code}", *known) + found.tail
        tensor.setdefault("parameters", {}).setdefault("binary_data_size", len(tail))
    body = {**found.body}
    body.setdefault("inputs", [tensor])
    text = _text({k: v for k, v in body.items() if v is not ...})
    if found.way == "json":
        _default(headers, "content-type", b"application/json")
        return text + found.tail, headers
    if found.way == "binary":
        _default(headers, "Content-Type", b"application/octet-stream")
        _default(headers, LENGTH, str(len(text)).encode())
        return text + tail, headers
    _default(headers, "content-type", b"application/cloudevents+json; charset=UTF-8")
    envelope = dict(found.envelope)
    if found.way == "structured":
        envelope.setdefault("data", body)
    else:
        envelope.setdefault("datacontenttype", "application/octet-stream")
        envelope.setdefault("inferenceheadercontentlength", len(text))
        envelope.setdefault("data_base64", base64.b64encode(text + tail).decode())
    return _text({k: v for k, v in envelope.items() if v is not ...}), headers


def _default(headers: Headers, name: str, content: bytes) -> None:
    if not any(known.lower() == name.lower() for known, _ in headers):
        headers.append((name, content))


def _text(value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return re.sub(
        r'"@raw:(.*?)@"', lambda m: json.loads(f'"{m[1]}"'), text, flags=re.DOTALL
    ).encode("utf-8", "surrogatepass")


Change = Callable[[random.Random, Draft], object]
JSON = ("json", "structured")
RAW = ("binary", "base64")
PLAIN = ("json", "binary")
EVENT = ("structured", "base64")
BODY = {"value", "data_base64"}
"""To blame for JSON that is none: in an envelope it may lie within base64."""


def _one(rng: random.Random, choices: Sequence[Any]) -> Any:
    return copy.deepcopy(rng.choice(choices))


def _value(*choices: Any) -> Change:
    return lambda rng, d: d.values.__setitem__(len(d.values) // 2, _one(rng, choices))


def _tensor(key: str, *choices: Any) -> Change:
    return lambda rng, d: d.tensor.__setitem__(key, _one(rng, choices))


def _shape(*choices: Any) -> Change:
    return lambda rng, d: d.tensor["shape"].__setitem__(
        rng.randrange(len(d.tensor["shape"])), rng.choice(choices)
    )


def _body(key: str, *choices: Any) -> Change:
    return lambda rng, d: d.body.__setitem__(key, _one(rng, choices))


def _attribute(key: str, *choices: Any) -> Change:
    return lambda rng, d: d.envelope.__setitem__(key, rng.choice(choices))


def _header(name: str, *choices: bytes | None) -> Change:
    return lambda rng, d: d.headers.append((name, rng.choice(choices)))


def _parameter(*choices: str) -> Change:
    return lambda rng, d: d.body.update(parameters={"x": raw(rng.choice(choices))})


def _floats(*words: bytes) -> Change:
    """Three floats, with the bytes of a word in the place of the second."""

    def change(rng: random.Random, d: Draft) -> None:
        d.body["model_name"] = "floats"
        d.tensor |= {"datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
        d.values, d.tail = [], bytes(4) + rng.choice(words) + bytes(4)

    return change


def _left_over(rng: random.Random, d: Draft) -> None:
    d.tensor["parameters"] = {"binary_data_size": _size(d)}
    d.tail = bytes(rng.randrange(1, 9))


def _retyped(rng: random.Random, d: Draft) -> None:
    """As INT64, in which no model takes anything; binary data have another size then."""
    d.tensor["parameters"] = {"binary_data_size": _size(d)}
    d.tensor["datatype"] = "INT64"


def _floats_for_bytes(rng: random.Random, d: Draft) -> None:
    d.tensor["datatype"] = "UINT8"
    _value(raw("1.0"), raw("1e0"), raw("-0.0"))(rng, d)


def _nested_otherwise(rng: random.Random, d: Draft) -> None:
    v = d.values
    d.tensor["data"] = rng.choice(([v, v], [[x, x] for x in v], [[]], [[[[[v]]]]], [[v], 1]))


def _two(rng: random.Random, d: Draft) -> None:
    d.body["inputs"] = [{**d.tensor, "data": d.values, "name": name} for name in ("x", "y")]


def _twice(rng: random.Random, d: Draft) -> None:
    d.body["inputs"] = [{**d.tensor, "data": d.values}] * 2


def _no_model(rng: random.Random, d: Draft) -> None:
    del d.body["model_name"]
    d.default = ""


def _version(rng: random.Random, d: Draft) -> None:
    d.headers += [("ce_type", b"t"), ("ce_id", b"1"), ("ce_source", b"s")]
    d.headers.append(("ce_specversion", rng.choice((b"2.0", b"0.3", b"", b"1"))))


FAULTS: list[tuple[str, tuple[str, ...], Change, set[str]]] = [
    # values of the tensor
    ("NaN", JSON, _value(raw("NaN"), raw("Infinity"), raw("-Infinity")), {"value"}),
    ("larger than any number", JSON, _value(raw("1e999"), raw("-1e309"), 10**399), {DATA}),
    ("no number", JSON, _value(True, None, "1", [], {}), {DATA}),
    ("a float among bytes", JSON, _floats_for_bytes, {DATA, SHAPE, TYPE}),
    ("out of range", JSON, _value(17, -2, 255, 256, 10**30, -(2**63), 2**64), {DATA}),
    ("out of range, binary", RAW, _value(17, 99, 255), {DATA}),
    ("NaN, binary", RAW, _floats(b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff"), {DATA}),
    ("the other byte order", RAW, _floats(b"\x3e\x99\x99\xc1"), {DATA}),
    ("a value too few", JSON, lambda rng, d: d.values.pop(), {DATA}),
    ("a value too many", JSON, lambda rng, d: d.values.append(0), {DATA}),
    ("no list", JSON, _tensor("data", None, "", 0, {}), {DATA}),
    ("nested otherwise", JSON, _nested_otherwise, {DATA}),
    # shape and datatype
    ("another shape", WAYS, lambda rng, d: d.tensor["shape"].append(rng.choice((1, 2, 0, -1))),
     {SHAPE, DATA, SIZE}),
    ("no dimension", WAYS, _shape(0, -1, True, 1.5, "1", None, [], -(2**63), raw("1.0")), {SHAPE}),
    ("a huge dimension", WAYS, _shape(2**31, 2**62, 2**64, 10**399), {SHAPE, DATA, SIZE}),
    ("huge dimensions", WAYS, _tensor("shape", *([1] + [2**40] * n for n in range(3, 12))),
     {SHAPE, DATA, SIZE}),
    ("too many rows", WAYS, lambda rng, d: d.tensor["shape"].__setitem__(0, 65_537), {SHAPE}),
    ("no shape", WAYS, _tensor("shape", [], None, {}, "1", 1), {SHAPE}),
    ("another datatype", WAYS, _retyped, {TYPE, DATA, SIZE}),
    ("an unknown datatype", JSON, _tensor("datatype", "FP64", "uint8", "BYTES", "", None, 1, []),
     {TYPE}),
    # the tensor
    ("no tensor", WAYS, _body("inputs", [], None, {}, "x", 0), {"inputs"}),
    ("what is no tensor", WAYS, _body("inputs", [1], [None], [[]]), {"inputs[0]"}),
    ("two tensors", JSON, _two, {"inputs[1]"}),
    ("the same tensor twice", JSON, _twice, {"inputs[1].name"}),
    ("a tensor without a name", WAYS, _tensor("name", "", None, 1), {"inputs[0].name"}),
    ("an unknown field in a tensor", WAYS, _tensor("byte_order", "big"), {"inputs[0]"}),
    ("no tensor parameters", JSON, _tensor("parameters", [1], "", None), {"inputs[0].parameters"}),
    # sizes
    ("another size", RAW, _tensor("parameters", *({"binary_data_size": n} for n in (
        0, 1, -4, 2**40, None, "4", True, 4.0))), {SIZE}),
    ("bytes left over", RAW, _left_over, {"value"}),
    ("data beside the binary part", RAW, _tensor("data", [1], None), {DATA}),
    ("a wrong length", ("binary",), _header(
        LENGTH, b"", b"-1", b"+5", b"007", b"1e3", b"5.0", b"99999", b"9" * 30, "٣".encode()),
     {LENGTH}),
    ("the length of other JSON", ("binary",), _header(LENGTH, b"0", b"1", b"17", b"40"), {"value"}),
    ("a length of nothing", JSON, _header(LENGTH, b"5", b"0", b""), {LENGTH}),
    # the document
    ("a key twice", WAYS, _body("id", raw('1,"id":2')), {"id"}),
    ("too deep", WAYS, _parameter("[" * 40 + "]" * 40, "[" * 10_000 + "]" * 10_000), BODY),
    ("too deep, in objects", WAYS, _parameter('{"a":' * 10_000 + "1" + "}" * 10_000), BODY),
    ("a number without end", WAYS, _parameter(*(
        s + "1" * n for s in ("", "-", "0.") for n in (401, 5000))), BODY),
    ("half a character", WAYS, _parameter(
        r'"\ud800"', r'"\udc00\ud800"', r'"\uD83Dx"', r'"\ud83d\ud83d\ude00"', '"\ud83d"'), BODY),
    ("more behind the document", ("json",), lambda rng, d: setattr(d, "tail", rng.choice((
        b"x", b"{}", b"\0", b",", b"\xef\xbb\xbf"))), {"value"}),
    # the fields beside
    ("an unknown field", WAYS, _body("inputz", 1), {"inputz"}),
    ("no id", WAYS, _body("id", "", None, 1, [], "x" * 257, "a\x7f", "\0"), {"id"}),
    ("no client", WAYS, _body("parameters", *({"client": c} for c in (
        "", None, 1, [], "x" * 257, "a\n"))), {"parameters.client"}),
    ("no parameters", WAYS, _body("parameters", 1, [], "", None), {"parameters"}),
    ("an unknown model", WAYS, _body("model_name", "nobody", "digits ", "x" * 5000),
     {"model_name"}),
    ("no name of a model", WAYS, _body("model_name", "", 1, [], {}), {"model_name"}),
    ("no model", WAYS, _no_model, {"model_name"}),
    # headers
    ("a header twice", WAYS, lambda rng, d: d.headers.extend([("ce_id", b"1"), ("CE_ID", b"1")]),
     {"ce_id"}),
    ("a null header", WAYS, _header("ce_source", None), {"ce_source"}),
    ("a header in other letters", WAYS, _header("Nnsec-Model", b"\xff", b"a\xed\xa0\x80"),
     {"nnsec-model"}),
    ("too many headers", WAYS, lambda rng, d: d.headers.extend([("x", b"")] * 129), {"headers"}),
    ("another content type", PLAIN, _header("content-TYPE", b"a/b", b"application/json;v=1", b""),
     {"content-type"}),
    ("another major version", PLAIN, _version, {"ce_specversion"}),
    ("half a CloudEvent", PLAIN, _header("ce_specversion", b"1.0"), {"ce_type"}),
    ("a time that is none", PLAIN, lambda rng, d: d.headers.insert(0, ("ce_time", rng.choice((
        b"", b"2026-02-30T00:00:00Z", b"2026-02-03 00:00:00Z", b"1700000000", b"2026-02-03"))))
     or d.headers.__setitem__(slice(1, None), [h for h in d.headers[1:] if h[0] != "CE_Time"]),
     {"ce_time"}),
    ("a response that asks", PLAIN, _header("ce_type", b"org.x.inference.response"), {"ce_type"}),
    # the envelope
    ("another version of the envelope", EVENT, _attribute("specversion", "2.0", "0.3", "1"),
     {"specversion"}),
    ("an attribute missing", EVENT, _attribute("source", None, ...), {"source"}),
    ("an attribute of another kind", EVENT, _attribute("subject", 1, [], "", "a\n"), {"subject"}),
    ("a number over 32 bits", EVENT, _attribute("sequence", 2**31, -(2**40)), {"sequence"}),
    ("no base64", ("base64",), _attribute("data_base64", "!", "a", "=", 1, None, []),
     {"data_base64"}),
    ("both kinds of data", ("structured",), _attribute("data_base64", "", None), {"data"}),
    ("an attribute in capitals", EVENT, _attribute("Source", 1), {"Source"}),
]  # fmt: skip
"""Name, ways to write it, the change, and the fields of which the first fault may be told."""


def _size(found: Draft) -> int:
    return len(found.values) * (4 if found.tensor["datatype"] == "FP32" else 1)


def cases(seed: int, count: int) -> Iterator[Case]:
    """Good records, records with one fault or several, and records with wild bytes."""
    rng = random.Random(seed)
    for number in range(count):
        way = WAYS[number % 4]
        kind = rng.random()
        found = draft(rng, way)
        if kind < 0.13:
            yield _case("good", found, None)
        elif kind < 0.17:
            yield _case("a response", _response(found), None)
        elif kind < 0.6:
            name, _, change, fields = rng.choice([f for f in FAULTS if way in f[1]])
            change(rng, found)
            yield _case(name, found, frozenset(fields))
        elif kind < 0.72:
            for _, _, change, _ in rng.sample([f for f in FAULTS if way in f[1]], 2):
                _try(change, rng, found)
            yield _wild(rng, _case("two faults", found, None), rng.randrange(2))
        else:
            yield _wild(rng, _case("wild bytes", found, None), rng.randrange(1, 5))


def _response(found: Draft) -> Draft:
    found.body["outputs"] = []
    if found.way in EVENT:
        found.envelope["type"] = "org.x.inference.response"
    else:
        found.headers.append(("ce_type", b"org.x.inference.response"))
    if found.way == "json":
        found.body["inputs"] = ...
    return found


def _try(change: Change, rng: random.Random, found: Draft) -> None:
    """Apply a change where another may have taken away what it changes."""
    try:
        change(rng, found)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        found.body["@both"] = 1


def _case(name: str, found: Draft, fields: frozenset[str] | None) -> Case:
    try:
        value, headers = write(found)
    except (struct.error, OverflowError, TypeError, KeyError, ValueError):
        value, headers = b"", []
        fields = None
    return Case(name, found.key, value, headers, found.default, found.identity, fields)


TOKENS = (
    b"NaN", b"-", b"1e999", b"\\ud800", b"null", b"{", b"[", b"]", b'"', b"\\", b",", b"\xff",
    b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\0", b"true", b"0", b"9" * 500, b"[" * 50, b":", b"\\u0000",
    b"application/json", b"1.0", b";", b"charset=utf-8", b"1e-400", b"-0",
)  # fmt: skip


def _wild(rng: random.Random, case: Case, times: int) -> Case:
    value: bytes | None = case.value
    headers = list(case.headers)
    for _ in range(times):
        where = rng.random()
        if where < 0.15 and headers:
            index = rng.randrange(len(headers))
            name, content = headers[index]
            headers[index] = (name, rng.choice((None, _torn(rng, content or b""))))
        elif where < 0.2:
            headers.append(rng.choice(headers or [("ce_time", b"")]))
        elif where < 0.22:
            value = None
        else:
            value = _torn(rng, value or b"")
    return Case(case.name, case.key, value, headers, case.default, case.identity, None)


def _torn(rng: random.Random, value: bytes) -> bytes:
    """One edit anywhere."""
    at, other = rng.randrange(len(value) + 1), rng.randrange(len(value) + 1)
    low, high = min(at, other), max(at, other)
    kind = rng.randrange(7)
    if kind == 0:
        return value[:at] + bytes([rng.randrange(256)]) + value[at + 1 :]
    if kind == 1 and at < len(value):
        return value[:at] + bytes([value[at] ^ 1 << rng.randrange(8)]) + value[at + 1 :]
    if kind == 2:
        return value[:at] + value[at + rng.randrange(1, 4) :]
    if kind == 3:
        return value[:at]
    if kind == 4:
        return value[:high] + value[low:high] + value[high:]
    return value[:at] + rng.choice(TOKENS) + value[at:]
