"""Relative Mahalanobis distance in feature space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnsec.detectors._gaussian import class_means, whitener
from nnsec.detectors.base import Detector
from nnsec.network import Forward, Network


class Mahalanobis(Detector):
    """Distance of the features to the nearest class, less that to all clean inputs taken together.

    Source: Ren and others, "A simple fix to Mahalanobis distance for improving near-OOD
    detection", 2021, eq. 3; covariances shrunk (Ledoit and Wolf 2004).
    """

    name: ClassVar[str] = "mahalanobis"
    fitted: ClassVar[tuple[str, ...]] = ("means", "root", "mean", "background")

    means: NDArray[np.float64]
    root: NDArray[np.float64]
    mean: NDArray[np.float64]
    background: NDArray[np.float64]
    _measures: tuple[_Measure, _Measure] | None = None

    def fit(
        self, reference: Forward, labels: NDArray[np.int64], network: Network, seed: int
    ) -> None:
        """See `Detector.fit`."""
        values = reference.embedding
        self.means = class_means(values, labels, network.classes)
        self.root = whitener(values - self.means[labels])
        self.mean = values.mean(0, keepdims=True)
        self.background = whitener(values - self.mean)
        self._measures = None

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See `Detector.restore`."""
        super().restore(state)
        self._measures = None

    def score(self, forward: Forward, network: Network) -> NDArray[np.float64]:
        """See `Detector.score`."""
        if self._measures is None:
            near = _Measure(self.means, self.root, network.device)
            self._measures = near, _Measure(self.mean, self.background, network.device)
        values = forward.features.double()
        near, far = self._measures
        distance = near(values).amin(1) - far(values)[:, 0]
        relative: NDArray[np.float64] = distance.cpu().numpy()
        return relative


class _Measure:
    """As `square_distances`, by torch: it has one pool of threads for all.

    Multiplied out, which in double precision costs digits that no score has. What does not depend
    on the input is computed once.
    """

    def __init__(
        self, centres: NDArray[np.float64], root: NDArray[np.float64], device: torch.device
    ) -> None:
        self._whiten = torch.from_numpy(root).to(device).T
        self._centres = torch.from_numpy(centres).to(device) @ self._whiten
        self._lengths = (self._centres * self._centres).sum(1)[None, :]

    def __call__(self, values: Tensor) -> Tensor:
        """(batch, centres) of (batch, width)."""
        a = values @ self._whiten
        return (a * a).sum(1)[:, None] + self._lengths - 2 * (a @ self._centres.T)
