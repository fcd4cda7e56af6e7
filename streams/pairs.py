"""Labels and scores of one partition, waiting for each other in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from schemas.score import Score

MOST = 8192
"""Records remembered of a partition, of either kind; the oldest go first."""
MOST_ROWS = 1 << 18
"""Rows that the remembered scores have in all."""


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
    model: str
    version: int
    client: str
    prediction: NDArray[np.uint16]
    labelled: set[int] = field(default_factory=set)


class Pairs:
    """What one partition remembers; a row meets one label, and an id its newest score."""

    def __init__(self) -> None:
        self._scores: OrderedDict[str, _Scored] = OrderedDict()
        self._waiting: OrderedDict[str, dict[int, int]] = OrderedDict()
        self._rows = 0
        self.waiting = 0
        """Labels that came before their score."""

    def add_score(self, score: Score) -> list[Pair]:
        """Remember a score; the labels that waited for it, by row."""
        known = self._scores.pop(score.id, None)
        scored = _Scored(
            score.model, score.version, score.client, score.prediction.astype(np.uint16)
        )
        self._scores[score.id] = scored
        self._rows += len(scored.prediction) - (0 if known is None else len(known.prediction))
        while len(self._scores) > MOST or (self._rows > MOST_ROWS and len(self._scores) > 1):
            _, old = self._scores.popitem(last=False)
            self._rows -= len(old.prediction)
        waited = self._waiting.pop(score.id, {})
        self.waiting -= len(waited)
        met = (_meet(scored, row, label) for row, label in sorted(waited.items()))
        return [pair for pair in met if pair is not None]

    def add_label(self, id: str, row: int, label: int) -> Pair | None:  # noqa: A002 - its own name
        """Take in a label: what it meets, or None if it waits, repeats or names no row."""
        scored = self._scores.get(id)
        if scored is not None:
            return _meet(scored, row, label)
        rows = self._waiting.setdefault(id, {})
        self.waiting += row not in rows
        rows.setdefault(row, label)
        while self.waiting > MOST:
            _, old = self._waiting.popitem(last=False)
            self.waiting -= len(old)
        return None


def _meet(scored: _Scored, row: int, label: int) -> Pair | None:
    if row >= len(scored.prediction) or row in scored.labelled:
        return None
    scored.labelled.add(row)
    return Pair(
        scored.model, scored.version, scored.client, row, int(scored.prediction[row]), label
    )
