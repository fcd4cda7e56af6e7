"""Disjoint parts of clean data: what is fitted on one is calibrated on another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnsec.errors import ConfigError

PARTS = ("train", "fit", "calibrate", "test")
SMALLEST = 8
"""A part with fewer rows than this is refused."""

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """Row numbers of each part, disjoint.

    Parameters
    ----------
    train:
        What detectors learn from.
    fit:
        What the fusion of their scores learns from.
    calibrate:
        What p-values and thresholds come from; one row a group.
    test:
        Left over, for figures that are reported; one row a group.
    """

    train: Index
    fit: Index
    calibrate: Index
    test: Index

    @classmethod
    def stratified(
        cls,
        y: NDArray[np.integer],
        *,
        seed: int,
        shares: tuple[float, float, float, float] = (0.35, 0.25, 0.4, 0.0),
        groups: NDArray[np.integer] | None = None,
    ) -> Splits:
        """Split so that every class is in every part in its share.

        Parameters
        ----------
        y:
            (n,) classes.
        seed:
            Of the draw.
        shares:
            Of train, fit, calibrate and test; they sum to 1.
        groups:
            (n,) rows of one group, such as changed copies of one image, stay in one part; of each
            group only the first row calibrates or tests, because those must be independent.

        Raises
        ------
        ConfigError
            If a part with a share would have fewer than 8 rows.
        """
        if abs(sum(shares) - 1) > 1e-9 or min(shares) < 0:
            raise ConfigError(f"shares {shares} must be 0 or more and sum to 1")
        owner = np.arange(len(y)) if groups is None else groups
        _, first, group = np.unique(owner, return_index=True, return_inverse=True)
        part = _draw(y[first], np.random.default_rng(seed), np.array(shares))
        rows = [np.flatnonzero(part[group] == k) for k in range(2)]
        rows += [np.sort(first[part == k]) for k in range(2, 4)]
        for name, share, index in zip(PARTS, shares, rows, strict=True):
            if share and len(index) < SMALLEST:
                raise ConfigError(
                    f"the reference data leave {len(index)} inputs to {name}; at least {SMALLEST} "
                    "are needed: give more of them"
                )
        return cls(*(np.asarray(index, np.int64) for index in rows))


def _draw(y: NDArray[np.integer], rng: np.random.Generator, shares: NDArray[np.float64]) -> Index:
    """(n,) the part of each row: rows in class order are dealt out in proportion."""
    part = np.empty(len(y), np.int64)
    shuffled = rng.permutation(len(y))
    order = shuffled[np.argsort(y[shuffled], kind="stable")]
    # Low-discrepancy dealing: every stretch of the order has the parts in about their shares.
    bounds = np.cumsum(shares)
    place = (np.arange(len(y)) * 0.6180339887498949 + rng.random()) % 1.0
    part[order] = np.minimum(np.searchsorted(bounds, place, side="right"), len(shares) - 1)
    return part
