"""What the trainer may learn from: accepted samples, less those revoked, less those learned."""

from __future__ import annotations

import logging
import math
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from nnsec.checkpoints.manifest import Learned, Manifest
from nnsec.checkpoints.provenance import (
    MAX_EXCLUSIONS,
    SAMPLES,
    Batch,
    Position,
    batch,
    left_out,
)
from nnsec.settings import Input
from schemas.outcome import Outcome
from workers.words import counted

NAMED = 3
"""Sources that a message names at most."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """Samples to learn from, in the order of their positions.

    Parameters
    ----------
    x:
        (n, *shape) in the wire dtype.
    y:
        (n,) int64.
    batches:
        Where they lie, for the manifest.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    batches: tuple[Batch, ...]


class _Taken(NamedTuple):
    """The accepted rows of one record."""

    data: bytes
    """Row numbers and labels (int64 each), then inputs: an object for each would cost more."""
    source: str
    partition: int
    """In ``training.accepted``, as the offset."""
    offset: int


class Curriculum:
    """The accepted samples of one model; a row delivered twice is one row.

    What was learned or revoked is kept as well: a checkpoint may turn out tainted, and a revocation
    be withdrawn, and then it may be learned again. It is kept as long as the topic has it.

    Parameters
    ----------
    log:
        Identity of the log of ``training.samples``; rows of an earlier log are left out.
    input:
        What the inputs are like.
    """

    def __init__(self, log: UUID, input: Input) -> None:  # noqa: A002 - its name in the settings
        self._log = log
        self._input = input
        self._taken: dict[tuple[int, int], _Taken] = {}

    def __len__(self) -> int:
        return sum(len(self._open(taken)[0]) for taken in self._taken.values())

    def accept(self, outcome: Outcome, place: tuple[int, int]) -> None:
        """Take in one record of ``training.accepted``; of rows known before the new ones count.

        Parameters
        ----------
        place:
            Its partition and offset there.
        """
        if outcome.log != self._log:
            return
        rows, x = np.array(outcome.rows, np.int64), outcome.sample.x
        labels, key = outcome.sample.labels, (outcome.partition, outcome.offset)
        if known := self._taken.get(key):
            parts = zip((rows, labels, x), self._open(known), strict=True)
            rows, labels, x = (np.concatenate(pair) for pair in parts)
        rows, first = np.unique(rows, return_index=True)
        data = rows.tobytes() + labels[first].tobytes() + x[first].tobytes()
        self._taken[key] = _Taken(data, sys.intern(outcome.sample.source), *place)

    def forget(self, starts: Mapping[int, int]) -> None:
        """Let go of what ``training.accepted`` has no longer, as if begun anew.

        Parameters
        ----------
        starts:
            The first offset of each of its partitions.
        """
        self._taken = {
            key: taken
            for key, taken in self._taken.items()
            if taken.offset >= starts.get(taken.partition, 0)
        }

    def fresh(
        self,
        manifests: Iterable[Manifest],
        *,
        classes: int,
        revoked: AbstractSet[Position] = frozenset(),
        quarantined: AbstractSet[str] = frozenset(),
    ) -> list[Position]:
        """Positions that may be learned from and were not yet, in order; for a thread.

        Parameters
        ----------
        manifests:
            The checkpoint to train on from, and its ancestors: what they learned is left out.
        classes:
            How many the model gives; what has another label is left out, with a line in the log.
        revoked:
            Positions that must not be learned from; others may be added meanwhile.
        quarantined:
            Sources of which nothing may be learned, revoked or not yet.
        """
        known = Known(part for manifest in manifests for part in manifest.learned)
        found: list[Position] = []
        strange = 0
        # A copy, at one stroke: records are taken in meanwhile.
        for (partition, offset), taken in self._taken.copy().items():
            if taken.source in quarantined or known.whole(self._log, partition, offset):
                continue
            rows, labels, _ = self._open(taken)
            for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
                position = (self._log, partition, offset, row)
                if position not in revoked and position not in known:
                    strange += label >= classes
                    if label < classes:
                        found.append(position)
        if strange:
            text = counted(strange, "accepted sample")
            logger.warning("%s left out: the model has %d classes", text, classes)
        return sorted(found)

    def lesson(self, positions: Sequence[Position]) -> Lesson:
        """Collect these rows.

        Parameters
        ----------
        positions:
            At least one from `fresh`; no more than are `namable`, for a checkpoint to be signed.
        """
        records: dict[tuple[int, int], list[int]] = {}
        for _, partition, offset, row in positions:
            records.setdefault((partition, offset), []).append(row)
        inputs, labels, batches = [], [], []
        for (partition, offset), rows in records.items():
            known, y, x = self._open(self._taken[partition, offset])
            index = np.searchsorted(known, rows)
            x, y = x[index], y[index]
            inputs.append(x)
            labels.append(y)
            batches.append(batch(self._log, partition, offset, rows, x, y))
        return Lesson(np.concatenate(inputs), np.concatenate(labels), tuple(batches))

    def senders(self, positions: Iterable[Position]) -> str:
        """The sources that most of these rows are of, and how many, for a message."""
        rows = Counter(self._taken[position[1:3]].source for position in positions)
        named = ", ".join(f"{source!r} ({n:,})" for source, n in rows.most_common(NAMED))
        more = len(rows) - NAMED
        return named if more <= 0 else f"{named} and {counted(more, 'other')}"

    def _open(self, taken: _Taken) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
        """(n,) row numbers, ascending; (n,) labels; (n, *shape) inputs."""
        shape, dtype = self._input.shape, np.dtype(self._input.dtype)
        n = len(taken.data) // (16 + dtype.itemsize * math.prod(shape))
        rows, labels = np.frombuffer(taken.data, np.int64, 2 * n).reshape(2, n)
        return rows, labels, np.frombuffer(taken.data, dtype, offset=16 * n).reshape(n, *shape)


