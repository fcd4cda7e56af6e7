"""Input statistics by their largest deviation."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nnsec.detectors._statistics import statistics
from nnsec.detectors.base import Detector
from nnsec.network import Forward, Network


class InputZScore(Detector):
    """The largest |z| of an input's statistics, by the mean and deviation of clean inputs."""

    name: ClassVar[str] = "input_zscore"
    fitted: ClassVar[tuple[str, ...]] = ("mean", "std")

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    def fit(
        self, reference: Forward, labels: NDArray[np.int64], network: Network, seed: int
    ) -> None:
        """See `Detector.fit`."""
        found = statistics(reference, network)
        self.mean = found.mean(axis=0)
        self.std = np.maximum(found.std(axis=0), 1e-6)

    def score(self, forward: Forward, network: Network) -> NDArray[np.float64]:
        """See `Detector.score`."""
        z = np.abs(statistics(forward, network) - self.mean) / self.std
        largest: NDArray[np.float64] = z.max(axis=1)
        return largest
