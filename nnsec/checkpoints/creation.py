"""Creation: weights and clean data in, a signed checkpoint out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnsec import attacks
from nnsec.adapters.registry import SIGNATURE, Registry
from nnsec.bets import LEVELS
from nnsec.checkpoints import reference, signing, tensors
from nnsec.checkpoints.golden import Golden
from nnsec.checkpoints.loading import Checkpoint, build, with_weights
from nnsec.checkpoints.manifest import (
    DETECTORS,
    GOLDEN,
    MANIFEST,
    SCREENS,
    WEIGHTS,
    CalibrationFigures,
    DriftReference,
    InputSpec,
    Manifest,
    Metrics,
    Parent,
)
from nnsec.checkpoints.provenance import Provenance
from nnsec.checkpoints.verification import verify_files
from nnsec.errors import ConfigError, Unsafe
from nnsec.network import Network
from nnsec.poisoning import ScreenSuite
from nnsec.settings import ModelTable
from nnsec.splits import Splits
from nnsec.suite import Scored, Suite
from nnsec.trust.keys import PrivateKey

ATTACK_ROWS = 128
ATTACK_EPSILON = 0.1
ATTACK_STEPS = 10
"""The PGD that a manifest reports on unless the caller measured another."""


@dataclass(frozen=True, slots=True, eq=False)
class Created:
    """A checkpoint that was made, signed, read back and uploaded.

    Parameters
    ----------
    digest:
        SHA-256 of the signed payload, in hex.
    location:
        Where it lies.
    checkpoint:
        What was read back, ready to score.
    """

    manifest: Manifest
    digest: str
    location: str
    checkpoint: Checkpoint

    @property
    def version(self) -> int:
        """The version, as in the manifest."""
        return self.manifest.version


def create(
    registry: Registry,
    *,
    model: str,
    spec: ModelTable,
    weights: bytes | Path | Mapping[str, Tensor],
    x: NDArray[Any],
    y: NDArray[np.integer],
    key: PrivateKey,
    now: datetime,
    seed: int = 0,
    version: int | None = None,
    parent: Parent | None = None,
    provenance: Provenance | None = None,
    reference_provenance: Provenance | None = None,
    metrics: Metrics | None = None,
    splits: Splits | None = None,
    expires: datetime | None = None,
) -> Created:
    """Fit the detectors and screens on clean data, calibrate, sign, read back and upload.

    Parameters
    ----------
    registry:
        Where to.
    model, spec:
        The model's name and configuration.
    weights:
        safetensors, as bytes or as a file, or tensors by name.
    x:
        (n, *shape) clean inputs in the wire dtype, none of which the weights were trained on.
    y:
        (n,) their classes.
    key:
        A release key.
    now:
        Time of creation.
    seed:
        Of all that is drawn.
    version:
        None for the next free one.
    parent:
        What the weights were trained on from.
    provenance:
        Which samples the weights were trained on; None for none that came from a topic.
    reference_provenance:
        Which samples are among x; None for none that came from a topic.
    metrics:
        Figures measured elsewhere; None to measure accuracy, clean and under PGD, here.
    splits:
        Which rows serve for what; None to draw them.
    expires:
        End of its validity; None for no end.

    Raises
    ------
    ConfigError
        Saying what to change: the architecture, the weights, the data, or the version.
    Unsafe
        If the weights are no safetensors or not finite.
    TransientError
        If the registry is away.
    """
    content = _weights(weights)
    module = with_weights(spec, tensors.load_tensors(WEIGHTS, content))
    network = Network(module, spec.input, spec.features, spec.device)
    data = reference.check(
        x, y, input=spec.input, classes=_classes(network, spec), alpha=spec.alpha, splits=splits
    )
    parts = splits if splits is not None else Splits.stratified(data.y, seed=seed)
    suite = Suite.fit(
        network, data.x, data.y, splits=parts, seed=seed, alpha=spec.alpha, detectors=spec.detectors
    )
    screens = ScreenSuite.fit(network, data.x, data.y, splits=parts, seed=seed, alpha=spec.alpha)
    held = np.random.default_rng(seed).permutation(np.concatenate([parts.calibrate, parts.test]))
    calibrated = suite.score(data.x[parts.calibrate])
    manifest = Manifest(
        model=model,
        version=version if version is not None else registry.next_version(model),
        parent=parent,
        architecture=spec.architecture,
        input=InputSpec(shape=spec.input.shape, dtype=spec.input.dtype, range=spec.input.range),
        features=spec.features,
        classes=spec.classes or tuple(map(str, range(network.classes))),
        learned=provenance.learned if provenance else (),
        rows=provenance.rows if provenance else 0,
        rows_root=(provenance or Provenance()).root,
        reference_rows=len(data.x),
        reference_digest=data.digest(),
        reference_learned=reference_provenance.learned if reference_provenance else (),
        detectors=suite.names,
        calibration=_figures(suite),
        metrics=metrics or measure(network, data.x[held], data.y[held], seed=seed),
        drift=_drift(calibrated, network.classes),
        seed=seed,
        created=now,
        expires=expires,
    )
    files = {
        WEIGHTS: content,
        DETECTORS: tensors.dump_arrays(suite.state()),
        SCREENS: tensors.dump_arrays(screens.state()),
        GOLDEN: tensors.dump_arrays(Golden.take(suite, data.x[held], data.y[held]).state()),
    }
    return publish(registry, manifest, files, spec=spec, key=key, now=now)


def publish(
    registry: Registry,
    manifest: Manifest,
    files: Mapping[str, bytes],
    *,
    spec: ModelTable,
    key: PrivateKey,
    now: datetime,
) -> Created:
    """Sign the files with their manifest, read them back as a worker would, and upload them.

    Raises
    ------
    Unsafe
        If what was read back does not do what it did before.
    ConfigError
        If the version exists.
    TransientError
        If the registry is away.
    """
    whole = {**files, MANIFEST: manifest.encode()}
    whole[SIGNATURE] = signing.sign(f"{manifest.model}/{manifest.version}", whole, key)
    verified = verify_files(
        whole, manifest.model, manifest.version, release_keys=(key.public,), now=now
    )
    checkpoint = build(verified, spec)
    found = checkpoint.check_golden()
    if not found.whole:
        raise Unsafe(
            f"{manifest.model}/{manifest.version} does not do after reading what it did before: "
            f"{found.predictions} of {found.n} predictions and {found.scores} scores are the same; "
            "does the architecture draw anything at random when it runs?"
        )
    location = registry.upload(manifest.model, manifest.version, whole)
    return Created(manifest, verified.digest, location, checkpoint)


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


def _weights(weights: bytes | Path | Mapping[str, Tensor]) -> bytes:
    if isinstance(weights, bytes):
        return weights
    if isinstance(weights, Mapping):
        return tensors.dump_tensors(weights)
    try:
        return weights.read_bytes()
    except OSError as error:
        raise ConfigError(f"the weights {weights} cannot be read: {error.strerror}") from error


def _classes(network: Network, spec: ModelTable) -> int:
    if spec.classes and len(spec.classes) != network.classes:
        raise ConfigError(
            f"[models.NAME] classes has {len(spec.classes)} names, and the model gives "
            f"{network.classes} classes; correct one of the two"
        )
    return network.classes


def _figures(suite: Suite) -> CalibrationFigures:
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


def _drift(scored: Scored, classes: int) -> DriftReference:
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
