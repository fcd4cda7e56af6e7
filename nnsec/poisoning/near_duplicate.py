"""Nearly the same input again, or a known one under another label."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nnsec.poisoning.base import Finding, Reference, WindowScreen
from nnsec.poisoning.samples import SIGNATURE, Geometry, Samples
from nnsec.poisoning.window import SourceWindow

MAX_KNOWN = 4096
SAFETY = 0.5
"""Share of the smallest distance between clean samples that counts as nearly the same."""
CHUNK = 1024


class NearDuplicate(WindowScreen):
    """Distance to the nearest of the source's last samples, or of the known ones with other labels.

    The figure is threshold / distance, so that it grows with suspicion and passes up to 1. The
    threshold is half of the smallest distance between any two clean samples that are not equal.
    A near copy of a known sample under its own label is harmless and passes.
    """

    reason: ClassVar[str] = "near_duplicate"
    fitted: ClassVar[tuple[str, ...]] = ("radius", "known", "labels")

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.radius = np.zeros(1)
        self.known = np.zeros((0, SIGNATURE), np.int8)
        self.labels = np.zeros(0, np.int64)

    def fit(self, reference: Reference) -> None:
        """Find how near clean samples come to each other."""
        rows = np.random.default_rng(reference.seed).permutation(len(reference.known))[:MAX_KNOWN]
        rows.sort()
        self.known = reference.known.signatures[rows]
        self.labels = reference.known.labels[rows]
        fresh = reference.fresh.signatures[:MAX_KNOWN]
        among, across = _nearest(fresh, fresh, itself=True), _nearest(fresh, self.known)
        self.radius = np.array([SAFETY * float(min(among.min(), across.min()))])

    def prepare(self, samples: Samples) -> NDArray[np.float64]:
        """(N, 1) distance to the nearest known sample with another label."""
        parts = []
        for start in range(0, len(samples), CHUNK):
            part = slice(start, start + CHUNK)
            other = self.labels[None, :] != samples.labels[part, None]
            square = _squares(samples.signatures[part], self.known)
            parts.append(np.where(other, square, np.inf).min(1, initial=np.inf))
        return np.asarray(np.sqrt(np.concatenate(parts))[:, None])

    def judge(
        self, samples: Samples, row: int, prepared: NDArray[np.float64], window: SourceWindow
    ) -> Finding | None:
        """Compare with the window; equal inputs are left to another screen."""
        nearest = float(prepared[row, 0])
        last = window.rows
        if len(last):
            square = _squares(samples.signatures[row : row + 1], last["signature"])[0]
            same = last["fingerprint"] == samples.fingerprints[row]
            nearest = min(nearest, float(np.sqrt(np.where(same, np.inf, square).min())))
        radius = float(self.radius[0])
        if nearest > radius or radius == 0:
            return None
        return Finding(radius / max(nearest, radius / 1000), 1.0)


def _squares(a: NDArray[np.int8], b: NDArray[np.int8]) -> NDArray[np.float64]:
    """(len(a), len(b)) squared distances; exact, for all numbers are small integers."""
    left, right = a.astype(np.float32), b.astype(np.float32)
    square = (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :] - 2 * left @ right.T
    return np.asarray(square, np.float64)


def _nearest(
    a: NDArray[np.int8], b: NDArray[np.int8], *, itself: bool = False
) -> NDArray[np.float64]:
    """(len(a),) distance to the nearest row of b that is not equal."""
    square = _squares(a, b)
    if itself:
        np.fill_diagonal(square, np.inf)
    nearest = np.where(square == 0, np.inf, square).min(1, initial=np.inf)
    return np.asarray(np.sqrt(np.where(np.isfinite(nearest), nearest, 0.0)))
