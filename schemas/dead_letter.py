"""Dead letters: records that cannot pass, unchanged, with the reason in headers.

A dead letter is no CloudEvent, though it carries the ``ce_`` headers of the record that it was.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from uuid import UUID

from schemas.errors import SchemaError
from schemas.headers import Headers, Written

ERROR_CLASSES = ("SchemaError", "UnknownModel", "TooLarge", "ModelFailed", "Refused")
"""Published classes: breaks the contract, names no configured model, is over a limit, makes the
model or a detector fail, is not signed or no longer valid."""
KEPT = 64 * 1024
"""Bytes of a value that does not fit which are kept."""
MAX_ERROR = 1024
MAX_FIELD = 256

_OWN = "nnsec-"
_RENAMED = "original-"
_TAKEN = re.compile(f"(?:{_RENAMED})*{_OWN}", re.ASCII | re.IGNORECASE)
"""How a header begins that gets a prefix: our own name, also where it has prefixes already, so that
one is taken off again and no more."""
_RECORD = 128
"""Bytes that a batch of one record adds at most."""
_EACH = 12
"""Bytes that a header adds at most beside name and value."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter as it was read.

    Parameters
    ----------
    value:
        The original value, or its first bytes if ``truncated``.
    headers:
        The original headers under their own names.
    timestamp:
        Of the original record, in milliseconds.
    truncated:
        Bytes of the whole original value, if it was cut.
    sha256:
        Of the whole original value, in hex, if it was cut.
    headers_dropped:
        How many original headers are missing.
    """

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    error_class: str
    error: str
    field: str
    attempts: int
    log: UUID
    topic: str
    partition: int
    offset: int
    timestamp: int
    truncated: int | None = None
    sha256: str | None = None
    headers_dropped: int = 0


def dead_letter(
    key: bytes | None, value: bytes | None, headers: Headers, *, log: UUID, topic: str,
    partition: int, offset: int, timestamp: int, error: Exception, attempts: int, limit: int,
) -> tuple[bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]:  # fmt: skip
    """Write the dead letter of a record: the original headers come first, in their order.

    Parameters
    ----------
    topic, partition, offset, log:
        Where the record lies.
    timestamp:
        Of the record, in milliseconds.
    error:
        A `SchemaError` gives class and field; any other error is `ModelFailed`.
    limit:
        Most bytes that the dead-letter topic takes as one batch.

    Returns
    -------
    tuple
        Key, value and headers. A record that does not fit keeps the first 64 KiB of its value;
        if that does not fit either, it loses its headers, and then more of its value.
    """
    named = error if isinstance(error, SchemaError) else None
    own = _headers(
        error_class=named.error_class if named else "ModelFailed",
        error=cut(str(error) if named else f"{type(error).__name__}: {error}", MAX_ERROR),
        field=cut(named.field if named else "value", MAX_FIELD),
        attempts=attempts, topic=topic, partition=partition, offset=offset, log=log,
        timestamp=timestamp,
    )  # fmt: skip
    original = tuple((_renamed(name), content) for name, content in headers)
    if value is None or size(key, value, (*original, *own)) <= limit:
        return key, value, (*original, *own)
    own += _headers(truncated=len(value), sha256=hashlib.sha256(value).hexdigest())
    kept = value[:KEPT]
    if size(key, kept, (*original, *own)) > limit:
        own += _headers(headers_dropped=len(original))
        original = ()
        kept = kept[: max(0, limit - size(key, b"", own))]
    return key, kept, (*original, *own)


def size(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """Upper bound of the bytes of a batch that holds this one record alone."""
    names = sum(len(name.encode()) + len(content or b"") + _EACH for name, content in headers)
    return _RECORD + len(key or b"") + len(value or b"") + names


def cut(text: str, limit: int) -> str:
    """The text, cut to so many bytes of UTF-8 between two characters."""
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def decode_dead_letter(key: bytes | None, value: bytes | None, headers: Headers) -> DeadLetter:
    """Read a dead letter.

    Raises
    ------
    SchemaError
        Naming the header that is missing or wrong.
    """
    own = {name: content for name, content in headers if name.startswith(_OWN)}

    def text(name: str) -> str:
        content = own.get(_OWN + name)
        if content is None:
            raise SchemaError("no dead letter without this header", field=_OWN + name)
        return content.decode("utf-8", "replace")

    def number(name: str) -> int:
        try:
            return int(text(name))
        except ValueError as error:
            raise SchemaError("no decimal number", field=_OWN + name) from error

    try:
        log = UUID(text("log"))
    except ValueError as error:
        raise SchemaError("no UUID", field=_OWN + "log") from error
    cut_down = _OWN + "truncated" in own
    return DeadLetter(
        key, value, tuple((_restored(n), c) for n, c in headers if not n.startswith(_OWN)),
        error_class=text("error-class"), error=text("error"), field=text("field"),
        attempts=number("attempts"), log=log, topic=text("topic"),
        partition=number("partition"), offset=number("offset"), timestamp=number("timestamp"),
        truncated=number("truncated") if cut_down else None,
        sha256=text("sha256") if cut_down else None,
        headers_dropped=number("headers-dropped") if _OWN + "headers-dropped" in own else 0,
    )  # fmt: skip


def _headers(**values: object) -> Written:
    return tuple((_OWN + n.replace("_", "-"), str(v).encode()) for n, v in values.items())


def _renamed(name: str) -> str:
    return _RENAMED + name if _TAKEN.match(name) else name


def _restored(name: str) -> str:
    """What `_renamed` was given: one prefix less, where it put one."""
    rest = name.removeprefix(_RENAMED)
    return rest if _TAKEN.match(rest) else name
