"""Energy: how little the logits speak for any class."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from nnsec.detectors.base import Stateless
from nnsec.network import Forward, Network


class Energy(Stateless):
    """The free energy −log Σ exp(logit).

    Source: Liu and others, "Energy-based out-of-distribution detection", NeurIPS 2020, eq. 4.
    """

    name: ClassVar[str] = "energy"

    def score(self, forward: Forward, network: Network) -> NDArray[np.float64]:
        """See `Detector.score`."""
        energy: NDArray[np.float64] = -torch.logsumexp(forward.logits.double(), 1).cpu().numpy()
        return energy
