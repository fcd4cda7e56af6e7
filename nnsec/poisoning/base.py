"""What a screen is: it looks at one sample, or at one sample beside its source's last ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nnsec.errors import Unsafe
from nnsec.poisoning.samples import Geometry, Place, Samples
from nnsec.poisoning.window import SourceWindow

REASONS = (
    "schema", "range", "duplicate", "near_duplicate", "label_disagreement", "outlier", "trigger",
    "label_distribution", "source_quarantined",
)  # fmt: skip
"""Why a sample may be quarantined, in the order of the bits in a summary's row."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A trigger: what a source shows again and again in one place under one label.

    Parameters
    ----------
    label:
        The one under which it is shown.
    place:
        Where, in rows and columns of the input.
    values:
        What the sample shows there, row by row, in the input's own units.
    samples:
        How many of the window's samples under this label show it, this one included.
    of:
        How many of the window's samples have this label, this one included.
    log10_p:
        Power of ten that bounds the chance of that many or more in clean data.
    """

    label: int
    place: Place
    values: tuple[float, ...]
    samples: int
    of: int
    log10_p: float


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Clean samples that the screens are fitted on; no sample is in two parts.

    Parameters
    ----------
    known:
        What samples are compared with.
    fit:
        Others, for what is usual.
    fresh:
        Others again, independent of each other: for thresholds.
    classes:
        Labels are 0 to classes − 1.
    alpha:
        Share of clean samples that may be quarantined.
    """

    geometry: Geometry
    known: Samples
    fit: Samples
    fresh: Samples
    classes: int
    alpha: float
    seed: int


class Screen(ABC):
    """Gives samples a figure that grows with suspicion.

    A subclass in a module of this package is found by itself. It keeps what it learns in
    attributes, arrays all, and names them in ``fitted``: they travel in the checkpoint.
    """

    reason: ClassVar[str]
    """Also its name; one of `REASONS`, or a new one of its own."""
    fitted: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that `fit` sets."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    @abstractmethod
    def fit(self, reference: Reference) -> None:
        """Learn what clean samples look like."""

    def state(self) -> dict[str, NDArray[Any]]:
        """What was learned, as arrays."""
        return {name: np.asarray(getattr(self, name)) for name in self.fitted}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take back what `state` gave.

        Raises
        ------
        Unsafe
            If an array is missing, is of another kind or has another number of axes than before
            `fit`, or has values that are not finite.
        """
        for name in self.fitted:
            array = state.get(name)
            if array is None:
                raise Unsafe(f"the state of screen {self.reason!r} lacks {name!r}")
            mine = np.asarray(getattr(self, name))
            if array.dtype != mine.dtype or array.ndim != mine.ndim:
                raise Unsafe(f"{name!r} of screen {self.reason!r} is no array as it gave")
            if not np.isfinite(array).all():
                raise Unsafe(f"{name!r} of screen {self.reason!r} has values that are not finite")
            setattr(self, name, array)


class SampleScreen(Screen):
    """Judges each sample by itself; its figures are fused and calibrated with the others'."""

    @abstractmethod
    def score(self, samples: Samples) -> NDArray[np.float64]:
        """How suspicious each sample is.

        Returns
        -------
        (N,), finite; larger is more suspicious. A row's figure does not depend on other rows.
        """


@dataclass(frozen=True, slots=True)
class Finding:
    """What a window screen makes of one sample.

    Parameters
    ----------
    figure, threshold:
        The figure, and the largest that passes.
    quarantine:
        Whether the sample must not be learned from; otherwise it is only told.
    """

    figure: float
    threshold: float
    quarantine: bool = True
    pattern: Pattern | None = None


class WindowScreen(Screen):
    """Judges a sample beside the last samples of its source."""

    def prepare(self, samples: Samples) -> NDArray[np.float64]:
        """(N, …) what `judge` needs of a batch and no window changes."""
        return np.zeros((len(samples), 0))

    @abstractmethod
    def judge(
        self, samples: Samples, row: int, prepared: NDArray[np.float64], window: SourceWindow
    ) -> Finding | None:
        """Judge one sample of a batch, before the window takes it in.

        Parameters
        ----------
        samples, row:
            The batch, and which of it.
        prepared:
            What `prepare` gave for the batch.
        window:
            The last samples of its source; a screen may note a trigger in it.

        Returns
        -------
        None if there is nothing to say.
        """


def replay(
    screen: WindowScreen, samples: Samples, order: NDArray[np.integer]
) -> list[Finding | None]:
    """What a screen makes of clean samples that one source sends in some order.

    Thresholds are set, and tested, on this: an honest source, played through.
    """
    prepared = screen.prepare(samples)
    window = SourceWindow(samples.codes.shape[1])
    found = []
    for offset, row in enumerate(order):
        found.append(screen.judge(samples, int(row), prepared, window))
        remember(window, samples, int(row), offset=offset)
    return found


def remember(  # one row of what `window.row_dtype` lists
    window: SourceWindow,
    samples: Samples,
    row: int,
    *,
    offset: int,
    number: int = 0,
    level: int = 0,
    repeated: bool = False,
) -> None:
    """Have a window take in one sample of a batch."""
    window.push(
        offset=offset, row=number, label=samples.labels[row], level=level, repeated=repeated,
        fingerprint=samples.fingerprints[row], signature=samples.signatures[row],
        codes=samples.codes[row],
    )  # fmt: skip


def honest_orders(labels: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    """Orders in which honest sources may send clean samples: mixed ones, and class after class."""
    rng = np.random.default_rng(seed)
    mixed = [rng.permutation(len(labels)) for _ in range(3)]
    return [*mixed, mixed[0][np.argsort(labels[mixed[0]], kind="stable")]]
