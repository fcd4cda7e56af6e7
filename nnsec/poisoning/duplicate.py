"""The same input again."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nnsec.poisoning.base import Finding, Reference, WindowScreen, honest_orders, replay
from nnsec.poisoning.samples import Geometry, Samples
from nnsec.poisoning.window import SourceWindow


class Duplicate(WindowScreen):
    """How often the source's last samples hold the very same input, under whatever label.

    Where clean data repeat themselves (few distinct values), as many repetitions as an honest
    source shows are let through.
    """

    reason: ClassVar[str] = "duplicate"
    fitted: ClassVar[tuple[str, ...]] = ("usual",)

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.usual = np.zeros(1)

    def fit(self, reference: Reference) -> None:
        """Find the most repetitions that clean samples show."""
        self.usual = np.zeros(1)
        fresh = reference.fresh
        orders = honest_orders(fresh.labels, reference.seed)
        found = [f.figure for order in orders for f in replay(self, fresh, order) if f]
        self.usual = np.array([max(found, default=0.0)], np.float64)

    def judge(
        self, samples: Samples, row: int, prepared: NDArray[np.float64], window: SourceWindow
    ) -> Finding | None:
        """Count equal inputs in the window."""
        count = int((window.rows["fingerprint"] == samples.fingerprints[row]).sum())
        usual = float(self.usual[0])
        return Finding(count, usual) if count > usual else None
