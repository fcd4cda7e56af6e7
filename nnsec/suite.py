"""The suite: all detectors of a model, fused and calibrated, as one function of the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnsec import detectors as registry
from nnsec.calibration import Calibration, rank_p_value
from nnsec.detectors import Detector
from nnsec.errors import ConfigError, Unsafe
from nnsec.fusion import Fusion
from nnsec.network import Forward, Network
from nnsec.splits import Splits

LARGEST = 1e30
"""Stands for a figure that is not finite: the most suspicious there is."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Figures of a batch, one row an input.

    Parameters
    ----------
    prediction:
        (batch,) int64.
    confidence:
        (batch,) float32, softmax probability of the prediction.
    score:
        (batch,) float32, fused.
    p_value:
        (batch,) float32, of the fused score, in (0, 1].
    p_values:
        (batch, detectors) float32; they explain, and are not fused.
    level:
        (batch,) uint8, thresholds that the score exceeds, 0 to 5.
    tier:
        (batch,) uint8, which calibration it was judged by.
    coverage:
        (batch,) float32, stages run over stages wanted.
    features:
        (batch, features) float32.
    flag:
        (batch,) bool, p_value ≤ α.
    """

    prediction: NDArray[np.int64]
    confidence: NDArray[np.float32]
    score: NDArray[np.float32]
    p_value: NDArray[np.float32]
    p_values: NDArray[np.float32]
    level: NDArray[np.uint8]
    tier: NDArray[np.uint8]
    coverage: NDArray[np.float32]
    features: NDArray[np.float32]
    flag: NDArray[np.bool_]


class Suite:
    """Fitted detectors of one model, their fusion and its calibration.

    Parameters
    ----------
    network:
        The model.
    detectors:
        Fitted, in the order of the columns of p_values.
    fusion:
        Fitted on scores of inputs that no detector was fitted on.
    calibration:
        Of fused scores of yet other inputs.
    columns:
        (n, detectors) the detectors' scores of the calibration inputs, each column ascending.
    """

    def __init__(
        self,
        network: Network,
        detectors: Sequence[Detector],
        fusion: Fusion,
        calibration: Calibration,
        columns: NDArray[np.float64],
    ) -> None:
        self.network = network
        self.detectors = tuple(detectors)
        self.fusion = fusion
        self.calibration = calibration
        self.columns = columns

    @property
    def names(self) -> tuple[str, ...]:
        """The detectors, in the order of the columns of p_values."""
        return tuple(detector.name for detector in self.detectors)

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
        detectors: Sequence[str] = (),
    ) -> Suite:
        """Fit everything on clean data.

        Parameters
        ----------
        network:
            The model.
        x:
            (n, *shape) clean inputs in the wire dtype.
        y:
            (n,) their classes.
        splits:
            Which rows serve for what.
        seed:
            Of all that is drawn.
        alpha:
            Inputs with a p-value of at most this are flagged.
        detectors:
            Names; empty for all that fit the input.

        Raises
        ------
        ConfigError
            If a detector does not fit the input, or the data are too few.
        """
        chosen = choose(network, detectors)
        labels = np.asarray(y, np.int64)
        reference = network.forward(x[splits.train])
        for detector in chosen:
            detector.fit(reference, labels[splits.train], network, seed)
            # As a checkpoint gives it back: the order of an array in memory moves last digits.
            detector.restore(_packed(detector.state()))
        held_out, calibrate = (
            [_raw(network, chosen, tile) for tile in _tiles(network, x[rows])]
            for rows in (splits.fit, splits.calibrate)
        )
        fusion = Fusion.restore(_packed(Fusion.fit(_rows(held_out, len(splits.fit))).state()))
        raw = _rows(calibrate, len(splits.calibrate))
        prediction = np.concatenate([tile.prediction for tile, _ in calibrate])[: len(raw)]
        fused = _fuse(fusion, raw)
        calibration = Calibration.fit(fused, prediction, alpha=alpha)
        return cls(network, chosen, fusion, calibration, np.sort(raw, axis=0))

    def score(self, x: NDArray[Any]) -> Scored:
        """Score a batch; a row's figures do not depend on the other rows.

        Parameters
        ----------
        x:
            (batch, *shape) in the wire dtype, within the model's range.
        """
        tiles = [_raw(self.network, self.detectors, tile) for tile in _tiles(self.network, x)]
        raw = _rows(tiles, len(x))
        logits = np.concatenate([forward.logits.double().cpu().numpy() for forward, _ in tiles])
        features = np.concatenate([forward.features.cpu().numpy() for forward, _ in tiles])
        prediction = np.concatenate([forward.prediction for forward, _ in tiles])[: len(x)]
        score = _fuse(self.fusion, raw)
        p_value = self.calibration.p_value(score, prediction)
        p_values = np.stack(
            [rank_p_value(self.columns[:, d], raw[:, d]) for d in range(raw.shape[1])], axis=1
        )
        return Scored(
            prediction=prediction,
            confidence=_confidence(logits[: len(x)]),
            score=score,
            p_value=p_value.astype(np.float32),
            p_values=p_values.astype(np.float32),
            level=self.calibration.level(score),
            tier=np.zeros(len(x), np.uint8),
            coverage=np.ones(len(x), np.float32),
            features=features[: len(x)],
            flag=p_value <= self.calibration.alpha,
        )

    def raw_scores(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """(batch, detectors) what each detector says of each input, before the fusion.

        Parameters
        ----------
        x:
            As in `score`.
        """
        tiles = [_raw(self.network, self.detectors, tile) for tile in _tiles(self.network, x)]
        return _rows(tiles, len(x))

    def state(self) -> dict[str, NDArray[Any]]:
        """All but the model, as arrays with dotted names."""
        listed = np.frombuffer(",".join(self.names).encode(), np.uint8)
        arrays: dict[str, NDArray[Any]] = {"detectors": listed, "columns": self.columns}
        for prefix, part in (("fusion", self.fusion), ("calibration", self.calibration)):
            arrays |= {f"{prefix}.{name}": array for name, array in part.state().items()}
        for detector in self.detectors:
            for name, array in detector.state().items():
                arrays[f"detector.{detector.name}.{name}"] = array
        return _packed(arrays)

    @classmethod
    def restore(cls, state: Mapping[str, NDArray[Any]], network: Network) -> Suite:
        """Take back what `state` gave.

        Raises
        ------
        Unsafe
            If it is no suite.
        ConfigError
            If it holds a detector that is not installed here.
        """
        try:
            listed = bytes(state["detectors"]).decode("ascii").split(",")
            columns = np.asarray(state["columns"], np.float64)
        except (KeyError, ValueError) as error:
            raise Unsafe(f"the fitted detectors are incomplete: {error!r}") from error
        if len(set(listed)) != len(listed) or not np.isfinite(columns).all():
            raise Unsafe("the fitted detectors name one twice, or have scores that are not finite")
        chosen = [registry.make(name) for name in listed]
        for detector in chosen:
            detector.restore(_under(state, f"detector.{detector.name}."))
        fusion = Fusion.restore(_under(state, "fusion."))
        calibration = Calibration.restore(_under(state, "calibration."))
        if columns.shape != (calibration.n, len(chosen)) or len(fusion.mean) != len(chosen):
            raise Unsafe("the fitted detectors, their fusion and its calibration do not fit")
        suite = cls(network, chosen, fusion, calibration, columns)
        suite._try_out()
        return suite

    def _try_out(self) -> None:
        """Score one input at the range's lower end: arrays that do not fit the model fail here."""
        spec = self.network.input
        low = np.full((1, *spec.shape), spec.range[0], spec.dtype)
        for detector in self.detectors:
            try:
                _raw(self.network, [detector], _tiles(self.network, low)[0])
            except (ValueError, IndexError, TypeError, RuntimeError) as error:
                raise Unsafe(
                    f"the fitted detector {detector.name!r} does not fit the model: {error}"
                ) from error


