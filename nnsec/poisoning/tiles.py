"""Batches cut into pieces of one size, so that a row's figures do not depend on its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

TILE = 32
"""Rows that a matrix product sees at once; with another number it would round otherwise."""


def tiled(compute: Callable[..., NDArray[Any]], *arrays: NDArray[Any]) -> NDArray[Any]:
    """Compute on pieces of `TILE` rows, the last one padded with its own last row.

    Parameters
    ----------
    compute:
        From as many pieces as there are arrays to an array with as many rows.
    arrays:
        (N, …) each, N ≥ 1.

    Examples
    --------
    >>> tiled(lambda part: part.sum(1) + len(part), np.ones((3, 2))).tolist()
    [34.0, 34.0, 34.0]
    """
    rows = len(arrays[0])
    lack = -rows % TILE
    if lack:
        arrays = tuple(np.concatenate([a, np.repeat(a[-1:], lack, 0)]) for a in arrays)
    starts = range(0, rows + lack, TILE)
    parts = [compute(*(array[k : k + TILE] for array in arrays)) for k in starts]
    return np.concatenate(parts)[:rows]
