from __future__ import annotations

import hashlib
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.dead_letter import KEPT, DeadLetter, dead_letter, decode_dead_letter, size
from schemas.errors import SchemaError

LOG = UUID("6f1f2f5e-7c39-4b43-8f5c-0d5e8c1b2a3d")
FAULT = SchemaError("no such field", field="inputs[0].dta")
Headers = tuple[tuple[str, bytes | None], ...]


def written(
    value: bytes | None, headers: Headers = (), key: bytes | None = b"k", **more: Any
) -> tuple[bytes | None, bytes | None, Headers]:
    options: dict[str, Any] = {"error": FAULT, "attempts": 1, "limit": 1024 * 1024} | more
    return dead_letter(
        key, value, headers, log=LOG, topic="inference.inputs", partition=3, offset=17,
        timestamp=1_700_000_000_123, **options,
    )  # fmt: skip


def read_back(value: bytes | None, headers: Headers = (), **more: Any) -> DeadLetter:
    return decode_dead_letter(*written(value, headers, **more))


names = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    ["nnsec-model", "NNSEC-Error", "ce_id", "content-type", "traceparent", "original-",
     "original-a", "original-nnsec-model", "original-original-nnsec-a", "Original-Nnsec-Error"]
)  # fmt: skip


@given(
    st.none() | st.binary(max_size=60),
    st.none() | st.binary(max_size=60),
    st.lists(st.tuples(names, st.none() | st.binary(max_size=20))).map(tuple),
)
def test_the_original_comes_back(key: bytes | None, value: bytes | None, headers: Headers) -> None:
    """Key, value and headers survive: null stays null, repetitions and order stay."""
    letter = read_back(value, headers, key=key)
    assert (letter.key, letter.value, letter.headers) == (key, value, headers)
    assert (letter.error_class, letter.error, letter.field) == (
        "SchemaError", "no such field", "inputs[0].dta",
    )  # fmt: skip
    assert (letter.log, letter.topic, letter.partition, letter.offset, letter.timestamp) == (
        LOG, "inference.inputs", 3, 17, 1_700_000_000_123,
    )  # fmt: skip
    assert letter.truncated is None


def test_header_names_are_the_published_ones() -> None:
    """The original's headers come first, its own nnsec- headers renamed, then ours in decimal."""
    _, _, headers = written(b"{}", (("b", b"1"), ("nnsec-model", b"m"), ("b", None)), attempts=3)
    assert headers == (
        ("b", b"1"), ("original-nnsec-model", b"m"), ("b", None),
        ("nnsec-error-class", b"SchemaError"), ("nnsec-error", b"no such field"),
        ("nnsec-field", b"inputs[0].dta"), ("nnsec-attempts", b"3"),
        ("nnsec-topic", b"inference.inputs"), ("nnsec-partition", b"3"), ("nnsec-offset", b"17"),
        ("nnsec-log", str(LOG).encode()), ("nnsec-timestamp", b"1700000000123"),
    )  # fmt: skip


def test_a_name_that_has_the_prefix_already_gets_one_more() -> None:
    """A record's own header comes back under its name; what was written before reads as ever."""
    own = (("original-nnsec-model", b"m"), ("original-nnsec", b"n"), ("Original-NNSEC-a", b"o"))
    key, value, headers = written(b"{}", own)
    assert headers[:3] == (
        ("original-original-nnsec-model", b"m"), ("original-nnsec", b"n"),
        ("original-Original-NNSEC-a", b"o"),
    )  # fmt: skip
    assert decode_dead_letter(key, value, headers).headers == own
    before = (("original-nnsec-model", b"m"), ("Original-NNSEC-a", b"o"), *headers[3:])
    assert decode_dead_letter(key, value, before).headers == (
        ("nnsec-model", b"m"), ("Original-NNSEC-a", b"o"),
    )  # fmt: skip


def test_a_value_that_does_not_fit_is_cut() -> None:
    """Its first 64 KiB stay, with size and digest of the whole."""
    value = bytes(range(256)) * 1000
    letter = read_back(value, (("a", b"b"),), limit=200_000)
    assert letter.value == value[:KEPT]
    assert letter.truncated == len(value)
    assert letter.sha256 == hashlib.sha256(value).hexdigest()
    assert (letter.headers, letter.headers_dropped) == ((("a", b"b"),), 0)


def test_headers_that_do_not_fit_are_dropped() -> None:
    """Where headers are the large part, they go and are counted."""
    letter = read_back(b"v" * 100, (("a", b"x" * 90_000), ("b", b"")), limit=80_000)
    assert (letter.value, letter.headers, letter.headers_dropped) == (b"v" * 100, (), 2)


@given(st.integers(0, 100_000), st.integers(0, 100_000), st.integers(2_000, 120_000))
def test_a_dead_letter_fits(value: int, header: int, limit: int) -> None:
    """Whatever was large, the dead letter stays within the limit."""
    assert size(*written(b"v" * value, (("h", b"x" * header),), limit=limit)) <= limit


def test_messages_are_cut_between_characters() -> None:
    """A message of 1 KiB at most, whole characters only, and never a lone surrogate."""
    letter = read_back(b"", error=SchemaError("é" * 2000 + "\ud800", field="\ud800"))
    assert letter.error == "é" * 512
    assert letter.field == "?"


def test_other_errors_are_failures_of_the_model() -> None:
    """What no schema foresaw has the class ModelFailed and blames the value."""
    letter = read_back(b"", error=RuntimeError("boom"), attempts=3)
    assert (letter.error_class, letter.error) == ("ModelFailed", "RuntimeError: boom")
    assert (letter.field, letter.attempts) == ("value", 3)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nnsec-log", None), ("nnsec-log", b"5"), ("nnsec-offset", b"x"), ("nnsec-offset", None),
        ("nnsec-topic", None), ("nnsec-error", None), ("nnsec-truncated", b"many"),
    ],
)  # fmt: skip
def test_what_is_no_dead_letter_names_the_header(name: str, content: bytes | None) -> None:
    """A header of ours that is missing or wrong is the field of the error."""
    key, value, headers = written(b"")
    changed = tuple(h for h in headers if h[0] != name)
    if content is not None:
        changed += ((name, content),)
    with pytest.raises(SchemaError) as caught:
        decode_dead_letter(key, value, changed)
    assert caught.value.field == name
