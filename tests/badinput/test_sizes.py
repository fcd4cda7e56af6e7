"""Large and slow records: refused before they cost much, whatever is in them."""

from __future__ import annotations

import base64
import contextlib
import json
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from nnsec.settings import Limits
from schemas.errors import SchemaError
from schemas.inference import Expected, Request, decode_request, encode_request

MB = 2**20
KB = 2**10
WIDE = {"wide": Expected("wide", (784,), "uint8", 0, 255)}
JSON = (("content-type", b"application/json"),)
EVENT = (("content-type", b"application/cloudevents+json"),)


def decode(value: bytes, headers: tuple[tuple[str, bytes], ...] = JSON, size: int = MB) -> Request:
    found = decode_request(
        b"k", value, headers, partition=0, offset=0, models=WIDE, limits=Limits(bytes=size),
        default_model="wide",
    )  # fmt: skip
    assert isinstance(found, Request)
    return found


def of(unit: bytes, size: int) -> bytes:
    return (unit * (size // len(unit) + 1))[:size]


def tensor(data: str) -> bytes:
    return b'{"inputs":[{"name":"x","datatype":"UINT8","shape":[1,784],"data":%s}]}' % data.encode()


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "brackets": lambda n: of(b"[", n),
    "objects": lambda n: of(b'{"a":', n),
    "brackets and quotes": lambda n: of(b'["', n),
    "pairs of brackets": lambda n: b"[" + of(b"[],", n),
    "backslashes": lambda n: b'["' + of(b"\\", n),
    "escaped quotes": lambda n: b'["' + of(b'\\"', n) + b'"]',
    "digits": lambda n: b"[" + of(b"9", n) + b"]",
    "numbers": lambda n: b"[" + of(b"1234567,", n) + b"1]",
    "exponents": lambda n: b"[" + of(b"1e308,", n) + b"1e999]",
    "surrogates": lambda n: b'["' + of(b"\\ud800", n - n % 6) + b'"]',
    "pairs of surrogates": lambda n: b'["' + of(b"\\ud83d\\ude00", n - n % 12) + b'x\\ud800"]',
    "keys": lambda n: b"{" + b",".join(b'"%d":0' % i for i in range(n // 9)) + b',"5":1}',
    "spaces": lambda n: of(b" ", n),
    "zeros": lambda n: bytes(n),
    "no text": lambda n: of(b"\xff", n),
    "tensors": lambda n: b'{"inputs":[' + of(b"{},", n) + b"{}]}",
    "a large shape": lambda n: (
        b'{"inputs":[{"name":"x","datatype":"UINT8","shape":[%s1]}]}' % of(b"1,", n - n % 2)
    ),
    "values": lambda n: tensor("[" + "1," * (n // 2) + "1]"),
    "values of another kind": lambda n: tensor("[" + "1," * (n // 2) + "true]"),
    "nested values": lambda n: tensor("[" + "[1]," * (n // 4) + "[1]]"),
    "texts": lambda n: b'{"model_name":"' + of(b"x", n) + b'"}',
}
"""What costs naive readers much; each is refused."""


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_at_any_size(name: str) -> None:
    """With a message and a field that do not grow with it."""
    for size in (60, 4 * KB, 64 * KB):
        for value, headers in _ways(HOSTILE[name](size)):
            with pytest.raises(SchemaError) as caught:
                decode(value, headers)
            assert 0 < len(caught.value.field) < 200
            assert len(str(caught.value)) < 400


def _ways(value: bytes) -> list[tuple[bytes, tuple[tuple[str, bytes], ...]]]:
    """As JSON, before a binary part, and in an envelope."""
    length = ("inference-header-content-length", str(len(value)).encode())
    envelope = {"specversion": "1.0", "id": "e", "source": "s", "type": "t"}
    inside = json.dumps(envelope | {"data_base64": base64.b64encode(value).decode()}).encode()
    binary = (("content-type", b"application/octet-stream"), length)
    return [(value, JSON), (value + bytes(784), binary), (inside, EVENT)]


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_over_the_limit_is_never_read(name: str) -> None:
    """A hundred megabytes cost nothing but their length; nothing as large is held beside them."""
    value = HOSTILE[name](2 * MB)
    tracemalloc.start()
    try:
        for _ in range(3):
            with pytest.raises(SchemaError) as caught:
                decode(value)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert caught.value.error_class == "TooLarge"


def test_a_hundred_megabytes() -> None:
    """Refused by default; read where the limits allow it, without a copy of the tensor."""
    x = np.zeros((99_000, 1_056), np.uint8)
    wide = {"wide": Expected("wide", (1_056,), "uint8", 0, 255)}
    value, headers = encode_request(model="wide", x=x)
    assert len(value) > 99 * MB
    with pytest.raises(SchemaError) as caught:
        decode(value, headers)
    assert caught.value.error_class == "TooLarge"
    with pytest.raises(SchemaError) as caught:
        decode(value, headers, 128 * MB)
    assert (caught.value.error_class, caught.value.field) == ("TooLarge", "inputs[0].shape")
    found = decode_request(
        b"k", value, headers, partition=0, offset=0, models=wide, default_model="",
        limits=Limits(bytes=128 * MB, rows=100_000),
    )  # fmt: skip
    assert isinstance(found, Request)
    assert found.x.shape == x.shape


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hundred_megabytes_of_hostile_text(name: str) -> None:
    """Even where the limits allow as much, it is refused and not crashed on."""
    value = HOSTILE[name](100 * MB)
    with pytest.raises(SchemaError):
        decode(value, size=128 * MB)


@pytest.mark.full
@pytest.mark.parametrize("name", HOSTILE)
def test_a_rejection_costs_no_more_than_a_parser(name: str) -> None:
    """Of 64 KB of any kind: a millisecond, or three times what Python's parser takes.

    The best of several, as other work on the machine only adds.
    """
    value = HOSTILE[name](64 * KB)
    parser = best(lambda: json.loads(value), (ValueError, RecursionError))
    assert best(lambda: decode(value), SchemaError) < max(1e-3, 3 * parser)


def best(work: Callable[[], object], error: type[Exception] | tuple[type[Exception], ...]) -> float:
    """The shortest of thirty times that something took, whether it raised or not (s)."""
    shortest = 60.0
    for _ in range(30):
        began = time.perf_counter()
        with contextlib.suppress(error):
            work()
        shortest = min(shortest, time.perf_counter() - began)
    return shortest
