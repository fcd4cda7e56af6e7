"""Data for these networks, and a short training; seeded, and gone in seconds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.nn import functional

REACH = 8.0
"""Standardised features are clipped to this many deviations."""


def pictures(n: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Colour images (n, 3, 32, 32) of four classes: disc, square, stripes, cross; and (n,) labels.

    Place, size, colours and noise are drawn, so that only the form tells the class.
    """
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    cx, cy = rng.uniform(12, 20, (2, n, 1, 1))
    size = rng.uniform(7, 10, (n, 1, 1))
    rows, columns = np.mgrid[0:32, 0:32].astype(float)
    dx, dy = np.abs(columns - cx), np.abs(rows - cy)
    inside = np.maximum(dx, dy) < size
    forms = (
        np.hypot(dx, dy) < size,
        inside,
        inside & ((rows + np.zeros((n, 1, 1))) % 4 < 2),
        inside & (np.minimum(dx, dy) < 2),
    )
    form = np.choose(y[:, None, None], forms)[:, None]
    ground, ink = rng.uniform(20, 110, (n, 3, 1, 1)), rng.uniform(140, 235, (n, 3, 1, 1))
    x = np.where(form, ink, ground) + rng.normal(0, 10, (n, 3, 32, 32))
    return np.clip(np.rint(x), 0, 255).astype(np.uint8), y.astype(np.int64)


def cancer(seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scikit-learn's breast-cancer data in a drawn order: (569, 30) standardised, and labels."""
    raw = load_breast_cancer()
    order = np.random.default_rng(seed).permutation(len(raw.target))
    z = (raw.data - raw.data.mean(0)) / raw.data.std(0)
    return np.clip(z, -REACH, REACH)[order].astype(np.float32), raw.target[order].astype(np.int64)


def train(
    module: nn.Module, x: NDArray[Any], y: NDArray[np.int64], *, epochs: int, seed: int
) -> nn.Module:
    """Train on inputs already scaled to [0, 1]."""
    torch.manual_seed(seed)
    for layer in module.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    inputs, labels = torch.from_numpy(x).float(), torch.from_numpy(y)
    module.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(module(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    return module.eval()
