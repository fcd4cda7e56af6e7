"""One figure from those of the screens that judge a sample by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnsec.errors import Unsafe


@dataclass(frozen=True, slots=True, eq=False)
class Excess:
    """Root of the summed squares by which figures exceed the usual, in standard deviations.

    It is one-sided, unlike the fusion of the detectors: a sample that agrees with its neighbours
    more than most do must not be held against it.

    Parameters
    ----------
    usual, spread:
        (screens,) median and standard deviation over clean samples.
    """

    usual: NDArray[np.float64]
    spread: NDArray[np.float64]

    @classmethod
    def fit(cls, figures: NDArray[np.float64]) -> Excess:
        """Learn what is usual of (n, screens) figures of clean samples."""
        return cls(np.median(figures, axis=0), np.maximum(figures.std(axis=0), 1e-9))

    def score(self, figures: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) ≥ 0; larger is more suspicious."""
        return np.asarray(np.sqrt((self.above(figures) ** 2).sum(axis=1)))

    def above(self, figures: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, screens) by how much each figure exceeds the usual, 0 where it does not."""
        return np.asarray(np.maximum((figures - self.usual) / self.spread, 0.0))

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it, as arrays."""
        return {"usual": self.usual, "spread": self.spread}

    @classmethod
    def restore(cls, state: Mapping[str, NDArray[Any]]) -> Excess:
        """Take back what `state` gave.

        Raises
        ------
        Unsafe
            If it is none.
        """
        try:
            usual, spread = (np.asarray(state[name], np.float64) for name in ("usual", "spread"))
        except (KeyError, ValueError) as error:
            raise Unsafe(f"the fusion of the screens is incomplete: {error!r}") from error
        if usual.ndim != 1 or usual.shape != spread.shape or not (spread > 0).all():
            raise Unsafe("the fusion of the screens does not fit itself")
        return cls(usual, spread)
