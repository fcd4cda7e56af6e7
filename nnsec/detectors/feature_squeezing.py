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


class FeatureSqueezing(Stateless):
    """The largest L1 distance between the softmax of an input and of its squeezed copies.

    The copies: values cut to 3 bits, and the median of each 3 by 3 neighbourhood.

    Source: Xu, Evans and Qi, "Feature squeezing", NDSS 2018.
    """

    name: ClassVar[str] = "feature_squeezing"
    costly: ClassVar[bool] = True
    needs_images: ClassVar[bool] = True

    def score(self, forward: Forward, network: Network) -> NDArray[np.float64]:
        """See `Detector.score`."""
        copies = torch.cat([cut(forward.inputs), median(forward.inputs)])
        before = forward.logits.double().softmax(1)
        after = network.from_scaled(copies).logits.double().softmax(1)
        moved = (after.reshape(2, *before.shape) - before).abs().sum(2)
        largest: NDArray[np.float64] = moved.amax(0).cpu().numpy()
        return largest


def cut(x: Tensor) -> Tensor:
    """(batch, *shape) with 2^BITS values left."""
    steps = 2**BITS - 1
    coarse: Tensor = (x * steps).round() / steps
    return coarse


def median(x: Tensor) -> Tensor:
    """(batch, *shape) filtered, the border mirrored."""
    images = x.reshape(x.shape[0], -1, *x.shape[-2:])
    padded = functional.pad(images, (1, 1, 1, 1), mode="reflect")
    height, width = images.shape[-2:]
    # Each column of three is sorted once, and serves the three windows that it lies in.
    low, middle, high = _sorted3(*(padded[..., k : k + height, :] for k in range(3)))
    lows, middles, highs = (
        [part[..., k : k + width] for k in range(3)] for part in (low, middle, high)
    )
    largest_low = torch.maximum(torch.maximum(lows[0], lows[1]), lows[2])
    smallest_high = torch.minimum(torch.minimum(highs[0], highs[1]), highs[2])
    found = _median3(largest_low, _median3(*middles), smallest_high)
    return found.reshape(x.shape)


def _sorted3(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three tensors as the smallest, the middle and the largest, value by value."""
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    rest = torch.minimum(high, c)
    return torch.minimum(low, rest), torch.maximum(low, rest), torch.maximum(high, c)


def _median3(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))
