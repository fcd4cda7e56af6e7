"""All screens of a model: fitted on clean data, fused, calibrated, and applied to samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnsec.bets import Levels
from nnsec.calibration import Calibration, rank_p_value
from nnsec.errors import Unsafe
from nnsec.network import Network
from nnsec.poisoning import discovery
from nnsec.poisoning.base import Finding, Pattern, Reference, SampleScreen, WindowScreen, remember
from nnsec.poisoning.excess import Excess
from nnsec.poisoning.label_disagreement import LabelDisagreement
from nnsec.poisoning.samples import Geometry, Samples
from nnsec.poisoning.strictness import strict
from nnsec.poisoning.window import SourceWindow
from nnsec.splits import Splits

LARGEST = 1e12
REPEATS = ("duplicate", "near_duplicate")
CHUNK = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Screened:
    """What a batch of samples shows by itself, whoever sent it; N rows, D sample screens.

    Parameters
    ----------
    score:
        (N,) float32, fused.
    p_value:
        (N,) float32 in (0, 1].
    level:
        (N,) uint8, thresholds that the score exceeds, 0 to 5.
    raw:
        (N, D) the screens' own figures.
    p_values:
        (N, D) of each; they explain, and are not fused.
    neighbour_label:
        (N,) int64, the label of the nearest known sample in feature space.
    prepared:
        For each window screen what it needs of the batch.
    """

    samples: Samples
    score: NDArray[np.float32]
    p_value: NDArray[np.float32]
    level: NDArray[np.uint8]
    raw: NDArray[np.float64]
    p_values: NDArray[np.float64]
    neighbour_label: NDArray[np.int64]
    prepared: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Rated:
    """The outcome of samples of one source; N rows, R reasons in the order of ``names``.

    Parameters
    ----------
    names:
        All reasons there are.
    quarantined:
        (N,) bool.
    reasons:
        (N,) uint16: bit i for reason i. Accepted samples may have reasons that are only told.
    figures, thresholds:
        (N, R) float64, 0 where the reason's bit is not set.
    score, p_value, level, neighbour_label, fingerprint:
        (N,) as in `Screened`; the level of a sample with a trigger is the highest.
    patterns:
        For each sample the trigger that it bears, or None.
    """

    names: tuple[str, ...]
    quarantined: NDArray[np.bool_]
    reasons: NDArray[np.uint16]
    figures: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    score: NDArray[np.float32]
    p_value: NDArray[np.float32]
    level: NDArray[np.uint8]
    neighbour_label: NDArray[np.int64]
    fingerprint: NDArray[np.uint64]
    patterns: tuple[Pattern | None, ...]

    def __len__(self) -> int:
        return len(self.reasons)

    def named(self, row: int) -> tuple[str, ...]:
        """The reasons of one sample."""
        bits = int(self.reasons[row])
        return tuple(name for bit, name in enumerate(self.names) if bits >> bit & 1)


class ScreenSuite:
    """Fitted screens of one model, their fusion and its calibration.

    Parameters
    ----------
    network:
        The model whose features are used.
    screens:
        Fitted; those that judge a sample by itself, and those that judge it in its window.
    excess:
        The fusion of the former.
    calibration:
        Of fused figures of clean samples that nothing was fitted on.
    columns:
        (n, D) figures of the calibration samples, each column ascending.
    """

    def __init__(
        self,
        network: Network,
        screens: Sequence[SampleScreen | WindowScreen],
        excess: Excess,
        calibration: Calibration,
        columns: NDArray[np.float64],
    ) -> None:
        self.network = network
        self.geometry = _geometry(network)
        self.singly = tuple(s for s in screens if isinstance(s, SampleScreen))
        self.windowed = tuple(s for s in screens if isinstance(s, WindowScreen))
        self.excess = excess
        self.calibration = calibration
        self.columns = columns
        self.names = discovery.reasons()
        self._bit = {name: bit for bit, name in enumerate(self.names)}
        self._rates = calibration.rates

    @property
    def levels(self) -> Levels:
        """Points and certified rates, as the evidence needs them."""
        return self.calibration.levels

    @classmethod
    def fit(
        cls,
        network: Network,
        x: NDArray[Any],
        y: NDArray[np.integer],
        *,
        splits: Splits,
        seed: int,
        alpha: float,
    ) -> ScreenSuite:
        """Fit everything on clean data.

        Parameters
        ----------
        network:
            The model.
        x:
            (n, \\*shape) clean inputs in the wire dtype, changed as honest ones are.
        y:
            (n,) their labels.
        splits:
            *train* is what samples are compared with, *fit* says what is usual, *calibrate* sets
            all thresholds.
        seed:
            Of all that is drawn.
        alpha:
            Samples whose fused figure has a p-value of at most this are quarantined.
        """
        geometry = _geometry(network)
        known, fit, fresh = (
            Samples.describe(geometry, x[rows], y[rows], _features(network, x[rows]))
            for rows in (splits.train, splits.fit, splits.calibrate)
        )
        reference = Reference(geometry, known, fit, fresh, network.classes, alpha, seed)
        screens = [discovery.make(name, geometry) for name in discovery.names()]
        for screen in screens:
            screen.fit(reference)
        singly = [screen for screen in screens if isinstance(screen, SampleScreen)]
        excess = Excess.fit(_figures(singly, fit))
        raw = _figures(singly, fresh)
        calibration = Calibration.fit(_fuse(excess, raw), fresh.labels, alpha=alpha)
        return cls(network, screens, excess, calibration, np.sort(raw, axis=0))

    def screen(
        self, x: NDArray[Any], labels: ArrayLike, features: ArrayLike | None = None
    ) -> Screened:
        """Judge samples by themselves; several sources may be mixed.

        Parameters
        ----------
        x:
            (N, \\*shape) in the wire dtype and range.
        labels:
            (N,) in [0, classes).
        features:
            (N, F) of the network; None: they are computed.
        """
        found = _features(self.network, x) if features is None else features
        samples = Samples.describe(self.geometry, x, labels, found)
        raw = _figures(self.singly, samples)
        score = _fuse(self.excess, raw)
        p_values = np.stack(
            [rank_p_value(self.columns[:, d], raw[:, d]) for d in range(raw.shape[1])], axis=1
        )
        return Screened(
            samples,
            score,
            self.calibration.p_value(score).astype(np.float32),
            self.calibration.level(score),
            raw,
            p_values,
            self._neighbours.neighbour_labels(samples),
            tuple(screen.prepare(samples) for screen in self.windowed),
        )

    def advance(
        self, screened: Screened, rows: Sequence[int], window: SourceWindow, *, offset: int
    ) -> Rated:
        """Judge the samples of one record beside the last ones of their source.

        Parameters
        ----------
        screened:
            The batch.
        rows:
            Which of it, in the record's order.
        window:
            The source's; it takes the samples in. Where it has samples at or after this record,
            the log is read again, and it goes back first.
        offset:
            Of the record in its partition.
        """
        window.rewind(offset)
        sheet = _Sheet(screened, rows, self.names)
        for number, row in enumerate(rows):
            stern = strict(window, self._rates)
            level = int(screened.level[row])
            if screened.p_value[row] <= self.calibration.alpha or (stern and level >= stern):
                self._explain(sheet, number, row)
            self._look_back(sheet, number, row, window)
            remember(
                window, screened.samples, row, offset=offset, number=number,
                level=level, repeated=bool(int(sheet.reasons[number]) & self._repeats),
            )  # fmt: skip
        return sheet.rated()

    def rate(
        self,
        x: NDArray[Any],
        labels: ArrayLike,
        features: ArrayLike | None,
        window: SourceWindow,
        *,
        offset: int = 0,
    ) -> Rated:
        """Screen one record of one source: `screen`, then `advance`."""
        screened = self.screen(x, labels, features)
        return self.advance(screened, range(len(screened.score)), window, offset=offset)

    def window(self) -> SourceWindow:
        """An empty window for a new source."""
        return SourceWindow(self.geometry.places)

    def state(self) -> dict[str, NDArray[Any]]:
        """All but the model, as arrays with dotted names."""
        listed = ",".join(screen.reason for screen in (*self.singly, *self.windowed))
        arrays = {"screens": np.frombuffer(listed.encode(), np.uint8), "columns": self.columns}
        for prefix, part in (("excess", self.excess), ("calibration", self.calibration)):
            arrays |= {f"{prefix}.{name}": array for name, array in part.state().items()}
        for screen in (*self.singly, *self.windowed):
            for name, array in screen.state().items():
                arrays[f"screen.{screen.reason}.{name}"] = array
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    @classmethod
    def from_state(cls, network: Network, state: Mapping[str, NDArray[Any]]) -> ScreenSuite:
        """Take back what `state` gave.

        Raises
        ------
        Unsafe
            If it is none, or does not fit the network.
        ConfigError
            If it holds a screen that is not installed here.
        """
        try:
            listed = bytes(state["screens"]).decode("ascii").split(",")
            columns = np.asarray(state["columns"], np.float64)
        except (KeyError, ValueError) as error:
            raise Unsafe(f"the fitted screens are incomplete: {error!r}") from error
        screens = [discovery.make(name, _geometry(network)) for name in listed]
        for screen in screens:
            screen.restore(_under(state, f"screen.{screen.reason}."))
        excess = Excess.restore(_under(state, "excess."))
        calibration = Calibration.restore(_under(state, "calibration."))
        suite = cls(network, screens, excess, calibration, columns)
        width = len(suite.singly)
        if columns.shape != (calibration.n, width) or len(excess.usual) != width:
            raise Unsafe("the fitted screens, their fusion and its calibration do not fit")
        suite.try_out()
        return suite

    def try_out(self) -> None:
        """Screen one black input, so that arrays that do not fit the model are refused early.

        Raises
        ------
        Unsafe
            If a screen cannot.
        """
        low = np.full((1, *self.geometry.shape), self.geometry.low, self.network.input.dtype)
        try:
            self.rate(low, [0], None, self.window())
        except (ValueError, IndexError, TypeError) as error:
            raise Unsafe(f"the fitted screens do not fit the model: {error}") from error
