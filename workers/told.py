"""What the trainer was told: its topics, folded record by record."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
from prometheus_client import Counter

from nnsec.adapters.records import Record
from nnsec.checkpoints import Revoked
from nnsec.checkpoints.provenance import Position
from nnsec.errors import SchemaError, TrustError
from nnsec.settings import ModelTable
from nnsec.trust.commands import open_command
from nnsec.trust.keys import PublicKey
from schemas.base import from_millis
from schemas.inference import Expected, check_tensor
from schemas.outcome import MOST_ROWS, Outcome, decode_outcome
from schemas.revocation import Revocation
from schemas.source import Source
from schemas.training import check_labels
from workers.curriculum import Curriculum
from workers.data_file import DATATYPES

ACCEPTED = "training.accepted"
TOPICS = (ACCEPTED, "training.revocations", "sources", "commands")

PASSED_OVER = Counter("nnsec_passed_over", "Records that the trainer cannot use", ["topic"])

logger = logging.getLogger(__name__)


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
            if record.topic == ACCEPTED:
                outcome = decode_outcome(record.value, record.headers, max_rows=MOST_ROWS)
                self._accept(outcome, (record.partition, record.offset))
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

    def forget(self, starts: Mapping[int, int]) -> None:
        """Let go of the samples that lie before these offsets of ``training.accepted``."""
        for curriculum in self.curricula.values():
            curriculum.forget(starts)

    def _accept(self, outcome: Outcome, place: tuple[int, int]) -> None:
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
        if sample.model not in self.curricula:
            self.curricula[sample.model] = Curriculum(self.log, spec.input)
        self.curricula[sample.model].accept(outcome, place)

    def _source(self, source: Source) -> None:
        known = self.sources.get(source.source)
        if known is None or source.version > known.version:
            self.sources[source.source] = source

    def _command(self, record: Record) -> None:
        with contextlib.suppress(TrustError):  # the remediation worker judges commands
            published = from_millis(record.timestamp)
            self.commands.add(open_command(record.value, (self.operator,), published).command.id)
