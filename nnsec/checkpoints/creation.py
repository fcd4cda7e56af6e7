"""Creation: weights and clean data in, a signed checkpoint out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nnsec.adapters.registry import SIGNATURE, Registry
from nnsec.checkpoints import reference, signing, tensors
from nnsec.checkpoints.golden import Golden
from nnsec.checkpoints.loading import Checkpoint, build, with_weights
from nnsec.checkpoints.manifest import (
    DETECTORS,
    GOLDEN,
    MANIFEST,
    SCREENS,
    WEIGHTS,
    InputSpec,
    Manifest,
    Metrics,
    Parent,
)
from nnsec.checkpoints.measuring import (
    calibration_figures,
    check_outputs,
    drift_reference,
    held_out,
    measure,
)
from nnsec.checkpoints.provenance import Provenance
from nnsec.checkpoints.verification import verify_files
from nnsec.errors import ConfigError, Unsafe
from nnsec.network import Network
from nnsec.poisoning import ScreenSuite
from nnsec.settings import ModelTable
from nnsec.splits import Splits
from nnsec.suite import Suite
from nnsec.trust.keys import PrivateKey

STEPS = (
    "building the network", "fitting the detectors", "fitting the screens",
    "measuring accuracy, clean and under attack", "signing, and reading it back",
)  # fmt: skip
"""What `create` tells of, in this order."""


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
    above: int | None = None,
    parent: Parent | None = None,
    provenance: Provenance | None = None,
    reference_provenance: Provenance | None = None,
    metrics: Metrics | None = None,
    splits: Splits | None = None,
    expires: datetime | None = None,
    told: Callable[[str], object] = str,
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
        (n, *shape) clean inputs in the wire dtype; the weights were trained on none of them, or
        only on some of the part ``train`` of ``splits``.
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
    above:
        The newest version known to verify, for the next free one to be the first above it; None
        for the newest with a signature, which may be anybody's.
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
    told:
        Is told each of `STEPS` as it begins.

    Raises
    ------
    ConfigError
        Saying what to change: the architecture, the weights, the data, or the version.
    Unsafe
        If the weights are no safetensors or not finite.
    TransientError
        If the registry is away.
    """
    told(STEPS[0])
    if version is not None:
        registry.check_free(model, version)
    content = _weights(weights)
    module = with_weights(spec, tensors.load_tensors(WEIGHTS, content))
    network = Network(module, spec.input, spec.features, spec.device)
    data = reference.check(
        x, y, input=spec.input, classes=_classes(network, spec), alpha=spec.alpha, splits=splits
    )
    check_outputs(network, data.x)
    parts = splits if splits is not None else Splits.stratified(data.y, seed=seed)
    told(STEPS[1])
    suite = Suite.fit(
        network, data.x, data.y, splits=parts, seed=seed, alpha=spec.alpha, detectors=spec.detectors
    )
    told(STEPS[2])
    screens = ScreenSuite.fit(network, data.x, data.y, splits=parts, seed=seed, alpha=spec.alpha)
    told(STEPS[3])
    held = held_out(parts, seed)
    manifest = Manifest(
        **_made_of(spec, suite, data),
        model=model,
        version=version if version is not None else registry.next_version(model, above),
        parent=parent,
        learned=provenance.learned if provenance else (),
        rows=provenance.rows if provenance else 0,
        rows_root=(provenance or Provenance()).root,
        reference_learned=reference_provenance.learned if reference_provenance else (),
        metrics=metrics or measure(network, data.x[held], data.y[held], seed=seed),
        drift=drift_reference(suite.score(data.x[parts.calibrate]), network.classes),
        seed=seed,
        created=now,
        expires=expires,
    )
    told(STEPS[4])
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

    Parameters
    ----------
    manifest:
        Its ``sizes`` are set to those of the files.
    files:
        Content by file name, without manifest and signature.

    Raises
    ------
    Unsafe
        If what was read back does not do what it did before.
    ConfigError
        If the version exists.
    TransientError
        If the registry is away.
    """
    sizes = {name: len(files[name]) for name in sorted(files)}
    manifest = manifest.model_copy(update={"sizes": sizes})
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


def _made_of(spec: ModelTable, suite: Suite, data: reference.Reference) -> dict[str, Any]:
    """What the configuration, the suite and the clean data give to a manifest."""
    return {
        "architecture": spec.architecture,
        "input": InputSpec(shape=spec.input.shape, dtype=spec.input.dtype, range=spec.input.range),
        "features": spec.features,
        "classes": spec.classes or tuple(map(str, range(suite.network.classes))),
        "reference_rows": len(data.x),
        "reference_digest": data.digest(),
        "detectors": suite.names,
        "calibration": calibration_figures(suite),
    }


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
