"""An input unlike all known ones."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nnsec.poisoning.base import Reference, SampleScreen
from nnsec.poisoning.rowwise import product
from nnsec.poisoning.samples import Geometry, Samples

SHRINKAGE = 0.3
MAX_WIDTH = 1024
FLOOR = 1e-9


class Outlier(SampleScreen):
    """Log of the Mahalanobis distance of the input, with shrunk covariance.

    It is measured on the input and not on features: a network learns to overlook what does not
    help to classify, and a trigger in a corner that is always empty is just that.

    Source: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
    matrices" (2004), with a fixed intensity that serves few samples of many pixels as well.
    """

    reason: ClassVar[str] = "outlier"
    fitted: ClassVar[tuple[str, ...]] = ("mean", "whitening")

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.mean = np.zeros(0, np.float32)
        self.whitening = np.zeros((0, 0), np.float32)

    def fit(self, reference: Reference) -> None:
        """Learn mean and covariance of the known inputs."""
        known = self._reduce(reference.known)
        self.mean = known.mean(0)
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov((known - self.mean).T)))
        values = (1 - SHRINKAGE) * values + SHRINKAGE * max(float(values.mean()), FLOOR)
        self.whitening = np.asarray(vectors / np.sqrt(values), np.float32)

    def score(self, samples: Samples) -> NDArray[np.float64]:
        """(N,) log of the distance."""
        white = product(self._reduce(samples) - self.mean, self.whitening)
        squares = (white.astype(np.float64) ** 2).sum(1)
        return np.asarray(0.5 * np.log(np.maximum(squares, FLOOR)))

    def _reduce(self, samples: Samples) -> NDArray[np.float32]:
        """(N, at most 1024): large inputs are averaged down."""
        if samples.scaled.shape[1] <= MAX_WIDTH:
            return samples.scaled
        return self.geometry.reduce(samples.scaled, MAX_WIDTH)
