"""Relative Mahalanobis distance in feature space."""

from __future__ import annotations

from typing import ClassVar

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

    def fit(
        self, reference: Forward, labels: NDArray[np.int64], network: Network, seed: int
    ) -> None:
        """See `Detector.fit`."""
        values = reference.embedding
        self.means = class_means(values, labels, network.classes)
        self.root = whitener(values - self.means[labels])
        self.mean = values.mean(0, keepdims=True)
        self.background = whitener(values - self.mean)

    def score(self, forward: Forward, network: Network) -> NDArray[np.float64]:
        """See `Detector.score`."""
        values = forward.features.double()
        near = _square_distances(values, self.means, self.root).amin(1)
        relative: NDArray[np.float64] = (
            (near - _square_distances(values, self.mean, self.background)[:, 0]).cpu().numpy()
        )
        return relative


def _square_distances(
    values: Tensor, centres: NDArray[np.float64], root: NDArray[np.float64]
) -> Tensor:
    """(batch, centres) as `square_distances`, by torch: it has one pool of threads for all.

    Multiplied out, which in double precision costs digits that no score has.
    """
    whiten = torch.from_numpy(root).to(values.device).T
    a, b = values @ whiten, torch.from_numpy(centres).to(values.device) @ whiten
    return (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * (a @ b.T)
