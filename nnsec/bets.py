"""Levels and bets: what honest inputs may do, and the e-values that are wagered against it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

LEVELS = (0.001, 0.003, 0.01, 0.03, 0.1)
KAPPA = 2.0
DELTA = 0.01
TOP_BET = 0.95
BETS = 3
CELLS = len(LEVELS) * BETS


@dataclass(frozen=True, slots=True)
class Levels:
    """A calibration tier, as far as evidence needs it.

    Parameters
    ----------
    n:
        Calibration points.
    levels:
        Nominal rates, ascending, each in (0, 1); at most five.
    rates:
        Certified rates q: what honest inputs pass the level's threshold at, at most.
    """

    n: int
    levels: tuple[float, ...]
    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.levels) <= len(LEVELS) or len(self.rates) != len(self.levels):
            msg = f"{len(self.levels)} levels with {len(self.rates)} rates; 1 to 5 pairs are needed"
            raise ValueError(msg)

    @classmethod
    def certified(
        cls,
        n: int,
        levels: Sequence[float] = LEVELS,
        *,
        kappa: float = KAPPA,
        delta: float = DELTA,
    ) -> Levels:
        """Rates that hold for all levels at once with probability 1 − δ over the calibration draw.

        The threshold is the m-th largest of n scores, m = max(1, ⌈ℓn⌉), passed strictly above; the
        rate is κ · BetaInv(1 − δ/J; m, n − m + 1) (Clopper-Pearson).

        >>> [round(q, 3) for q in Levels.certified(400).rates]
        [0.031, 0.042, 0.06, 0.118, 0.302]
        """
        m = np.array([max(1, math.ceil(round(level * n, 9))) for level in levels])
        q = kappa * betaincinv(m, np.maximum(n - m + 1, 1), 1 - delta / len(levels))
        return cls(n, tuple(levels), tuple(float(v) for v in q))


@dataclass(frozen=True, slots=True, eq=False)
class Bets:
    """The e-values of one tier.

    Parameters
    ----------
    factors:
        (J + 1, 15) float32: row k holds the e-values of an input that passed k thresholds.
    used:
        (15,) float32: 1/cells for cells that count in the mean, 0 for duplicates.
    era:
        Names the checkpoint; on a change the evidence is spread evenly over the cells.
    rates:
        The rates that were bet against.
    """

    factors: NDArray[np.float32]
    used: NDArray[np.float32]
    era: int
    rates: tuple[float, ...]

    @classmethod
    def against(
        cls, base: Levels, *, rates: Sequence[float] | None = None, version: str = ""
    ) -> Bets:
        """Bets on rates over the certified ones; ``rates`` raises them (a tier, or drift)."""
        q = np.maximum(np.array(base.rates), base.rates if rates is None else np.array(rates))
        cells = _bets(np.array(base.rates))
        duplicate = np.zeros((len(LEVELS), BETS), bool)
        duplicate[:, 1] = cells[:, 1] == cells[:, 0]
        duplicate[:, 2] = (cells[:, 2] == cells[:, 1]) | (cells[:, 2] == cells[:, 0])
        duplicate[len(q) :] = True
        r = _bets(q)[: len(q)]
        qs = np.broadcast_to(np.minimum(q, 1.0)[:, None], r.shape)
        fair = r > qs  # a bet at or under the rate would not be an e-value
        above = np.where(fair, r / qs, 1.0)
        below = np.where(fair, (1 - r) / np.where(fair, 1 - qs, 1.0), 1.0)
        factors = np.ones((len(q) + 1, len(LEVELS), BETS))
        for passed in range(len(q) + 1):  # an input passes the lowest thresholds first
            factors[passed, : len(q)] = below
            factors[passed, len(q) - passed : len(q)] = above[len(q) - passed :]
        flat = factors.reshape(len(q) + 1, CELLS).astype(np.float32)
        flat = np.where(flat == 1, flat, np.nextafter(flat, np.float32(0)))  # never rounded up
        used = (~duplicate.reshape(CELLS)).astype(np.float32)
        era = zlib.crc32(version.encode()) & 0xFFFF
        return cls(flat, used / used.sum(), era, tuple(float(v) for v in q))


def _bets(q: NDArray[np.float64]) -> NDArray[np.float64]:
    """(5, 3) rates bet on; rows past the levels repeat the last one."""
    q = np.concatenate([q, np.repeat(q[-1:], len(LEVELS) - len(q))])
    found = np.stack([3 * q, np.maximum(np.sqrt(q), 3 * q), np.full_like(q, TOP_BET)], axis=1)
    capped: NDArray[np.float64] = np.minimum(found, TOP_BET)
    return capped
