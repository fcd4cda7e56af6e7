from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import strict_json
from schemas.errors import SchemaError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8") | st.sampled_from('[]{}"\\')),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=40,
)  # fmt: skip


def loads(value: bytes | None, **limits: int) -> Any:
    return strict_json.loads(value, **{"limit": 100_000} | limits)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(JSON, st.booleans(), st.integers(1, 6))
def test_json_is_read_up_to_its_depth(value: Any, ascii_only: bool, depth: int) -> None:
    """What the standard parser reads is read alike, unless it is nested too deep."""
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    if depth_of(value) <= depth:
        assert loads(text, depth=depth) == value
    else:
        with pytest.raises(SchemaError, match="deeper"):
            loads(text, depth=depth)


@given(st.binary(max_size=400) | st.text('[]{}":,\\ud8cdefn01e.-').map(str.encode))
def test_bytes_are_read_or_refused(value: bytes) -> None:
    """No bytes raise anything but a SchemaError."""
    with contextlib.suppress(SchemaError):
        assert loads(value) == json.loads(value)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (None, "no value"), (b"", "not JSON"), (b"\xef\xbb\xbf{}", "byte order mark"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8"), (b'"\xed\xa0\x80"', "not UTF-8"),
        (b"{} {}", "not JSON"), (b"[1,]", "not JSON"), (b"[01]", "not JSON"), (b"'a'", "not JSON"),
        (b'"\t"', "not JSON"), (b"NaN", "finite"), (b"[Infinity]", "finite"),
        (b'{"a":-Infinity}', "finite"), (b'"\\ud800"', "pair"), (b'"\\udc00"', "pair"),
        (b'"\\ud83d\\ude00\\ude00"', "pair"), (b'"\\ud83d\\\\\\ude00"', "pair"),
        (b"[" * 10_000, "deeper"), (b'{"a":' * 10_000, "deeper"), (b"[" * 33 + b"]" * 33, "deeper"),
        (b"1" * 401, "number"), (b"[1." + b"0" * 400 + b"]", "number"), (b'{"a":1,"a":1}', "twice"),
        (b'[{"b":{"a":1,"\\u0061":2}}]', "twice"), (b" " * 100_001, "allowed"),
    ],
)  # fmt: skip
def test_what_is_no_strict_json_is_refused(value: bytes | None, match: str) -> None:
    """Each fault is refused in words that say what it is."""
    with pytest.raises(SchemaError, match=match):
        loads(value)


@pytest.mark.parametrize(
    "value",
    [
        b"1" * 400, b'"' + b"1" * 5000 + b'"', b'"' + b"[" * 5000 + b'"',
        b'"\\"' + b"[" * 5000 + b'\\\\"', b'"\\ud83d\\ude00"', b'"\\\\ud800"',
        b"[" * 32 + b"]" * 32, b"[" + b"[]," * 5000 + b"[]]",
    ],
)  # fmt: skip
def test_strings_may_look_like_faults(value: bytes) -> None:
    """Brackets, digits and escapes inside strings count for nothing."""
    assert loads(value) == json.loads(value)


@pytest.mark.parametrize(("value", "limits"), [(b"[[]]", {"depth": 1}), (b"[[]]", {"limit": 3})])
def test_passing_a_limit_has_its_own_class(value: bytes, limits: dict[str, int]) -> None:
    """Senders can tell a limit from a fault."""
    with pytest.raises(SchemaError) as caught:
        loads(value, **limits)
    assert caught.value.error_class == "TooLarge"


def test_a_key_that_is_there_twice_is_named() -> None:
    """The field is the key, cut to a length that fits a header."""
    with pytest.raises(SchemaError) as caught:
        loads(json.dumps({"k" * 500: 1}).encode()[:-1] + b',"' + b"k" * 500 + b'":2}')
    assert caught.value.field == "k" * strict_json.SHOWN
