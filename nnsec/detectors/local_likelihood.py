"""Likelihood of each pixel given those beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nnsec.detectors.base import Detector
from nnsec.errors import Unsafe
from nnsec.network import Forward, Network

VALUES = 16
"""Steps in which a pixel's value is told."""
MEANS = 8
RANGES = 4
"""Steps in which the mean and the range of its four neighbours are told."""
PRIOR = 8.0
"""Weight of what is usual of all pixels, in pixels, where a neighbourhood was seldom seen."""


class LocalLikelihood(Detector):
    """How improbable the pixels are, each given its four neighbours: the mean of −log P.

    Clean images are predictable from pixel to pixel. An attack that moves every pixel by the sign
    of a gradient is not, whatever the network that it was made for: this looks at inputs alone.

    Source: the pseudo-likelihood of Besag, "Statistical analysis of non-lattice data", 1975;
    adversarial inputs are improbable images: Song and others, "PixelDefend", ICLR 2018.
    """

    name: ClassVar[str] = "local_likelihood"
    needs_images: ClassVar[bool] = True
    fitted: ClassVar[tuple[str, ...]] = ("surprise",)

    surprise: NDArray[np.float64]
    """(MEANS · RANGES, VALUES) −log P(value | neighbourhood), in nats."""

    def fit(
        self, reference: Forward, labels: NDArray[np.int64], network: Network, seed: int
    ) -> None:
        """See `Detector.fit`."""
        code = codes(reference.inputs).flatten()
        counts = torch.bincount(code, minlength=MEANS * RANGES * VALUES).double().cpu().numpy()
        counts = counts.reshape(MEANS * RANGES, VALUES)
        usual = (counts.sum(0) + 1) / (counts.sum() + VALUES)
        smooth = counts + PRIOR * usual
        self.surprise = -np.log(smooth / smooth.sum(1, keepdims=True))

    def score(self, forward: Forward, network: Network) -> NDArray[np.float64]:
        """See `Detector.score`."""
        table = torch.from_numpy(self.surprise).to(forward.inputs.device).flatten()
        pixels = table.index_select(0, codes(forward.inputs).flatten())
        mean: NDArray[np.float64] = pixels.reshape(len(forward), -1).mean(1).cpu().numpy()
        return mean

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See `Detector.restore`; the table must have its size."""
        super().restore(state)
        if self.surprise.shape != (MEANS * RANGES, VALUES) or self.surprise.dtype != np.float64:
            raise Unsafe(f"the table of detector {self.name!r} has another size")


def codes(x: Tensor) -> Tensor:
    r"""Neighbourhood and value of each pixel, as one index into the table.

    Parameters
    ----------
    x:
        (batch, \*shape) images in [0, 1]; what is past the border counts as 0.

    Returns
    -------
    (batch, channels, height, width) int32.
    """
    images = x.reshape(x.shape[0], -1, *x.shape[-2:])
    padded = functional.pad(images, (1, 1, 1, 1))
    left, right = padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]
    above, below = padded[..., :-2, 1:-1], padded[..., 2:, 1:-1]
    # In pairs: the sum does not depend on the order in which a compiler adds.
    mean = ((left + right) + (above + below)) / 4
    low = torch.minimum(torch.minimum(left, right), torch.minimum(above, below))
    high = torch.maximum(torch.maximum(left, right), torch.maximum(above, below))
    context = _step(mean, MEANS) * RANGES + _step(high - low, RANGES)
    return context * VALUES + _step(images, VALUES)


def _step(x: Tensor, steps: int) -> Tensor:
    """Which of ``steps`` equal parts of [0, 1] each value is in."""
    return (x * steps).to(torch.int32).clamp_(0, steps - 1)
