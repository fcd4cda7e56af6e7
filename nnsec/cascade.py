"""The cascade: cheap detectors on every input, costly ones where those leave a doubt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnsec.errors import Unsafe
from nnsec.fusion import Fusion

DOUBT = 0.1
"""Share of clean inputs left in doubt: the highest level of evidence, so that what passes any level
has been through all detectors, but for the draw of the calibration inputs."""
AUDIT = 100
"""One clear input in so many goes through all detectors, to measure what the first stage hides."""
LARGEST = 1e30
"""Stands for a figure that is not finite: the most suspicious there is."""


@dataclass(frozen=True, slots=True, eq=False)
class Cascade:
    """One ordered score from two stages.

    The fused distance d over all detectors is at least the distance d₁ over the cheap ones alone,
    when both come from one covariance: d² = d₁² + what the costly ones add, given the cheap ones.
    So d₁ is what is known of d after the first stage. An input whose d₁ is under the threshold is
    clear, and d₁ is its score; one at or over it is in doubt, and d is. The scores of the two kinds
    do not overlap, and one calibration, of clean inputs through this same rule, covers both.

    Parameters
    ----------
    fusion:
        Over all detectors.
    first:
        Over the cheap ones: `Fusion.part` of the same.
    cheap:
        (detectors,) bool, which are cheap.
    threshold:
        From this d₁ on an input is in doubt; a quantile of inputs that no detector was fitted on.
    key:
        Of the draw of clear inputs that are looked at all the same.
    """

    fusion: Fusion
    first: Fusion
    cheap: NDArray[np.bool_]
    threshold: np.float32
    key: bytes

    @classmethod
    def fit(cls, raw: NDArray[np.float64], cheap: NDArray[np.bool_]) -> Cascade:
        """Learn what clean inputs look like, and from where on one is in doubt.

        Parameters
        ----------
        raw:
            (n, detectors) raw scores of the *fit* split.
        cheap:
            As in the class.

        Raises
        ------
        ConfigError
            As `Fusion.fit`.
        """
        fusion = Fusion.restore(_packed(Fusion.fit(raw).state()))
        first = Fusion.restore(_packed(fusion.part(cheap).state()))
        # Whoever has neither the reference data nor the checkpoint cannot tell who is drawn.
        key = hashlib.blake2b(np.ascontiguousarray(raw).tobytes(), person=b"nnsec.audit").digest()
        found = cls(fusion, first, cheap, np.float32(0), key)
        threshold = np.quantile(found.first_score(raw), 1 - DOUBT, method="higher")
        return cls(fusion, first, cheap, np.float32(threshold), key)

    def first_score(self, raw: NDArray[np.float64]) -> NDArray[np.float32]:
        """(batch,) d₁ of (batch, detectors) raw scores; those of costly detectors are not read."""
        return _fused(self.first, raw[:, self.cheap])

    def doubt(self, first: NDArray[np.float32]) -> NDArray[np.bool_]:
        """(batch,) whether d₁ leaves a doubt."""
        doubtful: NDArray[np.bool_] = first >= self.threshold
        return doubtful

    def drawn(self, x: NDArray[Any]) -> NDArray[np.bool_]:
        """(batch,) whether a clear input is looked at all the same: by a keyed hash of it alone.

        Parameters
        ----------
        x:
            (batch, ...) in the wire dtype.
        """
        if self.cheap.all():
            return np.zeros(len(x), np.bool_)
        bound = (1 << 64) // AUDIT
        rows = np.ascontiguousarray(x).reshape(len(x), -1)
        hashes = b"".join(
            hashlib.blake2b(row.data, key=self.key, digest_size=8).digest() for row in rows
        )
        chosen: NDArray[np.bool_] = np.frombuffer(hashes, "<u8") < bound
        return chosen

    def score(
        self, first: NDArray[np.float32], raw: NDArray[np.float64], through: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """The one score.

        Parameters
        ----------
        first:
            (batch,) d₁.
        raw:
            (batch, detectors) finite; anything where a detector did not run.
        through:
            (batch,) which went through all detectors.

        Returns
        -------
        (batch,) d or d₁, in single precision: what is published is what was compared.
        """
        return np.where(through, np.maximum(first, _fused(self.fusion, raw)), first)

    def state(self) -> dict[str, NDArray[Any]]:
        """All but which are cheap, which the detectors say themselves."""
        arrays: dict[str, NDArray[Any]] = {
            "cascade.threshold": np.array([self.threshold]),
            "cascade.key": np.frombuffer(self.key, np.uint8),
        }
        for prefix, fusion in (("fusion", self.fusion), ("cascade.first", self.first)):
            arrays |= {f"{prefix}.{name}": array for name, array in fusion.state().items()}
        return arrays

    @classmethod
    def restore(cls, state: Mapping[str, NDArray[Any]], cheap: NDArray[np.bool_]) -> Cascade:
        """Take back what `state` gave; of a time before there was a cascade, all are in doubt.

        Raises
        ------
        Unsafe
            If it is no cascade, or of other detectors.
        """
        fusion = Fusion.restore(under(state, "fusion."))
        if len(fusion.mean) != len(cheap):
            raise Unsafe(
                f"the fusion is of {len(fusion.mean)} detectors, and there are {len(cheap)}"
            )
        if not any(name.startswith("cascade.") for name in state):
            return cls(fusion, fusion.part(cheap), cheap, np.float32(-1), b"")
        first = Fusion.restore(under(state, "cascade.first."))
        try:
            (threshold,) = np.asarray(state["cascade.threshold"], np.float32)
            key = np.asarray(state["cascade.key"], np.uint8).tobytes()
        except (KeyError, TypeError, ValueError) as error:
            raise Unsafe(f"the cascade is incomplete: {error!r}") from error
        if len(first.mean) != cheap.sum() or not np.isfinite(threshold) or len(key) > 64:
            raise Unsafe("the cascade is of other detectors, or its threshold is none")
        return cls(fusion, first, cheap, threshold, key)


def under(state: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """The arrays whose names begin with ``prefix``, by the rest of their names."""
    return {
        name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)
    }


def _packed(state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """As a checkpoint gives arrays back: their order in memory moves last digits."""
    return {name: np.array(array, order="C") for name, array in state.items()}


def _fused(fusion: Fusion, raw: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.minimum(fusion.score(raw), LARGEST).astype(np.float32)
