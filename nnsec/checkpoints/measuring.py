"""The figures of a manifest: accuracy, what the calibration promises, what is usual."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnsec import attacks
from nnsec.bets import LEVELS
from nnsec.checkpoints.manifest import CalibrationFigures, DriftReference, Metrics
from nnsec.errors import ConfigError
from nnsec.network import Network
from nnsec.splits import Index, Splits
from nnsec.suite import Scored, Suite

CHUNK = 4096
ATTACK_ROWS = 128
ATTACK_EPSILON = 0.1
ATTACK_STEPS = 10
"""The PGD that a manifest reports on unless the caller measured another."""


def check_outputs(network: Network, x: NDArray[Any]) -> None:
    """Refuse a model that gives no numbers for clean inputs.

    Raises
    ------
    ConfigError
        Saying for how many.
    """
    bad = 0
    for start in range(0, len(x), CHUNK):
        bad += int((~network.forward(x[start : start + CHUNK]).finite).sum())
    if bad:
        raise ConfigError(
            f"the model gives NaN or infinity for {bad} of {len(x)} reference inputs; correct the "
            "weights, or the scaling: it is given float32 in [0, 1]"
        )


def held_out(splits: Splits, seed: int) -> Index:
    """(n,) rows that the figures are of: no weights and no detectors learned from them."""
    return np.random.default_rng(seed).permutation(np.concatenate([splits.calibrate, splits.test]))


def measure(
    network: Network,
    x: NDArray[Any],
    y: NDArray[np.int64],
    *,
    seed: int,
    epsilon: float = ATTACK_EPSILON,
    steps: int = ATTACK_STEPS,
) -> Metrics:
    """Accuracy on clean inputs, and on the first 128 of them under PGD (L∞).

    Parameters
    ----------
    x:
        (n, *shape) held-out inputs in the wire dtype.
    y:
        (n,) their classes.
    epsilon:
        Share of the input range.
    """
    right = network.forward(x).prediction == y
    rows = min(len(x), ATTACK_ROWS)
    labels = torch.from_numpy(np.ascontiguousarray(y[:rows])).to(network.device)
    attacked = attacks.pgd(
        network.module, network.scale(x[:rows]), labels, epsilon=epsilon, steps=steps, seed=seed
    )
    robust = network.from_scaled(attacked).prediction == y[:rows]
    return Metrics(
        n=len(x),
        clean_accuracy=float(right.mean()),
        robust_accuracy=float(robust.mean()),
        epsilon=epsilon,
        steps=steps,
    )


def calibration_figures(suite: Suite) -> CalibrationFigures:
    """What a suite's calibration promises, as the manifest says it."""
    promise = suite.calibration.describe()
    return CalibrationFigures(
        n=promise.n,
        alpha=promise.alpha,
        smallest_p=promise.smallest_p,
        false_positive_rate=promise.false_positive_rate,
        smallest_attack_share=promise.smallest_attack_share,
        thresholds=tuple(map(float, suite.calibration.thresholds)),
        rates=tuple(map(float, suite.calibration.rates)),
    )


def drift_reference(scored: Scored, classes: int) -> DriftReference:
    """What clean inputs look like to the model.

    Parameters
    ----------
    scored:
        The calibration inputs.
    classes:
        How many the model gives.
    """
    n = len(scored.prediction)
    ordered = np.sort(scored.confidence.astype(np.float64))
    counts = np.bincount(scored.prediction, minlength=classes)
    # The m-th smallest: at most m − 1 of the calibration inputs are strictly under it.
    ranks = {level: max(1, math.ceil(round(level * n, 9))) for level in LEVELS}
    return DriftReference(
        n=n,
        class_rates=tuple(float(count) / n for count in counts),
        confidence=tuple((level, min(1.0, float(ordered[m - 1]))) for level, m in ranks.items()),
    )
