"""Two networks that are nothing like the demo's, and one without a linear head."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """Takes away a mean per channel and divides by a deviation; both are kept with the weights."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((channels, 1, 1), 0.5))
        self.register_buffer("deviation", torch.full((channels, 1, 1), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) in [0, 1] to the same shape."""
        return (x - self.mean) / self.deviation


class Block(nn.Module):
    """Two convolutions with BatchNorm, and a way around them."""

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(narrow, wide, 3, stride, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, 1, 1, bias=False),
            nn.BatchNorm2d(wide),
        )
        self.around = nn.Sequential(
            nn.Conv2d(narrow, wide, 1, stride, bias=False), nn.BatchNorm2d(wide)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, narrow, H, W) to (N, wide, H / stride, W / stride)."""
        return torch.relu(self.path(x) + self.around(x))


def residual() -> nn.Module:
    """A residual network for colour images: (N, 3, 32, 32) in [0, 1] to (N, 4)."""
    return nn.Sequential(
        Standardise(3),
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Block(8, 16, 2),
        Block(16, 32, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def two_layers() -> nn.Module:
    """Two layers for vectors: (N, 30) in [0, 1] to (N, 2)."""
    return nn.Sequential(
        nn.BatchNorm1d(30), nn.Linear(30, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2)
    )


class Relative(nn.Module):
    """Standardises each input by itself: one whose values are all alike becomes NaN."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, features) to the same shape."""
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def relative() -> nn.Module:
    """Two layers behind `Relative`: (N, 30) in [0, 1] to (N, 2)."""
    return nn.Sequential(Relative(), nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))


def headless() -> nn.Module:
    """Convolutions to the end: (N, 3, 32, 32) in [0, 1] to (N, 4), without a linear layer."""
    return nn.Sequential(
        Standardise(3),
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Dropout2d(0.1),
        nn.Conv2d(32, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def broken() -> list[int]:
    """No network at all."""
    return [1, 2, 3]


class Restless(nn.Module):
    """Adds noise to whatever it is given, also when it should be quiet."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, features) to the same shape."""
        return x + 0.3 * torch.randn_like(x)


def restless() -> nn.Module:
    """`two_layers`, with noise that no evaluation mode turns off."""
    return nn.Sequential(
        nn.BatchNorm1d(30), nn.Linear(30, 32), Restless(), nn.ReLU(), nn.Linear(32, 2)
    )


class Mean(nn.Module):
    """One number for each input."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, features) to (N, 1)."""
        return x.mean(1, keepdim=True)


def regression() -> nn.Module:
    """No classifier: (N, 30) to (N, 1), without any weights."""
    return Mean()