def choose(network: Network, names: Sequence[str] = ()) -> tuple[Detector, ...]:
    """New detectors for a model: those named, or all that fit its input.

    Raises
    ------
    ConfigError
        If a named one does not exist or needs images where there are none.
    """
    made = [registry.make(name) for name in (names or registry.names())]
    unfit = [detector.name for detector in made if detector.needs_images and not network.image]
    if names and unfit:
        raise ConfigError(
            f"detector {unfit[0]!r} needs images, and inputs are {list(network.input.shape)}; "
            "take it out of `detectors`"
        )
    return tuple(detector for detector in made if detector.name not in unfit)


Tile = tuple[Forward, NDArray[np.float64]]


def _tiles(network: Network, x: NDArray[Any]) -> list[NDArray[Any]]:
    """Equal pieces, the last padded: every computation has one shape, so replays are identical."""
    lack = -len(x) % network.tile
    low = np.full((lack, *x.shape[1:]), network.input.range[0], x.dtype)
    padded = np.concatenate([x, low]) if lack else x
    return [padded[k : k + network.tile] for k in range(0, len(padded), network.tile)]


def _raw(network: Network, detectors: Sequence[Detector], x: NDArray[Any]) -> Tile:
    forward = network.forward(x)
    scores = np.stack([detector.score(forward, network) for detector in detectors], axis=1)
    return forward, np.nan_to_num(scores, nan=LARGEST, posinf=LARGEST, neginf=-LARGEST)


def _rows(tiles: Sequence[Tile], rows: int) -> NDArray[np.float64]:
    return np.concatenate([scores for _, scores in tiles])[:rows]


def _fuse(fusion: Fusion, raw: NDArray[np.float64]) -> NDArray[np.float32]:
    """In single precision from the start: what is published is what was compared."""
    return np.minimum(fusion.score(raw), LARGEST).astype(np.float32)


def _confidence(logits: NDArray[np.float64]) -> NDArray[np.float32]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    best: NDArray[np.float32] = (1.0 / shifted.sum(axis=1)).astype(np.float32)
    return best


def _packed(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: np.array(array, order="C") for name, array in arrays.items()}


def _under(state: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)
    }
