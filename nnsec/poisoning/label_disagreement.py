"""A label that the sample's neighbours in feature space do not share."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nnsec.poisoning.base import Reference, SampleScreen
from nnsec.poisoning.rowwise import chunked, product
from nnsec.poisoning.samples import Geometry, Samples

NEIGHBOURS = 5
"""Neighbours whose mean distance counts: one alone may be odd itself."""
MAX_KNOWN = 4096
"""Reference samples compared with; more cost time and hardly change the distances."""
SHRINKAGE = 0.1
FLOOR = 1e-6


class LabelDisagreement(SampleScreen):
    """How much nearer the neighbours of another label are than those of the sample's own.

    The figure is log(d_own / d_other), d being the mean distance to the 5 nearest known samples,
    in the space that separates the classes best (linear discriminants of the features): a
    continuous vote, so that a threshold can be set finely.

    Source: the disagreement of neighbours, Zhu, Dong and Liu, "Detecting corrupted labels without
    training a model to predict" (2022); the discriminants, Rao (1948).
    """

    reason: ClassVar[str] = "label_disagreement"
    fitted: ClassVar[tuple[str, ...]] = ("axes", "known", "labels")

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.axes = np.zeros((0, 0), np.float32)
        self.known = np.zeros((0, 0), np.float32)
        self.labels = np.zeros(0, np.int64)

    def fit(self, reference: Reference) -> None:
        """Find the discriminants on fresh features, and keep the known samples in them."""
        fit, known = reference.fit, reference.known
        self.axes = discriminants(
            np.concatenate([fit.features, known.features]),
            np.concatenate([fit.labels, known.labels]),
            within=len(fit),
        )
        rows = np.random.default_rng(reference.seed).permutation(len(known))[:MAX_KNOWN]
        rows.sort()
        self.known = known.features[rows] @ self.axes
        self.labels = known.labels[rows]

    def score(self, samples: Samples) -> NDArray[np.float64]:
        """(N,) log(d_own / d_other)."""
        return chunked(self._ratio, samples.features, samples.labels)

    def neighbour_labels(self, samples: Samples) -> NDArray[np.int64]:
        """(N,) the label of each sample's nearest known sample."""
        return chunked(lambda part: self.labels[self._distances(part).argmin(1)], samples.features)

    def _distances(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, known) squared."""
        here = product(features, self.axes).astype(np.float64)
        known = self.known.astype(np.float64)
        square = (here**2).sum(1)[:, None] + (known**2).sum(1)[None, :] - 2 * product(here, known.T)
        return np.asarray(np.maximum(square, 0.0))

    def _ratio(
        self, features: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        distances = np.sqrt(self._distances(features))
        own = self.labels[None, :] == labels[:, None]
        near = _mean_nearest(distances, own)
        other = _mean_nearest(distances, ~own)
        return np.log(np.maximum(near, FLOOR)) - np.log(np.maximum(other, FLOOR))


def discriminants(
    features: NDArray[np.float32], labels: NDArray[np.int64], *, within: int
) -> NDArray[np.float32]:
    """(F, at most classes − 1) axes along which the classes lie apart, in units of their spread.

    Parameters
    ----------
    features:
        (n, F).
    labels:
        (n,).
    within:
        The spread inside the classes is taken from the first so many rows: those that the network
        was not trained on, for it crowds the others together.
    """
    classes = np.unique(labels)
    means = np.stack([features[labels == label].mean(0) for label in classes]).astype(np.float64)
    inside = features[:within] - means[np.searchsorted(classes, labels[:within])]
    covariance = np.atleast_2d(np.cov(inside.T))
    spread = max(float(np.trace(covariance)) / len(covariance), FLOOR)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * spread * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(covariance)
    whitening = vectors / np.sqrt(np.maximum(values, FLOOR * spread))
    white = (means - means.mean(0)) @ whitening
    _, sizes, axes = np.linalg.svd(white, full_matrices=False)
    kept = axes[: max(1, int((sizes > FLOOR * sizes.max(initial=FLOOR)).sum()))]
    return np.asarray(whitening @ kept.T, np.float32)


def _mean_nearest(
    distances: NDArray[np.float64], allowed: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(N,) mean over the nearest allowed columns; where none is, the largest distance there is."""
    count = min(NEIGHBOURS, distances.shape[1])
    masked = np.where(allowed, distances, np.inf)
    nearest = np.partition(masked, count - 1, axis=1)[:, :count]
    there = np.isfinite(nearest)
    total = np.where(there, nearest, 0.0).sum(1)
    found = there.sum(1)
    return np.asarray(np.where(found, total / np.maximum(found, 1), distances.max(1)))