def namable(positions: Sequence[Position]) -> list[Position]:
    """What one manifest can name of these, in their order; the rest is for another lesson.

    A record costs its exclusions, and one for its range. What costs least for each of its rows
    comes first: a record of which only a late row was accepted must not keep all others out.
    """
    records: dict[tuple[UUID, int, int], list[int]] = {}
    for log, partition, offset, row in positions:
        records.setdefault((log, partition, offset), []).append(row)
    costs = {record: 1 + left_out(rows) for record, rows in records.items()}
    left = MAX_EXCLUSIONS
    taken = set()
    for record in sorted(records, key=lambda one: (costs[one] / len(records[one]), one)):
        if costs[record] <= left:
            left -= costs[record]
            taken.add(record)
    return [position for position in positions if position[:3] in taken]


class Known:
    """The positions that manifests say were learned from.

    Parameters
    ----------
    parts:
        Of any number of manifests.
    """

    def __init__(self, parts: Iterable[Learned]) -> None:
        self._parts: dict[tuple[UUID, int], list[_Part]] = {}
        for part in parts:
            if part.topic == SAMPLES:
                self._parts.setdefault((part.log, part.partition), []).append(_Part(part))

    def __contains__(self, position: Position) -> bool:
        log, partition, offset, row = position
        parts = self._parts.get((log, partition), ())
        return any((offset, row) not in part.excluded for part in parts if part.covers(offset))

    def whole(self, log: UUID, partition: int, offset: int) -> bool:
        """Whether one manifest has all rows of a record, whatever they are."""
        parts = self._parts.get((log, partition), ())
        return any(offset not in part.broken for part in parts if part.covers(offset))


class _Part:
    """What a manifest says of one partition, for looking up."""

    def __init__(self, part: Learned) -> None:
        self._ranges = part.ranges
        self._starts = [first for first, _ in part.ranges]
        self.excluded = frozenset(part.exclusions)
        self.broken = frozenset(offset for offset, _ in part.exclusions)

    def covers(self, offset: int) -> bool:
        """Whether an offset is in the ranges."""
        index = bisect_right(self._starts, offset) - 1
        return index >= 0 and offset <= self._ranges[index][1]


def lineage(version: int, manifests: Mapping[int, Manifest]) -> tuple[Manifest, ...]:
    """A checkpoint and its ancestors, the youngest first."""
    found: list[Manifest] = []
    at: int | None = version
    while at is not None and at in manifests:
        found.append(manifests[at])
        parent = found[-1].parent
        at = parent.version if parent is not None and parent.version < at else None
    return tuple(found)
