"""Calibration: what a fused score means, as a p-value and as certified levels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from nnsec.bets import LEVELS, Bets, Levels
from nnsec.errors import ConfigError, Unsafe

POINTS_PER_ALPHA = 10
"""A class is calibrated by itself from this many points over α; with fewer it flags nothing."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What a calibration can and cannot promise.

    Parameters
    ----------
    n:
        Calibration points.
    alpha:
        Inputs with a p-value of at most this are flagged.
    smallest_p:
        1 / (n + 1).
    false_positive_rate:
        5 % and 95 % points of this checkpoint's rate of flagged clean inputs, over the draw of the
        calibration points; Beta(k, n + 1 − k), k = ⌊α (n + 1)⌋ (Vovk 2012; Bates and others 2023).
    smallest_attack_share:
        From this share of attack inputs on, each past a level, the evidence on a client grows
        steadily: the mean log of a bet is above 0. With a smaller share it grows by chance, so that
        the client is accused late or never. 1 if no bet can grow.
    """

    n: int
    alpha: float
    smallest_p: float
    false_positive_rate: tuple[float, float]
    smallest_attack_share: float

    def __str__(self) -> str:
        low, high = (100 * rate for rate in self.false_positive_rate)
        need = math.ceil(1 / self.alpha) - 1
        lacking = "" if high else f" (with fewer than {need} nothing is ever flagged)"
        return (
            f"{self.n} points{lacking}; smallest p-value {self.smallest_p:.2g}; "
            f"clean inputs flagged {low:.2f} to {high:.2f} % (90 % range at α = {self.alpha:g}); "
            "evidence on a client grows steadily from "
            f"{100 * self.smallest_attack_share:.1f} % attack inputs on"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Scores of clean inputs that nothing was fitted on.

    Parameters
    ----------
    scores:
        (n,) ascending.
    predictions:
        (n,) the predicted class of each; misclassified inputs are there too.
    alpha:
        Inputs with a p-value of at most this are flagged.
    """

    scores: NDArray[np.float64]
    predictions: NDArray[np.int64]
    alpha: float

    @classmethod
    def fit(
        cls, scores: NDArray[np.floating], predictions: NDArray[np.integer], *, alpha: float
    ) -> Calibration:
        """Calibrate.

        Parameters
        ----------
        scores:
            (n,) finite, in any order.
        predictions:
            (n,) predicted classes.
        alpha:
            In (0, 1).

        Raises
        ------
        ConfigError
            Without any score.
        """
        if not len(scores):
            raise ConfigError("there is no input to calibrate on; give more reference data")
        order = np.argsort(scores, kind="stable")
        ordered = np.asarray(scores, np.float64)[order]
        return cls(ordered, np.asarray(predictions, np.int64)[order], alpha)

    @property
    def n(self) -> int:
        """Calibration points."""
        return len(self.scores)

    @property
    def levels(self) -> Levels:
        """Points and certified rates, as the evidence needs them."""
        return Levels.certified(self.n)

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """(J,) τ of each level: the m-th largest score, m = max(1, ⌈ℓn⌉); descending."""
        ranks = [max(1, math.ceil(round(level * self.n, 9))) for level in LEVELS]
        taus: NDArray[np.float64] = self.scores[self.n - np.array(ranks)]
        return taus

    @property
    def rates(self) -> NDArray[np.float64]:
        """(J,) the certified rate q of each level."""
        return np.array(self.levels.rates)

    def level(self, scores: NDArray[np.floating]) -> NDArray[np.uint8]:
        """How many thresholds each score exceeds, strictly: 0 to J."""
        passed = np.asarray(scores, np.float64)[:, None] > self.thresholds[None, :]
        counts: NDArray[np.uint8] = passed.sum(1).astype(np.uint8)
        return counts

    def p_value(
        self, scores: NDArray[np.floating], predictions: NDArray[np.integer] | None = None
    ) -> NDArray[np.float64]:
        """(1 + #{calibration ≥ s}) / (n + 1) for each score s.

        Parameters
        ----------
        scores:
            (batch,).
        predictions:
            (batch,) predicted classes. A class with `POINTS_PER_ALPHA` / α points of its own is
            judged by them; None: all are judged by the pool.

        Returns
        -------
        (batch,) in (0, 1].
        """
        p = rank_p_value(self.scores, np.asarray(scores, np.float64))
        if predictions is None or self.n < POINTS_PER_ALPHA / self.alpha:
            return p
        for label in np.unique(predictions):
            own = self.scores[self.predictions == label]
            if len(own) >= POINTS_PER_ALPHA / self.alpha:
                rows = predictions == label
                p[rows] = rank_p_value(own, np.asarray(scores, np.float64)[rows])
        return p

    def describe(self) -> Promise:
        """What this calibration can and cannot promise."""
        k = math.floor(self.alpha * (self.n + 1) + 1e-9)
        rate = (0.0, 0.0)
        if k:
            low, high = betaincinv(k, self.n + 1 - k, [0.05, 0.95])
            rate = (float(low), float(high))
        smallest = 1 / (self.n + 1)
        return Promise(self.n, self.alpha, smallest, rate, _smallest_share(self.levels))

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it, as arrays."""
        return {
            "scores": self.scores,
            "predictions": self.predictions,
            "alpha": np.array([self.alpha]),
        }

    @classmethod
    def restore(cls, state: Mapping[str, NDArray[Any]]) -> Calibration:
        """Take back what `state` gave.

        Raises
        ------
        Unsafe
            If it is no calibration.
        """
        try:
            scores = np.asarray(state["scores"], np.float64)
            predictions = np.asarray(state["predictions"], np.int64)
            alpha = float(state["alpha"][0])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise Unsafe(f"the calibration is incomplete: {error!r}") from error
        ascending = scores.ndim == 1 and scores.size and bool(np.all(np.diff(scores) >= 0))
        finite = bool(np.isfinite(scores).all())
        if not (ascending and finite) or predictions.shape != scores.shape or not 0 < alpha < 1:
            raise Unsafe("the calibration is none: scores must ascend, one prediction for each")
        return cls(scores, predictions, alpha)


def rank_p_value(
    ascending: NDArray[np.float64], scores: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(1 + #{ascending ≥ s}) / (n + 1).

    >>> rank_p_value(np.array([1.0, 2.0, 2.0]), np.array([0.0, 2.0, 3.0])).tolist()
    [1.0, 0.75, 0.25]
    """
    n = len(ascending)
    return (1 + n - np.searchsorted(ascending, scores, side="left")) / (n + 1)


def _smallest_share(levels: Levels) -> float:
    """The least rate of passing some level at which the mean log of some bet is 0."""
    bets = Bets.against(levels)
    shares = []
    for passed in range(1, len(levels.rates) + 1):
        gain = np.log(bets.factors[passed].astype(np.float64))
        loss = -np.log(bets.factors[0].astype(np.float64))
        grows = (gain > 0) & (loss > 0) & (bets.used > 0)
        shares.append(np.min(loss[grows] / (loss + gain)[grows], initial=1.0))
    return float(min(shares))
