"""JSON read as hostile text: UTF-8, no duplicate key, no NaN, bounded depth and size."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from schemas.errors import SchemaError

MAX_DEPTH = 32
MAX_NUMBER = 400  # characters; longer numbers make int() slow
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_LONG_NUMBER = re.compile(rb"[-+0-9.eE]{%d}" % (MAX_NUMBER + 1))


def _no_constant(name: str) -> NoReturn:
    raise SchemaError(f"{name} is not JSON; numbers must be finite")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise SchemaError(f"the key {key!r} is there twice", field=key[:100])
            seen.add(key)
    return result


def _depth(value: bytes, limit: int) -> None:
    """Refuse nesting past the limit before a parser recurses into it."""
    if value.count(b"[") + value.count(b"{") <= limit:
        return
    depth = 0
    for match in _TOKENS.finditer(value):
        token = match.group()
        if token in b"[{":
            depth += 1
            if depth > limit:
                raise SchemaError(f"nested deeper than {limit} levels")
        elif token in b"]}":
            depth -= 1


_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant)


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
    _depth(value, depth)
    if _LONG_NUMBER.search(value):
        raise SchemaError(f"a number of more than {MAX_NUMBER} characters")
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SchemaError(f"not UTF-8 at byte {error.start}") from error
    try:
        result = _DECODER.decode(text)
    except SchemaError:
        raise
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"not JSON: {error}") from error
    if "\\u" in text:
        _no_surrogates(result)
    return result


def _no_surrogates(value: Any) -> None:
    """Refuse surrogate escapes that do not pair: they cannot be written as UTF-8."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if not item.isascii() and any("\ud800" <= c <= "\udfff" for c in item):
                raise SchemaError("a surrogate escape that does not pair")
        elif isinstance(item, dict):
            pending.extend(item)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def check(value: bytes | None, *, limit: int, depth: int = MAX_DEPTH) -> None:
    """Refuse what `loads` refuses, for readers that parse by other means afterwards."""
    loads(value, limit=limit, depth=depth)
