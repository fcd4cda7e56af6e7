"""River's change detectors over one signal's votes, with a state that can be written down.

ADWIN compares the two ends of a window that it grows and cuts itself (Bifet and Gavaldà, 2007);
Page-Hinkley sums what goes past the running mean (Page, 1954). They say that something changed, and
not whether it left what calibration allows: that is the interval's part.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import drift

ADWIN_DELTA = 0.002
TOLERANCE = 0.05
SUM = 2.0


class Change:
    """ADWIN and Page-Hinkley side by side; votes are in [0, 1]."""

    def __init__(self) -> None:
        make: Any = drift  # River's types are partial
        self._adwin = make.ADWIN(delta=ADWIN_DELTA, clock=1)
        self._hinkley = make.PageHinkley(min_instances=30, delta=TOLERANCE, threshold=SUM)

    def update(self, votes: Iterable[float]) -> frozenset[str]:
        """Take votes in order; the names of the detectors that found a change among them."""
        found: set[str] = set()
        for vote in votes:
            self._adwin.update(vote)
            if self._adwin.drift_detected:
                found.add("adwin")
            self._hinkley.update(vote)
            if self._hinkley.drift_detected:
                found.add("page_hinkley")
        return frozenset(found)

    def state(self) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """ADWIN's bytes and Page-Hinkley's numbers."""
        hinkley = self._hinkley
        numbers = [
            float(self._adwin.drift_detected), float(hinkley.drift_detected),
            hinkley._x_mean.n, hinkley._x_mean._mean, hinkley._sum_increase,  # noqa: SLF001
            hinkley._sum_decrease, hinkley._min_increase, hinkley._max_decrease,  # noqa: SLF001
        ]  # fmt: skip
        raw = bytes(self._adwin._helper.__getstate__())  # noqa: SLF001 - River offers no other way
        return np.frombuffer(raw, np.uint8), np.array(numbers, np.float64)

    def restore(self, raw: NDArray[np.uint8], numbers: NDArray[np.float64]) -> None:
        """Take up what `state` gave.

        The bytes must have been checked by a digest: River's own reader takes changed ones.
        """
        self._adwin._helper.__setstate__(raw.tobytes())  # noqa: SLF001
        hinkley = self._hinkley
        self._adwin._drift_detected = bool(numbers[0])  # noqa: SLF001
        hinkley._drift_detected = bool(numbers[1])  # noqa: SLF001
        hinkley._x_mean.n, hinkley._x_mean._mean = float(numbers[2]), float(numbers[3])  # noqa: SLF001
        hinkley._sum_increase, hinkley._sum_decrease = float(numbers[4]), float(numbers[5])  # noqa: SLF001
        hinkley._min_increase, hinkley._max_decrease = float(numbers[6]), float(numbers[7])  # noqa: SLF001
