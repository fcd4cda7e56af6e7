"""The suite: all detectors of a model, fused and calibrated, as one function of the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnsec import detectors as registry
from nnsec.calibration import Calibration, rank_p_value
from nnsec.cascade import LARGEST, Cascade, under
from nnsec.detectors import Detector
from nnsec.errors import ConfigError, Unsafe
from nnsec.network import Forward, Network
from nnsec.splits import Splits
from nnsec.stages import Stages, cheap


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Figures of a batch, one row an input.

    Parameters
    ----------
    prediction:
        (batch,) int64.
    confidence:
        (batch,) float32, softmax probability of the prediction; 0 where the model gives numbers
        that are not finite.
    score:
        (batch,) float32, fused; `LARGEST` where the model gives numbers that are not finite.
    p_value:
        (batch,) float32, of the fused score, in (0, 1].
    p_values:
        (batch, detectors) float32; they explain, and are not fused. 1 where one did not run.
    level:
        (batch,) uint8, thresholds that the score exceeds, 0 to 5.
    tier:
        (batch,) uint8, which calibration it was judged by.
    coverage:
        (batch,) float32, stages run over stages wanted; a clear input wants only the first.
    features:
        (batch, features) float32.
    flag:
        (batch,) bool, p_value ≤ α.
    audited:
        (batch,) bool, clear after the first stage, and drawn to go through all detectors. The
        share of flags among them is what the first stage hides.
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
    audited: NDArray[np.bool_]


class Suite:
    """Fitted detectors of one model, the cascade that they make, and its calibration.

    Parameters
    ----------
    network:
        The model.
    detectors:
        Fitted, in the order of the columns of p_values.
    cascade:
        Fitted on scores of inputs that no detector was fitted on.
    calibration:
        Of the cascade's scores of yet other inputs.
    columns:
        (n, detectors) the detectors' scores of the calibration inputs, each column ascending.
    """

    def __init__(
        self,
        network: Network,
        detectors: Sequence[Detector],
        cascade: Cascade,
        calibration: Calibration,
        columns: NDArray[np.float64],
    ) -> None:
        self.network = network
        self.detectors = tuple(detectors)
        self.cascade = cascade
        self.calibration = calibration
        self.columns = columns
        self._stages = Stages(network, self.detectors)
        self._ascending = np.ascontiguousarray(columns.T)

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
        held_out, calibrate = x[splits.fit], x[splits.calibrate]
        stages = Stages(network, chosen)
        cascade = Cascade.fit(stages.whole(network.forward(held_out)), stages.cheap)
        forward = network.forward(calibrate)
        raw = stages.whole(forward)
        first = cascade.first_score(raw)
        through = cascade.doubt(first) | cascade.drawn(calibrate)
        score = cascade.score(first, raw, through)
        calibration = Calibration.fit(score, forward.prediction, alpha=alpha)
        return cls(network, chosen, cascade, calibration, np.sort(raw, axis=0))

    def score(self, x: NDArray[Any]) -> Scored:
        """Score a batch; a row's figures do not depend on the other rows.

        Parameters
        ----------
        x:
            (batch, *shape) in the wire dtype, within the model's range.
        """
        with torch.inference_mode():
            forward = self.network.forward(x)
            raw, first, doubt = self._first(forward)
            drawn = self.cascade.drawn(x)
            through = doubt | drawn
            self._stages.second(raw, forward, through)
        ran = self.cascade.cheap | through[:, None]
        score = self.cascade.score(first, raw, through)
        p_value = self.calibration.p_value(score, forward.prediction)
        return Scored(
            prediction=forward.prediction,
            confidence=forward.confidence,
            score=score,
            p_value=p_value.astype(np.float32),
            p_values=self._p_values(raw, ran),
            level=self.calibration.level(score),
            tier=np.zeros(len(x), np.uint8),
            coverage=np.ones(len(x), np.float32),
            features=forward.features.cpu().numpy(),
            flag=p_value <= self.calibration.alpha,
            audited=drawn & ~doubt,
        )

    def _first(
        self, forward: Forward
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.bool_]]:
        """Raw scores with the cheap columns filled, their distance, and which rows are in doubt."""
        raw = self._stages.first(forward)
        # Detectors of the input alone may find nothing in a row that the model has no answer for.
        first = np.where(forward.finite, self.cascade.first_score(raw), np.float32(LARGEST))
        return raw, first, self.cascade.doubt(first)

    def _p_values(self, raw: NDArray[np.float64], ran: NDArray[np.bool_]) -> NDArray[np.float32]:
        columns = zip(self._ascending, raw.T, strict=True)
        found = np.stack([rank_p_value(ascending, scores) for ascending, scores in columns], axis=1)
        return np.where(ran, found, 1.0).astype(np.float32)

    def through(self, x: NDArray[Any]) -> NDArray[np.bool_]:
        """(batch,) which inputs go through all detectors: in doubt after the first stage, or drawn.

        Parameters
        ----------
        x:
            As in `score`.
        """
        found: NDArray[np.bool_] = self.in_doubt(x) | self.cascade.drawn(x)
        return found

    def in_doubt(self, x: NDArray[Any]) -> NDArray[np.bool_]:
        """(batch,) which inputs the cheap detectors leave in doubt.

        Parameters
        ----------
        x:
            As in `score`.
        """
        return self._first(self.network.forward(x))[2]

    def raw_scores(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """(batch, detectors) what each detector says of each input, all run, before the fusion.

        Parameters
        ----------
        x:
            As in `score`.
        """
        return self._stages.whole(self.network.forward(x))

    def state(self) -> dict[str, NDArray[Any]]:
        """All but the model, as arrays with dotted names."""
        listed = np.frombuffer(",".join(self.names).encode(), np.uint8)
        arrays: dict[str, NDArray[Any]] = {"detectors": listed, "columns": self.columns}
        arrays |= self.cascade.state()
        arrays |= {f"calibration.{k}": array for k, array in self.calibration.state().items()}
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
            detector.restore(under(state, f"detector.{detector.name}."))
        cascade = Cascade.restore(state, cheap(chosen))
        calibration = Calibration.restore(under(state, "calibration."))
        if columns.shape != (calibration.n, len(chosen)):
            raise Unsafe("the fitted detectors and their calibration do not fit")
        _try_out(network, chosen)
        return cls(network, chosen, cascade, calibration, columns)


def _try_out(network: Network, detectors: Sequence[Detector]) -> None:
    """Score inputs at the range's lower end: arrays that do not fit the model fail here."""
    spec = network.input
    low = np.full((network.tile, *spec.shape), spec.range[0], spec.dtype)
    forward = network.forward(low)
    for detector in detectors:
        try:
            scores = detector.score(forward, network)
            if scores.shape != (len(forward),):
                raise ValueError(f"scores of shape {scores.shape}")  # noqa: TRY301
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


def _packed(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: np.array(array, order="C") for name, array in arrays.items()}
