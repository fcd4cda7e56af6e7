"""Products row by row, so that a row's figures do not depend on its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 256
"""Rows computed at once at most, which bounds memory; the figures do not depend on it."""


def product(rows: NDArray[Any], matrix: NDArray[Any]) -> NDArray[Any]:
    """(N, K) · (K, M), one row after the other.

    A product of whole matrices rounds a row differently by its place among the others, so that a
    replay cut differently would not be bit-identical.

    >>> product(np.ones((2, 3)), np.ones((3, 1))).tolist()
    [[3.0], [3.0]]
    """
    return np.asarray((rows[:, None, :] @ matrix)[:, 0])


def chunked(compute: Callable[..., NDArray[Any]], *arrays: NDArray[Any]) -> NDArray[Any]:
    """Compute on at most `CHUNK` rows at once.

    Parameters
    ----------
    compute:
        From as many pieces as there are arrays to an array with as many rows.
    arrays:
        (N, …) each, N ≥ 1.
    """
    starts = range(0, len(arrays[0]), CHUNK)
    return np.concatenate([compute(*(a[k : k + CHUNK] for a in arrays)) for k in starts])
