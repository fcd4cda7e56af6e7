"""What the screens found in a batch, and what became of each of its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnsec.bets import LEVELS
from nnsec.poisoning.base import Finding, Pattern
from nnsec.poisoning.samples import Samples


@dataclass(frozen=True, slots=True, eq=False)
class Screened:
    """What a batch of samples shows by itself, whoever sent it; N rows, D sample screens.

    Parameters
    ----------
    score:
        (N,) float32, fused.
    p_value:
        (N,) float32 in (0, 1].
    level:
        (N,) uint8, thresholds that the score exceeds, 0 to 5.
    raw:
        (N, D) the screens' own figures.
    p_values:
        (N, D) of each; they explain, and are not fused.
    neighbour_label:
        (N,) int64, the label of the nearest known sample in feature space.
    prepared:
        For each window screen what it needs of the batch.
    """

    samples: Samples
    score: NDArray[np.float32]
    p_value: NDArray[np.float32]
    level: NDArray[np.uint8]
    raw: NDArray[np.float64]
    p_values: NDArray[np.float64]
    neighbour_label: NDArray[np.int64]
    prepared: tuple[NDArray[np.float64], ...]

    def __len__(self) -> int:
        return len(self.score)


@dataclass(frozen=True, slots=True, eq=False)
class Rated:
    """The outcome of samples of one source; N rows, R reasons in the order of ``names``.

    Parameters
    ----------
    names:
        All reasons there are.
    quarantined:
        (N,) bool.
    reasons:
        (N,) uint16: bit i for reason i. Accepted samples may have reasons that are only told.
    figures, thresholds:
        (N, R) float64, 0 where the reason's bit is not set.
    score, p_value, level, neighbour_label, fingerprint:
        (N,) as in `Screened`; the level of a sample with a trigger is the highest.
    patterns:
        For each sample the trigger that it bears, or None.
    """

    names: tuple[str, ...]
    quarantined: NDArray[np.bool_]
    reasons: NDArray[np.uint16]
    figures: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    score: NDArray[np.float32]
    p_value: NDArray[np.float32]
    level: NDArray[np.uint8]
    neighbour_label: NDArray[np.int64]
    fingerprint: NDArray[np.uint64]
    patterns: tuple[Pattern | None, ...]

    def __len__(self) -> int:
        return len(self.reasons)

    def named(self, row: int) -> tuple[str, ...]:
        """The reasons of one sample."""
        bits = int(self.reasons[row])
        return tuple(name for bit, name in enumerate(self.names) if bits >> bit & 1)


class Sheet:
    """Fills in the outcome of some rows of a batch, finding by finding.

    Parameters
    ----------
    screened:
        The batch.
    rows:
        Which of it.
    names:
        All reasons, in the order of their bits.
    """

    def __init__(self, screened: Screened, rows: Sequence[int], names: tuple[str, ...]) -> None:
        self._screened = screened
        self._rows = np.asarray(rows, np.int64)
        self._names = names
        self._bit = {name: bit for bit, name in enumerate(names)}
        shape = (len(rows), len(names))
        self._figures, self._thresholds = np.zeros(shape), np.zeros(shape)
        self._found = np.zeros(shape, bool)
        self._quarantined = np.zeros(len(rows), bool)
        self._level = screened.level[self._rows]
        self._patterns: list[Pattern | None] = [None] * len(rows)

    def add(self, number: int, reason: str, finding: Finding) -> None:
        """Note what a screen found in the row with this number."""
        bit = self._bit[reason]
        self._found[number, bit] = True
        self._figures[number, bit] = finding.figure
        self._thresholds[number, bit] = finding.threshold
        self._quarantined[number] |= finding.quarantine
        if finding.pattern is not None:
            self._patterns[number] = finding.pattern
            # Rarer by far in clean data than the highest level is certified for.
            self._level[number] = len(LEVELS)

    def has(self, number: int, reasons: Sequence[str]) -> bool:
        """Whether the row has one of these reasons."""
        return any(self._found[number, self._bit[name]] for name in reasons)

    def rated(self) -> Rated:
        """All rows, as they stand."""
        batch, rows = self._screened, self._rows
        bits = np.uint16(1) << np.arange(len(self._names), dtype=np.uint16)
        return Rated(
            names=self._names,
            quarantined=self._quarantined,
            reasons=(self._found * bits).sum(1).astype(np.uint16),
            figures=self._figures,
            thresholds=self._thresholds,
            score=batch.score[rows],
            p_value=batch.p_value[rows],
            level=self._level,
            neighbour_label=batch.neighbour_label[rows],
            fingerprint=batch.samples.fingerprints[rows],
            patterns=tuple(self._patterns),
        )
