"""Labels in other shares than the reference has them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nnsec.poisoning.base import Finding, Reference, WindowScreen
from nnsec.poisoning.samples import Geometry, Samples
from nnsec.poisoning.statistics import log10_tail
from nnsec.poisoning.window import SourceWindow

LEAST_ROWS = 32
KAPPA = 2.0
THRESHOLD = 8.0
"""Powers of ten, for many looks a day."""


class LabelDistribution(WindowScreen):
    """How unlikely it is that an honest mixture gives the sample's label that often.

    The figure is −log10 of Chernoff's bound on so many samples with this label among the source's
    last ones, where the reference's share, twice over, is allowed. It is told and never
    quarantines by itself: a source that collects one class only is no attacker.
    """

    reason: ClassVar[str] = "label_distribution"
    fitted: ClassVar[tuple[str, ...]] = ("shares",)

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.shares = np.zeros(0)

    def fit(self, reference: Reference) -> None:
        """Count labels in the reference."""
        labels = np.concatenate(
            [part.labels for part in (reference.known, reference.fit, reference.fresh)]
        )
        counts = np.bincount(labels, minlength=reference.classes)
        self.shares = (counts + 1) / (counts.sum() + reference.classes)

    def judge(
        self, samples: Samples, row: int, prepared: NDArray[np.float64], window: SourceWindow
    ) -> Finding | None:
        """Count this label in the window."""
        last = window.rows["label"]
        if len(last) < LEAST_ROWS:
            return None
        label = int(samples.labels[row])
        hits = np.array([(last == label).sum()])
        figure = -float(log10_tail(hits, len(last), KAPPA * self.shares[[label]])[0])
        return Finding(figure, THRESHOLD, quarantine=False) if figure > THRESHOLD else None
