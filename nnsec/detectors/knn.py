"""Distance to the nearest clean inputs in feature space."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from nnsec.detectors.base import Detector
from nnsec.network import Forward, Network

NEIGHBOURS = 5
REFERENCES = 4096


class Knn(Detector):
    """Mean distance to the five nearest clean inputs of the predicted class, in features.

    Source: Sun and others, "Out-of-distribution detection with deep nearest neighbors", ICML 2022;
    within the class, as Papernot and McDaniel, "Deep k-nearest neighbors", 2018, look for support.
    """

    name: ClassVar[str] = "knn"
    costly: ClassVar[bool] = True
    fitted: ClassVar[tuple[str, ...]] = ("references", "labels")

    references: NDArray[np.float32]
    labels: NDArray[np.int64]

    def fit(
        self, reference: Forward, labels: NDArray[np.int64], network: Network, seed: int
    ) -> None:
        """See `Detector.fit`."""
        kept = np.random.default_rng(seed).permutation(len(labels))[:REFERENCES]
        self.references = reference.features.cpu().numpy()[kept]
        self.labels = labels[kept]

    def score(self, forward: Forward, network: Network) -> NDArray[np.float64]:
        """See `Detector.score`."""
        return nearest(forward.features, forward.prediction, self.references, self.labels)


def nearest(
    values: torch.Tensor,
    prediction: NDArray[np.int64],
    references: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> NDArray[np.float64]:
    """(batch,) mean distance to the nearest references with the predicted label.

    A class without references is as far as can be.
    """
    distance = torch.cdist(values, torch.from_numpy(references).to(values.device))
    other = torch.from_numpy(labels[None, :] != prediction[:, None]).to(values.device)
    near = distance.masked_fill(other, 1e9).topk(min(NEIGHBOURS, len(labels)), largest=False)
    mean: NDArray[np.float64] = near.values.double().mean(1).cpu().numpy()
    return mean
