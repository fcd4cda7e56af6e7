"""All screens of a model: fitted on clean data, fused, calibrated, and applied to samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnsec.bets import Levels
from nnsec.calibration import Calibration, rank_p_value
from nnsec.errors import Unsafe
from nnsec.network import Network
from nnsec.poisoning import discovery
from nnsec.poisoning.base import Finding, Reference, SampleScreen, Screen, WindowScreen, remember
from nnsec.poisoning.excess import Excess
from nnsec.poisoning.label_disagreement import LabelDisagreement
from nnsec.poisoning.samples import Geometry, Samples
from nnsec.poisoning.sheet import Rated, Screened, Sheet
from nnsec.poisoning.strictness import strict
from nnsec.poisoning.window import SourceWindow
from nnsec.splits import Splits

LARGEST = 1e12
"""Stands for a figure that is not finite: the most suspicious there is."""
REPEATS = ("duplicate", "near_duplicate")
"""Samples with these reasons are no evidence of a trigger: they show one thing, not several."""
TRIED = 40
"""Samples in a window from which on every screen has something to say."""
CHUNK = 1024


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
        screens: Sequence[Screen],
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
        self._neighbours = _neighbours(self.singly)
        self._rates, self._taus = calibration.rates, calibration.thresholds

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
            (n, *shape) clean inputs in the wire dtype, changed as honest ones are.
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
            # As a checkpoint gives it back: the order of an array in memory moves last digits.
            screen.restore(_packed(screen.state()))
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
            (N, *shape) in the wire dtype and range.
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
        sheet = Sheet(screened, rows, self.names)
        for number, row in enumerate(rows):
            stern = strict(window, self._rates)
            level = int(screened.level[row])
            if stern and level >= stern:
                self._explain(sheet, number, screened.raw[row], float(self._taus[-stern]))
            elif screened.p_value[row] <= self.calibration.alpha:
                self._explain(sheet, number, screened.raw[row], self._bound)
            for screen, prepared in zip(self.windowed, screened.prepared, strict=True):
                finding = screen.judge(screened.samples, row, prepared, window)
                if finding is not None:
                    sheet.add(number, screen.reason, finding)
            remember(
                window, screened.samples, row, offset=offset, number=number,
                level=level, repeated=sheet.has(number, REPEATS),
            )  # fmt: skip
        return sheet.rated()

    @property
    def _bound(self) -> float:
        """The largest fused figure that passes the usual threshold."""
        scores, alpha = self.calibration.scores, self.calibration.alpha
        rank = int(alpha * (len(scores) + 1) + 1e-9)
        return float(scores[len(scores) - rank]) if rank else float(scores[-1])

    def _explain(self, sheet: Sheet, number: int, raw: NDArray[np.float64], bound: float) -> None:
        """Quarantine a sample for what most of its fused figure comes from.

        A reason's threshold is what its figure would have to be for the sample to pass, all other
        figures being as they are.
        """
        above = self.excess.above(raw[None])[0] ** 2
        for index in np.flatnonzero(above >= above.max() / 2):
            room = np.sqrt(max(bound**2 - (above.sum() - above[index]), 0.0))
            passes = self.excess.usual[index] + self.excess.spread[index] * room
            finding = Finding(float(raw[index]), float(passes))
            sheet.add(number, self.singly[index].reason, finding)

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
        arrays: dict[str, NDArray[Any]] = {
            "screens": np.frombuffer(listed.encode(), np.uint8),
            "columns": self.columns,
        }
        for prefix, part in (("excess", self.excess), ("calibration", self.calibration)):
            arrays |= {f"{prefix}.{name}": array for name, array in part.state().items()}
        for screen in (*self.singly, *self.windowed):
            for name, array in screen.state().items():
                arrays[f"screen.{screen.reason}.{name}"] = array
        return _packed(arrays)

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
        """Screen black inputs of every class, so that arrays that do not fit are refused early.

        Raises
        ------
        Unsafe
            If a screen cannot.
        """
        labels = np.concatenate([np.zeros(TRIED, np.int64), np.arange(self.network.classes)])
        shape = (len(labels), *self.geometry.shape)
        low = np.full(shape, self.geometry.low, self.network.input.dtype)
        try:
            self.rate(low, labels, None, self.window())
        except (ValueError, IndexError, TypeError, ArithmeticError) as error:
            raise Unsafe(f"the fitted screens do not fit the model: {error}") from error


def _geometry(network: Network) -> Geometry:
    low, high = network.input.range
    return Geometry(network.input.shape, low, high)


def _features(network: Network, x: NDArray[Any]) -> NDArray[np.float32]:
    """(n, F) of any number of inputs."""
    parts = [network.forward(x[k : k + CHUNK]).features for k in range(0, len(x), CHUNK)]
    return np.concatenate([part.cpu().numpy() for part in parts])


def _figures(screens: Sequence[SampleScreen], samples: Samples) -> NDArray[np.float64]:
    """(n, D) finite."""
    columns = np.stack([screen.score(samples) for screen in screens], axis=1)
    return np.nan_to_num(columns, nan=LARGEST, posinf=LARGEST, neginf=-LARGEST)


def _fuse(excess: Excess, raw: NDArray[np.float64]) -> NDArray[np.float32]:
    """In single precision from the start: what is published is what was compared."""
    return np.minimum(excess.score(raw), LARGEST).astype(np.float32)


def _neighbours(screens: Sequence[SampleScreen]) -> LabelDisagreement:
    found = [screen for screen in screens if isinstance(screen, LabelDisagreement)]
    if not found:
        raise Unsafe("the fitted screens lack 'label_disagreement', which every summary needs")
    return found[0]


def _packed(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: np.array(array, order="C") for name, array in arrays.items()}


def _under(state: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)
    }
