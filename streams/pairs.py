"""Labels and scores of one partition, waiting for each other in bounded memory."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, field

from nnsec.adapters.records import Record
from schemas.errors import SchemaError
from schemas.score import Score, decode_score

MOST = 8192
"""Records remembered of a partition, of either kind; the oldest go first."""
MOST_BYTES = 16 * 1024 * 1024
"""Bytes that the remembered scores have in all."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pair:
    """A label that met its score."""

    model: str
    version: int
    client: str
    row: int
    prediction: int
    label: int


@dataclass(slots=True)
class _Scored:
    """A score, read only if a label comes: most never get one."""

    record: Record
    score: Score | None = None
    labelled: set[int] = field(default_factory=set)

    @property
    def size(self) -> int:
        return len(self.record.value or b"")

    def meet(self, row: int, label: int) -> Pair | None:
        """The pair with a label; None if the row is none of it, or has a label already."""
        try:
            score = self.score or decode_score(self.record.value, self.record.headers)
        except SchemaError as error:
            logger.warning(
                "%s/%d/%d is no score: %s",
                self.record.topic, self.record.partition, self.record.offset, error,
            )  # fmt: skip
            return None
        self.score = score
        if row >= len(score.prediction) or row in self.labelled:
            return None
        self.labelled.add(row)
        prediction = int(score.prediction[row])
        return Pair(score.model, score.version, score.client, row, prediction, label)


class Pairs:
    """What one partition remembers; a row meets one label, and an id its newest score."""

    def __init__(self) -> None:
        self._scores: OrderedDict[str, _Scored] = OrderedDict()
        self._waiting: OrderedDict[str, OrderedDict[int, int]] = OrderedDict()
        self._bytes = 0
        self.waiting = 0
        """Labels that came before their score."""

    def add_score(self, id: str, record: Record) -> list[Pair]:  # noqa: A002 - its own name
        """Remember a score; the labels that waited for it, by row."""
        known = self._scores.pop(id, None)
        scored = self._scores[id] = _Scored(record)
        self._bytes += scored.size - (0 if known is None else known.size)
        while len(self._scores) > MOST or (self._bytes > MOST_BYTES and len(self._scores) > 1):
            _, old = self._scores.popitem(last=False)
            self._bytes -= old.size
        waited = self._waiting.pop(id, OrderedDict())
        self.waiting -= len(waited)
        met = (scored.meet(row, label) for row, label in sorted(waited.items()))
        return [pair for pair in met if pair is not None]

    def add_label(self, id: str, row: int, label: int) -> Pair | None:  # noqa: A002 - its own name
        """Take in a label: what it meets, or None if it waits, repeats or names no row."""
        scored = self._scores.get(id)
        if scored is not None:
            return scored.meet(row, label)
        rows = self._waiting.setdefault(id, OrderedDict())
        self.waiting += row not in rows
        rows.setdefault(row, label)
        while self.waiting > MOST:
            first, old = next(iter(self._waiting.items()))
            old.popitem(last=False)  # one by one: many rows may wait for one score
            self.waiting -= 1
            if not old:
                del self._waiting[first]
        return None
