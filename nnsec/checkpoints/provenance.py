"""Provenance: which rows a checkpoint learned from, as ranges, exclusions and one digest root."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from nnsec.checkpoints.manifest import Learned
from nnsec.errors import DigestMismatch, Unsafe

SAMPLES = "training.samples"
MAX_EXCLUSIONS = 100_000
"""Rows that a manifest can say were left out of the records that it names: some 5 of its 16 MiB."""
EMPTY_ROOT = hashlib.sha256(b"").hexdigest()

Position = tuple[UUID, int, int, int]
"""(log, partition, offset, row) of a training sample in ``training.samples``."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The accepted rows of one record.

    Parameters
    ----------
    rows:
        Row numbers in the original record.
    digests:
        SHA-256 of each of them (see `row_digest`).
    """

    log: UUID
    partition: int
    offset: int
    rows: tuple[int, ...]
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a manifest says of the rows; by default: none came from a topic."""

    learned: tuple[Learned, ...] = ()
    rows: int = 0
    root: str = field(default=EMPTY_ROOT)


def row_digest(x: NDArray[Any], label: int) -> bytes:
    """SHA-256 of one sample: the bytes of the input, then the label (int64, little-endian)."""
    little = np.ascontiguousarray(x, x.dtype.newbyteorder("<"))
    return hashlib.sha256(little.tobytes() + int(label).to_bytes(8, "little", signed=True)).digest()


def batch(
    log: UUID,
    partition: int,
    offset: int,
    rows: Sequence[int],
    x: NDArray[Any],
    labels: NDArray[np.integer],
) -> Batch:
    """Digest one accepted record.

    Parameters
    ----------
    log, partition, offset:
        Where the record lies in ``training.samples``.
    rows:
        (n,) row numbers in that record.
    x:
        (n, *shape) the inputs of these rows.
    labels:
        (n,) their labels.
    """
    digests = (row_digest(one, int(label)) for one, label in zip(x, labels, strict=True))
    return Batch(log, partition, offset, tuple(int(row) for row in rows), tuple(digests))


def gather(batches: Iterable[Batch]) -> Provenance:
    """Sum up what was learned from; a record delivered twice counts once.

    Raises
    ------
    DigestMismatch
        If one position comes with two contents.
    Unsafe
        If more than `MAX_EXCLUSIONS` rows of these records are left out.
    """
    found: dict[Position, bytes] = {}
    for part in batches:
        for row, digest in zip(part.rows, part.digests, strict=True):
            position = (part.log, part.partition, part.offset, row)
            if found.setdefault(position, digest) != digest:
                raise DigestMismatch(
                    f"{SAMPLES}/{part.partition}/{part.offset}#{row} came with two contents; "
                    "training.accepted cannot be trusted"
                )
    ordered = sorted(found)
    leaves = [_leaf(position, found[position]) for position in ordered]
    return Provenance(_learned(ordered), len(ordered), merkle_root(leaves))


def merkle_root(leaves: Sequence[bytes]) -> str:
    """The root over SHA-256 leaf hashes as in RFC 9162 §2.1.1, in hex.

    An odd node at the end of a level rises unchanged, which gives the tree of the standard.
    """
    if not leaves:
        return EMPTY_ROOT
    level = list(leaves)
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        above = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in pairs]
        level = above + level[len(above) * 2 :]
    return level[0].hex()


def _leaf(position: Position, digest: bytes) -> bytes:
    log, partition, offset, row = position
    name = f"{log}/{SAMPLES}/{partition}/{offset}/{row}".encode()
    return hashlib.sha256(b"\x00" + name + b"\x00" + digest).digest()


def _learned(ordered: Sequence[Position]) -> tuple[Learned, ...]:
    partitions: dict[tuple[UUID, int], dict[int, set[int]]] = {}
    for log, partition, offset, row in ordered:
        partitions.setdefault((log, partition), {}).setdefault(offset, set()).add(row)
    # Counted before they are listed: a row number may be anything.
    count = sum(left_out(rows) for offsets in partitions.values() for rows in offsets.values())
    if count > MAX_EXCLUSIONS:
        raise Unsafe(
            f"{count} rows are left out of the records learned from; a manifest names at most "
            f"{MAX_EXCLUSIONS}"
        )
    return tuple(
        Learned(
            log=log,
            topic=SAMPLES,
            partition=partition,
            ranges=_runs(list(offsets)),
            exclusions=_gaps(offsets),
        )
        for (log, partition), offsets in partitions.items()
    )


def left_out(rows: Collection[int]) -> int:
    """How many exclusions a record costs of which these distinct rows are learned from."""
    return max(rows) + 1 - len(rows)


def _runs(offsets: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ascending offsets as inclusive runs."""
    runs: list[tuple[int, int]] = []
    for offset in offsets:
        if runs and offset == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], offset)
        else:
            runs.append((offset, offset))
    return tuple(runs)


def _gaps(offsets: Mapping[int, set[int]]) -> tuple[tuple[int, int], ...]:
    """Rows below the highest learned one of each record that were not learned from.

    How many rows a record had is not known here: those above the highest count as learned from,
    so that in doubt a checkpoint is tainted rather than clean.
    """
    return tuple(
        (offset, row)
        for offset, rows in offsets.items()
        for row in range(max(rows))
        if row not in rows
    )
