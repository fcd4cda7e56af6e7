"""Gaussians with shrunk covariance, for the detectors that measure distances."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def class_means(values: Array, labels: NDArray[np.int64], classes: int) -> Array:
    """(classes, width) mean of each class; a class that is not there gets the mean of all."""
    return np.stack(
        [values[labels == k].mean(0) if (labels == k).any() else values.mean(0)
         for k in range(classes)]
    )  # fmt: skip


def whitener(residuals: Array) -> Array:
    """(width, width) W such that ‖W r‖² is the Mahalanobis length of r, covariance shrunk."""
    from sklearn.covariance import ledoit_wolf  # a second that workers, who fit nothing, are spared

    covariance, _ = ledoit_wolf(residuals, assume_centered=True)
    ridge = 1e-6 * np.trace(covariance) / len(covariance) + 1e-12
    values, vectors = np.linalg.eigh(covariance + ridge * np.eye(len(covariance)))
    # In C order, as a checkpoint gives it back: the order in memory moves a product's last digits.
    return np.ascontiguousarray((vectors / np.sqrt(np.maximum(values, ridge))).T)


def square_distances(values: Array, centres: Array, root: Array) -> Array:
    """(batch, centres) squared Mahalanobis distances."""
    a, b = values @ root.T, centres @ root.T
    squares: Array = ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)
    return squares
