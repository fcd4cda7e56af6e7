"""What the trainer may learn from: accepted samples, less those revoked, less those learned."""

from __future__ import annotations

import contextlib
import logging
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter

from nnsec.adapters.records import Record
from nnsec.checkpoints import Revoked
from nnsec.checkpoints.manifest import Learned, Manifest
from nnsec.checkpoints.provenance import (
    MAX_EXCLUSIONS,
    SAMPLES,
    Batch,
    Position,
    batch,
    left_out,
)
from nnsec.errors import SchemaError, TrustError
from nnsec.settings import ModelTable
from nnsec.trust.commands import open_command
from nnsec.trust.keys import PublicKey
from schemas.base import from_millis
from schemas.inference import Expected, check_tensor
from schemas.outcome import Outcome, decode_outcome
from schemas.revocation import Revocation
from schemas.source import Source
from schemas.training import check_labels
from workers.data_file import DATATYPES
from workers.words import counted

TOPICS = ("training.accepted", "training.revocations", "sources", "commands")

PASSED_OVER = Counter("nnsec_passed_over", "Records that the trainer cannot use", ["topic"])

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


class Curriculum:
    """The accepted samples of one model, row by row; a row delivered twice is one row.

    Parameters
    ----------
    log:
        Identity of the log of ``training.samples``; rows of an earlier log are left out.
    """

    def __init__(self, log: UUID) -> None:
        self._log = log
        self._rows: dict[Position, tuple[NDArray[Any], int, str]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def accept(self, outcome: Outcome) -> None:
        """Take in one record of ``training.accepted``."""
        if outcome.log != self._log:
            return
        rows = zip(outcome.rows, outcome.sample.x, outcome.sample.labels, strict=True)
        for row, x, label in rows:
            position = (outcome.log, outcome.partition, outcome.offset, row)
            # A copy, as a view would keep the whole record in memory.
            self._rows[position] = (x.copy(), int(label), outcome.sample.source)

    def fresh(
        self,
        manifests: Iterable[Manifest],
        *,
        classes: int,
        revoked: AbstractSet[Position] = frozenset(),
        quarantined: AbstractSet[str] = frozenset(),
    ) -> list[Position]:
        """Positions that may be learned from and were not yet, in order.

        Parameters
        ----------
        manifests:
            The checkpoint to train on from, and its ancestors: what they learned is left out.
        classes:
            How many the model gives; what has another label is left out, with a line in the log.
        revoked:
            Positions that must not be learned from.
        quarantined:
            Sources of which nothing may be learned, revoked or not yet.
        """
        known = Known(part for manifest in manifests for part in manifest.learned)
        found = sorted(
            position
            for position, (_, _, source) in self._rows.items()
            if source not in quarantined and position not in revoked and position not in known
        )
        taught = [position for position in found if self._rows[position][1] < classes]
        if len(taught) < len(found):
            strange = counted(len(found) - len(taught), "accepted sample")
            logger.warning("%s left out: the model has %d classes", strange, classes)
        return taught

    def lesson(self, positions: Sequence[Position]) -> Lesson:
        """Collect these rows, as far as one manifest can name them; the rest is for the next.

        Parameters
        ----------
        positions:
            From `fresh`; at least one.
        """
        records = _namable(positions)
        found = [self._rows[*record, row] for record, rows in records.items() for row in rows]
        x = np.stack([one for one, _, _ in found])
        y = np.array([label for _, label, _ in found], np.int64)
        batches, start = [], 0
        for (log, partition, offset), rows in records.items():
            part = slice(start, start + len(rows))
            batches.append(batch(log, partition, offset, rows, x[part], y[part]))
            start += len(rows)
        return Lesson(x, y, tuple(batches))


def _namable(positions: Sequence[Position]) -> dict[tuple[UUID, int, int], list[int]]:
    """Rows by record, the first ones: each record costs its exclusions, and one for its range."""
    records: dict[tuple[UUID, int, int], list[int]] = {}
    for log, partition, offset, row in positions:
        records.setdefault((log, partition, offset), []).append(row)
    cost = 0
    found: dict[tuple[UUID, int, int], list[int]] = {}
    for record, rows in records.items():
        cost += 1 + left_out(rows)
        if found and cost > MAX_EXCLUSIONS:
            logger.warning(
                "%s of this lesson wait for the next", counted(len(records) - len(found), "record")
            )
            break
        found[record] = rows
    return found


class Known:
    """The positions that manifests say were learned from.

    Parameters
    ----------
    parts:
        Of any number of manifests.
    """

    def __init__(self, parts: Iterable[Learned]) -> None:
        self._parts: dict[tuple[UUID, int], list[tuple[list[int], Learned, frozenset[Any]]]] = {}
        for part in parts:
            if part.topic == SAMPLES:
                starts = [first for first, _ in part.ranges]
                entry = (starts, part, frozenset(part.exclusions))
                self._parts.setdefault((part.log, part.partition), []).append(entry)

    def __contains__(self, position: Position) -> bool:
        log, partition, offset, row = position
        for starts, part, excluded in self._parts.get((log, partition), ()):
            index = bisect_right(starts, offset) - 1
            if index >= 0 and offset <= part.ranges[index][1] and (offset, row) not in excluded:
                return True
        return False


def lineage(version: int, manifests: Mapping[int, Manifest]) -> tuple[Manifest, ...]:
    """A checkpoint and its ancestors, the youngest first."""
    found: list[Manifest] = []
    at: int | None = version
    while at is not None and at in manifests:
        found.append(manifests[at])
        parent = found[-1].parent
        at = parent.version if parent is not None and parent.version < at else None
    return tuple(found)


@dataclass(slots=True)
class Told:
    """What the topics have said so far.

    Parameters
    ----------
    log:
        Identity of the log of ``training.samples``.
    operator:
        Whose commands to remember: the trainer's own key.
    models:
        What inputs of each model are like; samples of others are passed over.
    """

    log: UUID
    operator: PublicKey
    models: Mapping[str, ModelTable]
    curricula: dict[str, Curriculum] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    commands: set[str] = field(default_factory=set)
    changes: int = 0
    """Records that may have changed what can be learned."""
    revoked_at: float = float("-inf")
    """When the last revocation was read, in the seconds that `apply` is given."""
    _revoked: Revoked = field(default_factory=Revoked, init=False)

    def apply(self, record: Record, now: float) -> None:
        """Take in one record; what cannot be read is passed over with one line in the log."""
        try:
            if record.topic == "training.accepted":
                self._accept(decode_outcome(record.value, record.headers))
            elif record.topic == "training.revocations":
                self._revoked.apply(Revocation.decode(record.value))
                self.revoked_at = now
            elif record.topic == "sources":
                self._source(Source.decode(record.value))
            else:
                self._command(record)
        except SchemaError as error:
            where = f"{record.topic}/{record.partition}/{record.offset}"
            logger.warning("passed over %s: %s: %s", where, error.field, error)
            PASSED_OVER.labels(record.topic).inc()
        self.changes += record.topic != "commands"

    @property
    def revoked(self) -> AbstractSet[Position]:
        """Positions that must not be learned from; changes with the next revocation."""
        return self._revoked.positions

    def quarantined(self) -> frozenset[str]:
        """Sources whose samples must not be learned from, revoked or not yet."""
        return frozenset(s.source for s in self.sources.values() if s.state == "quarantined")

    def _accept(self, outcome: Outcome) -> None:
        sample = outcome.sample
        spec = self.models.get(sample.model)
        # The configuration may have changed since a sample was screened.
        if spec is None or (sample.x.shape[1:], sample.x.dtype) != (
            spec.input.shape, np.dtype(spec.input.dtype),
        ):  # fmt: skip
            return
        # Whoever can write the topic could else stop the trainer for as long as the record is kept.
        takes = Expected(sample.model, spec.input.shape, spec.input.dtype, *spec.input.range)
        check_tensor(("input", DATATYPES[sample.x.dtype.name], sample.x), takes)
        check_labels(sample.labels, len(spec.classes) or None, field="label")
        if max(outcome.rows) >= MAX_EXCLUSIONS or len(set(outcome.rows)) < len(outcome.rows):
            raise SchemaError("rows are distinct, and no manifest names these", field="nnsec-rows")
        self.curricula.setdefault(sample.model, Curriculum(self.log)).accept(outcome)

    def _source(self, source: Source) -> None:
        known = self.sources.get(source.source)
        if known is None or source.version > known.version:
            self.sources[source.source] = source

    def _command(self, record: Record) -> None:
        with contextlib.suppress(TrustError):  # the remediation worker judges commands
            published = from_millis(record.timestamp)
            self.commands.add(open_command(record.value, (self.operator,), published).command.id)
