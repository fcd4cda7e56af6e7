"""Snapshots of a partition's state on `state`: in parts that fit a record, whole or not at all.

Two generations take turns, so that a process that dies while it writes one leaves the other whole.
Values are bytes behind a digest; what they speak of is in the headers. No pickle. What cannot be
read is said and passed over, whoever wrote it: else one record would keep a role from starting.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from nnsec.adapters.records import Out, Record

PART_BYTES = 900_000
"""Of a value; Kafka takes 1 MB unless told otherwise."""
GENERATIONS = 2
_FIELDS = ("log", "offset", "generation", "part", "parts", "sha256")
_PREFIX = "nnsec-snapshot-"
_DECIMAL = re.compile("[0-9]{1,18}")
"""Every number that is written; all of them fit 64 bits."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of one partition after all records up to an offset.

    Parameters
    ----------
    log:
        Identity of the log that the offset is in.
    models:
        Each model's state; its own format and digest.
    """

    log: UUID
    offset: int
    generation: int
    models: Mapping[str, bytes]


def write(role: str, partition: int, snapshot: Snapshot) -> list[Out]:
    """Write a snapshot as records of `state`, one a part."""
    lengths = {model: len(raw) for model, raw in snapshot.models.items()}
    body = json.dumps(lengths).encode() + b"\n" + b"".join(snapshot.models.values())
    parts = [body[i : i + PART_BYTES] for i in range(0, len(body), PART_BYTES)]
    digest = hashlib.sha256(body).hexdigest()
    outs = []
    for number, part in enumerate(parts):
        values = (
            snapshot.log, snapshot.offset, snapshot.generation, number, len(parts), digest,
        )  # fmt: skip
        headers = tuple(
            (_PREFIX + name, str(value).encode())
            for name, value in zip(_FIELDS, values, strict=True)
        )
        key = f"{role}/{partition}/{snapshot.generation}/{number}"
        outs.append(Out("state", part, key.encode(), headers))
    return outs


def newest(
    role: str, partitions: Iterable[int], records: Iterable[Record], log: UUID
) -> dict[int, Snapshot]:
    """Find the newest whole snapshot of each partition.

    Parameters
    ----------
    records:
        All of `state`, in log order for each key.
    log:
        Snapshots of another log speak of a topic that was made anew, and do not count.
    """
    wanted = {f"{role}/{number}": number for number in partitions}
    found: dict[tuple[int, int], dict[int, Record]] = {}
    odd = 0
    for record in records:
        name, *words = (record.key or b"").decode("utf-8", "replace").rsplit("/", 2)
        if name not in wanted or len(words) != 2:
            continue
        try:
            generation, part = map(_number, words)
        except ValueError:
            odd += 1
        else:
            found.setdefault((wanted[name], generation), {})[part] = record
    if odd:
        logger.warning("%d records of %s on state are not used: no part has their keys", odd, role)
    best: dict[int, Snapshot] = {}
    for (partition, _), parts in sorted(found.items()):
        snapshot = _joined(parts)
        if snapshot is None or snapshot.log != log:
            logger.info(
                "a snapshot of %s/%d is not used: torn, damaged or of another log", role, partition
            )
        elif partition not in best or snapshot.offset > best[partition].offset:
            best[partition] = snapshot
    return best


def _joined(parts: Mapping[int, Record]) -> Snapshot | None:
    """Put parts together; None unless all are there and are of one snapshot."""
    try:
        known = _fields(parts[0])
        chosen: Sequence[Record] = [parts[number] for number in range(_number(known["parts"]))]
        body = b"".join(record.value or b"" for record in chosen)
        if hashlib.sha256(body).hexdigest() != known["sha256"]:
            return None
        head, _, rest = body.partition(b"\n")
        models, start = {}, 0
        for model, length in _lengths(head).items():
            models[model] = rest[start : start + length]
            start += length
        offset, generation = _number(known["offset"]), _number(known["generation"])
        return Snapshot(UUID(known["log"]), offset, generation, models)
    except (KeyError, ValueError):
        return None


def _lengths(head: bytes) -> dict[str, int]:
    """How many bytes each model's state has."""
    try:
        found = json.loads(head)
    except RecursionError as error:
        raise ValueError("its head is nested too deeply") from error
    if not isinstance(found, dict) or any(type(v) is not int or v < 0 for v in found.values()):
        raise ValueError("its head does not say how long each state is")
    return found


def _number(text: str) -> int:
    """Read a number as it is written; `int` would take other digits, signs and spaces too."""
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError(f"{text[:20]!r} is no number")
    return int(text)


def _fields(record: Record) -> dict[str, str]:
    return {
        name.removeprefix(_PREFIX): (value or b"").decode("utf-8", "replace")
        for name, value in record.headers
        if name.startswith(_PREFIX)
    }
