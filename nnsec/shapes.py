"""Sizes of pieces that give the same figures, bit for bit, so that few inputs cost little.

A row's figures must not depend on the rows beside it, or a replay that cuts batches differently
would give others. So each computation has one shape, and a piece with fewer rows is padded. But
most computations give a row the same bits in a smaller shape too: which kernel a library takes is
decided by the shape, and it adds in the same order from some size on. This is tried out, on random
rows, when a model is loaded: an order that differs would show in the last digits of at least one of
hundreds of figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Run = Callable[[int], Sequence[NDArray[np.generic]]]


def alike(run: Run, full: int) -> tuple[int, ...]:
    """Find the sizes that give what the full size gives.

    Parameters
    ----------
    run:
        Cuts ``full`` rows that are the same each time into pieces of a size that divides it, and
        gives the figures of all rows.
    full:
        The size that is right by definition.

    Returns
    -------
    tuple
        Ascending, each half of the next; the last is ``full``.

    >>> alike(lambda size: [np.ones(8) * (size > 2)], 8)
    (4, 8)
    """
    right = run(full)
    sizes = [full]
    while sizes[0] % 2 == 0:
        half = sizes[0] // 2
        if not all(np.array_equal(a, b) for a, b in zip(run(half), right, strict=True)):
            break
        sizes.insert(0, half)
    return tuple(sizes)


def pieces(rows: int, sizes: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Cut rows into pieces of the full size, and the rest into the smallest that takes it.

    Parameters
    ----------
    sizes:
        As `alike` gives them.

    Yields
    ------
    tuple
        Which rows, and the size to pad them to.

    >>> [(part.start, part.stop, size) for part, size in pieces(11, (4, 8))]
    [(0, 8, 8), (8, 11, 4)]
    """
    bounds = [*range(0, rows, sizes[-1]), rows]
    for start, stop in pairwise(bounds):
        yield slice(start, stop), next(size for size in sizes if size >= stop - start)
