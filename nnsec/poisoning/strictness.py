"""How strictly a source is judged, by the share of its last samples that were suspicious."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nnsec.poisoning.statistics import log10_tail
from nnsec.poisoning.window import SourceWindow

LEAST_ROWS = 16
SIGNIFICANT = 6.0
"""Powers of ten: so unlikely must the source's share be."""


def strict(window: SourceWindow, rates: NDArray[np.float64]) -> int:
    """The level from which this source's samples are quarantined beyond the usual threshold.

    For each level, the samples of the window that pass it are counted. Clean ones pass at most at
    its certified rate, whatever the source, so that Chernoff's bound on so many says how surely
    the source is not clean. While that is under 10⁻⁶ for any level, samples that pass the level
    with a nominal rate of 3 % go to quarantine.

    Parameters
    ----------
    window:
        The source's last samples.
    rates:
        (J,) certified, ascending; a sample of level v passes the v last ones.

    Returns
    -------
    The level, or 0 while nothing is unusual.
    """
    levels = window.rows["level"]
    if len(levels) < LEAST_ROWS or not levels.any():
        return 0
    needed = len(rates) - np.arange(len(rates))
    passed = (levels[:, None] >= needed[None, :]).sum(0)
    if (-log10_tail(passed, len(levels), rates) > SIGNIFICANT).any():
        return STRICT_LEVEL
    return 0


STRICT_LEVEL = 2
"""Thresholds passed at a nominal 3 %."""
