"""Confidence: how close the two best classes are."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nnsec.detectors.base import Stateless
from nnsec.network import Forward, Network


class Confidence(Stateless):
    """The odds against the predicted class, on the log scale: −log(p / (1 − p)).

    The maximum softmax probability, on a scale that does not saturate near 1.

    Source: Hendrycks and Gimpel, "A baseline for detecting misclassified and out-of-distribution
    examples", ICLR 2017.
    """

    name: ClassVar[str] = "confidence"

    def score(self, forward: Forward, network: Network) -> NDArray[np.float64]:
        """See `Detector.score`."""
        logits = forward.logits.double()
        best = logits.argmax(1, keepdim=True)
        rest = logits.scatter(1, best, float("-inf")).logsumexp(1)
        odds: NDArray[np.float64] = (rest - logits.gather(1, best)[:, 0]).cpu().numpy()
        return odds
