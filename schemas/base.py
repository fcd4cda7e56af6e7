"""Base classes of all events: frozen, strict, JSON in UTF-8, times in RFC 3339."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    ValidationError,
)

from schemas import strict_json
from schemas.errors import SchemaError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MS = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
_LAST_MS = (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
MAX_OWN_BYTES = 16 * 1024 * 1024
MAX_USER_BYTES = 1024 * 1024
"""What ``[limits] bytes`` is unless it is changed."""
_RFC_3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:)(\d\d)(?:\.(\d{1,30}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def parse_time(text: str, *, field: str = "value") -> datetime:
    """Read an RFC 3339 time, to the microsecond; a leap second is the second after :59.

    Raises
    ------
    SchemaError
        For anything else, naming ``field``.

    Examples
    --------
    >>> parse_time("2026-01-02T03:04:05.5+01:00")
    datetime.datetime(2026, 1, 2, 2, 4, 5, 500000, tzinfo=datetime.timezone.utc)
    """
    match = _RFC_3339.fullmatch(text)
    if match is None:
        raise SchemaError("no RFC 3339 time such as 2026-01-02T03:04:05.678Z", field=field)
    day, clock, second, fraction, zone = match.groups()
    leap = second == "60"
    microseconds = (fraction or "")[:6].ljust(6, "0")
    zone = "+00:00" if zone in "Zz" else zone
    try:
        time = datetime.fromisoformat(
            f"{day}T{clock}{'59' if leap else second}.{microseconds}{zone}"
        )
        return (time + timedelta(seconds=leap)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise SchemaError(f"no such time: {error}", field=field) from error


def _from_text(value: Any) -> Any:
    """Keep pydantic from reading seconds since 1970, days alone, or times with a space."""
    if isinstance(value, str):
        try:
            return parse_time(value)
        except SchemaError as error:
            raise ValueError(str(error)) from error
    return value


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        msg = "a time needs a zone; write it in UTC with a final Z"
        raise ValueError(msg)
    return value.astimezone(UTC)


def format_time(value: datetime) -> str:
    """Write a time as RFC 3339 in UTC with milliseconds.

    >>> format_time(datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC))
    '2026-01-02T03:04:05.678Z'
    """
    utc = value.astimezone(UTC).replace(tzinfo=None)
    return utc.isoformat(timespec="milliseconds") + "Z"


def from_millis(milliseconds: int) -> datetime:
    """Turn Kafka's milliseconds since 1970 into a time in UTC.

    Writers may stamp a record with any 64 bits, so what is outside the years that there are is the
    nearest time that is inside.

    >>> from_millis(-(2**62)).year, from_millis(2**62).year
    (1, 9999)
    """
    seconds, rest = divmod(min(max(milliseconds, _FIRST_MS), _LAST_MS), 1000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest * 1000)


def to_millis(value: datetime) -> int:
    """Turn a time into milliseconds since 1970, rounding down."""
    return (value - _EPOCH) // timedelta(milliseconds=1)


Time = Annotated[
    datetime,
    BeforeValidator(_from_text, json_schema_input_type=str),
    AfterValidator(_utc),
    PlainSerializer(format_time, return_type=str),
]
"""A time on the wire: RFC 3339, UTC, milliseconds."""

Severity = Literal["info", "low", "medium", "high", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "low", "medium", "high", "critical")


class Model(BaseModel):
    """A part of an event; readers of our own topics ignore fields that they do not know."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=()
    )


class Event(Model):
    """An event of our own: one module each, found by ``event``."""

    event: ClassVar[str]
    """Name in ``ce_type`` (``nnsec.<event>.v1``) and on the command line."""

    @classmethod
    def decode(cls, value: bytes | None) -> Self:
        """Read an event strictly.

        Raises
        ------
        SchemaError
            Naming the field, for anything that is not this event.
        """
        strict_json.check(value, limit=MAX_OWN_BYTES)
        return cls._read(value)

    @classmethod
    def _read(cls, value: bytes | None) -> Self:
        assert value is not None  # noqa: S101 - `strict_json` raised otherwise
        try:
            return cls.model_validate_json(value)
        except ValidationError as error:
            raise to_schema_error(error) from error

    def encode(self) -> bytes:
        """Write the event as UTF-8 JSON without spaces."""
        return self.model_dump_json(by_alias=True).encode()


class UserEvent(Event):
    """An event that users send: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def decode(cls, value: bytes | None, *, limit: int = MAX_USER_BYTES) -> Self:
        """Read an event strictly; as `Event.decode`.

        Parameters
        ----------
        limit:
            Most bytes allowed.
        """
        fields = strict_json.loads(value, limit=limit)
        # Here and not by pydantic, which makes an error of each of as many as a stranger sends.
        if isinstance(fields, dict):
            for name in fields:
                if name not in cls.model_fields:
                    odd = strict_json.shown(name)
                    raise SchemaError(f"unknown field {odd}", field=odd)
        return cls._read(value)


def to_schema_error(error: ValidationError) -> SchemaError:
    """Name the first field that pydantic refused, cut where a stranger's key is in it."""
    first: Any = error.errors(include_url=False, include_input=False)[0]
    field = ""
    for part in first["loc"]:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else str(part)
    return SchemaError(first["msg"], field=strict_json.shown(field or "value"))
