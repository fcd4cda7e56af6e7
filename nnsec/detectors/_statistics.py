"""Statistics of an input by itself, which the input detectors share."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnsec.network import Forward, Network

BINS = 16
TINY = 1e-6
VECTOR = ("mean", "std", "skewness", "kurtosis", "clipping_ratio", "largest_step", "entropy")
IMAGE = (
    *VECTOR,
    "fft_mean",
    "fft_std",
    "gradient_horizontal",
    "gradient_vertical",
    "dct_high_energy",
    "laplacian",
)


def statistics(forward: Forward, network: Network) -> NDArray[np.float64]:
    """Statistics of each input, computed once a batch.

    Returns
    -------
    (batch, 13) for images, (batch, 7) for vectors, in the order of `IMAGE` and `VECTOR`.
    """

    def compute() -> NDArray[np.float64]:
        columns = _of_values(forward.inputs.flatten(1))
        if network.image:
            images = forward.inputs.reshape(len(forward), -1, *forward.inputs.shape[-2:])
            columns += _of_images(images)
        found: NDArray[np.float64] = torch.stack(columns, 1).double().cpu().numpy()
        return found

    return forward.once("statistics", compute)


def _of_values(x: Tensor) -> list[Tensor]:
    """Of (batch, values) in [0, 1]; a step is between neighbours in the order of the values."""
    mean = x.mean(1)
    centred = x - mean[:, None]
    square = centred * centred
    variance = square.mean(1)
    std = variance.sqrt()
    skewness = (square * centred).mean(1) / (std + TINY) ** 3
    kurtosis = (square * square).mean(1) / (variance + TINY) ** 2
    clipped = ((x <= 0) | (x >= 1)).float().mean(1)
    step = (x[:, 1:] - x[:, :-1]).abs().amax(1) if x.shape[1] > 1 else torch.zeros_like(mean)
    return [mean, std, skewness, kurtosis, clipped, step, _entropy(x)]


def _entropy(x: Tensor) -> Tensor:
    """Of the histogram of values, in nats."""
    code = (x * BINS).to(torch.int32).clamp_(0, BINS - 1)
    first = torch.arange(0, BINS * len(x), BINS, dtype=torch.int32, device=x.device)[:, None]
    counts = torch.bincount((code + first).flatten(), minlength=BINS * len(x))
    shares = counts.reshape(len(x), BINS).float() / x.shape[1]
    entropy: Tensor = torch.special.entr(shares).sum(1)
    return entropy


def _of_images(x: Tensor) -> list[Tensor]:
    """Of (batch, channels, height, width) in [0, 1]."""
    height, width = x.shape[-2:]
    spectrum = torch.fft.rfft2(x).abs().flatten(1) / math.sqrt(height * width)
    down, right = (_dct(size).to(x.device) for size in (height, width))
    energy = (down @ x @ right.T).square()
    place = torch.arange(height)[:, None] / height + torch.arange(width)[None, :] / width
    high = (energy * (place >= 1).to(x.device)).sum((1, 2, 3))
    laplacian = (
        4 * x[..., 1:-1, 1:-1]
        - (x[..., :-2, 1:-1] + x[..., 2:, 1:-1])
        - (x[..., 1:-1, :-2] + x[..., 1:-1, 2:])
    )
    return [
        spectrum.mean(1),
        spectrum.std(1),
        (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3)),
        (x[..., 1:, :] - x[..., :-1, :]).abs().mean((1, 2, 3)),
        high / (energy.sum((1, 2, 3)) + TINY),
        laplacian.abs().mean((1, 2, 3)),
    ]


@cache
def _dct(size: int) -> Tensor:
    """The orthonormal DCT-II matrix, (size, size)."""
    k, place = torch.arange(size)[:, None], torch.arange(size)[None, :]
    matrix = torch.cos(math.pi * (2 * place + 1) * k / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix
