"""Record headers: names without case, no known one twice, values in UTF-8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from schemas.base import format_time
from schemas.errors import SchemaError

Headers = Sequence[tuple[str, bytes | None]]
Written = tuple[tuple[str, bytes], ...]

KNOWN = frozenset(
    {
        "content-type", "inference-header-content-length", "ce_specversion", "ce_type", "ce_id",
        "ce_source", "ce_time", "ce_inferenceservicename", "ce_nnsecclient", "nnsec-model",
        "traceparent", "tracestate",
    }
)  # fmt: skip
"""The headers that are read; all others are passed over."""
UNREADABLE = "nnsec-unreadable"
"""Of a record that stands for what could not be read: why. Nobody else may write it."""
TRACE = ("traceparent", "tracestate")
MAX_TRACE = 512
"""Bytes of a trace header that is copied; W3C's Trace Context asks for no more of who passes it on.
A longer one is left out: it would make the copy larger than its topic takes."""


def read(headers: Headers, *, limit: int, also: str = "") -> Mapping[str, str]:
    """Take out the known headers, by lower-case name.

    Parameters
    ----------
    limit:
        Most headers allowed.
    also:
        One more name to read.

    Raises
    ------
    SchemaError
        For too many, a known one twice, null, or not UTF-8; the field is its name. And for a record
        that stands for what could not be read.
    """
    if len(headers) > limit:
        raise SchemaError(
            f"{len(headers)} headers; at most {limit}", field="headers", error_class="TooLarge"
        )
    found: dict[str, str] = {}
    also = also.lower()
    for name, value in headers:
        lower = name.lower()
        if lower == UNREADABLE:
            raise SchemaError((value or b"").decode("utf-8", "replace")[:200], field=lower)
        if lower not in KNOWN and lower != also:
            continue
        if lower in found:
            raise SchemaError(f"the header {lower} is there twice", field=lower)
        if value is None:
            raise SchemaError(f"the header {lower} is null", field=lower)
        try:
            found[lower] = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SchemaError(f"the header {lower} is not UTF-8", field=lower) from error
    return found


def trace(known: Mapping[str, str]) -> Written:
    """The trace headers to copy to what a record leads to: those of at most `MAX_TRACE` bytes.

    Parameters
    ----------
    known:
        By lower-case name; in structured mode the attributes of the envelope are among them.
    """
    found = [(name, known[name].encode()) for name in TRACE if name in known]
    return tuple((name, content) for name, content in found if len(content) <= MAX_TRACE)


def event_headers(
    event: str, *, id: str, source_role: str, time: datetime,  # noqa: A002 - CloudEvents' own name
    content_type: str = "application/json", extra: Written = (),
) -> Written:  # fmt: skip
    """The CloudEvents headers of one of our own events.

    Parameters
    ----------
    event:
        Name in ``ce_type``: ``nnsec.<event>.v1``.
    source_role:
        The role that writes it.
    time:
        The timestamp of the record that led to it, so that a replay is equal.
    """
    return (
        ("content-type", content_type.encode()),
        ("ce_specversion", b"1.0"),
        ("ce_type", f"nnsec.{event}.v1".encode()),
        ("ce_source", f"/nnsec/{source_role}".encode()),
        ("ce_id", id.encode()),
        ("ce_time", format_time(time).encode()),
        *extra,
    )
