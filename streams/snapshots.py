"""Snapshots of a partition's state on `state`: in parts that fit a record, whole or not at all.

Two generations take turns, so that a process that dies while it writes one leaves the other whole.
Values are bytes behind a digest; what they speak of is in the headers. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from nnsec.adapters.records import Out, Record

PART_BYTES = 900_000
"""Of a value; Kafka takes 1 MB unless told otherwise."""
GENERATIONS = 2
_FIELDS = ("log", "offset", "generation", "part", "parts", "sha256")
_PREFIX = "nnsec-snapshot-"

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
    for record in records:
        words = (record.key or b"").decode("utf-8", "replace").rsplit("/", 2)
        if words[0] in wanted and len(words) == 3 and words[1].isdigit() and words[2].isdigit():
            place = wanted[words[0]], int(words[1])
            found.setdefault(place, {})[int(words[2])] = record
    best: dict[int, Snapshot] = {}
    for (partition, _), parts in sorted(found.items()):
        snapshot = _joined(parts)
        if snapshot is None or snapshot.log != log:
            logger.info("a snapshot of %s/%d is torn, damaged or of another log", role, partition)
        elif partition not in best or snapshot.offset > best[partition].offset:
            best[partition] = snapshot
    return best


def _joined(parts: Mapping[int, Record]) -> Snapshot | None:
    """Put parts together; None unless all are there and are of one snapshot."""
    try:
        known = _fields(parts[0])
        chosen: Sequence[Record] = [parts[number] for number in range(int(known["parts"]))]
        body = b"".join(record.value or b"" for record in chosen)
        if hashlib.sha256(body).hexdigest() != known["sha256"]:
            return None
        head, _, rest = body.partition(b"\n")
        models, start = {}, 0
        for model, length in json.loads(head).items():
            models[model] = rest[start : start + length]
            start += length
        return Snapshot(UUID(known["log"]), int(known["offset"]), int(known["generation"]), models)
    except (KeyError, ValueError):
        return None


def _fields(record: Record) -> dict[str, str]:
    return {
        name.removeprefix(_PREFIX): (value or b"").decode("utf-8", "replace")
        for name, value in record.headers
        if name.startswith(_PREFIX)
    }
