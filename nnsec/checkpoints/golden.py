"""The golden set: a few clean inputs and what the checkpoint made of them when it was signed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnsec.errors import Unsafe
from nnsec.suite import Suite

ROWS = 64
MAX_BYTES = 32 * 1024 * 1024
TOLERANCE = 1e-3
"""Relative; another device or library adds up in another order."""


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Inputs with their known answers.

    Parameters
    ----------
    x:
        (n, *shape) clean inputs in the wire dtype.
    y:
        (n,) int64, their classes.
    prediction:
        (n,) int64, what the model said.
    score:
        (n,) float32, the fused score.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    prediction: NDArray[np.int64]
    score: NDArray[np.float32]

    @classmethod
    def take(cls, suite: Suite, x: NDArray[Any], y: NDArray[np.int64]) -> Golden:
        """Score the first rows and keep them; at most 64 rows and 32 MiB.

        Parameters
        ----------
        x:
            (n, *shape) held-out clean inputs, in an order that is not by class.
        y:
            (n,) their classes.
        """
        rows = max(1, min(ROWS, MAX_BYTES // max(1, x[0].nbytes)))
        x, y = np.ascontiguousarray(x[:rows]), np.ascontiguousarray(y[:rows])
        scored = suite.score(x)
        return cls(x, y, scored.prediction, scored.score)

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it, as arrays."""
        return {"x": self.x, "y": self.y, "prediction": self.prediction, "score": self.score}

    @classmethod
    def restore(cls, state: Mapping[str, NDArray[Any]]) -> Golden:
        """Take back what `state` gave.

        Raises
        ------
        Unsafe
            If it is no golden set.
        """
        try:
            x, y = state["x"], state["y"].astype(np.int64)
            prediction, score = state["prediction"].astype(np.int64), state["score"]
        except KeyError as error:
            raise Unsafe(f"the golden set is incomplete: {error}") from error
        if {y.ndim, prediction.ndim, score.ndim} != {1} or not x.ndim:
            raise Unsafe("the golden set has parts that are no lists")
        if not 1 <= len(x) == len(y) == len(prediction) == len(score):
            raise Unsafe("the golden set has parts of different lengths")
        return cls(x, y, prediction, score.astype(np.float32))


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a checkpoint in memory does what it did when it was signed.

    Parameters
    ----------
    n:
        Golden inputs.
    predictions, scores:
        How many predictions are the same, and how many scores within `TOLERANCE`.
    accuracy:
        Share of right predictions now.
    """

    n: int
    predictions: int
    scores: int
    accuracy: float

    @property
    def whole(self) -> bool:
        """Whether all of them agree, but for one in twenty on a class or score boundary."""
        return min(self.predictions, self.scores) >= 0.95 * self.n


def agreement(suite: Suite, golden: Golden) -> Agreement:
    """Score the golden set with a loaded checkpoint."""
    scored = suite.score(golden.x)
    same = scored.prediction == golden.prediction
    close = np.isclose(scored.score, golden.score, rtol=TOLERANCE, atol=TOLERANCE)
    accuracy = float(np.mean(scored.prediction == golden.y))
    return Agreement(len(golden.y), int(same.sum()), int(close.sum()), accuracy)
