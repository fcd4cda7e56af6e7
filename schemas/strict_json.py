"""JSON read as hostile text: UTF-8, no duplicate key, no NaN, bounded depth and size.

Parsed by jiter, which pydantic has inside too.

Every step costs time in proportion to the document, whatever is in it.
"""

from __future__ import annotations

import re
from typing import Any

import jiter
import numpy as np
from numpy.typing import NDArray

from schemas.errors import SchemaError

MAX_DEPTH = 32
MAX_NUMBER = 400
"""Characters of a number; longer ones are no figures, and slow to read."""
SHOWN = 80
"""Characters of hostile text that an error repeats."""

_BOM = b"\xef\xbb\xbf"
_NUMBER_BYTES = bytes(0x30 if chr(c) in "+-.0123456789eE" else 0x20 for c in range(256))
_LONG_NUMBER = b"0" * (MAX_NUMBER + 1)
_OPEN, _CLOSE, _QUOTE, _SPACE = b"[{", b"]}", ord('"'), np.uint8(ord(" "))
_TWICE = re.compile(r'Detected duplicate key "(.*)" at line \d+ column \d+', re.DOTALL)


def shown(text: str) -> str:
    """What an error's field repeats of a key that a stranger chose."""
    return text[:SHOWN] or '""'


def loads(value: bytes | None, *, limit: int, depth: int = MAX_DEPTH) -> Any:
    """Parse strictly.

    Parameters
    ----------
    value:
        The bytes of the document.
    limit:
        Most bytes allowed.
    depth:
        Most levels of nesting allowed.

    Raises
    ------
    SchemaError
        For anything that is not one JSON document within the limits.
    """
    if value is None:
        raise SchemaError("the record has no value")
    if len(value) > limit:
        raise SchemaError(
            f"{len(value)} bytes; at most {limit} are allowed", error_class="TooLarge"
        )
    _check_bytes(value, depth)
    try:
        return jiter.from_json(
            value, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys"
        )
    except ValueError as error:
        raise _refused(value, str(error)) from error


def _refused(value: bytes, reason: str) -> SchemaError:
    """Name what a parser refused."""
    if twice := _TWICE.fullmatch(reason):
        key = twice[1]
        return SchemaError(f"the key {key[:SHOWN]!r} is there twice", field=shown(key))
    try:
        value.decode("utf-8")
    except UnicodeDecodeError as error:
        return SchemaError(f"not UTF-8 at byte {error.start}")
    hint = ""
    if "hex escape" in reason and (b"\\ud" in value or b"\\uD" in value):
        hint = "; surrogate escapes must pair"
    elif b"NaN" in value or b"Infinity" in value:
        hint = "; numbers must be finite"
    return SchemaError(f"not JSON: {reason[: 2 * SHOWN]}{hint}")


def check(value: bytes | None, *, limit: int, depth: int = MAX_DEPTH) -> None:
    """Refuse what `loads` refuses, for readers that parse by other means afterwards."""
    loads(value, limit=limit, depth=depth)


def _check_bytes(value: bytes, depth: int) -> None:
    """Refuse nesting and numbers past their limits before a parser meets them.

    The cheap first looks also count what stands inside strings, so they only call for the exact
    ones.
    """
    if value.startswith(_BOM):
        raise SchemaError("starts with a byte order mark; JSON is UTF-8 without one")
    if value.count(b"[") + value.count(b"{") > depth:
        text = _outside_strings(value)
        steps = ((text == _OPEN[0]) | (text == _OPEN[1])).astype(np.int8)
        steps -= (text == _CLOSE[0]) | (text == _CLOSE[1])
        if int(np.cumsum(steps, dtype=np.int32).max()) > depth:
            raise SchemaError(f"nested deeper than {depth} levels", error_class="TooLarge")
    if len(value) > MAX_NUMBER and _LONG_NUMBER in value.translate(_NUMBER_BYTES):  # noqa: SIM102
        if _LONG_NUMBER in _outside_strings(value).tobytes().translate(_NUMBER_BYTES):
            raise SchemaError(f"a number of more than {MAX_NUMBER} characters")


def _outside_strings(value: bytes) -> NDArray[np.uint8]:
    """The bytes with string literals blanked; exact for JSON, harmless for what is none."""
    plain = value
    if b"\\" in value:  # in JSON a backslash only stands in strings: blank the escaped quotes
        plain = value.replace(b"\\\\", b"  ").replace(b'\\"', b"  ")
    inside = np.logical_xor.accumulate(np.frombuffer(plain, np.uint8) == _QUOTE)
    return np.where(inside, _SPACE, np.frombuffer(value, np.uint8))
