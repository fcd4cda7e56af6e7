"""Fusion: one score from many, by how far they are together from those of clean inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnsec.errors import ConfigError, Unsafe

POWERS = (0.0, 2.0)
"""Powers outside would bound the transformed score, and so hide how extreme an input is."""
LARGEST = 1e12
FIELDS = ("centre", "spread", "power", "mean", "precision")


@dataclass(frozen=True, slots=True, eq=False)
class Fusion:
    """A Mahalanobis distance with shrunk covariance over transformed detector scores.

    It is two-sided: an input that looks cleaner than clean inputs do is as far as one that looks
    worse. Each score is first centred, scaled and made closer to normal by a monotone power
    (Yeo and Johnson 2000), so that one heavy tail does not drown the rest.

    Source of the shrinkage: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional
    covariance matrices", 2004.

    Parameters
    ----------
    centre, spread, power:
        (detectors,) of the transform.
    mean:
        (detectors,) of the transformed scores.
    precision:
        (detectors, detectors) inverse of their shrunk covariance.
    """

    centre: NDArray[np.float64]
    spread: NDArray[np.float64]
    power: NDArray[np.float64]
    mean: NDArray[np.float64]
    precision: NDArray[np.float64]

    @classmethod
    def fit(cls, scores: NDArray[np.float64]) -> Fusion:
        """Learn what the scores of clean inputs look like.

        Parameters
        ----------
        scores:
            (n, detectors) raw scores of the *fit* split, finite.

        Raises
        ------
        ConfigError
            With fewer rows than detectors + 2.
        """
        from sklearn.covariance import ledoit_wolf  # a second that those who fit nothing are spared

        n, columns = scores.shape
        if n < columns + 2:
            raise ConfigError(
                f"{n} inputs are too few to fuse {columns} detectors; at least {columns + 2} are "
                "needed in the fit split: give more reference data"
            )
        centre = np.median(scores, axis=0)
        spread = np.subtract(*np.quantile(scores, [0.75, 0.25], axis=0)) / 1.349
        spread = np.where(spread > 0, spread, np.maximum(scores.std(axis=0), 1e-9))
        power = np.array([_power((scores[:, d] - centre[d]) / spread[d]) for d in range(columns)])
        z = _transform(scores, centre, spread, power)
        covariance, _ = ledoit_wolf(z)
        return cls(centre, spread, power, z.mean(axis=0), np.linalg.inv(covariance))

    def score(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The distance of each row.

        Parameters
        ----------
        scores:
            (batch, detectors) raw scores, finite.

        Returns
        -------
        (batch,) ≥ 0, finite; larger is more suspicious.
        """
        z = _transform(scores, self.centre, self.spread, self.power) - self.mean
        squares = np.einsum("nd,de,ne->n", z, self.precision, z)
        distance: NDArray[np.float64] = np.sqrt(np.maximum(squares, 0.0))
        return distance

    def part(self, columns: NDArray[np.bool_]) -> Fusion:
        """The distance over some detectors: the least that the whole distance can be, given them.

        Parameters
        ----------
        columns:
            (detectors,) which.
        """
        if columns.all():
            return self
        covariance = np.linalg.inv(self.precision)[np.ix_(columns, columns)]
        return Fusion(
            self.centre[columns], self.spread[columns], self.power[columns], self.mean[columns],
            np.linalg.inv(covariance),
        )  # fmt: skip

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it, as arrays."""
        return {name: getattr(self, name) for name in FIELDS}

    @classmethod
    def restore(cls, state: Mapping[str, NDArray[Any]]) -> Fusion:
        """Take back what `state` gave.

        Raises
        ------
        Unsafe
            If it is no fusion.
        """
        missing = [name for name in FIELDS if name not in state]
        if missing:
            raise Unsafe(f"the fusion lacks {missing[0]!r}")
        try:
            arrays = [np.asarray(state[name], np.float64) for name in FIELDS]
        except (ValueError, TypeError) as error:
            raise Unsafe(f"the fusion's arrays are no numbers: {error}") from error
        columns = arrays[0].size
        shapes = [(columns,)] * 4 + [(columns, columns)]
        if [array.shape for array in arrays] != shapes or not all(
            np.isfinite(array).all() for array in arrays
        ):
            raise Unsafe("the fusion's arrays do not fit each other or are not finite")
        return cls(*arrays)


def _power(z: NDArray[np.float64]) -> float:
    """The power that makes clean scores most normal; 1 (none) where they do not vary."""
    from scipy.stats import yeojohnson_normmax  # as above

    if np.ptp(z) == 0:
        return 1.0
    return float(np.clip(yeojohnson_normmax(z), *POWERS))


def _transform(
    scores: NDArray[np.float64],
    centre: NDArray[np.float64],
    spread: NDArray[np.float64],
    power: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Yeo and Johnson's power, written for powers in [0, 2]."""
    z = np.clip((scores - centre) / spread, -LARGEST, LARGEST)
    up, down = np.maximum(z, 0), np.maximum(-z, 0)
    low, high = np.maximum(power, 1e-9), np.maximum(2 - power, 1e-9)
    rising = np.expm1(low * np.log1p(up)) / low
    falling = np.expm1(high * np.log1p(down)) / high
    clipped: NDArray[np.float64] = np.clip(rising - falling, -LARGEST, LARGEST)
    return clipped
