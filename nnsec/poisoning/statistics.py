"""The bound that all tests over a window share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def log10_tail(
    hits: NDArray[np.integer], of: int, rates: NDArray[np.float64]
) -> NDArray[np.float64]:
    """log10 of Chernoff's bound on P(Binomial(of, rate) ≥ hits); 0 where hits are no surprise.

    >>> bool(log10_tail(np.array([5]), 10, np.array([0.01]))[0] < -7)
    True
    """
    if of == 0:
        return np.zeros(len(hits))
    share = hits / of
    rates = np.clip(rates, 1e-12, 1 - 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.where(share > 0, share * np.log(share / rates), 0.0)
        kl += np.where(share < 1, (1 - share) * np.log((1 - share) / (1 - rates)), 0.0)
    return np.where(share > rates, -of * kl / np.log(10), 0.0)
