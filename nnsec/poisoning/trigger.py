"""One pattern found again and again in the same place under one label."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nnsec.poisoning.base import (
    Finding,
    Pattern,
    Reference,
    WindowScreen,
    honest_orders,
    remember,
)
from nnsec.poisoning.samples import Geometry, Samples
from nnsec.poisoning.statistics import log10_tail
from nnsec.poisoning.window import SourceWindow

CODES = 256
MAX_CELLS = 8_000_000
"""Cells of the table of clean frequencies; with more, all labels share one table."""
PRIOR = 20.0
"""Samples that the frequency over all labels counts for, in that of one label."""
KAPPA = 2.0
"""A clean source may show a pattern so many times as often as the reference does."""
BESIDE = 4.0
"""What a camera adds to all labels may show so many times as often beside what one label has."""
MARGIN = 4.0
"""Powers of ten beyond the least likely repetition that clean samples showed."""
LEAST = 8.0
"""Powers of ten that are always asked for: places × samples a day are many looks."""
SAMPLES = 4
"""Samples that must show a pattern, at least."""
NEAR_SHARE = 0.05
MAX_PAIRED = 128
MAX_FRESH = 512
"""Clean samples played through, at most, which bounds the time that fitting takes."""
MAX_VALUES = 12


class Trigger(WindowScreen):
    """How unlikely it is that clean samples show one pattern that often in one place.

    Each place of an input has a code (see `Geometry.codes`). If h of the n samples that the
    source last sent under this label have this sample's code in some place, then under clean data
    P(≥ h) ≤ exp(−n · KL(h/n ‖ q)), q being twice the reference's smoothed frequency under that
    label, or four times the frequency in the source's own samples with other labels if that is
    larger: a speck on a lens is in all of them. Samples nearer to this one than 95 % of clean pairs
    of one label are do not count: five frames of one scene agree everywhere. So a trigger in
    variants of one image alone is not found. The figure is −log10 of the smallest bound over the
    places.

    The threshold comes from clean samples played through as honest sources, in mixed order and
    class after class: four powers of ten beyond the least likely repetition among them, and eight
    at least. A trigger that was found is remembered, and further samples that bear it need no
    evidence of their own.

    Source of the bound: Chernoff (1952), in Hoeffding's form (1963).
    """

    reason: ClassVar[str] = "trigger"
    fitted: ClassVar[tuple[str, ...]] = ("counts", "threshold", "apart")

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.counts = np.zeros((1, geometry.places, CODES), np.uint32)
        self.threshold = np.array([LEAST])
        self.apart = np.zeros(1)

    def fit(self, reference: Reference) -> None:
        """Count codes in the reference, and play honest sources through."""
        places = self.geometry.places
        by_label = reference.classes * places * CODES <= MAX_CELLS
        shape = (reference.classes if by_label else 1, places, CODES)
        counts = np.zeros(shape, np.uint32)
        for part in (reference.known, reference.fit):
            labels = part.labels if by_label else np.zeros_like(part.labels)
            np.add.at(counts, (labels[:, None], np.arange(places)[None, :], part.codes), 1)
        self.counts = counts
        fresh = reference.fresh
        if len(fresh) > MAX_FRESH:
            fresh = fresh.take(np.arange(MAX_FRESH))
        self.apart = np.array([spacing(fresh)])
        orders = honest_orders(fresh.labels, reference.seed)
        least = max(self._largest(fresh, order) for order in orders)
        self.threshold = np.array([max(LEAST, least + MARGIN)])

    def _largest(self, samples: Samples, order: NDArray[np.int64]) -> float:
        """The largest figure that clean samples, sent by one source in this order, ever show."""
        prepared, window = self.prepare(samples), SourceWindow(self.geometry.places)
        largest = 0.0
        for offset, row in enumerate(order):
            hits, _, surprise = self._look(samples, int(row), prepared[row], window)
            largest = max(largest, float(np.max(surprise, where=hits >= SAMPLES, initial=0.0)))
            remember(window, samples, int(row), offset=offset)
        return largest

    def prepare(self, samples: Samples) -> NDArray[np.float64]:
        """(N, places) bound on how often clean samples of that label have that code there."""
        places = np.arange(self.geometry.places)[None, :]
        pooled = self.counts.sum(0, dtype=np.int64)
        overall = (pooled[places, samples.codes] + 1) / (pooled[0].sum() + 2)
        if len(self.counts) == 1:
            return np.asarray(np.minimum(KAPPA * overall, 1.0))
        labels = samples.labels[:, None]
        own = self.counts[labels, places, samples.codes]
        total = self.counts[:, 0].sum(1, dtype=np.int64)[labels]
        return np.asarray(np.minimum(KAPPA * (own + PRIOR * overall) / (total + PRIOR), 1.0))

    def judge(
        self, samples: Samples, row: int, prepared: NDArray[np.float64], window: SourceWindow
    ) -> Finding | None:
        """Count this sample's codes in the window."""
        label, codes = int(samples.labels[row]), samples.codes[row]
        hits, of, surprise = self._look(samples, row, prepared[row], window)
        threshold = float(self.threshold[0])
        found = np.flatnonzero((surprise > threshold) & (hits >= SAMPLES))
        for place in found:
            window.establish(label, int(place), int(codes[place]), float(surprise[place]))
        known = window.patterns[window.patterns["label"] == label]
        borne = known[codes[known["place"]] == known["code"]]
        if not len(borne):
            return None
        figures = np.maximum(borne["surprise"], surprise[borne["place"]])
        best, figure = int(borne["place"][figures.argmax()]), float(figures.max())
        pattern = Pattern(
            label, self.geometry.place(best), self._values(samples, row, best),
            int(hits[best]), of, -figure,
        )  # fmt: skip
        return Finding(figure, threshold, pattern=pattern)

    def _look(
        self,
        samples: Samples,
        row: int,
        rates: NDArray[np.float64],
        window: SourceWindow,
    ) -> tuple[NDArray[np.int64], int, NDArray[np.float64]]:
        """Hits per place with this sample, samples of its label with it, and −log10 p per place."""
        last = window.rows
        equal = last["codes"] == samples.codes[row]
        same = last["label"] == samples.labels[row]
        gap = last["signature"].astype(np.int32) - samples.signatures[row].astype(np.int32)
        independent = same & ~last["repeated"] & ((gap * gap).sum(1) > float(self.apart[0]) ** 2)
        of = int(independent.sum())
        hits = equal[independent].sum(0)
        others = len(last) - int(same.sum())
        elsewhere = equal[~same].sum(0)
        # One such sample under another label proves nothing; a trigger may sit on a few of them.
        usual = np.where(elsewhere > 1, np.minimum(BESIDE * elsewhere / max(others, 1), 1.0), 0.0)
        surprise = -log10_tail(hits, of, np.maximum(rates, usual))
        return hits + 1, of + 1, surprise

    def _values(self, samples: Samples, row: int, place: int) -> tuple[float, ...]:
        """What a sample shows in a place."""
        where = self.geometry.place(place)
        image = samples.x[row]
        if not self.geometry.image:
            shown = image.reshape(-1)[slice(*where.columns)]
        else:
            shown = image[..., slice(*where.rows), slice(*where.columns)]
        return tuple(float(value) for value in shown.reshape(-1)[:MAX_VALUES])


def spacing(samples: Samples) -> float:
    """The distance that 95 % of pairs of clean samples with one label keep."""
    gaps = []
    for label in np.unique(samples.labels):
        own = samples.signatures[samples.labels == label][:MAX_PAIRED].astype(np.float32)
        square = ((own[:, None] - own[None, :]) ** 2).sum(2)
        gaps.append(square[np.triu_indices(len(own), 1)])
    every = np.concatenate(gaps)
    return float(np.sqrt(np.quantile(every, NEAR_SHARE))) if len(every) else 0.0
