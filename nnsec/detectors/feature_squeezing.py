"""Feature squeezing: how far the prediction moves when the input is made coarser."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nnsec.detectors.base import Stateless
from nnsec.network import Forward, Network

BITS = 3
WINDOW = 3


class FeatureSqueezing(Stateless):
    """The largest L1 distance between the softmax of an input and of its squeezed copies.

    The copies: values cut to 3 bits, and the median of each 3 by 3 neighbourhood.

    Source: Xu, Evans and Qi, "Feature squeezing", NDSS 2018.
    """

    name: ClassVar[str] = "feature_squeezing"
    needs_images: ClassVar[bool] = True

    def score(self, forward: Forward, network: Network) -> NDArray[np.float64]:
        """See `Detector.score`."""
        before = forward.logits.double().softmax(1)
        moved = [
            (network.from_scaled(copy).logits.double().softmax(1) - before).abs().sum(1)
            for copy in (cut(forward.inputs), median(forward.inputs))
        ]
        largest: NDArray[np.float64] = torch.stack(moved).amax(0).cpu().numpy()
        return largest


def cut(x: Tensor) -> Tensor:
    """(batch, *shape) with 2^BITS values left."""
    steps = 2**BITS - 1
    coarse: Tensor = (x * steps).round() / steps
    return coarse


def median(x: Tensor) -> Tensor:
    """(batch, *shape) filtered, the border mirrored."""
    images = x.reshape(x.shape[0], -1, *x.shape[-2:])
    half = WINDOW // 2
    padded = functional.pad(images, (half,) * 4, mode="reflect")
    windows = padded.unfold(2, WINDOW, 1).unfold(3, WINDOW, 1).flatten(4)
    return windows.median(-1).values.reshape(x.shape)
