"""What a record changes in the view: a pure function from records to calls of view.lua."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from nnsec.adapters.records import Record
from nnsec.errors import SchemaError, TrustError
from nnsec.trust import statements
from nnsec.trust.keys import PublicKey
from schemas.base import from_millis, to_millis
from schemas.incident import FINISHED, Incident
from schemas.source import Source
from schemas.topics import TOPICS
from workers.store import Keys

EXPIRY_MS = 30 * 24 * 3600 * 1000
"""How long a finished incident stays in the view."""

logger = logging.getLogger(__name__)
_JSON: TypeAdapter[Any] = TypeAdapter(Any)


@dataclass(frozen=True, slots=True)
class Change:
    """One call of the script.

    Parameters
    ----------
    operation:
        ``incident``, ``model``, ``source``, ``count`` or ``skip``.
    place:
        ``<topic>/<partition>``.
    offset:
        Of the last record that it applies.
    """

    operation: str
    place: str
    offset: int
    keys: tuple[str, ...] = ()
    values: tuple[str, ...] = ()


def of(record: Record, names: Keys, release_keys: Sequence[PublicKey]) -> Change:
    """The change that one record of ``incidents``, ``models`` or ``sources`` makes."""
    place = f"{record.topic}/{record.partition}"
    try:
        if record.topic == "incidents":
            return _incident(record, place, names)
        if record.topic == "models":
            return _model(record, place, names, release_keys)
        return _source(record, place, names)
    except (SchemaError, TrustError) as error:
        logger.warning("left out %s/%d: %s", place, record.offset, error)
        return Change("skip", place, record.offset)


def counts(records: Sequence[Record], names: Keys, most: int) -> Change:
    """The change that a batch of accepted or quarantined samples of one partition makes.

    Parameters
    ----------
    most:
        How many sources are counted of this partition: those whose last records are the newest.
    """
    first, last = records[0], records[-1]
    place = f"{first.topic}/{first.partition}"
    field = first.topic.removeprefix("training.").replace("quarantine", "quarantined")
    kept_ms = TOPICS[first.topic].retention_ms
    keys, values = [names.counted(place)], [field, str(most)]
    for record in records:
        rows = next((v for k, v in record.headers if k.lower() == "nnsec-rows"), None)
        if record.key and rows:
            keys.append(names.source(record.key.decode("utf-8", "backslashreplace")))
            expiry = _stamp(record) + kept_ms
            values += [str(rows.count(b",") + 1), str(record.offset), str(expiry)]
    if len(keys) == 1:
        return Change("skip", place, last.offset)
    return Change("count", place, last.offset, tuple(keys), tuple(values))


def _stamp(record: Record) -> int:
    """Its time in ms since 1970; the nearest from then to the year 9999, as writers choose it."""
    return max(0, to_millis(from_millis(record.timestamp)))


def _incident(record: Record, place: str, names: Keys) -> Change:
    incident = Incident.decode(record.value)
    finished = incident.state in FINISHED
    last = incident.history[-1] if incident.history else None
    moved = last is not None and last.version == incident.version
    fields = {
        "id": str(incident.id),
        "state": incident.state,
        "version": str(incident.version),
        "model": incident.model,
        "family": incident.family,
        "threats": _json(incident.threats),
        "severity": incident.severity,
        "first_seen": str(to_millis(incident.first_seen)),
        "last_seen": str(to_millis(incident.last_seen)),
        "subjects": _json(incident.subjects),
        "actions": _json(incident.actions),
        "evidence": _json(incident.evidence),
    }
    return Change(
        "incident",
        place,
        record.offset,
        (names.incident(str(incident.id)), names.active, names.log),
        (
            str(incident.id),
            str(incident.version),
            str(_stamp(record)),
            str(_stamp(record) + EXPIRY_MS) if finished else "",
            "1" if moved else "0",
            *((last.from_, last.to, last.by, last.reason) if last else ("", "", "", "")),
            *_flat(fields),
        ),
    )


def _model(record: Record, place: str, names: Keys, release_keys: Sequence[PublicKey]) -> Change:
    statement = statements.read_statement(record, release_keys)
    fields = {
        "version": str(statement.version),
        "digest": statement.digest,
        "epoch": str(statement.epoch),
        "state": "active",
        "since": str(_stamp(record)),
    }
    return Change(
        "model",
        place,
        record.offset,
        (names.model(statement.model),),
        (
            str(statement.epoch),
            statement.phase,
            f"{statement.epoch} {statement.version} {statement.digest}",
            *_flat(fields),
        ),
    )


def _source(record: Record, place: str, names: Keys) -> Change:
    source = Source.decode(record.value)
    fields = {
        "state": source.state,
        "reason": source.reason,
        "incident": source.incident,
        "version": str(source.version),
    }
    return Change(
        "source",
        place,
        record.offset,
        (names.source(source.source),),
        (str(source.version), *_flat(fields)),
    )


def _flat(fields: dict[str, str]) -> list[str]:
    return [part for pair in fields.items() for part in pair]


def _json(value: Any) -> str:
    return json.dumps(
        _JSON.dump_python(value, mode="json", by_alias=True),
        separators=(",", ":"),
        ensure_ascii=False,
    )
