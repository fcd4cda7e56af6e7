"""Who and what a record speaks of: ids, clients and sources, which strangers choose."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from schemas.errors import SchemaError

MAX_NAME = 256


def identity(value: Any, default: str | None, field: str = "id") -> str:
    """An id or name of 1 to 256 code points without control characters."""
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME:
        raise SchemaError(f"1 to {MAX_NAME} characters are needed", field=field)
    # What is printable holds neither; most ids are, and are spared the look at each character.
    if not value.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
        raise SchemaError("no control characters or surrogates are allowed", field=field)
    return value


def record_id(fields: Mapping[str, Any], known: Mapping[str, str], place: str) -> str:
    """The id of a record: the body's, which null is none of, else the header's, else its place."""
    if "id" in fields:
        return identity(fields["id"], None)
    return identity(known.get("ce_id"), place)


def choose_subject(
    key: bytes | None, fields: Mapping[str, Any], known: Mapping[str, str], identity_header: str,
    *, parameter: str, header: str = "",
) -> str:  # fmt: skip
    """Who sent a record: the identity header, else the body, else the header, else the key."""
    said = fields.get("parameters", {})
    named = (
        identity(said[parameter], None, f"parameters.{parameter}") if parameter in said else None
    )
    name = by_key(key)
    if identity_header == "key":
        return identity(name, "anonymous", "key")
    if identity_header:
        return identity(known.get(identity_header.lower()), "anonymous", identity_header)
    if named is not None:
        return named
    if header in known:
        return identity(known[header], None, header)
    return identity(name, "anonymous", "key")


def by_key(key: bytes | None) -> str | None:
    """A record key as a name: text, or hex where it is no UTF-8; an empty one is none."""
    if not key:
        return None
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError:
        return key.hex()
