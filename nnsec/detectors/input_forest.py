"""Input statistics by an isolation forest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nnsec.detectors._statistics import statistics
from nnsec.detectors.base import Detector
from nnsec.errors import Unsafe
from nnsec.network import Forward, Network

TREES = 64
SAMPLES = 256


class InputForest(Detector):
    """How few random cuts set an input's statistics apart from those of clean inputs.

    The trees are grown by scikit-learn and kept as arrays in which node i has the children 2i + 1
    and 2i + 2, so that all trees and inputs are walked at once, and nothing is ever unpickled.

    Source: Liu, Ting and Zhou, "Isolation forest", ICDM 2008.
    """

    name: ClassVar[str] = "input_forest"
    fitted: ClassVar[tuple[str, ...]] = ("feature", "threshold", "length", "usual")

    feature: NDArray[np.int64]
    """(trees, nodes) the statistic that a node cuts; at a leaf, 0."""
    threshold: NDArray[np.float64]
    """(trees, nodes) up to it to the left; at a leaf, past all values."""
    length: NDArray[np.float64]
    """(trees, leaves of the full tree) expected path length."""
    usual: NDArray[np.float64]
    """(1,) expected path length of a tree of all samples."""

    def fit(
        self, reference: Forward, labels: NDArray[np.int64], network: Network, seed: int
    ) -> None:
        """See `Detector.fit`."""
        from sklearn.ensemble import IsolationForest  # workers, who fit nothing, are spared this

        found = statistics(reference, network).astype(np.float32)
        samples = min(SAMPLES, len(found))
        forest = IsolationForest(n_estimators=TREES, max_samples=samples, random_state=seed)
        forest.fit(found)
        trees = [tree.tree_ for tree in forest.estimators_]
        depth = max(max(int(tree.max_depth) for tree in trees), 1)
        grown = [_full(tree, depth) for tree in trees]
        self.feature, self.threshold, self.length = (
            np.stack(part) for part in zip(*grown, strict=True)
        )
        self.usual = np.array([max(_expected(samples), 1e-6)])

    def score(self, forward: Forward, network: Network) -> NDArray[np.float64]:
        """See `Detector.score`."""
        # The forest was grown on single precision: compare in it, as scikit-learn does.
        values = statistics(forward, network).astype(np.float32)
        if self.feature.max() >= values.shape[1]:
            raise IndexError(f"its trees cut more than the {values.shape[1]} statistics there are")
        trees, inner = self.feature.shape
        feature, threshold = self.feature.ravel(), self.threshold.ravel()
        row = np.arange(0, values.size, values.shape[1])[:, None]
        tree = np.arange(trees)[None, :]
        # A node's place in the arrays of all trees: flat look-ups cost half of those by pairs.
        place = np.broadcast_to(tree * inner, (len(values), trees))
        for _ in range((inner + 1).bit_length() - 1):
            right = values.take(row + feature.take(place)) > threshold.take(place)
            place = 2 * place + (1 - tree * inner) + right
        leaf = place - inner + tree  # each tree has one leaf more than it has nodes
        mean = self.length.ravel().take(leaf).mean(axis=1)
        score: NDArray[np.float64] = 2.0 ** (-mean / self.usual[0])
        return score

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See `Detector.restore`; the trees must be full, and cut statistics that exist."""
        super().restore(state)
        inner = self.feature.shape[1] if self.feature.ndim == 2 else 0
        full = inner and (inner + 1) & inner == 0
        shapes = self.threshold.shape == self.feature.shape and self.usual.shape == (1,)
        if not (full and shapes and self.length.shape == (len(self.feature), inner + 1)):
            raise Unsafe("the trees of detector 'input_forest' are not full")
        if self.feature.min() < 0 or self.feature.dtype.kind != "i":
            raise Unsafe("the trees of detector 'input_forest' cut statistics that do not exist")


def _full(
    tree: Any, depth: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """One of scikit-learn's trees as a full one of ``depth``; a leaf goes down to the left."""
    inner = 2**depth - 1
    feature = np.zeros(inner, np.int64)
    threshold = np.full(inner, np.finfo(np.float32).max, np.float64)
    length = np.zeros(inner + 1)
    waiting = [(0, 0, 0)]
    while waiting:
        node, place, level = waiting.pop()
        left, right = int(tree.children_left[node]), int(tree.children_right[node])
        if left < 0:
            leaf = place
            while leaf < inner:
                leaf = 2 * leaf + 1
            length[leaf - inner] = level + _expected(int(tree.n_node_samples[node]))
            continue
        feature[place], threshold[place] = tree.feature[node], tree.threshold[node]
        waiting += [(left, 2 * place + 1, level + 1), (right, 2 * place + 2, level + 1)]
    return feature, threshold, length


def _expected(samples: int) -> float:
    """Average path length of an unsuccessful search in a binary tree of ``samples``, eq. 1."""
    if samples <= 1:
        return 0.0
    if samples == 2:
        return 1.0
    return float(2.0 * (np.log(samples - 1.0) + np.euler_gamma) - 2.0 * (samples - 1.0) / samples)
