"""Running detectors over a batch in pieces of known sizes, so that a row is scored by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from nnsec.cascade import LARGEST
from nnsec.detectors import Detector
from nnsec.network import Forward, Network
from nnsec.shapes import alike, pieces

PIECE = 32
"""Inputs that cheap detectors look at together, at least: their calls cost more than their sums."""


class Stage:
    """Detectors that look at the same inputs.

    Parameters
    ----------
    detectors:
        Fitted.
    size:
        Inputs that they look at together, at most; on a CPU fewer, where that was found to give
        the same bits.
    """

    def __init__(self, network: Network, detectors: Sequence[Detector], size: int) -> None:
        self._network = network
        self._detectors = tuple(detectors)
        self.sizes: tuple[int, ...] = (size,)
        if network.device.type == "cpu":
            seeded = torch.Generator().manual_seed(0)
            x = torch.rand((size, *network.input.shape), generator=seeded)
            forward = network.from_scaled(x)
            self.sizes = alike(lambda k: [self._scores(forward, (k,))], size)

    def scores(self, forward: Forward) -> NDArray[np.float64]:
        """(batch, detectors) finite. A row's scores do not depend on the rows beside it."""
        return self._scores(forward, self.sizes)

    def _scores(self, forward: Forward, sizes: Sequence[int]) -> NDArray[np.float64]:
        scores = np.zeros((len(forward), len(self._detectors)))
        for part, size in pieces(len(forward), sizes):
            # A copy, also of a full piece: how a view lies in memory could choose another kernel.
            piece = forward[part].padded(size)
            for column, detector in enumerate(self._detectors):
                found = detector.score(piece, self._network)
                scores[part, column] = found[: part.stop - part.start]
        return np.nan_to_num(scores, nan=LARGEST, posinf=LARGEST, neginf=-LARGEST, copy=False)


class Stages:
    """All detectors of a model: the cheap ones, and the costly ones.

    Costly detectors look at half a tile at a time, as two changed copies of it fill one pass of the
    model; and each for itself, as some can do with smaller pieces than others.

    Parameters
    ----------
    detectors:
        Fitted.
    """

    def __init__(self, network: Network, detectors: Sequence[Detector]) -> None:
        self.cheap = cheap(detectors)
        early = [detector for detector, one in zip(detectors, self.cheap, strict=True) if one]
        self._first = Stage(network, early, max(PIECE, network.tile))
        self._second = {
            column: Stage(network, [detectors[column]], max(network.tile // 2, 1))
            for column in np.flatnonzero(~self.cheap).tolist()
        }

    def first(self, forward: Forward) -> NDArray[np.float64]:
        """(batch, detectors) scores of the cheap detectors; 0 for the others."""
        raw = np.zeros((len(forward), len(self.cheap)))
        raw[:, self.cheap] = self._first.scores(forward)
        return raw

    def second(
        self, raw: NDArray[np.float64], forward: Forward, through: NDArray[np.bool_]
    ) -> None:
        """Fill in the scores of the costly detectors.

        Parameters
        ----------
        raw:
            What `first` gave.
        through:
            (batch,) for which rows.
        """
        rows = np.flatnonzero(through)
        if len(rows):
            doubtful = forward[rows]
            for column, stage in self._second.items():
                raw[rows, column] = stage.scores(doubtful)[:, 0]

    def whole(self, forward: Forward) -> NDArray[np.float64]:
        """(batch, detectors) scores of all detectors for all rows."""
        raw = self.first(forward)
        self.second(raw, forward, np.ones(len(forward), np.bool_))
        return raw


def cheap(detectors: Sequence[Detector]) -> NDArray[np.bool_]:
    """(detectors,) which run on every input; where all are costly, all do."""
    found = np.array([not detector.costly for detector in detectors])
    return found if found.any() else ~found
