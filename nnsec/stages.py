"""Running detectors over a batch in pieces of one size, so that a row is scored by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnsec.cascade import LARGEST
from nnsec.detectors import Detector
from nnsec.network import Forward, Network

PIECE = 32
"""Inputs that cheap detectors look at together, at least: their calls cost more than their sums."""


def first_stage(
    network: Network, detectors: Sequence[Detector], forward: Forward
) -> NDArray[np.float64]:
    """Scores of every row.

    Returns
    -------
    (batch, detectors) finite. A row's scores do not depend on the rows beside it: each computation
    has one shape, whatever the batch.
    """
    size = max(PIECE, network.tile)
    pieces = [forward[k : k + size] for k in range(0, len(forward), size)]
    pieces[-1] = pieces[-1].padded(size)
    return _scores(network, detectors, pieces)[: len(forward)]


def second_stage(
    network: Network, detectors: Sequence[Detector], forward: Forward, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Scores of some rows.

    Detectors look at half a tile at a time: two changed copies of it fill one pass of the model.

    Parameters
    ----------
    rows:
        Which, in the order of what is returned.

    Returns
    -------
    (rows, detectors) as `first_stage`.
    """
    if not len(rows):
        return np.zeros((0, len(detectors)))
    size = max(network.tile // 2, 1)
    pieces = [forward[rows[k : k + size]].padded(size) for k in range(0, len(rows), size)]
    return _scores(network, detectors, pieces)[: len(rows)]


def cheap(detectors: Sequence[Detector]) -> NDArray[np.bool_]:
    """(detectors,) which run on every input; where all are costly, all do."""
    found = np.array([not detector.costly for detector in detectors])
    return found if found.any() else ~found


def whole(network: Network, detectors: Sequence[Detector], forward: Forward) -> NDArray[np.float64]:
    """(batch, detectors) scores of all detectors for all rows, each in its own stage's shape."""
    raw = np.zeros((len(forward), len(detectors)))
    early = cheap(detectors)
    rows = np.arange(len(forward))
    raw[:, early] = first_stage(network, where(detectors, early), forward)
    if not early.all():
        raw[:, ~early] = second_stage(network, where(detectors, ~early), forward, rows)
    return raw


def where(detectors: Sequence[Detector], chosen: NDArray[np.bool_]) -> list[Detector]:
    """The detectors that are chosen, in their order."""
    return [detector for detector, one in zip(detectors, chosen, strict=True) if one]


def _scores(
    network: Network, detectors: Sequence[Detector], pieces: Sequence[Forward]
) -> NDArray[np.float64]:
    scores = [
        np.stack([detector.score(piece, network) for detector in detectors], axis=1)
        for piece in pieces
    ]
    return np.nan_to_num(
        np.concatenate(scores), nan=LARGEST, posinf=LARGEST, neginf=-LARGEST, copy=False
    )
